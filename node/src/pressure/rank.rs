//! Which pod has to end when a disk runs full. Pure; order and words are the kubelet's (`rankDiskPressureFunc` and
//! `evictionMessage` of its eviction package).

use ketch_api::{k8s::api::core::v1 as core, quantity::Quantity};
use ketch_runtime::disk::Disk;

/// Of what a disk has too little.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lack {
    Bytes,
    Files,
}

/// What somebody takes of a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) bytes: u64,
    /// Files, directories and links.
    pub(crate) files: u64,
}

/// A pod that could end.
pub(super) struct Candidate<'a> {
    pub(super) pod: &'a core::Pod,
    /// Of all its volumes and logs together.
    pub(super) shared: Share,
    /// Of its containers' own files, by name.
    pub(super) containers: Vec<(String, Share)>,
}

/// Who takes less than this part of what has to be free is not worth ending.
const LEAST: u64 = 64;
/// Who has more files than these always is: no more are counted for long.
const MANY_FILES: u64 = 1 << 18;

/// Pods from here on keep the cluster going (`SystemCriticalPriority`).
const CRITICAL: i32 = 2_000_000_000;

// === impl Lack ===

impl Lack {
    pub(super) fn of(disk: &Disk) -> Option<Self> {
        match (disk.is_low(), disk.lacks_files()) {
            (_, true) => Some(Self::Files),
            (true, false) => Some(Self::Bytes),
            (false, false) => None,
        }
    }

    fn amount(self, share: Share) -> u64 {
        match self {
            Self::Bytes => share.bytes,
            Self::Files => share.files,
        }
    }

    /// How much has to be free, and how much is.
    fn state(self, disk: &Disk) -> (u64, u64) {
        match self {
            Self::Bytes => (disk.reserve(), disk.free),
            Self::Files => (disk.reserved_files(), disk.free_files),
        }
    }

    pub(super) fn resource(self) -> &'static str {
        match self {
            Self::Bytes => "ephemeral-storage",
            Self::Files => "inodes",
        }
    }

    fn quantity(self, amount: u64) -> String {
        match self {
            Self::Bytes => format!("{}Ki", amount >> 10),
            Self::Files => amount.to_string(),
        }
    }
}

/// The place of the pod that ends first: one that takes more than it has asked for, of those the least important,
/// of those the one that takes the most. `None`: ending one would not help.
pub(super) fn first(candidates: &[Candidate<'_>], lack: Lack, disk: &Disk) -> Option<usize> {
    let least = (lack.state(disk).0 / LEAST).max(1);
    let least = if lack == Lack::Files { least.min(MANY_FILES) } else { least };
    let rank = |one: &Candidate<'_>| {
        let (used, asked) = (one.used(lack), one.asked(lack));
        (used > asked, std::cmp::Reverse(priority(one.pod)), used.saturating_sub(asked), used)
    };
    let able = candidates.iter().enumerate();
    let able = able.filter(|(_, one)| priority(one.pod) < CRITICAL && one.used(lack) >= least);
    able.max_by_key(|(_, one)| rank(one)).map(|(place, _)| place)
}

/// What to say of it.
pub(super) fn message(candidate: &Candidate<'_>, lack: Lack, disk: &Disk) -> String {
    let ((threshold, free), resource) = (lack.state(disk), lack.resource());
    let mut text = format!(
        "The node was low on resource: {resource}. Threshold quantity: {}, available: {}. ",
        lack.quantity(threshold),
        lack.quantity(free)
    );
    for (name, share) in &candidate.containers {
        let (used, asked) = (lack.amount(*share), candidate.asked_by(name, lack));
        if used > asked {
            text += &format!(
                "Container {name} was using {}, request is {}, has larger consumption of {resource}. ",
                lack.quantity(used),
                if asked == 0 { "0".to_owned() } else { lack.quantity(asked) }
            );
        }
    }
    text
}

impl Candidate<'_> {
    fn used(&self, lack: Lack) -> u64 {
        let own = self.containers.iter().map(|(_, share)| lack.amount(*share));
        own.fold(lack.amount(self.shared), u64::saturating_add)
    }

    fn asked(&self, lack: Lack) -> u64 {
        let names = self.pod.spec.iter().flat_map(|spec| &spec.containers).map(|one| one.name.as_str());
        names.fold(0, |sum, name| sum.saturating_add(self.asked_by(name, lack)))
    }

    /// Files cannot be asked for.
    fn asked_by(&self, container: &str, lack: Lack) -> u64 {
        let found = self.pod.spec.iter().flat_map(|spec| &spec.containers).find(|one| one.name == container);
        let request =
            || found?.resources.as_ref()?.requests.as_ref()?.get("ephemeral-storage")?.0.parse().ok();
        let request: Option<Quantity> = if lack == Lack::Bytes { request() } else { None };
        request.and_then(|quantity| u64::try_from(quantity.value()).ok()).unwrap_or(0)
    }
}

fn priority(pod: &core::Pod) -> i32 {
    pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn pod(request: Option<&str>, priority: i32) -> core::Pod {
        let resources = request.map(|text| json!({"requests": {"ephemeral-storage": text}}));
        serde_json::from_value(json!({"spec": {"priority": priority,
            "containers": [{"name": "main", "resources": resources}]}}))
        .unwrap()
    }

    #[test]
    fn who_takes_more_than_it_asked_for_ends_first() {
        // A reserve of 100 MiB, of which 4 are left.
        let disk = Disk { size: 1000 * MIB, free: 4 * MIB, files: 10_000, free_files: 5_000 };
        let lack = Lack::of(&disk).unwrap();
        assert_eq!(lack, Lack::Bytes);
        for (pods, expected) in [
            (vec![(None, 0, 10, 0), (None, 0, 20, 0), (None, 0, 0, 15)], Some(1)),
            // Volumes count.
            (vec![(None, 0, 10, 0), (None, 0, 5, 15)], Some(1)),
            // Within its request, though the largest.
            (vec![(Some("200Mi"), 0, 150, 0), (None, 0, 20, 0)], Some(1)),
            (vec![(Some("200Mi"), 0, 150, 0)], Some(0)),
            // Less important ones first.
            (vec![(None, 10, 90, 0), (None, 5, 20, 0)], Some(1)),
            // Nobody whose end would free next to nothing, and nobody whom the cluster needs.
            (vec![(None, 0, 1, 0), (None, CRITICAL, 500, 0)], None),
            (vec![], None),
        ] {
            let objects: Vec<core::Pod> = pods.iter().map(|(ask, rank, ..)| pod(*ask, *rank)).collect();
            let share = |mib: u64| Share { bytes: mib * MIB, files: 0 };
            let candidate = |(pod, (_, _, own, shared)): (_, &(_, _, u64, u64))| Candidate {
                pod,
                shared: share(*shared),
                containers: vec![("main".to_owned(), share(*own))],
            };
            let candidates: Vec<_> = objects.iter().zip(&pods).map(candidate).collect();
            assert_eq!(first(&candidates, lack, &disk), expected, "{pods:?}");
        }
    }

    #[test]
    fn it_is_said_what_lacks_and_who_takes_it() {
        let object = pod(Some("1Mi"), 0);
        let candidate = |share: Share| Candidate {
            pod: &object,
            shared: Share::default(),
            containers: vec![("main".to_owned(), share)],
        };
        let disk = Disk { size: 1000 * MIB, free: 4 * MIB, files: 10_000, free_files: 5_000 };
        assert_eq!(
            message(&candidate(Share { bytes: 30 * MIB, files: 0 }), Lack::Bytes, &disk),
            "The node was low on resource: ephemeral-storage. Threshold quantity: 102400Ki, available: 4096Ki. \
             Container main was using 30720Ki, request is 1024Ki, has larger consumption of ephemeral-storage. "
        );
        let disk = Disk { free: 900 * MIB, free_files: 3, ..disk };
        let many = candidate(Share { bytes: 0, files: 9_000 });
        assert_eq!((Lack::of(&disk), first(&[many], Lack::Files, &disk)), (Some(Lack::Files), Some(0)));
        assert_eq!(
            message(&candidate(Share { bytes: 0, files: 9_000 }), Lack::Files, &disk),
            "The node was low on resource: inodes. Threshold quantity: 500, available: 3. \
             Container main was using 9000, request is 0, has larger consumption of inodes. "
        );
        assert_eq!(Lack::of(&Disk { free_files: 5_000, ..disk }), None);
    }
}
