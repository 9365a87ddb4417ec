//! What the tests share: guests, an image source that serves them, a network of loopback addresses, one
//! runtime for all.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use http_body_util::{BodyExt, Full};
use ketch_runtime::{
    Body, ContainerId, ContainerSpec, ContainerState, Error, HttpError, HttpService, ImageSource, Manifest,
    Network, PodId, PodSandbox, Port, Protocol, Runtime,
};
use ketch_runtime_wasm::{InProcessCompiler, Options, WasmRuntime};
use sha2::{Digest, Sha256};

/// Longest a condition may take to come true.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

static EXECUTOR: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
});

static SHARED: LazyLock<Arc<WasmRuntime>> = LazyLock::new(|| {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("wasm");
    let _executor = EXECUTOR.enter();
    Arc::new(WasmRuntime::new(Options::new(dir, Arc::new(Loopback), Arc::new(InProcessCompiler))).unwrap())
});

/// Runs a test on the shared executor.
pub(crate) fn run<T>(test: impl Future<Output = T>) -> T {
    EXECUTOR.block_on(async {
        tokio::time::timeout(Duration::from_secs(300), test).await.expect("the test takes too long")
    })
}

/// The runtime all tests share; its compiled code survives the run.
pub(crate) fn runtime() -> Arc<WasmRuntime> {
    Arc::clone(&SHARED)
}

static GUESTS: LazyLock<PathBuf> = LazyLock::new(|| {
    let workloads = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../workloads");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--release", "--target", "wasm32-wasip2", "--manifest-path"]);
    cargo.arg(workloads.join("Cargo.toml"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CARGO_") || name == "RUSTFLAGS") {
        cargo.env_remove(name);
    }
    assert!(cargo.status().unwrap().success(), "the guests do not build");
    workloads.join("target/wasm32-wasip2/release")
});

/// Bytes of a guest of `workloads/`.
pub(crate) fn guest(name: &str) -> Vec<u8> {
    let file = GUESTS.join(format!("{name}.wasm"));
    let file = if file.exists() { file } else { GUESTS.join(format!("{}.wasm", name.replace('-', "_"))) };
    std::fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// Serves `test.local/<guest>` and what a test gives it.
#[derive(Default)]
pub(crate) struct Guests {
    pub(crate) own: Vec<(String, Vec<u8>)>,
    pub(crate) manifests: Vec<(String, String)>,
}

impl Guests {
    pub(crate) fn with(reference: &str, wasm: Vec<u8>) -> Arc<Self> {
        Arc::new(Self { own: vec![(reference.to_owned(), wasm)], manifests: Vec::new() })
    }

    fn wasm(&self, reference: &str) -> Option<Vec<u8>> {
        let own = self.own.iter().find(|(name, _)| name == reference).map(|(_, wasm)| wasm.clone());
        let known = ["hello", "hello-p3", "counter", "tcp-echo", "job", "misbehave"];
        own.or_else(|| {
            let name = reference.strip_prefix("test.local/")?.split([':', '@']).next()?;
            known.contains(&name).then(|| guest(name))
        })
    }
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

#[async_trait]
impl ImageSource for Guests {
    async fn manifest(&self, reference: &str) -> Result<Manifest, Error> {
        let text = match self.manifests.iter().find(|(name, _)| name == reference) {
            Some((_, text)) => text.clone(),
            None => {
                let wasm =
                    self.wasm(reference).ok_or_else(|| Error::Pull(format!("{reference}: not found")))?;
                let layer = serde_json::json!({"mediaType": "application/wasm", "digest": digest(&wasm), "size": wasm.len()});
                serde_json::json!({"schemaVersion": 2, "layers": [layer]}).to_string()
            }
        };
        Ok(Manifest { digest: digest(text.as_bytes()), bytes: text.into() })
    }

    async fn blob(&self, reference: &str, _digest: &str, _size: u64, path: &Path) -> Result<(), Error> {
        let wasm = self.wasm(reference).ok_or_else(|| Error::Pull(format!("{reference}: not found")))?;
        std::fs::write(path, wasm).map_err(|error| Error::Pull(error.to_string()))
    }
}

/// `NAME.pod` is 127.42.<name>; the pods may reach each other and nothing else. Port 9999 leads to 18080,
/// as a Service would.
pub(crate) struct Loopback;

#[async_trait]
impl Network for Loopback {
    async fn resolve(&self, _pod: &PodSandbox, name: &str) -> Result<Vec<IpAddr>, Error> {
        Ok(name
            .strip_suffix(".pod")
            .and_then(|name| format!("127.42.{name}").parse().ok())
            .into_iter()
            .collect())
    }

    fn route(&self, pod: &PodSandbox, target: SocketAddr, _protocol: Protocol) -> Result<SocketAddr, Error> {
        match target.ip() {
            IpAddr::V4(ip) if ip.octets()[..2] == [127, 42] => {
                let port = if target.port() == 9999 { 18080 } else { target.port() };
                Ok(SocketAddr::new(target.ip(), port))
            }
            _ => Err(Error::Config(format!(
                "{target} is outside of the cluster: allow it with the annotation ketch.dev/outbound of pod {}",
                pod.name
            ))),
        }
    }

    async fn dial(&self, pod: &PodSandbox, host: &str, port: u16) -> Result<Vec<SocketAddr>, Error> {
        let addresses = match host.parse() {
            Ok(ip) => vec![ip],
            Err(_) => self.resolve(pod, host).await?,
        };
        addresses.into_iter().map(|ip| self.route(pod, SocketAddr::new(ip, port), Protocol::Tcp)).collect()
    }

    fn is_api(&self, _pod: &PodSandbox, _host: &str, _port: u16) -> bool {
        false
    }
}

/// A pod with one container.
pub(crate) struct Pod {
    pub(crate) runtime: Arc<WasmRuntime>,
    pub(crate) id: PodId,
    pub(crate) ip: IpAddr,
    pub(crate) spec: ContainerSpec,
    dir: tempfile::TempDir,
}

impl Pod {
    /// Pulls a guest of `workloads/` and describes a pod of it, not yet started.
    pub(crate) async fn of(name: &str) -> Self {
        Self::from(&format!("test.local/{name}:1"), Arc::new(Guests::default())).await
    }

    pub(crate) async fn from(reference: &str, source: Arc<Guests>) -> Self {
        Self::on(runtime(), reference, source).await
    }

    pub(crate) async fn on(runtime: Arc<WasmRuntime>, reference: &str, source: Arc<Guests>) -> Self {
        static NUMBER: AtomicU16 = AtomicU16::new(1);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let [high, low] = number.to_be_bytes();
        let ip = IpAddr::from([127, 42, 100 + high, low]);
        let id = PodId(format!("pod-{number}"));
        let image = runtime.pull(reference, source).await.unwrap();
        let sandbox = PodSandbox::new(id.clone(), "default", format!("test-{number}"), ip);
        runtime.create_pod(sandbox).await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let container = ContainerId(format!("pod-{number}-main-0"));
        let spec = ContainerSpec {
            ports: vec![Port { number: 18080, protocol: Protocol::Tcp }],
            ..ContainerSpec::new(container, "main", image, dir.path().join("0.log"))
        };
        Self { runtime, id, ip, spec, dir }
    }

    pub(crate) fn with(mut self, change: impl FnOnce(&mut ContainerSpec)) -> Self {
        change(&mut self.spec);
        self
    }

    /// Puts the pod into a network namespace.
    pub(crate) async fn inside(self, namespace: &Path) -> Self {
        let sandbox = PodSandbox {
            network_namespace: Some(namespace.to_owned()),
            ..PodSandbox::new(self.id.clone(), "default", self.id.0.clone(), self.ip)
        };
        self.runtime.create_pod(sandbox).await.unwrap();
        self
    }

    /// A directory that lives as long as this.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) async fn start(self) -> Self {
        self.runtime.start(&self.id, self.spec.clone()).await.unwrap();
        self
    }

    pub(crate) async fn state(&self) -> ContainerState {
        let all = self.runtime.list().await.unwrap();
        all.into_iter().find(|status| status.id == self.spec.id).expect("the container is listed").state
    }

    /// Exit code, reason, message.
    pub(crate) async fn end(&self) -> (i32, String, String) {
        let mut changes = self.runtime.changes();
        let wait = async {
            loop {
                changes.borrow_and_update();
                if let ContainerState::Exited { code, reason, message, .. } = self.state().await {
                    return (code, reason, message);
                }
                changes.changed().await.unwrap();
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("the container ends")
    }

    pub(crate) fn http(&self) -> Arc<dyn HttpService> {
        self.runtime.http(&self.spec.id).expect("it serves")
    }

    /// Status and body of a request made in process.
    pub(crate) async fn get(&self, path: &str) -> Result<(u16, String), HttpError> {
        self.send("GET", path, "").await
    }

    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        body: &str,
    ) -> Result<(u16, String), HttpError> {
        call(&*self.http(), method, path, body).await
    }

    /// Texts of the log so far, with `stdout F ` and the like before them.
    pub(crate) fn log(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.spec.log).unwrap_or_default();
        text.lines().map(|line| line.split_once(' ').map_or("", |(_, rest)| rest).to_owned()).collect()
    }

    /// Waits for a log line with this text.
    pub(crate) async fn logged(&self, text: &str) {
        let wait = async {
            while !self.log().iter().any(|line| line.contains(text)) {
                tokio::task::yield_now().await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, wait).await;
        let log = self.log();
        assert!(waited.is_ok(), "no {text:?} in {:?}", &log[log.len().saturating_sub(20)..]);
    }

    /// Waits until no instance of the container lives.
    pub(crate) async fn idle(&self) {
        let wait = async {
            while self.runtime.usage(&self.spec.id).await.unwrap().memory > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("the instances end");
    }

    pub(crate) async fn remove(self) {
        self.runtime.remove_pod(&self.id).await.unwrap();
    }
}

pub(crate) async fn call(
    service: &dyn HttpService,
    method: &str,
    path: &str,
    body: &str,
) -> Result<(u16, String), HttpError> {
    let body: Body = Full::new(body.to_owned().into()).map_err(|never| match never {}).boxed_unsync();
    let request =
        http::Request::builder().method(method).uri(format!("http://test{path}")).body(body).unwrap();
    let response = service.call(request).await?;
    let status = response.status().as_u16();
    let bytes = response.into_body().collect().await.map_err(|error| HttpError::Failed(error.to_string()))?;
    Ok((status, String::from_utf8(bytes.to_bytes().to_vec()).unwrap()))
}

/// Status and body of a request made over a socket.
pub(crate) async fn fetch(address: SocketAddr, path: &str) -> (u16, String) {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    let request =
        http::Request::get(path).header("host", "test").body(Full::<bytes::Bytes>::default()).unwrap();
    let exchange = async {
        let response = sender.send_request(request).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        drop(sender);
        (status, String::from_utf8(body.to_vec()).unwrap())
    };
    let (result, _) = tokio::join!(exchange, connection);
    result
}
