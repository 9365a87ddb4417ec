//! [`PolicyRules`]: keeps the kernel's table for NetworkPolicies in step with them.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ketch_net::{
    Cidr,
    nft::{ApplyError, Nft, judge},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::Judge;
use crate::network::ClusterNetwork;

/// After a failure the next attempt comes with the next change, or after this time.
const AGAIN: Duration = Duration::from_secs(5);
/// How long the end may take.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// NetworkPolicies for packets, by rules of the kernel. Dropping it leaves the rules as they are: call
/// [`PolicyRules::shutdown`].
pub struct PolicyRules {
    judge: Arc<Judge>,
    stop: CancellationToken,
    tasks: TaskTracker,
    keep: Arc<AtomicBool>,
}

impl PolicyRules {
    /// Follows `network`. Rules of an earlier run hold until the first complete list of policies replaces them,
    /// and no pod is set up before that. `range`: addresses of this node's pods; `dns`: of the cluster's DNS.
    ///
    /// # Errors
    /// When `nft` is missing, or this process may not use it.
    pub async fn start(
        network: &ClusterNetwork,
        range: Cidr,
        dns: Vec<IpAddr>,
        table: String,
    ) -> Result<Self, ApplyError> {
        let nft = Nft::new(table);
        nft.check().await?;
        let judge = Arc::clone(network.judge());
        judge.by_kernel.store(true, Ordering::Release);
        let (stop, tasks, keep) = (CancellationToken::new(), TaskTracker::new(), Arc::default());
        let keeper = Keeper { judge: Arc::clone(&judge), range, dns, nft };
        tasks.spawn(keeper.run(stop.clone(), Arc::clone(&keep)));
        tasks.close();
        Ok(Self { judge, stop, tasks, keep })
    }

    /// Ends following. `keep`: there are pods that go on, and so do the rules.
    pub async fn shutdown(&self, keep: bool) {
        self.keep.store(keep, Ordering::Release);
        self.stop.cancel();
        if tokio::time::timeout(SHUTDOWN, self.tasks.wait()).await.is_err() {
            tracing::warn!("the rules for NetworkPolicies could not be removed in time");
        }
        self.judge.by_kernel.store(false, Ordering::Release);
    }
}

struct Keeper {
    judge: Arc<Judge>,
    range: Cidr,
    dns: Vec<IpAddr>,
    nft: Nft,
}

impl Keeper {
    async fn run(mut self, stop: CancellationToken, keep: Arc<AtomicBool>) {
        let mut snapshots = self.judge.snapshots.subscribe();
        loop {
            snapshots.borrow_and_update();
            let patience = if self.apply().await { Duration::MAX } else { AGAIN };
            let next = tokio::time::timeout(patience, snapshots.changed());
            if let None | Some(Ok(Err(_))) = stop.run_until_cancelled(next).await {
                break;
            }
        }
        if keep.load(Ordering::Acquire) {
            return;
        }
        if let Err(error) = self.nft.remove().await {
            tracing::warn!(%error, table = self.nft.table(), "the rules for NetworkPolicies could not be removed");
        }
    }

    /// Puts what is known in force. Until it is complete the rules are left as they are.
    async fn apply(&mut self) -> bool {
        let isolation = self.judge.current();
        if !isolation.complete {
            return true;
        }
        let rules = judge(&isolation.filter(self.range, &self.dns, self.judge.door()));
        match self.nft.apply(rules).await {
            Ok(_) => {
                self.judge.in_force.send_replace(Some(isolation.turn));
                true
            }
            Err(error) => {
                tracing::error!(%error, "the rules for NetworkPolicies are out of date");
                false
            }
        }
    }
}
