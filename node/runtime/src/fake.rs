//! A runtime that runs nothing: for tests of everything above one.
//!
//! Containers do what their image's [`Behaviour`] says; a test ends them with [`Fake::finish`], makes calls
//! fail with [`Fake::fail`], and reads what was asked with [`Fake::calls`].

mod exec;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use jiff::Timestamp;
use tokio::sync::watch;

use crate::{
    Body, Capabilities, ContainerId, ContainerSpec, ContainerState, ContainerStatus, CreatedPod, Error,
    HttpError, HttpService, Image, ImageSource, PodId, PodSandbox, Runtime, Session, Streams, Usage,
    log::{LogLimits, Logs, Stream},
};

/// What containers of an image do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// Run until stopped and answer each HTTP request with 200 and the request's path.
    Http,
    /// Log a line and end at once with this code.
    Exit(i32),
    /// Run until stopped.
    Forever,
}

/// A call that changed something, in the order made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// [`Runtime::pull`] of a reference.
    Pull(String),
    /// [`Runtime::create_pod`].
    CreatePod(PodId),
    /// [`Runtime::start`].
    Start(ContainerId),
    /// [`Runtime::stop`], with its grace period.
    Stop(ContainerId, Duration),
    /// [`Runtime::remove`].
    Remove(ContainerId),
    /// [`Runtime::remove_pod`].
    RemovePod(PodId),
}

/// See the module. Clones share one state.
#[derive(Clone, Debug)]
pub struct Fake {
    state: Arc<Mutex<State>>,
    logs: Option<Arc<Logs>>,
    changed: Arc<watch::Sender<u64>>,
    has_handles: bool,
}

#[derive(Debug, Default)]
struct State {
    /// Containers so far.
    started: u64,
    behaviours: BTreeMap<String, Behaviour>,
    failures: BTreeMap<String, Error>,
    pods: BTreeMap<PodId, PodSandbox>,
    containers: BTreeMap<ContainerId, Container>,
    calls: Vec<Call>,
}

#[derive(Debug)]
struct Container {
    pod: PodId,
    spec: ContainerSpec,
    behaviour: Behaviour,
    handle: Option<Arc<str>>,
    state: ContainerState,
    requests: Arc<AtomicU64>,
}

impl Default for Fake {
    fn default() -> Self {
        Self::new()
    }
}

impl Fake {
    /// Without images: what is pulled and not known behaves as [`Behaviour::Http`].
    pub fn new() -> Self {
        Self {
            state: Arc::default(),
            // Without a thread there are no logs; nothing else is lost.
            logs: Logs::new(LogLimits::default()).ok().map(Arc::new),
            changed: Arc::new(watch::Sender::new(0)),
            has_handles: false,
        }
    }

    /// Gives each container a handle.
    #[must_use]
    pub fn with_handles(self) -> Self {
        Self { has_handles: true, ..self }
    }

    /// Says what containers of `reference` do.
    #[must_use]
    pub fn with_image(self, reference: &str, behaviour: Behaviour) -> Self {
        self.lock().behaviours.insert(reference.to_owned(), behaviour);
        self
    }

    /// Makes pulls of the reference, or starts of the container id, `what` fail until `None` is given.
    pub fn fail(&self, what: &str, error: Option<Error>) {
        let mut state = self.lock();
        match error {
            Some(error) => state.failures.insert(what.to_owned(), error),
            None => state.failures.remove(what),
        };
    }

    /// Ends a running container. Does nothing to any other.
    pub fn finish(&self, id: &ContainerId, code: i32, reason: &str, message: &str) {
        if let Some(container) = self.lock().containers.get_mut(id)
            && let ContainerState::Running { started } = container.state
        {
            container.state = exited(started, code, reason, message);
        }
        self.notify();
    }

    /// The calls so far.
    pub fn calls(&self) -> Vec<Call> {
        self.lock().calls.clone()
    }

    /// What a container was started with.
    pub fn spec(&self, id: &ContainerId) -> Option<ContainerSpec> {
        self.lock().containers.get(id).map(|container| container.spec.clone())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn notify(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// Name and behaviour of a container that runs.
    fn running(&self, id: &ContainerId) -> Result<(String, Behaviour), Error> {
        let state = self.lock();
        let found =
            state.containers.get(id).filter(|one| matches!(one.state, ContainerState::Running { .. }));
        let found = found.ok_or_else(|| Error::NotFound(format!("container {}", id.0)))?;
        Ok((found.spec.name.clone(), found.behaviour))
    }

    /// Logs a line of a container, when there is a log to write.
    async fn log(&self, spec: &ContainerSpec, text: &str) {
        if let Some(logs) = &self.logs {
            let log = logs.open(&spec.log);
            log.line(Stream::Stdout, text);
            log.flush().await;
        }
    }

    /// Handle of the container, and what it does if it is new.
    fn insert(
        &self,
        pod: &PodId,
        spec: &ContainerSpec,
    ) -> Result<(Option<Arc<str>>, Option<Behaviour>), Error> {
        let mut state = self.lock();
        state.calls.push(Call::Start(spec.id.clone()));
        if let Some(error) = state.failures.get(&spec.id.0) {
            return Err(error.clone());
        }
        if !state.pods.contains_key(pod) {
            return Err(Error::NotFound(format!("pod {}", pod.0)));
        }
        if let Some(container) = state.containers.get(&spec.id) {
            return Ok((container.handle.clone(), None));
        }
        state.started += 1;
        let handle = self.has_handles.then(|| Arc::from(format!("{:064x}", state.started)));
        let reference = spec.image.id.split_once('@').map_or(spec.image.id.as_str(), |(name, _)| name);
        let behaviour = state.behaviours.get(reference).copied().unwrap_or(Behaviour::Http);
        let started = Timestamp::now();
        state.containers.insert(
            spec.id.clone(),
            Container {
                pod: pod.clone(),
                spec: spec.clone(),
                behaviour,
                handle: handle.clone(),
                state: ContainerState::Running { started },
                requests: Arc::default(),
            },
        );
        Ok((handle, Some(behaviour)))
    }
}

fn exited(started: Timestamp, code: i32, reason: &str, message: &str) -> ContainerState {
    ContainerState::Exited {
        started,
        finished: Timestamp::now(),
        code,
        reason: reason.to_owned(),
        message: message.to_owned(),
    }
}

#[async_trait]
impl Runtime for Fake {
    fn capabilities(&self) -> Capabilities {
        Capabilities { version: "fake://1".into(), ..Capabilities::default() }
    }

    async fn pull(&self, reference: &str, _source: Arc<dyn ImageSource>) -> Result<Image, Error> {
        let mut state = self.lock();
        state.calls.push(Call::Pull(reference.to_owned()));
        if let Some(error) = state.failures.get(reference) {
            return Err(error.clone());
        }
        let digest = format!(
            "sha256:{:064x}",
            reference.bytes().fold(7_u128, |sum, byte| sum * 31 % (1 << 100) + u128::from(byte))
        );
        Ok(Image { id: format!("{reference}@{digest}"), digest, size: 1000 })
    }

    async fn create_pod(&self, pod: PodSandbox) -> Result<CreatedPod, Error> {
        let mut state = self.lock();
        state.calls.push(Call::CreatePod(pod.id.clone()));
        state.pods.insert(pod.id.clone(), pod);
        Ok(CreatedPod::default())
    }

    async fn start(&self, pod: &PodId, container: ContainerSpec) -> Result<Option<Arc<str>>, Error> {
        let (handle, behaviour) = self.insert(pod, &container)?;
        let Some(behaviour) = behaviour else { return Ok(handle) };
        self.notify();
        self.log(&container, &format!("{} starts\n", container.name)).await;
        if let Behaviour::Exit(code) = behaviour {
            let reason = if code == 0 { "Completed" } else { "Error" };
            self.finish(&container.id, code, reason, "");
        }
        Ok(handle)
    }

    async fn stop(&self, container: &ContainerId, grace: Duration) -> Result<(), Error> {
        self.lock().calls.push(Call::Stop(container.clone(), grace));
        self.finish(container, 143, "Error", "stopped");
        Ok(())
    }

    async fn remove(&self, container: &ContainerId) -> Result<(), Error> {
        let mut state = self.lock();
        state.calls.push(Call::Remove(container.clone()));
        if let Some(Container { state: ContainerState::Running { .. }, .. }) = state.containers.get(container)
        {
            return Err(Error::Config(format!("container {} runs: stop it first", container.0)));
        }
        state.containers.remove(container);
        drop(state);
        self.notify();
        Ok(())
    }

    async fn remove_pod(&self, pod: &PodId) -> Result<(), Error> {
        let mut state = self.lock();
        state.calls.push(Call::RemovePod(pod.clone()));
        state.containers.retain(|_, container| container.pod != *pod);
        state.pods.remove(pod);
        drop(state);
        self.notify();
        Ok(())
    }

    async fn list(&self) -> Result<Vec<ContainerStatus>, Error> {
        let state = self.lock();
        let status = |(id, container): (&ContainerId, &Container)| ContainerStatus {
            id: id.clone(),
            pod: container.pod.clone(),
            name: container.spec.name.clone(),
            handle: container.handle.clone(),
            state: container.state.clone(),
        };
        Ok(state.containers.iter().map(status).collect())
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    async fn usage(&self, container: &ContainerId) -> Result<Usage, Error> {
        let state = self.lock();
        let found = state.containers.get(container);
        let found = found.ok_or_else(|| Error::NotFound(format!("container {}", container.0)))?;
        Ok(Usage { requests: found.requests.load(Ordering::Relaxed), ..Usage::default() })
    }

    fn http(&self, container: &ContainerId) -> Option<Arc<dyn HttpService>> {
        let state = self.lock();
        let found = state.containers.get(container)?;
        let serves =
            found.behaviour == Behaviour::Http && matches!(found.state, ContainerState::Running { .. });
        serves.then(|| Arc::new(Echo { requests: Arc::clone(&found.requests) }) as Arc<dyn HttpService>)
    }

    /// A process of this machine; containers of [`Behaviour::Http`] have no programs.
    async fn exec(
        &self,
        container: &ContainerId,
        command: Vec<String>,
        streams: Streams,
    ) -> Result<Session, Error> {
        let (_, behaviour) = self.running(container)?;
        match behaviour {
            Behaviour::Http => Err(Error::Unsupported("it has no programs".to_owned())),
            _ => exec::start(&command, &streams),
        }
    }

    async fn attach(&self, container: &ContainerId, _streams: Streams) -> Result<Session, Error> {
        Ok(exec::attached(&self.running(container)?.0))
    }
}

/// Answers with the request's path.
struct Echo {
    requests: Arc<AtomicU64>,
}

#[async_trait]
impl HttpService for Echo {
    async fn call(&self, request: http::Request<Body>) -> Result<http::Response<Body>, HttpError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let path = Bytes::from(request.uri().path().to_owned());
        let body = Full::new(path).map_err(|never| match never {}).boxed_unsync();
        Ok(http::Response::new(body))
    }
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use super::*;
    use crate::testing::{NoImages, Program, Role, Subject};

    struct FakeSubject(Fake);

    impl Subject for FakeSubject {
        fn runtime(&self) -> Arc<dyn Runtime> {
            Arc::new(self.0.clone())
        }

        fn source(&self) -> Arc<dyn ImageSource> {
            Arc::new(NoImages)
        }

        fn program(&self, role: Role) -> Option<Program> {
            let reference = match role {
                Role::Http => "http:1".to_owned(),
                Role::ExitsWith(code) => format!("exit:{code}"),
                Role::RunsForever => "forever:1".to_owned(),
                Role::Missing => "missing:1".to_owned(),
            };
            Some(Program { reference, ..Program::default() })
        }

        fn has_handles(&self) -> bool {
            self.0.has_handles
        }
    }

    #[tokio::test]
    async fn conforms() {
        let fake = Fake::new()
            .with_image("exit:0", Behaviour::Exit(0))
            .with_image("exit:3", Behaviour::Exit(3))
            .with_image("forever:1", Behaviour::Forever);
        fake.fail("missing:1", Some(Error::Pull("missing:1 not found".into())));
        crate::testing::conformance(&FakeSubject(fake.clone())).await;
        crate::testing::conformance(&FakeSubject(fake.with_handles())).await;
    }
}
