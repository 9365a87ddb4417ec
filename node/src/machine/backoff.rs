//! Exponential back-off with the kubelet's figures.

use std::time::Duration;

use jiff::Timestamp;

/// First delay after a failure.
const FIRST: Duration = Duration::from_secs(10);
/// Longest delay.
const LONGEST: Duration = Duration::from_secs(300);

/// Delay before the next try: 10 s, doubling to 5 min, forgotten after 10 min without use (the kubelet's
/// `flowcontrol.Backoff` with its container and image settings).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    entry: Option<(Duration, Timestamp)>,
}

impl Backoff {
    /// Notes a try at `now`; the next one waits longer.
    pub fn advance(&mut self, now: Timestamp) {
        let delay = match self.entry {
            Some((delay, updated)) if !expired(updated, now) => (delay * 2).min(LONGEST),
            _ => FIRST,
        };
        self.entry = Some((delay, now));
    }

    /// When the next try may be made after something that ended at `ended`; `None`: at once.
    pub fn until(&self, ended: Timestamp) -> Option<Timestamp> {
        let (delay, updated) = self.entry?;
        if expired(updated, ended) { None } else { ended.checked_add(delay).ok() }
    }

    /// The current delay.
    pub fn delay(&self) -> Duration {
        self.entry.map_or(Duration::ZERO, |(delay, _)| delay)
    }
}

fn expired(updated: Timestamp, now: Timestamp) -> bool {
    now.duration_since(updated).unsigned_abs() > LONGEST * 2
}
