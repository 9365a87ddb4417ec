//! exec, attach and port-forward: upgraded connections between clients and what runs here.
//!
//! [`upgrade`] agrees on a protocol; [`websocket`] and `ketch-spdy` carry channels; [`command`] and
//! [`forward`] are what happens on them, whichever carries them. Who may is decided by the API server.

mod channel;
mod command;
mod forward;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod idle;
mod options;
mod target;
mod upgrade;
mod websocket;

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Path, Request, State},
    http::Response,
    response::IntoResponse,
};
use ketch_api::{Status, k8s::api::core::v1 as core};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::context::Context;
use options::Options;
use target::Refusal;
use upgrade::{Upgrade, Wire};

/// How long a connection may carry nothing: the kubelet's `streamingConnectionIdleTimeout`.
const IDLE: Duration = Duration::from_secs(4 * 3600);
/// For a client to finish its upgrade, and to open the streams it said it would: upstream's
/// `streamCreationTimeout`.
const CREATION: Duration = Duration::from_secs(30);
/// Connections at a time.
const SESSIONS: usize = 1_000;

/// The connections of a node, and their end.
pub(crate) struct Sessions {
    tasks: TaskTracker,
    stop: CancellationToken,
    slots: Arc<Semaphore>,
}

impl Sessions {
    /// None yet. They are tasks of `tasks` and end with `stop`.
    pub(crate) fn new(tasks: TaskTracker, stop: CancellationToken) -> Self {
        Self { tasks, stop, slots: Arc::new(Semaphore::new(SESSIONS)) }
    }

    /// Answers the upgrade and lets `work` go on with the connection.
    fn begin(
        &self,
        upgrade: Upgrade,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> Result<Response<Body>, Refusal> {
        let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
            return Err(Status::too_many_requests("this node serves as many streams as it may", 1).into());
        };
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            stop.run_until_cancelled(work).await;
            drop(slot);
        });
        Ok(upgrade.response)
    }
}

/// What a handler gives back.
type Answer = Result<Response<Body>, Refusal>;

/// `/exec/{namespace}/{pod}/{container}`.
pub(crate) async fn exec(
    State(context): State<Arc<Context>>,
    Path((namespace, name, container)): Path<(String, String, String)>,
    request: Request,
) -> Response<Body> {
    answer(command(&context, &target::pod(&context, &namespace, &name), &container, request, true).await)
}

/// `/attach/{namespace}/{pod}/{container}`.
pub(crate) async fn attach(
    State(context): State<Arc<Context>>,
    Path((namespace, name, container)): Path<(String, String, String)>,
    request: Request,
) -> Response<Body> {
    answer(command(&context, &target::pod(&context, &namespace, &name), &container, request, false).await)
}

/// `/portForward/{namespace}/{pod}`.
pub(crate) async fn port_forward(
    State(context): State<Arc<Context>>,
    Path((namespace, name)): Path<(String, String)>,
    request: Request,
) -> Response<Body> {
    answer(forward(&context, target::pod(&context, &namespace, &name), request))
}

fn answer(answer: Answer) -> Response<Body> {
    answer.unwrap_or_else(IntoResponse::into_response)
}

async fn command(
    context: &Context,
    pod: &Result<Arc<core::Pod>, Refusal>,
    container: &str,
    mut request: Request,
    exec: bool,
) -> Answer {
    let pod = pod.as_ref().map_err(Refusal::clone)?;
    let id = target::container(context, pod, container)?;
    let options = Options::parse(request.uri().query().unwrap_or_default())?;
    let mut upgrade = Upgrade::negotiate(&mut request, command::SPDY, command::WEBSOCKET)?;
    let session = target::open(context, pod, (container, &id), &options, exec).await?;
    let connection = upgrade.connection.take();
    let wire = upgrade.wire;
    let work = async move {
        let Some(io) = connection.established(CREATION).await else { return };
        let io = idle::Watched::new(io);
        let activity = io.activity();
        let served = async {
            match wire {
                Wire::Spdy(protocol) => command::over_spdy(io, protocol, session, &options, exec).await,
                Wire::WebSocket(protocol) => {
                    command::over_websocket(io, protocol, session, &options, exec).await;
                }
            }
        };
        tokio::select! {
            () = served => {}
            () = activity.idle_for(IDLE) => tracing::debug!("a stream was idle for too long"),
        }
    };
    context.sessions.begin(upgrade, work)
}

fn forward(context: &Arc<Context>, pod: Result<Arc<core::Pod>, Refusal>, mut request: Request) -> Answer {
    let pod = pod?;
    let ports = options::ports(request.uri().query().unwrap_or_default());
    let mut upgrade = Upgrade::negotiate(&mut request, forward::SPDY, forward::WEBSOCKET)?;
    let wire = upgrade.wire;
    let ports = match wire {
        Wire::WebSocket(protocol) if protocol != forward::TUNNEL => ports?,
        _ => Vec::new(),
    };
    let connection = upgrade.connection.take();
    let work = async move {
        let Some(io) = connection.established(CREATION).await else { return };
        let io = idle::Watched::new(io);
        let activity = io.activity();
        let served = async {
            match wire {
                Wire::Spdy(_) => forward::over_spdy(io, &pod).await,
                Wire::WebSocket(forward::TUNNEL) => forward::over_tunnel(io, &pod).await,
                Wire::WebSocket(protocol) => forward::over_websocket(io, protocol, &pod, &ports).await,
            }
        };
        tokio::select! {
            () = served => {}
            () = activity.idle_for(IDLE) => tracing::debug!("a port-forward was idle for too long"),
        }
    };
    context.sessions.begin(upgrade, work)
}
