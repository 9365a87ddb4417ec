//! A runtime whose containers do what their image's name says.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use http_body_util::{BodyExt, Full};
use jiff::Timestamp;
use ketch_runtime::{
    Body, Capabilities, ContainerId, ContainerSpec, ContainerState, ContainerStatus, CreatedPod, Error,
    HttpError, HttpService, Image, ImageSource, Manifest, PodId, PodSandbox, Runtime, Session, Streams,
    Usage,
};
use tokio::sync::watch;

#[derive(Default)]
pub struct State {
    pub containers: BTreeMap<String, ContainerStatus>,
    pub specs: BTreeMap<String, ContainerSpec>,
    pub stopped: Vec<(String, Duration)>,
    pub pods: Vec<String>,
    /// What pods were made with.
    pub sandboxes: BTreeMap<String, PodSandbox>,
    /// The network namespace this runtime gives its pods.
    pub namespace: Option<PathBuf>,
    /// Status code every HTTP service answers.
    pub http: u16,
    pub calls: Vec<String>,
    /// Programs run in containers, and the code and output of the next ones.
    pub commands: Vec<String>,
    pub exec: Option<(i32, &'static str)>,
    /// Looks that fail before one succeeds.
    pub unlisted: u32,
}

/// Images: `web` runs and serves HTTP; `job` exits 0 at once; `crash` exits 1 at once; `run` runs without HTTP.
#[derive(Clone)]
pub struct Fake {
    pub state: Arc<Mutex<State>>,
    changes: watch::Sender<u64>,
    /// While it is set, no call is answered.
    pub hangs: watch::Sender<bool>,
    name: &'static str,
    /// Calls of all fakes of a node, in order.
    pub order: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    pub fn new() -> Self {
        let state = State { http: 200, ..State::default() };
        let order = Arc::default();
        let (changes, hangs) = (watch::Sender::new(0), watch::Sender::new(false));
        Self { state: Arc::new(Mutex::new(state)), changes, hangs, name: "fake", order }
    }

    /// A runtime for containers beside this one: its pods have a namespace.
    pub fn containers(&self) -> Self {
        let fake = Self { name: "oci", order: Arc::clone(&self.order), ..Self::new() };
        fake.state.lock().unwrap().namespace = Some("/var/run/netns/fake".into());
        fake
    }

    pub fn order(&self) -> Vec<String> {
        self.order.lock().unwrap().clone()
    }

    async fn answers(&self) {
        self.hangs.subscribe().wait_for(|hangs| !hangs).await.unwrap();
    }

    fn note(&self, what: &str, id: &str) {
        self.order.lock().unwrap().push(format!("{} {what} {id}", self.name));
    }

    pub fn exit(&self, id: &str, code: i32) {
        {
            let mut state = self.state.lock().unwrap();
            let container = state.containers.get_mut(id).unwrap();
            end(container, code);
        }
        self.changes.send_modify(|n| *n += 1);
    }

    pub fn running(&self) -> Vec<String> {
        let state = self.state.lock().unwrap();
        let running = state.containers.values().filter(|c| matches!(c.state, ContainerState::Running { .. }));
        running.map(|c| c.id.0.clone()).collect()
    }
}

fn end(container: &mut ContainerStatus, code: i32) {
    let ContainerState::Running { started } = container.state else { return };
    let reason = if code == 0 { "Completed" } else { "Error" }.to_owned();
    container.state =
        ContainerState::Exited { started, finished: Timestamp::now(), code, reason, message: String::new() };
}

struct Web(Fake);

#[async_trait]
impl HttpService for Web {
    async fn call(&self, request: http::Request<Body>) -> Result<http::Response<Body>, HttpError> {
        let mut state = self.0.state.lock().unwrap();
        state.calls.push(request.uri().path().to_owned());
        let body =
            Full::new("hi".into()).map_err(|never: std::convert::Infallible| match never {}).boxed_unsync();
        Ok(http::Response::builder().status(state.http).body(body).unwrap())
    }
}

#[async_trait]
impl Runtime for Fake {
    fn capabilities(&self) -> Capabilities {
        Capabilities { version: format!("{}://1", self.name), ..Capabilities::default() }
    }

    async fn pull(&self, reference: &str, source: Arc<dyn ImageSource>) -> Result<Image, Error> {
        self.answers().await;
        let manifest = source.manifest(reference).await?;
        Ok(Image { id: format!("{reference}@{}", manifest.digest), digest: manifest.digest, size: 7 })
    }

    async fn create_pod(&self, pod: PodSandbox) -> Result<CreatedPod, Error> {
        self.answers().await;
        self.note("create_pod", &pod.id.0);
        let mut state = self.state.lock().unwrap();
        state.pods.push(pod.id.0.clone());
        state.sandboxes.insert(pod.id.0.clone(), pod);
        Ok(CreatedPod { network_namespace: state.namespace.clone() })
    }

    async fn start(&self, pod: &PodId, container: ContainerSpec) -> Result<Option<Arc<str>>, Error> {
        self.answers().await;
        self.note("start", &container.id.0);
        // The runtime for containers has names of its own for them.
        let handle = (self.name == "oci").then(|| Arc::from(format!("native-{}", container.id.0)));
        {
            let mut state = self.state.lock().unwrap();
            let mut status = ContainerStatus {
                id: container.id.clone(),
                pod: pod.clone(),
                name: container.name.clone(),
                handle: handle.clone(),
                state: ContainerState::Running { started: Timestamp::now() },
            };
            match container.image.id.split(['/', '@', ':']).next() {
                Some("job") => end(&mut status, 0),
                Some("crash") => end(&mut status, 1),
                _ => {}
            }
            state.specs.insert(container.id.0.clone(), container.clone());
            state.containers.insert(container.id.0, status);
        }
        self.changes.send_modify(|n| *n += 1);
        Ok(handle)
    }

    async fn stop(&self, container: &ContainerId, grace: Duration) -> Result<(), Error> {
        self.answers().await;
        {
            let mut state = self.state.lock().unwrap();
            state.stopped.push((container.0.clone(), grace));
            if let Some(container) = state.containers.get_mut(&container.0) {
                end(container, 143);
            }
        }
        self.changes.send_modify(|n| *n += 1);
        Ok(())
    }

    async fn remove(&self, container: &ContainerId) -> Result<(), Error> {
        self.answers().await;
        self.state.lock().unwrap().containers.remove(&container.0);
        Ok(())
    }

    async fn remove_pod(&self, pod: &PodId) -> Result<(), Error> {
        self.answers().await;
        self.note("remove_pod", &pod.0);
        let mut state = self.state.lock().unwrap();
        state.containers.retain(|_, status| status.pod != *pod);
        state.pods.retain(|id| *id != pod.0);
        Ok(())
    }

    async fn list(&self) -> Result<Vec<ContainerStatus>, Error> {
        self.answers().await;
        let mut state = self.state.lock().unwrap();
        if state.unlisted > 0 {
            state.unlisted -= 1;
            return Err(Error::Internal("not up yet".into()));
        }
        Ok(state.containers.values().cloned().collect())
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    async fn usage(&self, _: &ContainerId) -> Result<Usage, Error> {
        self.answers().await;
        Ok(Usage {
            cpu: Duration::from_millis(5),
            memory: 65_536,
            requests: 3,
            instances: 1,
            ..Usage::default()
        })
    }

    async fn exec(
        &self,
        container: &ContainerId,
        command: Vec<String>,
        _: Streams,
    ) -> Result<Session, Error> {
        self.answers().await;
        let mut state = self.state.lock().unwrap();
        let Some((code, output)) = state.exec else { return Err(Error::Unsupported("no exec".into())) };
        state.commands.push(format!("{} {}", container.0, command.join(" ")));
        Ok(Session {
            stdin: None,
            stdout: Some(Box::new(output.as_bytes())),
            stderr: None,
            resize: None,
            exit: Box::pin(async move { Ok(code) }),
        })
    }

    fn http(&self, container: &ContainerId) -> Option<Arc<dyn HttpService>> {
        let state = self.state.lock().unwrap();
        let serves = state.specs.get(&container.0).is_some_and(|spec| spec.image.id.starts_with("web"));
        let running = matches!(state.containers.get(&container.0)?.state, ContainerState::Running { .. });
        (serves && running).then(|| Arc::new(Web(self.clone())) as Arc<dyn HttpService>)
    }
}

/// Every image is a Wasm artifact, except `missing` (not found) and what begins with `oci` (a container).
#[derive(Clone, Default)]
pub struct Images {
    /// References asked for.
    pub asked: Arc<Mutex<Vec<String>>>,
    /// Images that are found by now although they are called `missing`.
    pub found: Arc<Mutex<bool>>,
}

impl ketch_node::PodImages for Images {
    fn with(&self, _: &ketch_node::Wanted) -> Arc<dyn ImageSource> {
        Arc::new(self.clone())
    }
}

#[async_trait]
impl ImageSource for Images {
    async fn manifest(&self, reference: &str) -> Result<Manifest, Error> {
        self.asked.lock().unwrap().push(reference.to_owned());
        let kind = match reference {
            "missing" if !*self.found.lock().unwrap() => {
                return Err(Error::Pull("manifest unknown: missing".into()));
            }
            _ if reference.starts_with("oci") => "application/vnd.oci.image.layer.v1.tar+gzip",
            _ => "application/wasm",
        };
        let bytes = format!(r#"{{"layers":[{{"mediaType":"{kind}"}}]}}"#).into();
        Ok(Manifest { digest: "sha256:00".into(), bytes })
    }

    async fn blob(&self, _: &str, _: &str, _: u64, _: &Path) -> Result<(), Error> {
        Ok(())
    }
}
