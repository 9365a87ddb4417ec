//! [`ServiceProxy`]: keeps the kernel's table in step with the cluster's Services.

use std::{sync::Arc, time::Duration};

use ketch_net::nft::{ApplyError, Facts, Nft, rules};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::network::ClusterNetwork;

/// After a failure the next attempt comes with the next change, or after this time.
const AGAIN: Duration = Duration::from_secs(5);
/// How long the end may take.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// Services for containers, the host and clients outside, by rules of the kernel. Dropping it leaves the
/// rules as they are: call [`ServiceProxy::shutdown`].
pub struct ServiceProxy {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl ServiceProxy {
    /// Follows `network`. The rules come with the first complete list of Services, so that none of them is
    /// refused because it is not known yet.
    ///
    /// # Errors
    /// When `nft` is missing, or this process may not use it.
    pub async fn start(
        network: Arc<ClusterNetwork>,
        facts: Facts,
        table: String,
    ) -> Result<Self, ApplyError> {
        let mut nft = Nft::new(table);
        nft.probe().await?;
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        tasks.spawn(keep(network, facts, nft, stop.clone()));
        tasks.close();
        Ok(Self { stop, tasks })
    }

    /// Ends following and removes the rules.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        if tokio::time::timeout(SHUTDOWN, self.tasks.wait()).await.is_err() {
            tracing::warn!("the rules for Services could not be removed in time");
        }
    }
}

async fn keep(network: Arc<ClusterNetwork>, facts: Facts, mut nft: Nft, stop: CancellationToken) {
    let mut changes = network.changes();
    loop {
        let complete = async { changes.wait_for(|changes| *changes > 0).await.is_ok() };
        if stop.run_until_cancelled(complete).await != Some(true) {
            break;
        }
        let applied = nft.apply(rules(&network.table(), &facts)).await;
        let failed =
            applied.inspect_err(|error| tracing::error!(%error, "the rules for Services are out of date"));
        let patience = if failed.is_ok() { Duration::MAX } else { AGAIN };
        let next = tokio::time::timeout(patience, changes.changed());
        if let None | Some(Ok(Err(_))) = stop.run_until_cancelled(next).await {
            break;
        }
    }
    if let Err(error) = nft.remove().await {
        tracing::warn!(%error, table = nft.table(), "the rules for Services could not be removed");
    }
}
