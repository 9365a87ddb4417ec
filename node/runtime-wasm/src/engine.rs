//! The engine: what is compiled for, where instances get their memory, and the clock that interrupts them.
//!
//! Two [`Layout`]s exist. The roomy one reserves 4 GiB of address space per memory, so that bounds checks
//! are left to the hardware, and takes instances from a pool. Hosts without that much address space (39-bit
//! kernels on small ARM boards, `ulimit -v`) get the compact one: checks in code, memory on demand. Start-up
//! never fails because a pool was too large.

use std::{
    hash::{Hash, Hasher},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{JoinHandle, Thread},
    time::Duration,
};

use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig, Strategy,
    WasmBacktraceDetails,
};

use crate::background::Background;

/// How often running guests are interrupted.
pub(crate) const TICK: Duration = Duration::from_millis(1);

/// Ticks without a running guest after which the clock stops.
const IDLE_TICKS: u32 = 200;

/// Address space of a memory's slot in the pool: 4 GiB and its guard.
const SLOT: u64 = (4 << 30) + GUARD;
const GUARD: u64 = 32 << 20;

/// Host memory that an instance is expected to use: what bounds the pool.
const MEMORY_PER_INSTANCE: u64 = 4 << 20;

/// How memories lie in the address space; part of what code is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// 4 GiB reserved per memory.
    Roomy,
    /// Nothing reserved.
    Compact,
}

impl Layout {
    /// Name, as the compile worker is told.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Roomy => "roomy",
            Self::Compact => "compact",
        }
    }

    /// The layout of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Roomy, Self::Compact].into_iter().find(|layout| layout.as_str() == name)
    }
}

/// What the host has.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// Bytes of memory, the cgroup's limit when that is lower.
    pub memory: u64,
    /// Bytes of address space that can be reserved.
    pub address_space: u64,
}

impl Host {
    /// Looks at this host.
    pub fn probe() -> Self {
        let memory = memory_limit();
        Self { memory, address_space: probe_address_space(memory) }
    }

    /// Instances that may be live at a time.
    fn instances(self) -> u32 {
        u32::try_from(self.memory / MEMORY_PER_INSTANCE).unwrap_or(u32::MAX).clamp(32, 2000)
    }

    /// Layout and number of instances. Pure.
    ///
    /// A pool of fewer than 20 instances would refuse work that memory on demand can do.
    pub fn plan(self) -> (Layout, u32) {
        let wanted = self.instances();
        // A quarter of the address space is left to everything else.
        let fitting = u32::try_from(self.address_space / 4 * 3 / SLOT).unwrap_or(u32::MAX);
        match wanted.min(fitting) {
            0..20 => (Layout::Compact, wanted),
            pool => (Layout::Roomy, pool),
        }
    }
}

/// The configuration that code is compiled with. Must be the same in the compile worker and in the engine.
pub(crate) fn compile_config(layout: Layout) -> Config {
    let mut config = Config::new();
    config
        .strategy(Strategy::Cranelift)
        .cranelift_opt_level(OptLevel::Speed)
        .epoch_interruption(true)
        .wasm_component_model(true)
        .wasm_component_model_async(true)
        .wasm_backtrace_details(WasmBacktraceDetails::Disable)
        .native_unwind_info(false)
        .memory_init_cow(true);
    match layout {
        Layout::Roomy => config.memory_reservation(4 << 30).memory_guard_size(GUARD),
        Layout::Compact => {
            config.memory_reservation(0).memory_reservation_for_growth(1 << 20).memory_guard_size(64 << 10)
        }
    };
    config
}

fn pool(instances: u32) -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::default();
    pool.total_component_instances(instances)
        // A component is usually its module, the adapter's shim and the fix-up.
        .total_core_instances(instances * 4)
        .total_memories(instances)
        .total_tables(instances * 2)
        .total_stacks(instances * 2)
        .total_gc_heaps(instances / 4)
        .max_core_instances_per_component(50)
        .max_memories_per_component(10)
        .max_tables_per_component(20)
        .max_core_instance_size(4 << 20)
        .max_component_instance_size(4 << 20)
        .table_elements(100_000)
        .max_memory_size(4 << 30)
        .max_unused_warm_slots(instances.div_ceil(8).min(64))
        .linear_memory_keep_resident(128 << 10)
        .table_keep_resident(16 << 10)
        .pagemap_scan(Enabled::Auto);
    pool
}

/// The engine with what belongs to it for life.
pub(crate) struct EngineHost {
    pub(crate) engine: Engine,
    pub(crate) layout: Layout,
    /// Hash of everything that compiled code depends on.
    pub(crate) hash: String,
    /// One permit per instance that may be live.
    pub(crate) instances: Arc<Semaphore>,
    /// For guests that compute.
    pub(crate) background: Background,
    pub(crate) clock: Clock,
}

impl EngineHost {
    /// Builds the largest engine the host allows.
    pub(crate) fn new(host: Host) -> wasmtime::Result<Self> {
        let (layout, instances) = host.plan();
        let (engine, layout, instances) = match layout {
            Layout::Compact => (Engine::new(&compile_config(layout))?, layout, instances),
            Layout::Roomy => Self::pooled(instances)?,
        };
        let clock = Clock::new(engine.clone())?;
        let hash = hash(&engine);
        tracing::debug!(layout = layout.as_str(), instances, "wasm engine");
        let instances = Arc::new(Semaphore::new(usize::try_from(instances).unwrap_or(usize::MAX)));
        Ok(Self { engine, layout, hash, instances, background: Background::new()?, clock })
    }

    /// Halves the pool until it can be had: other things in this process may hold address space too.
    fn pooled(mut instances: u32) -> wasmtime::Result<(Engine, Layout, u32)> {
        while instances >= 20 {
            let mut config = compile_config(Layout::Roomy);
            config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool(instances)));
            match Engine::new(&config) {
                Ok(engine) => return Ok((engine, Layout::Roomy, instances)),
                Err(error) => tracing::debug!(instances, %error, "no pool of this size"),
            }
            instances /= 2;
        }
        Ok((Engine::new(&compile_config(Layout::Compact))?, Layout::Compact, 32))
    }
}

/// Hash of what code compiled by `engine` depends on: version, settings, processor features.
pub(crate) fn hash(engine: &Engine) -> String {
    struct Sha(Sha256);
    impl Hasher for Sha {
        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }
        fn finish(&self) -> u64 {
            0
        }
    }
    let mut sha = Sha(Sha256::new());
    engine.precompile_compatibility_hash().hash(&mut sha);
    crate::hex(sha.0.finalize().get(..8).unwrap_or_default())
}

/// Advances the engine's epoch while guests run; stands still, and costs nothing, while none does.
pub(crate) struct Clock {
    shared: Arc<ClockShared>,
    thread: Option<JoinHandle<()>>,
}

struct ClockShared {
    running: AtomicUsize,
    parked: AtomicBool,
    over: AtomicBool,
    thread: std::sync::OnceLock<Thread>,
}

impl Clock {
    fn new(engine: Engine) -> wasmtime::Result<Self> {
        let shared = Arc::new(ClockShared {
            running: AtomicUsize::new(0),
            parked: AtomicBool::new(false),
            over: AtomicBool::new(false),
            thread: std::sync::OnceLock::new(),
        });
        let ticking = Arc::clone(&shared);
        let thread =
            std::thread::Builder::new().name("wasm-clock".into()).spawn(move || ticking.tick(&engine))?;
        _ = shared.thread.set(thread.thread().clone());
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Keeps the clock going until the guard is dropped. Hold it while guest code may run.
    pub(crate) fn run(&self) -> Running<'_> {
        self.shared.running.fetch_add(1, Ordering::SeqCst);
        if self.shared.parked.load(Ordering::SeqCst) {
            self.shared.wake();
        }
        Running(&self.shared)
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            // A panic of that thread was reported when it happened.
            _ = thread.join();
        }
    }
}

impl ClockShared {
    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    fn tick(&self, engine: &Engine) {
        ketch_runtime::priority::step_forward();
        let mut idle = 0;
        while !self.over.load(Ordering::SeqCst) {
            std::thread::park_timeout(TICK);
            engine.increment_epoch();
            idle = if self.running.load(Ordering::SeqCst) > 0 { 0 } else { idle + 1 };
            if idle >= IDLE_TICKS {
                self.rest();
                idle = 0;
            }
        }
    }

    /// Parks until a guest runs. `parked` is set before `running` is read, and the other side does it the
    /// other way round: one of the two sees the other.
    fn rest(&self) {
        self.parked.store(true, Ordering::SeqCst);
        while self.running.load(Ordering::SeqCst) == 0 && !self.over.load(Ordering::SeqCst) {
            std::thread::park();
        }
        self.parked.store(false, Ordering::SeqCst);
    }
}

/// See [`Clock::run`].
pub(crate) struct Running<'a>(&'a ClockShared);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Bytes of memory this process may use.
fn memory_limit() -> u64 {
    let total =
        std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| mem_total(&text)).unwrap_or(512 << 20);
    let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let limit = limits.iter().find_map(|path| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok());
    limit.map_or(total, |limit| limit.min(total))
}

fn mem_total(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// Largest address space that can be reserved, by trying, from what would be used down.
fn probe_address_space(memory: u64) -> u64 {
    let wanted = Host { memory, address_space: 0 }.instances();
    let mut size = u64::from(wanted) * SLOT / 3 * 4;
    while size >= SLOT {
        if can_reserve(size) {
            return size;
        }
        size /= 2;
    }
    0
}

#[allow(unsafe_code)]
fn can_reserve(size: u64) -> bool {
    let Ok(size) = usize::try_from(size) else { return false };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new, inaccessible mapping at an address of the kernel's choice, unmapped at once with the
    // size it was made with; nothing else knows of it.
    unsafe {
        let address = libc::mmap(std::ptr::null_mut(), size, libc::PROT_NONE, flags, -1, 0);
        if address == libc::MAP_FAILED {
            return false;
        }
        libc::munmap(address, size);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn the_pool_follows_memory_and_address_space() {
        let roomy = 100 << 40;
        let host = |memory, address_space| Host { memory, address_space }.plan();
        assert_eq!(host(24 * GIB, roomy), (Layout::Roomy, 2000));
        assert_eq!(host(GIB, roomy), (Layout::Roomy, 256));
        assert_eq!(host(GIB / 2, roomy), (Layout::Roomy, 128));
        assert_eq!(host(GIB / 16, roomy), (Layout::Roomy, 32));
        // 39 bits: 512 GiB, shared with everything else.
        assert_eq!(host(4 * GIB, 256 * GIB), (Layout::Roomy, 47));
        assert_eq!(host(4 * GIB, 64 * GIB), (Layout::Compact, 1024));
        assert_eq!(host(4 * GIB, 0), (Layout::Compact, 1024));
    }

    #[test]
    fn total_memory_is_read() {
        assert_eq!(mem_total("MemTotal:       1000 kB\nMemFree: 1 kB\n"), Some(1_024_000));
        assert_eq!(mem_total("nothing"), None);
    }

    #[test]
    fn this_host_gets_an_engine() {
        let host = EngineHost::new(Host::probe()).unwrap();
        assert!(host.instances.available_permits() >= 20);
        let worker = Engine::new(&compile_config(host.layout)).unwrap();
        assert_eq!(hash(&worker), host.hash, "the worker compiles for this engine");
    }

    #[test]
    fn a_pool_that_does_not_fit_shrinks() {
        // Far more address space than any processor has.
        let (engine, _, instances) = EngineHost::pooled(1 << 20).unwrap();
        assert!(instances < 1 << 20);
        drop(engine);
    }

    #[test]
    fn the_clock_starts_again_after_a_rest() {
        let clock = Clock::new(Engine::new(&compile_config(Layout::Compact)).unwrap()).unwrap();
        let parked = || clock.shared.parked.load(Ordering::SeqCst);
        while !parked() {
            std::thread::yield_now();
        }
        let guard = clock.run();
        while parked() {
            std::thread::yield_now();
        }
        drop(guard);
    }
}
