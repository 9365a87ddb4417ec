//! One container in its life.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use ketch_runtime::{ContainerId, ContainerState, ContainerStatus, PodId};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{command::Outcome, context::Surroundings, http::Service, images::Stored, limits::Meter};

/// What the runtime keeps of a container.
pub(crate) struct Container {
    pub(crate) id: ContainerId,
    pub(crate) pod: PodId,
    pub(crate) name: String,
    pub(crate) around: Arc<Surroundings>,
    /// Its image.
    pub(crate) stored: Stored,
    pub(crate) meter: Meter,
    /// Its HTTP service, when it has one.
    pub(crate) service: Option<Arc<Service>>,
    pub(crate) state: watch::Sender<ContainerState>,
    /// Takes no more requests.
    pub(crate) closing: CancellationToken,
    /// Ends at once.
    pub(crate) over: CancellationToken,
    /// The runtime's count of changes.
    pub(crate) changed: Arc<watch::Sender<u64>>,
}

impl Container {
    pub(crate) fn status(&self) -> ContainerStatus {
        ContainerStatus {
            id: self.id.clone(),
            pod: self.pod.clone(),
            name: self.name.clone(),
            handle: None,
            state: self.state.borrow().clone(),
        }
    }

    pub(crate) fn running(&self) {
        self.state.send_replace(ContainerState::Running { started: Timestamp::now() });
        self.notify();
    }

    /// Ends the container, its log written.
    pub(crate) async fn ended(&self, outcome: Outcome) {
        self.around.log.flush().await;
        self.state.send_modify(|state| {
            let finished = Timestamp::now();
            let started = match state {
                ContainerState::Running { started } | ContainerState::Exited { started, .. } => *started,
                ContainerState::Created => finished,
            };
            let Outcome { code, reason, message } = outcome;
            *state = ContainerState::Exited { started, finished, code, reason: reason.to_owned(), message };
        });
        self.notify();
    }

    pub(crate) fn notify(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    pub(crate) fn is_over(&self) -> bool {
        matches!(*self.state.borrow(), ContainerState::Exited { .. })
    }

    /// Waits until it runs or has ended.
    pub(crate) async fn begun(&self) {
        // The sender is ours: the wait cannot fail.
        _ = self.state.subscribe().wait_for(|state| *state != ContainerState::Created).await;
    }

    /// Asks it to end, and ends it after `grace`. A command cannot be asked: it ends at once.
    pub(crate) async fn stop(&self, grace: Duration) {
        self.closing.cancel();
        let mut state = self.state.subscribe();
        let over = |state: &ContainerState| matches!(state, ContainerState::Exited { .. });
        let grace = if self.service.is_some() { grace } else { Duration::ZERO };
        if tokio::time::timeout(grace, state.wait_for(over)).await.is_err() {
            self.over.cancel();
            // The sender is ours: the wait cannot fail.
            _ = state.wait_for(over).await;
        }
    }
}
