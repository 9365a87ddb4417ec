//! What a node keeps of its membership: one file, readable by its owner only, written as a whole.

use std::{
    fs, io,
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use ketch_api::join::{Cluster, Membership};
use serde::{Deserialize, Serialize};

use super::JoinError;

/// A node's membership.
#[derive(Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// `https://HOST:PORT` of the server.
    pub server: String,
    /// Name of the Node object.
    pub node_name: String,
    /// The authority's certificate, PEM.
    pub authority: String,
    /// The private key, PEM. Has never left this machine.
    pub key: String,
    /// The node's certificate, PEM.
    pub certificate: String,
    /// The certificate of the gateway on this node, PEM.
    pub gateway_certificate: String,
    /// When to ask for the next certificates: two thirds into their life, by this machine's clock.
    pub renew_at: Timestamp,
    /// When the certificates end, by this machine's clock.
    pub expires: Timestamp,
    /// Addresses of this node's pods.
    pub pod_range: String,
    /// How the cluster was set up when the server said so last.
    pub cluster: Cluster,
}

// === impl Identity ===

impl Identity {
    /// Where the identity of the node in `data_dir` is.
    pub fn path(data_dir: &Path) -> PathBuf {
        data_dir.join("node/identity")
    }

    /// Reads the identity; `None` when this node has never joined.
    ///
    /// # Errors
    /// When the file cannot be read or understood.
    pub fn load(path: &Path) -> Result<Option<Self>, JoinError> {
        let failed = |why: String| JoinError::Identity { path: path.to_owned(), why };
        match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| failed(format!("{error}; remove it and join again with a new token"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(error.to_string())),
        }
    }

    /// Puts the identity into `path`, durable on return. A crash leaves the old or the new one.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), JoinError> {
        let failed =
            |why: &dyn std::fmt::Display| JoinError::Identity { path: path.to_owned(), why: why.to_string() };
        let text = serde_json::to_vec_pretty(self).map_err(|error| failed(&error))?;
        let partial = path.with_extension("partial");
        let attempt = || -> io::Result<()> {
            let dir = path.parent().unwrap_or(Path::new("/"));
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
            // A leftover may have another mode.
            match fs::remove_file(&partial) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&partial, path)?;
            fs::File::open(dir)?.sync_all()
        };
        attempt().map_err(|error| failed(&error))
    }

    /// What a join or a renewal at `now` brought, with the key it was for.
    pub(super) fn new(
        server: String,
        node_name: String,
        key: String,
        given: Membership,
        now: Timestamp,
    ) -> Self {
        let life = Duration::from_secs(given.life_seconds);
        Self {
            server,
            node_name,
            authority: given.authority,
            key,
            certificate: given.certificate,
            gateway_certificate: given.gateway_certificate,
            renew_at: after(now, life * 2 / 3),
            expires: after(now, life),
            pod_range: given.pod_range,
            cluster: given.cluster,
        }
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("node_name", &self.node_name).finish_non_exhaustive()
    }
}

fn after(now: Timestamp, time: Duration) -> Timestamp {
    let time = SignedDuration::try_from(time).unwrap_or(SignedDuration::MAX);
    now.checked_add(time).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn identity() -> Identity {
        let cluster = Cluster {
            pod_cidr: "10.42.0.0/16".into(),
            service_cidr: "10.43.0.0/16".into(),
            quic_port: 6444,
            function_domain: "localhost".into(),
            version: "0.1.0".into(),
            relay: None,
        };
        let given = Membership {
            authority: "A".into(),
            certificate: "C".into(),
            gateway_certificate: "G".into(),
            life_seconds: 900,
            pod_range: "10.42.3.0/24".into(),
            cluster,
        };
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        Identity::new("https://s:6443".into(), "n1".into(), "SECRET".into(), given, now)
    }

    #[test]
    fn it_is_kept_whole_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = Identity::path(dir.path());
        assert!(Identity::load(&path).unwrap().is_none());
        identity().save(&path).unwrap();
        identity().save(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let back = Identity::load(&path).unwrap().unwrap();
        assert_eq!((back.key.as_str(), back.pod_range.as_str()), ("SECRET", "10.42.3.0/24"));
        assert_eq!(back.renew_at.to_string(), "2026-01-01T00:10:00Z", "two thirds of 15 minutes");
        assert_eq!(back.expires.to_string(), "2026-01-01T00:15:00Z");
        assert!(!format!("{back:?}").contains("SECRET"));
        fs::write(&path, "{").unwrap();
        assert!(Identity::load(&path).unwrap_err().to_string().contains("join again"));
    }

    #[test]
    fn one_that_has_ended_says_what_to_do() {
        let Err(error) = super::super::Member::start(identity(), Path::new("/nowhere")) else { panic!() };
        let error = error.to_string();
        assert!(error.contains("2026-01-01T00:15:00Z") && error.contains("clock"), "{error}");
    }
}
