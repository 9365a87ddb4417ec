//! Which images go when the disk is full. Pure.
//!
//! Thresholds and order are the kubelet's (`pkg/kubelet/images/image_gc_manager.go`): above the high mark of use,
//! images that no pod names go, the one unused longest first, until the low mark is reached.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

/// Percent of the disk in use.
const HIGH: u64 = 85;
const LOW: u64 = 80;
/// An image that came less than this long ago stays.
const MIN_AGE: Duration = Duration::from_secs(120);

/// An image on this machine, by all names it was pulled under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Present {
    /// Of the manifest.
    pub(crate) digest: String,
    /// References.
    pub(crate) names: Vec<String>,
    /// Bytes, compressed, as manifests say.
    pub(crate) size: u64,
}

/// When images were first seen and last used, since the agent started.
#[derive(Debug, Default)]
pub(crate) struct Usage(BTreeMap<String, (Instant, Instant)>);

/// What to do.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Bytes to be freed; 0: the disk is not full.
    pub(crate) wanted: u64,
    /// Images to remove.
    pub(crate) remove: Vec<Present>,
    /// Bytes these have.
    pub(crate) found: u64,
}

impl Usage {
    /// Takes in what is there and what pods name now, then decides. `disk` is what there is and what is free.
    pub(crate) fn plan(
        &mut self,
        present: &[Present],
        in_use: &BTreeSet<String>,
        disk: (u64, u64),
        now: Instant,
    ) -> Plan {
        self.0.retain(|digest, _| present.iter().any(|image| image.digest == *digest));
        for image in present {
            let seen = self.0.entry(image.digest.clone()).or_insert((now, now));
            if in_use.contains(&image.digest) {
                seen.1 = now;
            }
        }
        let mut plan = Plan { wanted: wanted(disk), ..Plan::default() };
        let times = |image: &&Present| self.0.get(&image.digest).copied().unwrap_or((now, now));
        let mut free: Vec<&Present> =
            present.iter().filter(|image| !in_use.contains(&image.digest)).collect();
        free.sort_by_key(|image| {
            let (first, last) = times(image);
            (last, first, image.digest.clone())
        });
        for image in free {
            if plan.found >= plan.wanted {
                break;
            }
            if now.duration_since(times(&image).0) >= MIN_AGE {
                plan.found += image.size;
                plan.remove.push(image.clone());
            }
        }
        plan
    }
}

/// Bytes to be freed of a disk.
fn wanted((all, free): (u64, u64)) -> u64 {
    let used = all.saturating_sub(free);
    match all > 0 && used.saturating_mul(100) >= all.saturating_mul(HIGH) {
        true => (all / 100).saturating_mul(100 - LOW).saturating_sub(free),
        false => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(digest: &str, size: u64) -> Present {
        Present { digest: digest.into(), names: vec![format!("{digest}:1")], size }
    }

    fn removed(plan: &Plan) -> Vec<&str> {
        plan.remove.iter().map(|image| image.digest.as_str()).collect()
    }

    #[test]
    fn nothing_goes_below_the_high_mark() {
        for (disk, expected) in
            [((1000, 200), 0), ((1000, 151), 0), ((1000, 150), 50), ((1000, 0), 200), ((0, 0), 0)]
        {
            assert_eq!(wanted(disk), expected, "{disk:?}");
        }
    }

    #[test]
    fn the_image_unused_longest_goes_first_and_no_more_than_needed() {
        let (mut usage, start) = (Usage::default(), Instant::now());
        let images = [image("a", 30), image("b", 30), image("c", 30), image("d", 30)];
        let uses = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<String>>();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let (room, full) = ((1000, 500), (1000, 150));
        assert_eq!(usage.plan(&images[..3], &uses(&["a", "b", "c"]), room, at(0)), Plan::default());
        usage.plan(&images[..3], &uses(&["a", "c"]), room, at(60));
        usage.plan(&images, &uses(&["c"]), room, at(120));
        // b was used until 0, a until 60, d came at 120, c is in use.
        let plan = usage.plan(&images, &uses(&["c"]), full, at(180));
        assert_eq!((removed(&plan), plan.wanted, plan.found), (vec!["b", "a"], 50, 60));
        let less = usage.plan(&images, &uses(&["c"]), (1000, 180), at(180));
        assert_eq!(removed(&less), [""; 0]);
        let all = usage.plan(&images, &uses(&["c"]), (1000, 0), at(180));
        assert_eq!((removed(&all), all.found), (vec!["b", "a"], 60), "d is too young, c is in use");
        let late = usage.plan(&images, &uses(&[]), (1000, 0), at(300));
        assert_eq!(removed(&late), ["b", "a", "d", "c"]);
    }
}
