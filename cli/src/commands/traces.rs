//! What a node leaves outside of its data directory, noted in it before it is made: `ketch uninstall` takes it
//! back, also when flags have changed since.

use std::{
    collections::BTreeSet,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct Traces {
    /// Ranges of pods: each has a table for NetworkPolicies and local routes.
    pub(crate) pods: BTreeSet<String>,
    /// Service ranges with a table.
    pub(crate) services: BTreeSet<String>,
    /// Where DNS answered, at addresses that were made local for it.
    pub(crate) dns: BTreeSet<SocketAddr>,
    /// The choices of who runs containers.
    pub(crate) containerd: BTreeSet<String>,
}

impl Traces {
    fn path(data_dir: &Path) -> PathBuf {
        data_dir.join("node/traces.json")
    }

    /// What was noted; nothing when there is no note, or none that can be read.
    pub(crate) fn load(data_dir: &Path) -> Self {
        let text = fs::read(Self::path(data_dir)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Notes more.
    pub(crate) fn note(data_dir: &Path, more: impl FnOnce(&mut Self)) -> io::Result<()> {
        let known = Self::load(data_dir);
        let mut all = known.clone();
        more(&mut all);
        if all == known {
            return Ok(());
        }
        let path = Self::path(data_dir);
        fs::create_dir_all(path.parent().unwrap_or(data_dir))?;
        let partial = path.with_extension("partial");
        fs::write(&partial, serde_json::to_vec_pretty(&all)?)?;
        fs::rename(partial, path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_add_up() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Traces::load(dir.path()), Traces::default());
        for range in ["10.1.0.0/20", "10.2.0.0/20", "10.2.0.0/20"] {
            Traces::note(dir.path(), |traces| traces.pods.extend([range.to_owned()])).unwrap();
        }
        assert_eq!(Traces::load(dir.path()).pods.len(), 2);
    }
}
