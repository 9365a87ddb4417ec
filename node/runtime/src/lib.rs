//! How the node runs containers, whatever they are made of.
//!
//! [`Runtime`] is the boundary: message-shaped and idempotent, so that an implementation can live in
//! another process. `ketch-runtime-wasm` runs WebAssembly, `ketch-runtime-oci` containers; `fake` is for
//! tests of everything above. All pass one conformance suite (`testing`). The node agent learns what runs
//! from [`Runtime::list`], after a restart as at any other time.

pub mod disk;
pub mod fake;
pub mod log;
pub mod priority;
#[cfg(feature = "testing")]
pub mod testing;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use futures::future::BoxFuture;
use jiff::Timestamp;
use ketch_api::k8s::api::core::v1::{PodSecurityContext, SecurityContext};
use tokio::io::{AsyncRead, AsyncWrite};

/// One container of one pod; stable across daemon restarts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct ContainerId(pub String);

/// A pod as the runtime sees it; its UID.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct PodId(pub String);

/// What a runtime offers on this host.
#[derive(Clone, Debug, Default)]
pub struct Capabilities {
    /// Name and version for `status.nodeInfo.containerRuntimeVersion`, for instance `wasmtime://48.0.8`.
    pub version: String,
    /// What does not work here and how to mend it, one line each.
    pub limitations: Vec<String>,
    /// Why nothing can be started or ended at present, when the runtime's own means are away.
    pub unavailable: Option<String>,
}

/// What a pod's containers share. Runtimes take what means something to them: a runtime without processes
/// has no use for a host name or a namespace.
#[derive(Clone, Debug)]
pub struct PodSandbox {
    /// UID.
    pub id: PodId,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Address its servers bind and its connections come from.
    pub ip: IpAddr,
    /// Patterns of targets outside the cluster it may reach.
    pub outbound: Vec<String>,
    /// Network namespace that the pod has because another runtime made it; its servers and connections live
    /// there. `None`: the address is one of the host's, or this runtime makes the namespace.
    pub network_namespace: Option<PathBuf>,
    /// Host name inside.
    pub hostname: String,
    /// Resolver configuration of its containers; `None`: the host's.
    pub dns: Option<Dns>,
    /// Names that go before those of the resolver, in lower case: the pod's own and `hostAliases`. For guests
    /// without an `/etc/hosts`.
    pub hosts: BTreeMap<String, Vec<IpAddr>>,
    /// Labels of the pod.
    pub labels: BTreeMap<String, String>,
    /// The host's network, PID and IPC namespaces, and one PID namespace for all containers.
    pub namespaces: Namespaces,
    /// `spec.securityContext`.
    pub security: PodSecurityContext,
    /// Directory of the pod's logs.
    pub logs: PathBuf,
}

impl PodSandbox {
    /// A pod with an address and nothing else that is special.
    pub fn new(id: PodId, namespace: impl Into<String>, name: impl Into<String>, ip: IpAddr) -> Self {
        let name = name.into();
        Self {
            id,
            namespace: namespace.into(),
            hostname: name.clone(),
            name,
            ip,
            outbound: Vec::new(),
            network_namespace: None,
            dns: None,
            hosts: BTreeMap::new(),
            labels: BTreeMap::new(),
            namespaces: Namespaces::default(),
            security: PodSecurityContext::default(),
            logs: PathBuf::new(),
        }
    }
}

/// Contents of a pod's `resolv.conf`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    /// Addresses of name servers.
    pub servers: Vec<String>,
    /// Search path.
    pub searches: Vec<String>,
    /// Options, for instance `ndots:5`.
    pub options: Vec<String>,
}

/// Which of the host's namespaces a pod uses instead of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Namespaces {
    /// `hostNetwork`.
    pub host_network: bool,
    /// `hostPID`.
    pub host_pid: bool,
    /// `hostIPC`.
    pub host_ipc: bool,
    /// `shareProcessNamespace`.
    pub shared_pid: bool,
}

/// What [`Runtime::create_pod`] made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CreatedPod {
    /// The pod's own network namespace, when the runtime gave it one; runtimes of the pod's other containers
    /// are told in [`PodSandbox::network_namespace`].
    pub network_namespace: Option<PathBuf>,
}

/// An image present on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// `sha256:…` of the manifest.
    pub digest: String,
    /// Reference with digest, for `status.containerStatuses[].imageID`.
    pub id: String,
    /// Bytes.
    pub size: u64,
}

/// A container to start.
#[derive(Clone, Debug)]
pub struct ContainerSpec {
    /// Identity; starting one that runs already is a no-op.
    pub id: ContainerId,
    /// Name in the pod.
    pub name: String,
    /// What [`Runtime::pull`] returned.
    pub image: Image,
    /// Replaces the image's entry point when not empty.
    pub command: Vec<String>,
    /// Arguments.
    pub args: Vec<String>,
    /// Environment, resolved.
    pub env: Vec<(String, String)>,
    /// Working directory inside the container.
    pub working_dir: Option<String>,
    /// Directories to show.
    pub mounts: Vec<Mount>,
    /// Ports it may listen on; the first is where an HTTP component serves.
    pub ports: Vec<Port>,
    /// Memory limit in bytes.
    pub memory: Option<u64>,
    /// CPU limit in thousandths of a core.
    pub cpu_millis: Option<u64>,
    /// CPU request in thousandths of a core: its weight when the host is busy.
    pub cpu_request: Option<u64>,
    /// `oom_score_adj` of its processes, by quality of service.
    pub oom_score: i32,
    /// The container's security context over its pod's.
    pub security: SecurityContext,
    /// Whether it has a terminal.
    pub tty: bool,
    /// Whether it has a standard input that can be attached to.
    pub stdin: bool,
    /// Whether the end of the first client's input is the end of the container's.
    pub stdin_once: bool,
    /// Longest an HTTP request may take.
    pub request_timeout: Duration,
    /// Requests served at a time.
    pub concurrency: Option<u32>,
    /// How instances are reused.
    pub reuse: Reuse,
    /// CRI-format log file; the runtime creates, appends and rotates it.
    pub log: PathBuf,
}

impl ContainerSpec {
    /// A container of `image` with nothing else that is special.
    pub fn new(id: ContainerId, name: impl Into<String>, image: Image, log: PathBuf) -> Self {
        Self {
            id,
            name: name.into(),
            image,
            command: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
            working_dir: None,
            mounts: Vec::new(),
            ports: Vec::new(),
            memory: None,
            cpu_millis: None,
            cpu_request: None,
            oom_score: 0,
            security: SecurityContext::default(),
            tty: false,
            stdin: false,
            stdin_once: false,
            request_timeout: Duration::from_secs(30),
            concurrency: None,
            reuse: Reuse::default(),
            log,
        }
    }
}

/// How instances of an HTTP component are reused across requests. `None` is the runtime's default for
/// the component's world.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reuse {
    /// Requests an instance serves before it is replaced; 1: one instance per request.
    pub requests: Option<u32>,
    /// Requests it handles at a time.
    pub concurrent: Option<u32>,
    /// How long an idle instance is kept.
    pub idle: Option<Duration>,
}

/// A directory of the host in a container; for containers with processes also a file.
#[derive(Clone, Debug, Default)]
pub struct Mount {
    /// On the host.
    pub source: PathBuf,
    /// In the container.
    pub target: String,
    /// Whether writes are refused.
    pub read_only: bool,
    /// How mounts under it are seen on the other side.
    pub propagation: Propagation,
}

/// `mountPropagation`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Propagation {
    /// Not at all.
    #[default]
    Private,
    /// Later mounts of the host are seen in the container.
    HostToContainer,
    /// Both ways.
    Bidirectional,
}

/// A program to run in a running container, or the wish to join its own streams.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Streams {
    /// Whether the caller sends standard input.
    pub stdin: bool,
    /// Whether it wants standard output.
    pub stdout: bool,
    /// Whether it wants standard error; never with a terminal.
    pub stderr: bool,
    /// Whether the program gets a terminal.
    pub tty: bool,
}

/// Size of a terminal in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// A program's streams, as [`Runtime::exec`] and [`Runtime::attach`] return them. Dropping it ends an
/// `exec`ed program and leaves an attached container alone.
pub struct Session {
    /// Standard input; shutting it down is the end of the program's input.
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Standard output; the terminal, when there is one.
    pub stdout: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Standard error.
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Sizes of the terminal; the last one counts.
    pub resize: Option<tokio::sync::watch::Sender<Option<TerminalSize>>>,
    /// The exit code, once the program has ended. Its output may still be read then.
    pub exit: BoxFuture<'static, Result<i32, Error>>,
}

/// A declared port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// Number.
    pub number: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
}

/// Transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Where a container is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerState {
    /// Created, not yet running.
    Created,
    /// Running. An HTTP component is running once it accepts requests.
    Running {
        /// Since when.
        started: Timestamp,
    },
    /// Over.
    Exited {
        /// Since when it ran.
        started: Timestamp,
        /// When it ended.
        finished: Timestamp,
        /// Exit code; 137 when killed for memory or by force, 1 on a trap.
        code: i32,
        /// `Completed`, `Error`, `OOMKilled`, `Trapped`, `DeadlineExceeded`, …
        reason: String,
        /// For people: what happened, with the guest's backtrace when there is one.
        message: String,
    },
}

/// A container and its state.
#[derive(Clone, Debug)]
pub struct ContainerStatus {
    /// Identity.
    pub id: ContainerId,
    /// Pod it belongs to.
    pub pod: PodId,
    /// Name in the pod.
    pub name: String,
    /// What the runtime's own tools call this instance, when they call it otherwise than [`ContainerStatus::id`]:
    /// the same as long as the instance is known, never another one's. A runtime gives every container one, or none.
    pub handle: Option<Arc<str>>,
    /// State.
    pub state: ContainerState,
}

/// Use of resources since the start of the container.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// CPU time.
    pub cpu: Duration,
    /// Bytes of memory held now.
    pub memory: u64,
    /// Bytes on disk that it has written to its own files, volumes and log left out. May lag behind.
    pub disk: u64,
    /// Files, directories and links that it has made there. May lag behind.
    pub files: u64,
    /// HTTP requests served.
    pub requests: u64,
    /// Instances made.
    pub instances: u64,
}

/// Where images come from. The node implements it over registries; the runtime asks for what it lacks.
#[async_trait]
pub trait ImageSource: Send + Sync {
    /// Manifest of `reference`: its bytes, media type and digest.
    async fn manifest(&self, reference: &str) -> Result<Manifest, Error>;
    /// Writes blob `digest` of `reference`'s repository to `path`, checked against the digest and `size`.
    async fn blob(
        &self,
        reference: &str,
        digest: &str,
        size: u64,
        path: &std::path::Path,
    ) -> Result<(), Error>;
    /// Whether a runtime that has an image called `reference` already takes that one without asking for its
    /// manifest: `imagePullPolicy` other than `Always`.
    fn prefers_present(&self) -> bool {
        true
    }
}

/// An image manifest.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// `sha256:…`.
    pub digest: String,
    /// As the registry served it.
    pub bytes: bytes::Bytes,
}

/// The cluster's network as a pod sees it, for runtimes whose guests dial in process. The node implements
/// it (`ketch-net`); every dial goes through it, whatever interface the guest used.
#[async_trait]
pub trait Network: Send + Sync {
    /// Addresses of `name`, completed by the search path of the pod's namespace. Empty: no such name.
    async fn resolve(&self, pod: &PodSandbox, name: &str) -> Result<Vec<IpAddr>, Error>;

    /// Where a connection or datagram from `pod` to `target` goes: a Service's address becomes one of its
    /// endpoints, anything else stays. `Err`: the pod may not reach it; the text says which annotation allows it.
    fn route(&self, pod: &PodSandbox, target: SocketAddr, protocol: Protocol) -> Result<SocketAddr, Error>;

    /// [`Network::resolve`], then [`Network::route`] on each address: for clients that dial by name, whose
    /// name the outbound patterns may allow.
    async fn dial(&self, pod: &PodSandbox, host: &str, port: u16) -> Result<Vec<SocketAddr>, Error>;

    /// Whether `host` and `port`, as the pod dials them, are the API of its cluster: a name or address of its
    /// Service, which leads nowhere else for this pod.
    fn is_api(&self, pod: &PodSandbox, host: &str, port: u16) -> bool;
}

/// Why a runtime could not do something. The text reaches pod status and events: it names the cause and
/// the next step.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// No such container, pod or image.
    #[error("{0} not found")]
    NotFound(String),
    /// The image cannot be had: wrong name, no access, network. Retried with back-off (`ImagePullBackOff`).
    #[error("{0}")]
    Pull(String),
    /// The image can be had but not run here: not Wasm, truncated, imports nothing satisfies
    /// (`ErrImageNotRunnable`). Retrying does not help.
    #[error("{0}")]
    Image(String),
    /// The container's configuration cannot be met (`CreateContainerConfigError`).
    #[error("{0}")]
    Config(String),
    /// Not something this runtime does.
    #[error("{0}")]
    Unsupported(String),
    /// The disk is too full for the image. Retried with back-off, as [`Error::Pull`].
    #[error("{0}")]
    NoRoom(String),
    /// Anything else.
    #[error("{0}")]
    Internal(String),
}

/// Body of requests and responses that are handed over in process.
pub type Body =
    http_body_util::combinators::UnsyncBoxBody<bytes::Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// A container's HTTP service, called without a socket.
#[async_trait]
pub trait HttpService: Send + Sync {
    /// Serves one request. `Err` when the guest gave no answer.
    async fn call(&self, request: http::Request<Body>) -> Result<http::Response<Body>, HttpError>;
}

/// Why a guest gave no answer; what the gateway turns into a status code.
#[derive(Clone, Debug, thiserror::Error)]
pub enum HttpError {
    /// It trapped or returned an error: 502.
    #[error("the component failed: {0}")]
    Failed(String),
    /// It took longer than its time-out: 504.
    #[error("the component did not answer within {0:?}")]
    Timeout(Duration),
    /// It serves as many requests as it may: 503.
    #[error("the component is serving as many requests as it may")]
    Overloaded,
    /// It is not running: 503.
    #[error("the component is not running")]
    NotRunning,
}

/// Runs containers of one kind.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// What is offered here.
    fn capabilities(&self) -> Capabilities;

    /// Makes `reference` present and checks that it can run here; compiles what needs compiling.
    /// Idempotent, and quick when present.
    async fn pull(&self, reference: &str, source: Arc<dyn ImageSource>) -> Result<Image, Error>;

    /// Removes the image that `reference` was pulled as, with manifest `digest`. Its other names go too; what other
    /// images share with it stays. The caller knows that no container needs it. Unknown ones are fine.
    async fn remove_image(&self, _reference: &str, _digest: &str) -> Result<(), Error> {
        Ok(())
    }

    /// A directory on the file system that images take room on, when that may be another one than the node's.
    fn image_root(&self) -> Option<PathBuf> {
        None
    }

    /// Makes what a pod's containers share. Idempotent: of a pod that exists it says again what it made.
    async fn create_pod(&self, pod: PodSandbox) -> Result<CreatedPod, Error>;

    /// Starts a container of a pod that exists. Idempotent: one that runs or has ended stays as it is (to run
    /// it again, remove it first). Returns its [`ContainerStatus::handle`] once it runs, or has ended.
    async fn start(&self, pod: &PodId, container: ContainerSpec) -> Result<Option<Arc<str>>, Error>;

    /// Asks a container to end and ends it after `grace`. Returns when it has ended. Unknown ids are fine.
    async fn stop(&self, container: &ContainerId, grace: Duration) -> Result<(), Error>;

    /// Forgets an ended container. Unknown ids are fine.
    async fn remove(&self, container: &ContainerId) -> Result<(), Error>;

    /// Stops and forgets a pod and everything in it. Unknown ids are fine.
    async fn remove_pod(&self, pod: &PodId) -> Result<(), Error>;

    /// Every container this runtime knows.
    async fn list(&self) -> Result<Vec<ContainerStatus>, Error>;

    /// Wakes whenever a container's state may have changed. A hint: [`Runtime::list`] tells the truth.
    fn changes(&self) -> tokio::sync::watch::Receiver<u64>;

    /// Use of a running container.
    async fn usage(&self, container: &ContainerId) -> Result<Usage, Error>;

    /// The container's HTTP service, when it has one and is running.
    fn http(&self, _container: &ContainerId) -> Option<Arc<dyn HttpService>> {
        None
    }

    /// Runs `command` beside a running container's program, with its files, environment and limits.
    async fn exec(
        &self,
        _container: &ContainerId,
        _command: Vec<String>,
        _streams: Streams,
    ) -> Result<Session, Error> {
        Err(Error::Unsupported("this runtime cannot run further programs in a container".to_owned()))
    }

    /// Joins the streams of a running container's own program.
    async fn attach(&self, _container: &ContainerId, _streams: Streams) -> Result<Session, Error> {
        Err(Error::Unsupported("this runtime cannot attach to a container".to_owned()))
    }
}
