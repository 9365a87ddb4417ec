//! What one instance sees of the world: the data of its store, and the linker that gives it to imports.

use std::{net::IpAddr, sync::Arc};

use ketch_net::netns;
use ketch_runtime::{Error, Mount, Network, PodSandbox, Port, log::Log, log::Stream};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use wasmtime::{
    Store,
    component::{Linker, ResourceTable},
};
use wasmtime_wasi::{
    FsPerms, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView, p1::WasiP1Ctx, sockets::WasiSocketsCtxView,
};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use crate::{
    engine::EngineHost,
    exec::Pipes,
    keyvalue::Buckets,
    limits::{Counters, HEADER_BYTES, HOSTCALL_BYTES, Limiter, RANDOM_BYTES, RESOURCES},
    outbound::{Connections, Outbound, from_pod},
    output::{Output, Taps},
    sockets::{self, Policy},
    trust::Trust,
};

/// A pod as its guests' connections see it.
pub(crate) struct Pod {
    pub(crate) sandbox: PodSandbox,
    pub(crate) network: Arc<dyn Network>,
    pub(crate) trust: Arc<Trust>,
    /// Connections of its `wasi:http` requests, kept for the next.
    pub(crate) connections: Connections,
    /// `wasi:keyvalue` of the pod.
    pub(crate) buckets: Buckets,
    /// One permit per socket it may have.
    pub(crate) sockets: Arc<Semaphore>,
    /// What is done for its guests, such as name lookups.
    pub(crate) tasks: TaskTracker,
}

impl Pod {
    /// Makes a socket where the pod's sockets are: in its network namespace, when it has one.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub(crate) fn make<T: Send>(&self, socket: impl FnOnce() -> T + Send) -> std::io::Result<T> {
        match &self.sandbox.network_namespace {
            Some(path) => netns::run(path, socket),
            None => Ok(socket()),
        }
    }

    /// Whether a connection to `target` is bound to the pod's address before it is made. In a namespace the
    /// kernel chooses among the pod's addresses.
    pub(crate) fn binds(&self, target: IpAddr) -> bool {
        self.sandbox.network_namespace.is_none() && from_pod(self.sandbox.ip, target)
    }
}

/// What the instances of one container share.
#[derive(Clone)]
pub(crate) struct Surroundings {
    pub(crate) engine: Arc<EngineHost>,
    pub(crate) pod: Arc<Pod>,
    pub(crate) args: Vec<String>,
    pub(crate) env: Arc<Vec<(String, String)>>,
    pub(crate) working_dir: Option<String>,
    pub(crate) mounts: Vec<Mount>,
    /// Ports it may listen on.
    pub(crate) ports: Arc<Vec<Port>>,
    /// Bytes of one instance; `None`: no limit but the engine's.
    pub(crate) memory: Option<u64>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) log: Log,
    /// Where the standard streams go instead of the log.
    pub(crate) pipes: Option<Pipes>,
    /// Who else reads the output.
    pub(crate) taps: Arc<Taps>,
}

impl Surroundings {
    /// A store for an instance of a component.
    ///
    /// # Errors
    /// When a mounted directory cannot be opened.
    pub(crate) fn store(&self) -> Result<Store<Ctx>, Error> {
        let policy = Policy::new(Arc::clone(&self.pod), Arc::clone(&self.ports), self.log.clone());
        let policy = Arc::new(policy);
        let mut wasi = self.wasi()?;
        let check = Arc::clone(&policy);
        wasi.allow_tcp(true).allow_udp(true).socket_addr_check(move |address, reason| {
            let allowed = check.check(address, reason);
            Box::pin(std::future::ready(allowed))
        });
        let ctx = Ctx {
            wasi: wasi.build(),
            table: table(),
            http: http(),
            outbound: Outbound::new(Arc::clone(&self.pod), self.log.clone()),
            limiter: self.limiter(),
            env: Arc::clone(&self.env),
            pod: Arc::clone(&self.pod),
            sockets: sockets::State::new(policy),
        };
        let mut store = Store::new(&self.engine.engine, ctx);
        store.limiter(|ctx| &mut ctx.limiter);
        store.set_hostcall_fuel(HOSTCALL_BYTES);
        self.interruptible(&mut store);
        Ok(store)
    }

    /// A store for an instance of a core module.
    pub(crate) fn module_store(&self) -> Result<Store<ModuleCtx>, Error> {
        let ctx = ModuleCtx { wasi: self.wasi()?.build_p1(), limiter: self.limiter() };
        let mut store = Store::new(&self.engine.engine, ctx);
        store.limiter(|ctx| &mut ctx.limiter);
        self.interruptible(&mut store);
        Ok(store)
    }

    /// Whether stores can be made: the mounted directories are there.
    ///
    /// # Errors
    /// What is missing.
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.wasi().map(drop)
    }

    /// Says something about a guest in its log.
    pub(crate) fn say(&self, text: &str) {
        self.log.line(Stream::Stderr, &format!("{text}\n"));
    }

    /// Guests give way to each other at every tick; their deadlines are kept from outside.
    fn interruptible<T>(&self, store: &mut Store<T>) {
        store.set_epoch_deadline(1);
        store.epoch_deadline_async_yield_and_update(1);
        self.counters.instances.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }

    fn limiter(&self) -> Limiter {
        Limiter::new(self.memory.unwrap_or(u64::MAX), Arc::clone(&self.counters))
    }

    fn wasi(&self) -> Result<WasiCtxBuilder, Error> {
        let mut wasi = WasiCtx::builder();
        wasi.args(&self.args).envs(&self.env).max_random_size(RANDOM_BYTES);
        match &self.pipes {
            Some(pipes) => pipes.connect(&mut wasi),
            None => {
                let output = |stream| Output::new(self.log.stream(stream), stream, Arc::clone(&self.taps));
                wasi.stdout(output(Stream::Stdout)).stderr(output(Stream::Stderr));
            }
        }
        if let Some(dir) = &self.working_dir {
            wasi.initial_cwd(dir);
        }
        for mount in &self.mounts {
            let perms = if mount.read_only { FsPerms::ReadOnly } else { FsPerms::ReadWrite };
            wasi.preopened_dir(&mount.source, &mount.target, perms).map_err(|error| {
                Error::Config(format!(
                    "cannot mount {} at {}: {error:#}",
                    mount.source.display(),
                    mount.target
                ))
            })?;
        }
        Ok(wasi)
    }
}

fn table() -> ResourceTable {
    let mut table = ResourceTable::new();
    table.set_max_capacity(RESOURCES);
    table
}

fn http() -> WasiHttpCtx {
    let mut http = WasiHttpCtx::new();
    http.set_field_size_limit(HEADER_BYTES);
    http
}

/// Data of a component's store.
pub(crate) struct Ctx {
    wasi: WasiCtx,
    pub(crate) table: ResourceTable,
    http: WasiHttpCtx,
    pub(crate) outbound: Outbound,
    pub(crate) env: Arc<Vec<(String, String)>>,
    pub(crate) pod: Arc<Pod>,
    sockets: sockets::State,
    /// Last, because fields are dropped in order: what counts as free is free.
    pub(crate) limiter: Limiter,
}

impl Ctx {
    /// wasmtime-wasi's view of the sockets, and ours.
    pub(crate) fn sockets(&mut self) -> (WasiSocketsCtxView<'_>, &mut sockets::State) {
        (WasiSocketsCtxView { ctx: self.wasi.sockets(), table: &mut self.table }, &mut self.sockets)
    }

    /// Where the store's sockets may go.
    pub(crate) fn policy(&self) -> Arc<Policy> {
        self.sockets.policy()
    }
}

impl WasiView for Ctx {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for Ctx {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { hooks: &mut self.outbound, table: &mut self.table, ctx: &mut self.http }
    }
}

/// Data of a core module's store.
pub(crate) struct ModuleCtx {
    pub(crate) wasi: WasiP1Ctx,
    pub(crate) limiter: Limiter,
}

/// Everything a component may import.
pub(crate) fn linker(engine: &wasmtime::Engine) -> wasmtime::Result<Linker<Ctx>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi::p3::add_to_linker(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p3::add_to_linker(&mut linker)?;
    crate::keyvalue::add_to_linker(&mut linker)?;
    crate::config::add_to_linker(&mut linker)?;
    sockets::add_to_linker(&mut linker)?;
    Ok(linker)
}

/// Everything a core module may import.
pub(crate) fn module_linker(engine: &wasmtime::Engine) -> wasmtime::Result<wasmtime::Linker<ModuleCtx>> {
    let mut linker = wasmtime::Linker::new(engine);
    wasmtime_wasi::p1::add_to_linker_async(&mut linker, |ctx: &mut ModuleCtx| &mut ctx.wasi)?;
    Ok(linker)
}
