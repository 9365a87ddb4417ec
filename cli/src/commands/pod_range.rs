//! Which pod addresses this node uses, when several Ketches run on one machine.
//!
//! Pods of one machine share its network, so two processes must not give out the same address. Each claims
//! a slice of the cluster's range by binding an abstract Unix socket named after it: the kernel releases it
//! when the process ends, however it ends. A node keeps its slice over restarts when it can.

use std::{
    fs,
    net::IpAddr,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
    path::Path,
};

use anyhow::{Context, Result, bail};
use ketch_node::Cidr;

/// Length of a slice: 8,190 pods.
const SLICE: u8 = 19;

/// A slice that no other process on this machine uses, as long as this value lives.
pub(crate) struct PodRange {
    pub(crate) cidr: Cidr,
    _claim: UnixListener,
}

impl PodRange {
    /// Claims the slice of `cluster` that `data_dir` had before, or the first free one.
    pub(crate) fn claim(cluster: Cidr, data_dir: &Path) -> Result<Self> {
        let record = data_dir.join("node/pod-range");
        let before = fs::read_to_string(&record).ok().and_then(|text| text.trim().parse::<Cidr>().ok());
        let before = before.filter(|range| cluster.covers(range));
        for cidr in before.into_iter().chain(slices(cluster)) {
            let name = SocketAddr::from_abstract_name(format!("ketch-pods-{cidr}"))?;
            if let Ok(claim) = UnixListener::bind_addr(&name) {
                fs::create_dir_all(data_dir.join("node"))?;
                fs::write(&record, format!("{cidr}\n"))
                    .with_context(|| format!("write {}", record.display()))?;
                return Ok(Self { cidr, _claim: claim });
            }
        }
        bail!(
            "every part of pod range {cluster} is used by another Ketch on this machine; choose another with --pod-cidr"
        )
    }
}

fn slices(cluster: Cidr) -> Vec<Cidr> {
    if cluster.prefix() >= SLICE {
        return vec![cluster];
    }
    let size = 1_u128 << (32 - SLICE);
    (0..1_u128 << (SLICE - cluster.prefix()))
        .filter_map(|index| cluster.nth(index * size))
        .filter(IpAddr::is_ipv4)
        .map(|base| Cidr::new(base, SLICE))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_cover_the_range_once() {
        let all = slices("127.66.0.0/16".parse().unwrap());
        assert_eq!(all.len(), 8);
        assert_eq!(all[7].to_string(), "127.66.224.0/19");
        assert_eq!(slices("127.66.0.0/24".parse().unwrap()).len(), 1);
    }

    #[test]
    fn processes_get_different_slices_and_keep_them() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let cluster: Cidr = "127.67.0.0/18".parse().unwrap();
        let first = PodRange::claim(cluster, one.path()).unwrap();
        let second = PodRange::claim(cluster, two.path()).unwrap();
        assert_ne!(first.cidr, second.cidr);
        assert!(PodRange::claim(cluster, tempfile::tempdir().unwrap().path()).is_err());
        drop(first);
        let kept = second.cidr;
        drop(second);
        assert_eq!(PodRange::claim(cluster, two.path()).unwrap().cidr, kept);
    }
}
