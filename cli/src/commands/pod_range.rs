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
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    path::Path,
};

use anyhow::{Context, Result, bail};
use ketch_node::Cidr;

/// Length of a slice: 8,190 pods.
const SLICE: u8 = 19;
/// Length of the range that a server gives to a node that joins.
const JOINED: u8 = 24;

/// A slice that no other process on this machine uses, as long as this value lives.
pub(crate) struct PodRange {
    pub(crate) cidr: Cidr,
    _claim: UnixListener,
}

impl PodRange {
    /// Claims the slice of `cluster` that `data_dir` had before, or the first free one. `others`: ranges of
    /// other nodes.
    pub(crate) fn claim(cluster: Cidr, data_dir: &Path, others: &[Cidr]) -> Result<Self> {
        let record = data_dir.join("node/pod-range");
        let before = fs::read_to_string(&record).ok().and_then(|text| text.trim().parse::<Cidr>().ok());
        let before = before.filter(|range| cluster.covers(range));
        for cidr in before.into_iter().chain(slices(cluster)) {
            if others.iter().any(|other| other.covers(&cidr) || cidr.covers(other)) {
                continue;
            }
            if let Some(range) = Self::exactly(cidr)? {
                fs::create_dir_all(data_dir.join("node"))?;
                fs::write(&record, format!("{cidr}\n"))
                    .with_context(|| format!("write {}", record.display()))?;
                return Ok(range);
            }
        }
        bail!(
            "every part of pod range {cluster} is used by another Ketch on this machine or by another node; choose another with --pod-cidr"
        )
    }

    /// Claims `cidr`; `None` when another process on this machine uses addresses in it.
    pub(crate) fn exactly(cidr: Cidr) -> Result<Option<Self>> {
        let Ok(claim) = UnixListener::bind_addr(&name(cidr)?) else { return Ok(None) };
        for other in related(cidr) {
            if UnixStream::connect_addr(&name(other)?).is_ok() {
                return Ok(None);
            }
        }
        Ok(Some(Self { cidr, _claim: claim }))
    }
}

fn name(cidr: Cidr) -> Result<SocketAddr> {
    Ok(SocketAddr::from_abstract_name(format!("ketch-pods-{cidr}"))?)
}

/// Ranges of the other usual length that share addresses with `cidr`.
fn related(cidr: Cidr) -> Vec<Cidr> {
    if cidr.prefix() > SLICE {
        return vec![Cidr::new(cidr.base(), SLICE)];
    }
    let step = 1_u128 << (32 - JOINED);
    (0..).map_while(|index| cidr.nth(index * step)).map(|base| Cidr::new(base, JOINED)).collect()
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
        let first = PodRange::claim(cluster, one.path(), &[]).unwrap();
        let second = PodRange::claim(cluster, two.path(), &[]).unwrap();
        assert_ne!(first.cidr, second.cidr);
        assert!(PodRange::claim(cluster, tempfile::tempdir().unwrap().path(), &[]).is_err());
        drop(first);
        let kept = second.cidr;
        drop(second);
        assert_eq!(PodRange::claim(cluster, two.path(), &[]).unwrap().cidr, kept);
    }

    #[test]
    fn slices_and_ranges_of_joined_nodes_exclude_each_other() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let cluster: Cidr = "127.68.0.0/18".parse().unwrap();
        let joined = PodRange::exactly("127.68.3.0/24".parse().unwrap()).unwrap().unwrap();
        let slice = PodRange::claim(cluster, dir.path(), &[]).unwrap();
        assert_eq!(slice.cidr.to_string(), "127.68.32.0/19", "the first has a joined node's addresses");
        assert!(PodRange::exactly("127.68.33.0/24".parse().unwrap()).unwrap().is_none());
        assert!(PodRange::exactly("127.68.3.0/24".parse().unwrap()).unwrap().is_none());
        drop((joined, slice));
        let others = ["127.68.5.0/24".parse().unwrap()];
        let slice = PodRange::claim(cluster, other.path(), &others).unwrap();
        assert_eq!(slice.cidr.to_string(), "127.68.32.0/19", "another node's addresses are left alone");
    }
}
