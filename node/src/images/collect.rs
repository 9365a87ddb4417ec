//! Which images go when the disk is full. Pure.
//!
//! Thresholds and order are the kubelet's (`pkg/kubelet/images/image_gc_manager.go`): above the high mark of use,
//! images that no pod names go, the one unused longest first, until the low mark is reached. Sizes are not added up:
//! manifests say what is compressed, and images share layers. The disk is looked at after each.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use ketch_runtime::disk::Disk;

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

impl Usage {
    /// Takes in what is there and what pods name now; what may go, the first one first. `urgent`: there was no room
    /// for an image that is wanted, so age does not matter.
    pub(crate) fn removable(
        &mut self,
        present: &[Present],
        in_use: &BTreeSet<String>,
        urgent: bool,
        now: Instant,
    ) -> Vec<Present> {
        self.0.retain(|digest, _| present.iter().any(|image| image.digest == *digest));
        for image in present {
            let seen = self.0.entry(image.digest.clone()).or_insert((now, now));
            if in_use.contains(&image.digest) {
                seen.1 = now;
            }
        }
        let times = |image: &&Present| self.0.get(&image.digest).copied().unwrap_or((now, now));
        let old = |image: &&Present| urgent || now.duration_since(times(image).0) >= MIN_AGE;
        let unused = present.iter().filter(|image| !in_use.contains(&image.digest)).filter(old);
        let mut unused: Vec<&Present> = unused.collect();
        unused.sort_by_key(|image| {
            let (first, last) = times(image);
            (last, first, image.digest.clone())
        });
        unused.into_iter().cloned().collect()
    }
}

/// Whether a disk is so full that images go.
pub(crate) fn is_full(disk: &Disk) -> bool {
    disk.used_percent() >= HIGH || disk.is_low()
}

/// Bytes that are to be free. `None`: as it is will do. After a pull that found no room that is a tenth of the disk
/// more than now: how much it takes nobody knows, and the next try asks again.
pub(crate) fn goal(disk: &Disk, urgent: bool) -> Option<u64> {
    let part = |percent: u64| (disk.size / 100).saturating_mul(percent);
    match urgent {
        true => Some(disk.free.saturating_add(part(10)).max(part(100 - LOW))),
        false => is_full(disk).then(|| part(100 - LOW)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(digest: &str) -> Present {
        Present { digest: digest.into(), names: vec![format!("{digest}:1")], size: 30 }
    }

    #[test]
    fn nothing_goes_below_the_high_mark() {
        let disk = |size: u64, free: u64| Disk { size, free, ..Disk::default() };
        for (disk, expected) in [
            (disk(1000, 200), None),
            (disk(1000, 151), None),
            (disk(1000, 150), Some(200)),
            (disk(1000, 0), Some(200)),
            (Disk::default(), None),
            (Disk { files: 1000, free_files: 40, ..disk(1000, 500) }, Some(200)),
        ] {
            assert_eq!(goal(&disk, false), expected, "{disk:?}");
        }
        assert_eq!(goal(&disk(1000, 90), true), Some(200));
        assert_eq!(goal(&disk(1000, 300), true), Some(400), "what found no room here takes more than 300");
    }

    #[test]
    fn the_image_unused_longest_goes_first() {
        let (mut usage, start) = (Usage::default(), Instant::now());
        let images = ["a", "b", "c", "d"].map(image);
        let uses = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<String>>();
        let mut removable = |images: &[Present], used: &[&str], urgent: bool, seconds: u64| {
            let now = start + Duration::from_secs(seconds);
            let all = usage.removable(images, &uses(used), urgent, now);
            all.into_iter().map(|image| image.digest).collect::<Vec<_>>().concat()
        };
        assert_eq!(removable(&images[..3], &["a", "b", "c"], false, 0), "");
        assert_eq!(removable(&images[..3], &["a", "c"], false, 60), "", "b is too young");
        removable(&images, &["c"], false, 120);
        // b was used until 0, a until 60, d came at 120, c is in use.
        assert_eq!(removable(&images, &["c"], false, 180), "ba");
        assert_eq!(removable(&images, &["c"], true, 180), "bad");
        assert_eq!(removable(&images, &[], false, 300), "badc");
    }
}
