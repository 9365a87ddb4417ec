//! How much history is kept, and the driver that forgets the rest.

use crate::{Revision, Storage};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Decides what history may be forgotten. Pure: the caller brings the time and the revision.
#[derive(Debug)]
pub struct Retention {
    age: Duration,
    revisions: u64,
    /// When which revision was the newest, oldest first.
    samples: VecDeque<(Instant, Revision)>,
}

impl Retention {
    /// Keeps what is younger than `age`, and the last `revisions` writes however old.
    pub fn new(age: Duration, revisions: u64) -> Self {
        Retention { age, revisions, samples: VecDeque::new() }
    }

    /// Notes that `current` is the newest revision at `now`, and returns the revision to compact to, if any
    /// history is due. Only time seen by this value counts: after a restart nothing is due for `age`.
    pub fn compaction_target(&mut self, now: Instant, current: Revision) -> Option<Revision> {
        if self.samples.back().is_none_or(|(_, newest)| *newest < current) {
            self.samples.push_back((now, current));
        }
        let due = self.samples.partition_point(|(at, _)| now.saturating_duration_since(*at) >= self.age);
        let (_, aged) = self.samples.get(due.checked_sub(1)?).copied()?;
        let target = aged.min(current.saturating_sub(self.revisions));
        self.samples.drain(..due - 1);
        (target > 0).then_some(target)
    }
}

impl Default for Retention {
    /// Five minutes and 1,000 revisions: what clients that relist rarely can rely on.
    fn default() -> Self {
        Retention::new(Duration::from_secs(300), 1_000)
    }
}

/// Compacts `storage` by `retention`, looking every `interval`. Runs until dropped; a failed compaction is
/// logged and tried again.
pub async fn keep_compacted(storage: Arc<dyn Storage>, mut retention: Retention, interval: Duration) {
    let mut done = 0;
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Ok(current) = storage.revision().await else { continue };
        let now = tokio::time::Instant::now().into_std();
        let Some(target) = retention.compaction_target(now, current).filter(|target| *target > done) else {
            continue;
        };
        match storage.compact(target).await {
            Ok(()) => done = target,
            Err(error) => {
                tracing::warn!(%error, target, "compaction of the store failed, will be tried again")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_age_and_count() {
        let mut retention = Retention::new(Duration::from_secs(300), 1_000);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(retention.compaction_target(at(0), 5_000), None, "nothing is old enough");
        assert_eq!(retention.compaction_target(at(60), 5_500), None);
        assert_eq!(retention.compaction_target(at(299), 6_000), None);
        assert_eq!(retention.compaction_target(at(300), 6_000), Some(5_000));
        assert_eq!(retention.compaction_target(at(360), 6_000), Some(5_000), "the last 1,000 are kept");
        assert_eq!(retention.compaction_target(at(1_000), 6_000), Some(5_000));
    }

    #[test]
    fn a_small_store_is_left_alone() {
        let mut retention = Retention::default();
        let start = Instant::now();
        retention.compaction_target(start, 900);
        assert_eq!(retention.compaction_target(start + Duration::from_secs(3_600), 1_000), None);
    }
}
