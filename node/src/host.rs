//! What the host is and has. Parsing is pure; [`Facts::read`] reads the files.

use std::{collections::BTreeMap, path::Path, time::Duration};

use jiff::Timestamp;
use ketch_api::{
    k8s::{
        api::core::v1 as core,
        apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::Time},
    },
    names,
};
use ketch_runtime::disk::Disk;

/// Memory kept from pods for the node itself.
const RESERVED_MEMORY: u64 = 100 << 20;
/// Below this much free memory (bytes, or a tenth of what there is) or process ids (share) the node is under
/// pressure.
const LOW_MEMORY: u64 = 100 << 20;
const LOW_PIDS: f64 = 0.10;

/// What the host is and has, at one time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    cpus: usize,
    memory: u64,
    memory_free: u64,
    disk: Disk,
    /// Where images are, when that is another file system.
    image_disk: Disk,
    pids: u64,
    pids_used: u64,
    /// Processor time used since the start.
    cpu_used: Duration,
    load: f64,
    kernel: String,
    os: String,
    machine_id: String,
    system_uuid: String,
    boot_id: String,
}

impl Facts {
    /// Reads the host's facts; `root` is where pods' files are, `images` where images are, when that may be
    /// elsewhere. What cannot be read stays empty.
    pub(crate) fn read(root: &Path, images: Option<&Path>) -> Self {
        let text =
            |path: &str| std::fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
        let meminfo = text("/proc/meminfo");
        let machine_id = text("/etc/machine-id");
        let uuid = text("/sys/class/dmi/id/product_uuid");
        Self {
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory: memory_field(&meminfo, "MemTotal").unwrap_or(0),
            memory_free: memory_field(&meminfo, "MemAvailable").unwrap_or(0),
            disk: Disk::of(root),
            image_disk: images.map(Disk::of).unwrap_or_default(),
            pids: text("/proc/sys/kernel/pid_max").parse().unwrap_or(0),
            load: text("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0),
            cpu_used: cpu_used(&text("/proc/stat")).unwrap_or_default(),
            pids_used: running_tasks(&text("/proc/loadavg")).unwrap_or(0),
            kernel: text("/proc/sys/kernel/osrelease"),
            os: pretty_name(&text("/etc/os-release")).unwrap_or_else(|| "Linux".to_owned()),
            system_uuid: if uuid.is_empty() { machine_id.clone() } else { uuid },
            machine_id,
            boot_id: text("/proc/sys/kernel/random/boot_id"),
        }
    }

    /// The node's part of the statistics.
    pub(crate) fn stats(&self, name: &str, time: &str) -> serde_json::Value {
        let used = self.memory.saturating_sub(self.memory_free);
        serde_json::json!({
            "nodeName": name,
            "cpu": { "time": time, "usageNanoCores": self.cpu_rate(),
                "usageCoreNanoSeconds": u64::try_from(self.cpu_used.as_nanos()).unwrap_or(u64::MAX) },
            "memory": { "time": time, "availableBytes": self.memory_free, "usageBytes": used, "workingSetBytes": used },
            "fs": { "time": time, "availableBytes": self.disk.free, "capacityBytes": self.disk.size,
                "usedBytes": self.disk.size.saturating_sub(self.disk.free) },
            "rlimit": { "time": time, "maxpid": self.pids, "curproc": self.pids_used },
        })
    }

    /// Billionths of a core in use, from the load average of the last minute: no second look needed.
    fn cpu_rate(&self) -> u64 {
        (self.load.min(self.cpus as f64) * 1e9) as u64
    }

    /// CPUs and bytes of memory.
    pub(crate) fn totals(&self) -> (i64, i64) {
        (i64::try_from(self.cpus).unwrap_or(i64::MAX), i64::try_from(self.memory).unwrap_or(i64::MAX))
    }

    /// All there is.
    pub(crate) fn capacity(&self, pods: u32) -> BTreeMap<String, Quantity> {
        self.resources(pods, self.memory)
    }

    /// What pods may have of it.
    pub(crate) fn allocatable(&self, pods: u32) -> BTreeMap<String, Quantity> {
        // A small host keeps less for itself than it gives.
        self.resources(pods, self.memory - RESERVED_MEMORY.min(self.memory / 4))
    }

    fn resources(&self, pods: u32, memory: u64) -> BTreeMap<String, Quantity> {
        BTreeMap::from([
            ("cpu".to_owned(), Quantity(self.cpus.to_string())),
            ("memory".to_owned(), Quantity(format!("{}Ki", memory >> 10))),
            ("ephemeral-storage".to_owned(), Quantity(format!("{}Ki", self.disk.size >> 10))),
            ("pods".to_owned(), Quantity(pods.to_string())),
        ])
    }

    /// Versions and identities.
    pub(crate) fn node_info(&self, runtime: String) -> core::NodeSystemInfo {
        let version = format!("{}+ketch.{}", names::KUBERNETES_VERSION, env!("CARGO_PKG_VERSION"));
        core::NodeSystemInfo {
            architecture: architecture().to_owned(),
            boot_id: self.boot_id.clone(),
            container_runtime_version: runtime,
            kernel_version: self.kernel.clone(),
            kube_proxy_version: version.clone(),
            kubelet_version: version,
            machine_id: self.machine_id.clone(),
            operating_system: "linux".to_owned(),
            os_image: self.os.clone(),
            system_uuid: self.system_uuid.clone(),
            swap: None,
        }
    }

    /// The node's conditions, without times.
    pub(crate) fn conditions(&self) -> Vec<core::NodeCondition> {
        let share = |free: u64, all: u64| if all == 0 { 1.0 } else { free as f64 / all as f64 };
        let low_memory = self.memory > 0 && self.memory_free < LOW_MEMORY.min(self.memory / 10);
        let low_disk = self.disk.is_low() || self.image_disk.is_low();
        let low_pids = share(self.pids.saturating_sub(self.pids_used), self.pids) < LOW_PIDS;
        vec![
            pressure(
                "MemoryPressure",
                low_memory,
                "KubeletHasInsufficientMemory",
                "KubeletHasSufficientMemory",
                "memory available",
            ),
            pressure(
                "DiskPressure",
                low_disk,
                "KubeletHasDiskPressure",
                "KubeletHasNoDiskPressure",
                "disk pressure",
            ),
            pressure(
                "PIDPressure",
                low_pids,
                "KubeletHasInsufficientPID",
                "KubeletHasSufficientPID",
                "PID available",
            ),
            condition("Ready", true, "KubeletReady", "kubelet is posting ready status"),
        ]
    }
}

fn pressure(type_: &str, low: bool, bad: &str, good: &str, noun: &str) -> core::NodeCondition {
    let message = match (type_, low) {
        ("DiskPressure", true) => format!("kubelet has {noun}"),
        ("DiskPressure", false) => format!("kubelet has no {noun}"),
        (_, true) => format!("kubelet has insufficient {noun}"),
        (_, false) => format!("kubelet has sufficient {noun}"),
    };
    condition(type_, low, if low { bad } else { good }, &message)
}

/// Why pods of one kind cannot run at present.
pub(crate) struct Missing {
    /// One word.
    pub(crate) reason: &'static str,
    /// What is missing, and what to do.
    pub(crate) text: String,
}

/// Whether pods of both kinds can run, and what is limited about it. Informative: nothing schedules by it.
pub(crate) fn runtimes(
    missing: Option<&Missing>,
    versions: &[String],
    limitations: &[String],
) -> core::NodeCondition {
    let missing_text = missing.map(|missing| missing.text.as_str());
    let what: Vec<&str> = missing_text.into_iter().chain(limitations.iter().map(String::as_str)).collect();
    let type_ = format!("{}/Containers", names::DOMAIN);
    match missing {
        Some(missing) => condition(&type_, false, missing.reason, &what.join("; ")),
        None if what.is_empty() => condition(&type_, true, "RuntimesReady", &versions.join(", ")),
        None => condition(&type_, true, "RuntimesLimited", &what.join("; ")),
    }
}

fn condition(type_: &str, holds: bool, reason: &str, message: &str) -> core::NodeCondition {
    core::NodeCondition {
        type_: type_.to_owned(),
        status: if holds { "True" } else { "False" }.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_heartbeat_time: None,
        last_transition_time: None,
    }
}

/// Gives conditions their times: a transition keeps its time while the status stays.
pub(crate) fn stamp(
    conditions: &[core::NodeCondition],
    before: &[core::NodeCondition],
    now: Timestamp,
) -> Vec<core::NodeCondition> {
    let ours: Vec<core::NodeCondition> = (conditions.iter())
        .map(|one| {
            let same = before.iter().find(|old| old.type_ == one.type_ && old.status == one.status);
            let since = same.and_then(|old| old.last_transition_time.clone());
            core::NodeCondition {
                last_heartbeat_time: Some(Time(now)),
                last_transition_time: since.or(Some(Time(now))),
                ..one.clone()
            }
        })
        .collect();
    let foreign = before.iter().filter(|old| !conditions.iter().any(|one| one.type_ == old.type_));
    ours.iter().chain(foreign).cloned().collect()
}

/// Go's name for the processor.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// `repository@digest` for a reference.
pub(crate) fn with_digest(reference: &str, digest: &str) -> String {
    let base = reference.split('@').next().unwrap_or(reference);
    let slash = base.rfind('/').map_or(0, |at| at + 1);
    let tag = base.rfind(':').filter(|at| *at > slash);
    format!("{}@{digest}", tag.and_then(|at| base.get(..at)).unwrap_or(base))
}

/// A field of `/proc/meminfo` in bytes.
fn memory_field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// Time in which processors were not idle, from `/proc/stat`, which counts in hundredths of a second
/// (`USER_HZ`, see proc(5)).
fn cpu_used(text: &str) -> Option<Duration> {
    let fields = text.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = fields.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal; the rest is part of user and nice.
    let used = [0, 1, 2, 5, 6, 7].iter().filter_map(|index| ticks.get(*index)).sum::<u64>();
    Some(Duration::from_millis(used * 10))
}

/// Tasks that exist, from `/proc/loadavg`'s fourth field.
fn running_tasks(text: &str) -> Option<u64> {
    text.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()
}

fn pretty_name(text: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(value.trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_read() {
        assert_eq!(
            memory_field("MemTotal:        8054436 kB\nMemAvailable:  12 kB", "MemAvailable"),
            Some(12 << 10)
        );
        let stat = "cpu  100 10 50 9000 300 5 3 2 70 0\ncpu0 1 2 3 4 5 6 7 8 9 0";
        assert_eq!(cpu_used(stat), Some(Duration::from_millis(1_700)));
        assert_eq!(running_tasks("0.20 0.18 0.12 1/80 11206"), Some(80));
        assert_eq!(
            pretty_name("NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12\""),
            Some("Debian GNU/Linux 12".to_owned())
        );
    }

    #[test]
    fn references_get_their_digest() {
        for (reference, expected) in [
            ("ketch.local/default/web:1", "ketch.local/default/web@sha256:a"),
            ("localhost:5000/web", "localhost:5000/web@sha256:a"),
            ("web@sha256:b", "web@sha256:a"),
        ] {
            assert_eq!(with_digest(reference, "sha256:a"), expected);
        }
    }

    #[test]
    fn a_small_host_under_pressure_says_so() {
        let facts = Facts { memory: 1 << 30, memory_free: 1 << 20, ..Facts::default() };
        let pressed: Vec<String> =
            facts.conditions().into_iter().filter(|c| c.status == "True").map(|c| c.type_).collect();
        assert_eq!(pressed, ["MemoryPressure", "Ready"]);
    }

    #[test]
    fn transitions_keep_their_time() {
        let first = stamp(&[condition("Ready", true, "r", "m")], &[], Timestamp::UNIX_EPOCH);
        let later = Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_secs(60);
        let second = stamp(&[condition("Ready", true, "r", "m")], &first, later);
        assert_eq!(second[0].last_transition_time, Some(Time(Timestamp::UNIX_EPOCH)));
        assert_eq!(second[0].last_heartbeat_time, Some(Time(later)));
    }
}
