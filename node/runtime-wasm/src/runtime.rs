//! The runtime: images, pods, containers.

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use ketch_api::wasm::World;
use ketch_net::netns;
use ketch_runtime::{
    Capabilities, ContainerId, ContainerSpec, ContainerState, ContainerStatus, CreatedPod, Error,
    HttpService, Image, ImageSource, Network, PodId, PodSandbox, Protocol, Runtime, Session, Streams, Usage,
    log::{LogLimits, Logs},
};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    cache::Cache,
    command::{self, Outcome},
    compile::Compiler,
    container::Container,
    context::{Pod, Surroundings},
    engine::{EngineHost, Host, Layout},
    exec,
    http::{self, InProcess, Service, ServiceOptions},
    images::{self, Content, Images, Layer, Stored},
    keyvalue::Memory,
    limits::{Counters, Cpu, HTTP_MEMORY, Meter},
    outbound::Connections,
    program::{Program, Programs},
    sockets::MAX_SOCKETS,
    trust::Trust,
};

/// Port of an HTTP component that declares none.
const DEFAULT_PORT: u16 = 8080;

/// Largest binary taken.
const MAX_BINARY: u64 = 256 << 20;

/// What a runtime needs.
pub struct Options {
    /// Everything it writes is in here.
    pub dir: PathBuf,
    /// The cluster's network.
    pub network: Arc<dyn Network>,
    /// What compiles.
    pub compiler: Arc<dyn Compiler>,
    /// What to size the engine for; [`Host::probe`] in production.
    pub host: Host,
    /// Bounds of each container's log.
    pub logs: LogLimits,
    /// How long an idle HTTP component keeps its code mapped.
    pub warm: Duration,
    /// Certificate of the cluster's authority, PEM: trusted where guests ask the cluster's API, and nowhere else.
    pub authority: Option<String>,
}

impl Options {
    /// The defaults for this host.
    pub fn new(dir: PathBuf, network: Arc<dyn Network>, compiler: Arc<dyn Compiler>) -> Self {
        Self {
            dir,
            network,
            compiler,
            host: Host::probe(),
            logs: LogLimits::default(),
            warm: Duration::from_secs(10),
            authority: None,
        }
    }
}

/// Runs Wasm containers in this process. Dropping it ends them.
pub struct WasmRuntime {
    engine: Arc<EngineHost>,
    images: Arc<Images>,
    programs: Arc<Programs>,
    network: Arc<dyn Network>,
    trust: Arc<Trust>,
    logs: Logs,
    state: Arc<Mutex<State>>,
    changed: Arc<watch::Sender<u64>>,
    tasks: TaskTracker,
    over: CancellationToken,
}

#[derive(Default)]
struct State {
    pods: HashMap<PodId, Arc<Pod>>,
    containers: HashMap<ContainerId, Arc<Container>>,
}

impl WasmRuntime {
    /// Builds the engine and opens the directories. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// When a directory cannot be written, or the engine cannot be had even in its smallest form.
    pub fn new(options: Options) -> Result<Self, Error> {
        let Options { dir, network, compiler, host, logs, warm, authority } = options;
        let broken =
            |what: &str, error: &dyn std::fmt::Display| Error::Internal(format!("{what}: {error:#}"));
        let engine = EngineHost::new(host).map_err(|error| broken("cannot start the wasm engine", &error))?;
        let engine = Arc::new(engine);
        let images =
            Images::open(&dir).map_err(|error| broken(&format!("cannot open {}", dir.display()), &error))?;
        let cache = Cache::open(&dir.join("cache"), engine.hash.clone(), engine.layout, compiler);
        let cache =
            cache.map_err(|error| broken(&format!("cannot open {}", dir.join("cache").display()), &error))?;
        let programs = Programs::new(Arc::clone(&engine), cache);
        let programs = programs.map_err(|error| broken("cannot link the host interfaces", &error))?;
        let trust = Trust::new(authority.as_deref()).map_err(|error| broken("cannot set up TLS", &error))?;
        let runtime = Self {
            engine,
            images: Arc::new(images),
            programs: Arc::new(programs),
            network,
            trust: Arc::new(trust),
            logs: Logs::new(logs).map_err(|error| broken("cannot start the log writer", &error))?,
            state: Arc::default(),
            changed: Arc::new(watch::Sender::new(0)),
            tasks: TaskTracker::new(),
            over: CancellationToken::new(),
        };
        runtime.tasks.spawn(cool(Arc::clone(&runtime.state), warm, runtime.over.clone()));
        Ok(runtime)
    }

    /// Compiles the binary at `wasm` ahead of its first pull, and checks that it can run here.
    ///
    /// # Errors
    /// [`Error::Image`] with what is wrong with it.
    pub async fn precompile(&self, wasm: &Path) -> Result<World, Error> {
        let path = wasm.to_owned();
        let digest = blocking(move || images::hash_file(&path)).await?;
        Ok(self.programs.load(&digest, wasm).await?.world())
    }

    /// Ends everything and waits for it.
    pub async fn shutdown(&self) {
        self.over.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds the binary of a reference: through an index, if need be.
    async fn find(
        &self,
        reference: &str,
        source: &dyn ImageSource,
    ) -> Result<(String, Option<Layer>), Error> {
        let manifest = source.manifest(reference).await?;
        if self.images.get(&manifest.digest).is_some() {
            return Ok((manifest.digest, None));
        }
        let layer = match images::content(reference, &manifest.bytes)? {
            Content::Binary(layer) => layer,
            Content::Manifest(digest) => {
                let inner = format!("{}@{digest}", images::repository(reference));
                match images::content(&inner, &source.manifest(&inner).await?.bytes)? {
                    Content::Binary(layer) => layer,
                    Content::Manifest(_) => {
                        return Err(Error::Image(format!("{reference} is an index of indexes")));
                    }
                }
            }
        };
        Ok((manifest.digest, Some(layer)))
    }

    /// Makes a layer's binary present, compiled and checked.
    async fn fetch(&self, reference: &str, layer: &Layer, source: &dyn ImageSource) -> Result<Stored, Error> {
        let wasm = images::sha256_of(&layer.digest)
            .ok_or_else(|| Error::Image(format!("{reference}: {:?} is not a digest", layer.digest)))?;
        if layer.size > MAX_BINARY {
            let limit = MAX_BINARY >> 20;
            return Err(Error::Image(format!(
                "{reference}: the binary has {} bytes, {limit} MiB are allowed",
                layer.size
            )));
        }
        let blob = self.images.blob(wasm);
        if !blob.exists() {
            let fresh = self.images.fresh()?;
            source.blob(reference, &layer.digest, layer.size, &fresh).await?;
            fresh
                .persist(&blob)
                .map_err(|error| Error::Internal(format!("cannot keep the binary: {error}")))?;
        }
        let program = self.programs.load(wasm, &blob).await.map_err(|error| match error {
            Error::Image(text) => Error::Image(format!("{reference} cannot run here: {text}")),
            other => other,
        })?;
        Ok(Stored {
            wasm: wasm.to_owned(),
            size: layer.size,
            world: program.world(),
            module: program.is_module(),
        })
    }

    /// A container of `spec`, not yet running.
    fn prepare(
        &self,
        pod: &PodId,
        sandbox: Arc<Pod>,
        stored: Stored,
        spec: &ContainerSpec,
    ) -> Arc<Container> {
        let counters = Arc::new(Counters::default());
        let memory = if stored.world.is_http() { spec.memory.or(Some(HTTP_MEMORY)) } else { spec.memory };
        let around = Arc::new(Surroundings {
            engine: Arc::clone(&self.engine),
            args: arguments(spec),
            env: Arc::new(environment(spec, &sandbox.sandbox.hostname)),
            pod: sandbox,
            working_dir: spec.working_dir.clone(),
            mounts: spec.mounts.clone(),
            ports: Arc::new(spec.ports.clone()),
            memory,
            counters: Arc::clone(&counters),
            log: self.logs.open(&spec.log),
            pipes: None,
            taps: Arc::default(),
        });
        let over = self.over.child_token();
        let meter = self.meter(&around, spec);
        let service = stored.world.is_http().then(|| {
            Service::new(ServiceOptions {
                around: Arc::clone(&around),
                meter: meter.clone(),
                programs: Arc::clone(&self.programs),
                images: Arc::clone(&self.images),
                stored: stored.clone(),
                timeout: spec.request_timeout,
                concurrency: spec.concurrency,
                reuse: spec.reuse,
                over: over.clone(),
            })
        });
        Arc::new(Container {
            id: spec.id.clone(),
            pod: pod.clone(),
            name: spec.name.clone(),
            around,
            stored,
            meter,
            service,
            state: watch::Sender::new(ContainerState::Created),
            closing: over.child_token(),
            over,
            changed: Arc::clone(&self.changed),
        })
    }

    fn meter(&self, around: &Surroundings, spec: &ContainerSpec) -> Meter {
        Meter {
            engine: Arc::clone(&self.engine),
            counters: Arc::clone(&around.counters),
            cpu: Arc::new(Cpu::new(spec.cpu_millis, Instant::now())),
        }
    }

    /// Brings a prepared container to life.
    async fn launch(
        &self,
        container: &Arc<Container>,
        stored: &Stored,
        spec: &ContainerSpec,
    ) -> Result<(), Error> {
        match &container.service {
            Some(service) => self.launch_service(container, service, spec).await,
            None => {
                let program = self.programs.get(&self.images, stored).await?;
                // A directory that cannot be mounted fails the start, not the program.
                container.around.check()?;
                self.launch_command(container, program);
                Ok(())
            }
        }
    }

    async fn launch_service(
        &self,
        container: &Arc<Container>,
        service: &Arc<Service>,
        spec: &ContainerSpec,
    ) -> Result<(), Error> {
        service.program().await?;
        container.around.check()?;
        let tcp = spec.ports.iter().find(|port| port.protocol == Protocol::Tcp);
        let port = tcp.map_or(DEFAULT_PORT, |port| port.number);
        let address = SocketAddr::new(container.around.pod.sandbox.ip, port);
        let listener = match &container.around.pod.sandbox.network_namespace {
            // The other containers of the pod find it at localhost too.
            Some(path) => netns::listen_everywhere(path, port),
            None => TcpListener::bind(address).await,
        };
        let listener =
            listener.map_err(|error| Error::Config(format!("cannot listen on {address}: {error}")))?;
        container.running();
        let (container, service) = (Arc::clone(container), Arc::clone(service));
        self.tasks.spawn(async move {
            http::serve(listener, Arc::clone(&service), container.closing.clone()).await;
            // Requests that came in process are in flight too.
            tokio::select! {
                () = container.over.cancelled() => {}
                () = service.drained() => {}
            }
            let forced = container.over.is_cancelled();
            container.over.cancel();
            service.drained().await;
            let killed =
                Outcome { code: 137, reason: "Error", message: "stopped with requests in flight".into() };
            let done = Outcome { code: 0, reason: "Completed", message: String::new() };
            container.ended(if forced { killed } else { done }).await;
        });
        Ok(())
    }

    fn launch_command(&self, container: &Arc<Container>, program: Arc<Program>) {
        container.running();
        let container = Arc::clone(container);
        let background = container.around.engine.background.clone();
        let run = async move {
            let outcome = command::run(&container.around, &container.meter, program, &container.over).await;
            let outcome = outcome.unwrap_or_else(|error| Outcome {
                code: 128,
                reason: "StartError",
                message: error.to_string(),
            });
            if outcome.reason == "Trapped" || outcome.reason == "OOMKilled" {
                container.around.say(&outcome.message);
            }
            container.ended(outcome).await;
        };
        self.tasks.spawn(background.run(run, &Arc::default()));
    }
}

impl Drop for WasmRuntime {
    fn drop(&mut self) {
        self.over.cancel();
    }
}

/// The program's arguments, its name first.
fn arguments(spec: &ContainerSpec) -> Vec<String> {
    let name = images::repository(&spec.image.id).rsplit('/').next().unwrap_or_default();
    let name = if spec.command.is_empty() { vec![format!("{name}.wasm")] } else { spec.command.clone() };
    name.into_iter().chain(spec.args.iter().cloned()).collect()
}

/// The program's environment: like runtimes of containers, with the host name, unless it has one of its own.
fn environment(spec: &ContainerSpec, hostname: &str) -> Vec<(String, String)> {
    const HOSTNAME: &str = "HOSTNAME";
    let given = spec.env.iter().any(|(name, _)| name == HOSTNAME) || hostname.is_empty();
    let own = (!given).then(|| (HOSTNAME.to_owned(), hostname.to_owned()));
    own.into_iter().chain(spec.env.iter().cloned()).collect()
}

/// Lets go of the code of idle services and of connections nobody uses.
async fn cool(state: Arc<Mutex<State>>, warm: Duration, over: CancellationToken) {
    let mut ticks = tokio::time::interval((warm / 2).max(Duration::from_millis(100)));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = over.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let (services, pods): (Vec<_>, Vec<_>) = {
            let state = state.lock().unwrap_or_else(PoisonError::into_inner);
            let services = state.containers.values().filter_map(|container| container.service.clone());
            (services.collect(), state.pods.values().cloned().collect())
        };
        services.iter().for_each(|service| service.cool(warm));
        pods.iter().for_each(|pod| pod.connections.cool());
    }
}

/// Runs disk work off the executor.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Error::Internal(error.to_string())),
        Err(error) => Err(Error::Internal(error.to_string())),
    }
}

#[async_trait]
impl Runtime for WasmRuntime {
    fn capabilities(&self) -> Capabilities {
        let compact = "address space is short: memory accesses of WebAssembly are checked in software, which is slower; \
                       run a 64-bit kernel with at least 47 address bits, without ulimit -v";
        let limitations =
            if self.engine.layout == Layout::Compact { vec![compact.to_owned()] } else { Vec::new() };
        let version = format!("wasmtime://{}", crate::WASMTIME_VERSION);
        Capabilities { version, limitations, ..Capabilities::default() }
    }

    async fn pull(&self, reference: &str, source: Arc<dyn ImageSource>) -> Result<Image, Error> {
        let (digest, layer) = self.find(reference, &*source).await?;
        if let Some(layer) = layer {
            let stored = self.fetch(reference, &layer, &*source).await?;
            self.images.put(&digest, &stored)?;
        }
        let stored = self.images.get(&digest).ok_or_else(|| Error::NotFound(format!("image {reference}")))?;
        Ok(images::image(reference, &digest, stored.size))
    }

    async fn remove_image(&self, _reference: &str, digest: &str) -> Result<(), Error> {
        let Some(stored) = self.images.get(digest) else { return Ok(()) };
        if self.lock().containers.values().any(|container| container.stored.wasm == stored.wasm) {
            return Ok(());
        }
        let removed = self.images.remove(digest);
        let removed = removed.map_err(|error| Error::Internal(format!("remove image {digest}: {error}")))?;
        if let Some(stored) = removed {
            self.programs.forget(&stored.wasm);
        }
        Ok(())
    }

    async fn create_pod(&self, pod: PodSandbox) -> Result<CreatedPod, Error> {
        let mut state = self.lock();
        let new = |sandbox| {
            Arc::new(Pod {
                sandbox,
                network: Arc::clone(&self.network),
                trust: Arc::clone(&self.trust),
                connections: Connections::default(),
                buckets: Arc::new(Memory::default()),
                sockets: Arc::new(Semaphore::new(MAX_SOCKETS)),
                tasks: self.tasks.clone(),
            })
        };
        let moved = |known: &Arc<Pod>| known.sandbox.network_namespace != pod.network_namespace;
        if state.pods.get(&pod.id).is_none_or(moved) {
            state.pods.insert(pod.id.clone(), new(pod));
        }
        Ok(CreatedPod::default())
    }

    async fn start(&self, pod: &PodId, spec: ContainerSpec) -> Result<Option<Arc<str>>, Error> {
        let stored = self.images.get(&spec.image.digest);
        let stored = stored.ok_or_else(|| Error::NotFound(format!("image {}", spec.image.id)))?;
        let (container, new) = {
            let mut state = self.lock();
            let sandbox = state.pods.get(pod).ok_or_else(|| Error::NotFound(format!("pod {}", pod.0)))?;
            match state.containers.get(&spec.id) {
                Some(container) => (Arc::clone(container), false),
                None => {
                    let container = self.prepare(pod, Arc::clone(sandbox), stored.clone(), &spec);
                    state.containers.insert(spec.id.clone(), Arc::clone(&container));
                    (container, true)
                }
            }
        };
        if !new {
            container.begun().await;
            return Ok(None);
        }
        let result = self.launch(&container, &stored, &spec).await;
        if result.is_err() {
            self.lock().containers.remove(&spec.id);
            // Whoever waits for it to begin learns that it is over.
            container.ended(Outcome { code: 128, reason: "StartError", message: String::new() }).await;
        }
        result.map(|()| None)
    }

    async fn stop(&self, container: &ContainerId, grace: Duration) -> Result<(), Error> {
        let found = self.lock().containers.get(container).cloned();
        if let Some(container) = found {
            container.stop(grace).await;
        }
        Ok(())
    }

    async fn remove(&self, container: &ContainerId) -> Result<(), Error> {
        let mut state = self.lock();
        if let Some(found) = state.containers.get(container) {
            if !found.is_over() {
                return Err(Error::Config(format!("container {} runs: stop it first", container.0)));
            }
            found.notify();
        }
        state.containers.remove(container);
        Ok(())
    }

    async fn remove_pod(&self, pod: &PodId) -> Result<(), Error> {
        let containers: Vec<_> = {
            let mut state = self.lock();
            state.pods.remove(pod);
            state.containers.values().filter(|container| container.pod == *pod).cloned().collect()
        };
        for container in containers {
            container.stop(Duration::ZERO).await;
            self.lock().containers.remove(&container.id);
            container.notify();
        }
        Ok(())
    }

    async fn list(&self) -> Result<Vec<ContainerStatus>, Error> {
        Ok(self.lock().containers.values().map(|container| container.status()).collect())
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    async fn usage(&self, container: &ContainerId) -> Result<Usage, Error> {
        let state = self.lock();
        let found = state.containers.get(container);
        let found = found.ok_or_else(|| Error::NotFound(format!("container {}", container.0)))?;
        Ok(found.around.counters.usage())
    }

    fn http(&self, container: &ContainerId) -> Option<Arc<dyn HttpService>> {
        let found = self.lock().containers.get(container).cloned()?;
        let running = matches!(*found.state.borrow(), ContainerState::Running { .. });
        let service = found.service.clone().filter(|_| running && !found.closing.is_cancelled())?;
        Some(Arc::new(InProcess(service)))
    }

    /// Runs a further instance of a `wasi:cli` program; `command` is its arguments, the name first.
    async fn exec(
        &self,
        container: &ContainerId,
        command: Vec<String>,
        streams: Streams,
    ) -> Result<Session, Error> {
        let found = self.lock().containers.get(container).cloned();
        let found = found.filter(|container| !container.is_over());
        let found = found.ok_or_else(|| Error::NotFound(format!("container {}", container.0)))?;
        if found.service.is_some() {
            let text = "a WebAssembly component that serves HTTP has no programs to run: exec works on components \
                        that export wasi:cli/run, and runs another instance of them";
            return Err(Error::Unsupported(text.to_owned()));
        }
        let program = self.programs.get(&self.images, &found.stored).await?;
        exec::start(&found, program, command, &streams, &self.tasks)
    }

    /// Follows the output; a guest's input is closed from the start.
    async fn attach(&self, container: &ContainerId, streams: Streams) -> Result<Session, Error> {
        let found = self.lock().containers.get(container).cloned();
        let found = found.filter(|container| !container.is_over());
        let found = found.ok_or_else(|| Error::NotFound(format!("container {}", container.0)))?;
        Ok(exec::join(&found, &streams))
    }
}
