//! What every runtime promises, as a suite to run against one: [`conformance`].
//!
//! Panics name the promise that was broken. Waits on conditions, never on time.
#![allow(clippy::expect_used, clippy::panic, reason = "a suite reports by panicking")]

use std::{net::IpAddr, path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use http_body_util::{BodyExt, Empty};

use crate::{
    Body, ContainerId, ContainerSpec, ContainerState, ContainerStatus, Error, Image, ImageSource, Manifest,
    PodId, PodSandbox, Port, Protocol, Runtime,
};

/// Longest a condition may take to come true.
const PATIENCE: Duration = Duration::from_secs(60);

/// A program the suite needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Serves HTTP on its first port, 200 on `/`.
    Http,
    /// Writes a line to standard output and ends with this code (0 and 3 are asked for).
    ExitsWith(i32),
    /// Runs until stopped.
    RunsForever,
    /// A reference to nothing.
    Missing,
}

/// How to run a [`Role`].
#[derive(Clone, Debug, Default)]
pub struct Program {
    /// Image.
    pub reference: String,
    /// See [`ContainerSpec::command`].
    pub command: Vec<String>,
    /// See [`ContainerSpec::args`].
    pub args: Vec<String>,
    /// See [`ContainerSpec::env`].
    pub env: Vec<(String, String)>,
}

/// A runtime under test with what it needs.
pub trait Subject: Sync {
    /// The runtime.
    fn runtime(&self) -> Arc<dyn Runtime>;
    /// Where its images are.
    fn source(&self) -> Arc<dyn ImageSource>;
    /// How to run a role; `None` leaves out what needs it.
    fn program(&self, role: Role) -> Option<Program>;
    /// Whether its own tools have other names for containers.
    fn has_handles(&self) -> bool {
        false
    }
    /// An address pods may use.
    fn ip(&self) -> IpAddr {
        IpAddr::from([127, 42, 7, 1])
    }
}

/// No images at all, for runtimes that do not ask.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoImages;

#[async_trait]
impl ImageSource for NoImages {
    async fn manifest(&self, reference: &str) -> Result<Manifest, Error> {
        Err(Error::Pull(format!("{reference}: there are no images here")))
    }

    async fn blob(&self, reference: &str, _digest: &str, _size: u64, _path: &Path) -> Result<(), Error> {
        Err(Error::Pull(format!("{reference}: there are no images here")))
    }
}

/// Checks every promise of [`Runtime`].
///
/// # Panics
/// At the first one that is broken.
pub async fn conformance(subject: &dyn Subject) {
    pulls(subject).await;
    unknown_ids(subject).await;
    http(subject).await;
    for code in [0, 3] {
        exits(subject, code).await;
    }
    stops(subject).await;
    handles(subject).await;
    pods_go_with_their_containers(subject).await;
}

/// A pod with its runtime, as the cases use it.
struct Case<'a> {
    subject: &'a dyn Subject,
    runtime: Arc<dyn Runtime>,
    pod: PodId,
    logs: std::path::PathBuf,
}

impl<'a> Case<'a> {
    async fn new(subject: &'a dyn Subject, name: &str) -> Self {
        let runtime = subject.runtime();
        let pod = PodId(format!("conformance-{name}"));
        let logs = std::env::temp_dir().join(format!("ketch-conformance-{}-{name}", std::process::id()));
        _ = std::fs::remove_dir_all(&logs);
        let case = Self { subject, runtime, pod, logs };
        for _ in 0..2 {
            case.runtime.create_pod(case.sandbox()).await.expect("create_pod is idempotent");
        }
        case
    }

    fn sandbox(&self) -> PodSandbox {
        PodSandbox::new(self.pod.clone(), "default", self.pod.0.clone(), self.subject.ip())
    }

    /// A spec of `role`, its image pulled.
    async fn spec(&self, role: Role, attempt: u32) -> Option<ContainerSpec> {
        let program = self.subject.program(role)?;
        let image =
            self.runtime.pull(&program.reference, self.subject.source()).await.expect("the image is there");
        Some(self.spec_of(program, image, attempt))
    }

    fn spec_of(&self, program: Program, image: Image, attempt: u32) -> ContainerSpec {
        let id = ContainerId(format!("{}-main-{attempt}", self.pod.0));
        let log = self.logs.join(format!("main/{attempt}.log"));
        ContainerSpec {
            command: program.command,
            args: program.args,
            env: program.env,
            ports: vec![Port { number: 18080, protocol: Protocol::Tcp }],
            ..ContainerSpec::new(id, "main", image, log)
        }
    }

    async fn status(&self, id: &ContainerId) -> Option<ContainerStatus> {
        let all = self.runtime.list().await.expect("list works");
        all.into_iter().find(|status| status.id == *id).inspect(|status| {
            assert_eq!(status.pod, self.pod, "list names the pod");
            assert_eq!(status.name, "main", "list names the container");
        })
    }

    async fn state(&self, id: &ContainerId) -> Option<ContainerState> {
        self.status(id).await.map(|status| status.state)
    }

    async fn handle(&self, id: &ContainerId) -> Option<Arc<str>> {
        self.status(id).await.expect("the container is listed").handle
    }

    /// Waits for `changes` to lead to a state that `wanted` accepts.
    async fn until(
        &self,
        id: &ContainerId,
        what: &str,
        wanted: impl Fn(&ContainerState) -> bool,
    ) -> ContainerState {
        let mut changes = self.runtime.changes();
        let wait = async {
            loop {
                changes.borrow_and_update();
                if let Some(state) = self.state(id).await
                    && wanted(&state)
                {
                    return state;
                }
                changes.changed().await.expect("the runtime lives");
            }
        };
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(state) => state,
            Err(_) => panic!("{what} did not happen; the state is {:?}", self.state(id).await),
        }
    }

    async fn done(self) {
        self.runtime.remove_pod(&self.pod).await.expect("remove_pod works");
        _ = std::fs::remove_dir_all(&self.logs);
    }
}

fn running(state: &ContainerState) -> bool {
    matches!(state, ContainerState::Running { .. })
}

fn over(state: &ContainerState) -> bool {
    matches!(state, ContainerState::Exited { .. })
}

async fn pulls(subject: &dyn Subject) {
    let runtime = subject.runtime();
    assert!(!runtime.capabilities().version.is_empty(), "a runtime has a version");
    if let Some(program) = subject.program(Role::RunsForever) {
        let first = runtime.pull(&program.reference, subject.source()).await.expect("pull works");
        let second = runtime.pull(&program.reference, subject.source()).await.expect("pull works twice");
        assert_eq!(first, second, "pull is idempotent");
        assert!(first.digest.starts_with("sha256:"), "the digest is one: {}", first.digest);
        assert!(first.id.ends_with(&first.digest), "the image id has the digest: {}", first.id);
        assert!(first.size > 0, "an image has a size");
    }
    if let Some(program) = subject.program(Role::Missing) {
        let error =
            runtime.pull(&program.reference, subject.source()).await.expect_err("there is no such image");
        assert!(matches!(error, Error::Pull(_)), "a missing image is a pull error: {error:?}");
    }
}

async fn unknown_ids(subject: &dyn Subject) {
    let runtime = subject.runtime();
    let container = ContainerId("conformance-none".into());
    let pod = PodId("conformance-none".into());
    runtime.stop(&container, Duration::ZERO).await.expect("stopping an unknown container is fine");
    runtime.remove(&container).await.expect("removing an unknown container is fine");
    runtime.remove_pod(&pod).await.expect("removing an unknown pod is fine");
    let error = runtime.usage(&container).await.expect_err("an unknown container uses nothing");
    assert!(matches!(error, Error::NotFound(_)), "usage of an unknown container: {error:?}");
    assert!(runtime.http(&container).is_none(), "an unknown container serves nothing");
    let case = Case::new(subject, "unknown").await;
    if let Some(spec) = case.spec(Role::RunsForever, 0).await {
        let error = runtime.start(&pod, spec).await.expect_err("there is no such pod");
        assert!(matches!(error, Error::NotFound(_)), "start in an unknown pod: {error:?}");
    }
    case.done().await;
}

async fn http(subject: &dyn Subject) {
    let case = Case::new(subject, "http").await;
    if let Some(spec) = case.spec(Role::Http, 0).await {
        case.runtime.start(&case.pod, spec.clone()).await.expect("start works");
        let first = case.until(&spec.id, "running", running).await;
        case.runtime.start(&case.pod, spec.clone()).await.expect("start is idempotent");
        assert_eq!(case.state(&spec.id).await, Some(first), "starting again changes nothing");
        if let Some(service) = case.runtime.http(&spec.id) {
            let body: Body = Empty::new().map_err(|never| match never {}).boxed_unsync();
            let request = http::Request::get("http://conformance/").body(body).expect("a request");
            let response = service.call(request).await.expect("the service answers");
            assert_eq!(response.status(), 200);
            response.into_body().collect().await.expect("the body comes whole");
            let usage = case.runtime.usage(&spec.id).await.expect("usage works");
            assert_eq!(usage.requests, 1, "requests are counted");
        }
        case.runtime.stop(&spec.id, Duration::from_secs(5)).await.expect("stop works");
        assert!(case.runtime.http(&spec.id).is_none(), "a stopped container serves nothing");
    }
    case.done().await;
}

async fn exits(subject: &dyn Subject, code: i32) {
    let case = Case::new(subject, &format!("exits-{code}")).await;
    if let Some(spec) = case.spec(Role::ExitsWith(code), 0).await {
        case.runtime.start(&case.pod, spec.clone()).await.expect("start works");
        let ended = case.until(&spec.id, "the end", over).await;
        let ContainerState::Exited { started, finished, code: got, ref reason, .. } = ended else {
            panic!("not over")
        };
        assert_eq!(got, code, "the exit code is the program's");
        assert_eq!(reason, if code == 0 { "Completed" } else { "Error" });
        assert!(started <= finished, "it starts before it ends");
        let text =
            std::fs::read_to_string(&spec.log).expect("the log is complete when the container is over");
        assert!(text.lines().any(|line| line.contains(" stdout F ")), "the log has its line: {text:?}");
        case.runtime.start(&case.pod, spec.clone()).await.expect("starting an ended container is fine");
        assert_eq!(case.state(&spec.id).await, Some(ended), "an ended container stays ended");
        case.runtime.stop(&spec.id, Duration::ZERO).await.expect("stopping an ended container is fine");
        case.runtime.remove(&spec.id).await.expect("remove works");
        assert_eq!(case.state(&spec.id).await, None, "a removed container is forgotten");
        case.runtime.start(&case.pod, spec.clone()).await.expect("a removed container can start again");
        case.until(&spec.id, "the second end", over).await;
    }
    case.done().await;
}

async fn stops(subject: &dyn Subject) {
    let case = Case::new(subject, "stops").await;
    if let Some(spec) = case.spec(Role::RunsForever, 0).await {
        case.runtime.start(&case.pod, spec.clone()).await.expect("start works");
        case.until(&spec.id, "running", running).await;
        case.runtime.usage(&spec.id).await.expect("usage of a running container");
        for _ in 0..2 {
            case.runtime.stop(&spec.id, Duration::from_millis(50)).await.expect("stop is idempotent");
        }
        let state = case.state(&spec.id).await;
        assert!(state.as_ref().is_some_and(over), "stop returns when it has ended: {state:?}");
        let next = ContainerSpec { id: ContainerId(format!("{}-main-1", case.pod.0)), ..spec.clone() };
        case.runtime.start(&case.pod, next.clone()).await.expect("the next attempt starts");
        case.until(&next.id, "running again", running).await;
    }
    case.done().await;
}

/// A handle is one instance's: as long as that is known, running or ended, and nobody's after it.
async fn handles(subject: &dyn Subject) {
    let case = Case::new(subject, "handles").await;
    let (Some(spec), Some(short)) =
        (case.spec(Role::RunsForever, 0).await, case.spec(Role::ExitsWith(0), 1).await)
    else {
        return case.done().await;
    };
    let short = ContainerSpec { ports: Vec::new(), ..short };
    let first = case.runtime.start(&case.pod, spec.clone()).await.expect("start works");
    assert_eq!(first.is_some(), subject.has_handles(), "each container has a handle, or none: {first:?}");
    assert!(first.as_deref().is_none_or(|handle| !handle.is_empty()), "a handle is a name");
    case.until(&spec.id, "running", running).await;
    assert_eq!(case.handle(&spec.id).await, first, "list has the handle that start returned");
    let again = case.runtime.start(&case.pod, spec.clone()).await.expect("start is idempotent");
    assert_eq!(again, first, "starting again changes nothing");
    let second = case.runtime.start(&case.pod, short.clone()).await.expect("start works");
    case.until(&short.id, "the end", over).await;
    assert_eq!(case.handle(&short.id).await, second, "an ended container keeps its handle");
    case.runtime.stop(&spec.id, Duration::ZERO).await.expect("stop works");
    assert_eq!(case.handle(&spec.id).await, first, "a stopped container keeps its handle");
    case.runtime.remove(&spec.id).await.expect("remove works");
    let third = case.runtime.start(&case.pod, spec.clone()).await.expect("it starts again");
    case.until(&spec.id, "running again", running).await;
    assert_eq!(case.handle(&spec.id).await, third, "list has the handle that start returned");
    if subject.has_handles() {
        let all = [&first, &second, &third];
        assert!(all.iter().all(|one| one.is_some()), "each container has a handle: {all:?}");
        assert!(first != second && first != third && second != third, "no two have the same: {all:?}");
    } else {
        assert_eq!((second, third), (None, None), "no container has a handle");
    }
    case.done().await;
}

async fn pods_go_with_their_containers(subject: &dyn Subject) {
    let case = Case::new(subject, "pods").await;
    if let Some(spec) = case.spec(Role::RunsForever, 0).await {
        case.runtime.start(&case.pod, spec.clone()).await.expect("start works");
        case.until(&spec.id, "running", running).await;
        for _ in 0..2 {
            case.runtime.remove_pod(&case.pod).await.expect("remove_pod is idempotent");
        }
        assert_eq!(case.state(&spec.id).await, None, "a pod takes its containers with it");
        let error = case.runtime.start(&case.pod, spec).await.expect_err("the pod is gone");
        assert!(matches!(error, Error::NotFound(_)), "start in a removed pod: {error:?}");
    }
    case.done().await;
}
