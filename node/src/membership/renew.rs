//! The next certificate, before the present one ends.

use std::{path::PathBuf, sync::Arc, time::Duration};

use http::Method;
use jiff::Timestamp;
use ketch_api::join::{Membership, RENEW_PATH};
use ketch_client::secure::Keyring;
use tokio_util::sync::CancellationToken;

use super::{
    Identity, JoinError,
    join::signing_request,
    server::{self, ServerAddress},
};

/// Longest sleep: a clock that is set, or a machine that slept, is noticed after it.
const LOOK: Duration = Duration::from_secs(600);
/// Between attempts. A third of the certificate's life is left for them.
const RETRY: Duration = Duration::from_secs(10);
/// For an attempt.
const PATIENCE: Duration = Duration::from_secs(30);

/// Keeps the certificates valid.
pub(super) struct Renewal {
    pub(super) identity: Identity,
    pub(super) path: PathBuf,
    pub(super) client: kube::Client,
    pub(super) node: Arc<Keyring>,
    pub(super) gateway: Arc<Keyring>,
}

// === impl Renewal ===

impl Renewal {
    pub(super) async fn run(mut self, stop: CancellationToken) {
        loop {
            let wait = match left(self.identity.renew_at, Timestamp::now()) {
                Some(left) => left.min(LOOK),
                None => match self.renew().await {
                    Ok(()) => continue,
                    Err(error) => {
                        tracing::warn!(%error, "this node's certificate could not be renewed; trying again");
                        RETRY
                    }
                },
            };
            if stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                return;
            }
        }
    }

    async fn renew(&mut self) -> Result<(), JoinError> {
        let server: ServerAddress = self.identity.server.parse()?;
        let (key, request) = signing_request(&self.identity.node_name)?;
        let asked = server::ask::<Membership>(&self.client, Method::POST, RENEW_PATH, None, &request);
        let given = tokio::time::timeout(PATIENCE, asked).await;
        let given = given.map_err(|_| JoinError::Unreachable(server.clone(), "no answer".to_owned()))?;
        let given = given.map_err(|fault| fault.of_member(&server))?;
        let (address, name) = (self.identity.server.clone(), self.identity.node_name.clone());
        let next = Identity::new(address, name, key, given, Timestamp::now());
        let unusable = |error: ketch_client::secure::KeyringError| JoinError::Key(error.to_string());
        // The file first: after a crash the server must know the certificate that is on disk, and it does
        // know both.
        next.save(&self.path)?;
        self.node.replace(&next.certificate, &next.key).map_err(unusable)?;
        self.gateway.replace(&next.gateway_certificate, &next.key).map_err(unusable)?;
        self.identity = next;
        tracing::info!(next = %self.identity.renew_at, "this node's certificate was renewed");
        Ok(())
    }
}

/// Time until `at`; `None`: it is due.
fn left(at: Timestamp, now: Timestamp) -> Option<Duration> {
    Duration::try_from(at.duration_since(now)).ok().filter(|left| !left.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_is_due() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        assert_eq!(left(now + Duration::from_secs(5), now), Some(Duration::from_secs(5)));
        assert_eq!(left(now, now), None);
        assert_eq!(left(now - Duration::from_secs(5), now), None);
    }
}
