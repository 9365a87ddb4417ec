//! [`ServiceProxy`]: keeps the kernel's table in step with the cluster's Services and the ports of the node's pods.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use ketch_net::{
    conntrack::{Fronts, forget_stale},
    forward::Forward,
    nft::{ApplyError, Facts, Nft, rules},
};
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
        network.followed_by_kernel();
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

/// Whether clients outside the cluster may use it.
fn is_exposed(port: &Forward) -> bool {
    port.node_port.is_some() || !port.external.is_empty() || !port.balancer.is_empty()
}

/// Has the kernel pass on what clients outside send to the node's addresses, where an endpoint is on another node
/// or in a network namespace. Only what comes in at these interfaces.
fn forward(addresses: &[Ipv4Addr]) {
    for interface in nix::ifaddrs::getifaddrs().into_iter().flatten() {
        let address = interface.address.and_then(|address| Some(address.as_sockaddr_in()?.ip()));
        if !address.is_some_and(|address| addresses.contains(&address)) {
            continue;
        }
        let path = format!("/proc/sys/net/ipv4/conf/{}/forwarding", interface.interface_name);
        let is_on = std::fs::read_to_string(&path).is_ok_and(|value| value.trim() == "1");
        if let Err(error) = if is_on { Ok(()) } else { std::fs::write(&path, "1") } {
            tracing::warn!(path, %error, "clients outside reach only pods of this process by ports of the node");
        }
    }
}

async fn keep(network: Arc<ClusterNetwork>, facts: Facts, mut nft: Nft, stop: CancellationToken) {
    let mut changes = network.changes();
    let mut fronts = Fronts::default();
    loop {
        let complete = async { changes.wait_for(|changes| *changes > 0).await.is_ok() };
        if stop.run_until_cancelled(complete).await != Some(true) {
            break;
        }
        let ports = network.with_host_ports(|ports| (ports.for_kernel(), false));
        let table = network.table();
        if !ports.is_empty() || table.forwards().iter().any(is_exposed) {
            forward(&facts.addresses);
        }
        let applied = nft.apply(rules(&table, &ports, &facts)).await;
        let patience = match applied {
            Ok(_) => {
                let now = Fronts::new(&table, &ports, &facts.addresses);
                fronts = forget_flows(fronts, now).await;
                Duration::MAX
            }
            Err(error) => {
                tracing::error!(%error, "the rules for Services are out of date");
                AGAIN
            }
        };
        let next = tokio::time::timeout(patience, changes.changed());
        if let None | Some(Ok(Err(_))) = stop.run_until_cancelled(next).await {
            break;
        }
    }
    if let Err(error) = nft.remove().await {
        tracing::warn!(%error, table = nft.table(), "the rules for Services could not be removed");
    }
}

/// Makes clients of what is gone choose anew; the fronts that hold now.
async fn forget_flows(before: Fronts, now: Fronts) -> Fronts {
    if before == now {
        return now;
    }
    let forgotten = tokio::task::spawn_blocking(move || {
        let forgotten = forget_stale(&before, &now);
        (forgotten, now)
    });
    let (forgotten, now) = match forgotten.await {
        Ok(done) => done,
        Err(error) => (Err(std::io::Error::other(error)), Fronts::default()),
    };
    if let Err(error) = forgotten {
        tracing::warn!(%error, "UDP clients may stay with endpoints that are gone until they fall silent");
    }
    now
}
