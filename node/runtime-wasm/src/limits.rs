//! What a container may use and does use: memory by the limiter, processor time by timing polls.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use ketch_runtime::Usage;
use tokio::time::Sleep;
use wasmtime::ResourceLimiter;

use crate::{background::stopwatch, engine::EngineHost};

/// Table elements of one instance.
const TABLE_ELEMENTS: usize = 100_000;

/// Core instances, tables and memories of one store.
const INSTANCES: usize = 50;

/// Handles to host resources one instance may hold.
pub(crate) const RESOURCES: usize = 10_000;

/// Bytes a guest may hand to the host in one call.
pub(crate) const HOSTCALL_BYTES: usize = 8 << 20;

/// Random bytes in one call.
pub(crate) const RANDOM_BYTES: u64 = 1 << 20;

/// Bytes of header fields.
pub(crate) const HEADER_BYTES: usize = 64 << 10;

/// Memory of an instance of an HTTP component when the container has no limit.
pub(crate) const HTTP_MEMORY: u64 = 128 << 20;

/// What a container used so far; shared by its instances.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    cpu_nanos: AtomicU64,
    memory: AtomicU64,
    pub(crate) requests: AtomicU64,
    pub(crate) instances: AtomicU64,
}

impl Counters {
    pub(crate) fn usage(&self) -> Usage {
        Usage {
            cpu: Duration::from_nanos(self.cpu_nanos.load(Relaxed)),
            memory: self.memory.load(Relaxed),
            requests: self.requests.load(Relaxed),
            instances: self.instances.load(Relaxed),
            ..Usage::default()
        }
    }
}

/// Bounds one instance's memories and tables, and counts them.
#[derive(Debug)]
pub(crate) struct Limiter {
    limit: usize,
    used: usize,
    exceeded: bool,
    counters: Arc<Counters>,
}

impl Limiter {
    /// `limit` in bytes, of all memories of the instance together.
    pub(crate) fn new(limit: u64, counters: Arc<Counters>) -> Self {
        Self { limit: usize::try_from(limit).unwrap_or(usize::MAX), used: 0, exceeded: false, counters }
    }

    /// Whether memory was refused: what ended the guest, if it ended badly after.
    pub(crate) fn exceeded(&self) -> bool {
        self.exceeded
    }

    /// Bytes of the instance's memories.
    pub(crate) fn used(&self) -> usize {
        self.used
    }

    /// The limit in bytes.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let used = self.used.saturating_sub(current).saturating_add(desired);
        if used > self.limit {
            self.exceeded = true;
            return Ok(false);
        }
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        self.used = used;
        self.counters.memory.fetch_add(desired.saturating_sub(current) as u64, Relaxed);
        Ok(true)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_ELEMENTS)
    }

    fn instances(&self) -> usize {
        INSTANCES
    }

    fn tables(&self) -> usize {
        INSTANCES
    }

    fn memories(&self) -> usize {
        INSTANCES
    }
}

impl Drop for Limiter {
    fn drop(&mut self) {
        self.counters.memory.fetch_sub(self.used as u64, Relaxed);
    }
}

/// A container's processor time: a bucket that fills at the limit's rate and that polls empty. Debt delays
/// the next poll, so a container over its limit runs in bursts, as under the kernel's CFS quota.
#[derive(Debug)]
pub(crate) struct Cpu {
    /// Thousandths of a core.
    millis: Option<u64>,
    bucket: Mutex<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    /// Nanoseconds of processor time left; negative: debt.
    left: i64,
    at: Instant,
}

/// Wall time whose share may be used at once: the kernel's default period.
const PERIOD: Duration = Duration::from_millis(100);

impl Cpu {
    pub(crate) fn new(millis: Option<u64>, now: Instant) -> Self {
        let millis = millis.filter(|millis| *millis > 0);
        let left = millis.map_or(0, burst);
        Self { millis, bucket: Mutex::new(Bucket { left, at: now }) }
    }

    /// Pays for a poll that took `used` and ended at `now`; how long to wait before the next.
    fn charge(&self, used: Duration, now: Instant) -> Option<Duration> {
        let millis = self.millis?;
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let earned = nanos(now.saturating_duration_since(bucket.at)).saturating_mul(millis) / 1000;
        bucket.at = now;
        let left = bucket.left.saturating_add(clamp(earned)).min(burst(millis));
        bucket.left = left.saturating_sub(clamp(nanos(used)));
        let debt = u64::try_from(-bucket.left).ok().filter(|debt| *debt > 0)?;
        Some(Duration::from_nanos(debt.saturating_mul(1000) / millis))
    }
}

fn burst(millis: u64) -> i64 {
    clamp(nanos(PERIOD).saturating_mul(millis) / 1000)
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn clamp(nanos: u64) -> i64 {
    i64::try_from(nanos).unwrap_or(i64::MAX)
}

/// Runs guest code: keeps the clock going while it is polled, counts the time, delays polls of a container
/// that is over its limit.
pub(crate) struct Metered<F> {
    guest: Pin<Box<F>>,
    delay: Option<Pin<Box<Sleep>>>,
    meter: Meter,
}

/// What [`Metered`] reports to.
#[derive(Clone)]
pub(crate) struct Meter {
    pub(crate) engine: Arc<EngineHost>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) cpu: Arc<Cpu>,
}

impl Meter {
    /// Meters a future that runs guest code.
    pub(crate) fn run<F: Future>(&self, guest: F) -> Metered<F> {
        Metered { guest: Box::pin(guest), delay: None, meter: self.clone() }
    }
}

impl<F: Future> Future for Metered<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.get_mut();
        if let Some(delay) = &mut this.delay {
            ready!(delay.as_mut().poll(context));
            this.delay = None;
        }
        let used = stopwatch();
        let running = this.meter.engine.clock.run();
        let result = this.guest.as_mut().poll(context);
        drop(running);
        let used = used();
        this.meter.counters.cpu_nanos.fetch_add(nanos(used), Relaxed);
        if let Some(delay) = this.meter.cpu.charge(used, Instant::now()) {
            this.delay = Some(Box::pin(tokio::time::sleep(delay)));
            if result.is_pending() {
                // The delay has to be polled for it to wake anyone. The guest's own wakers stay.
                context.waker().wake_by_ref();
            }
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_over_all_memories_and_counted() {
        let counters = Arc::new(Counters::default());
        let mut limiter = Limiter::new(100, Arc::clone(&counters));
        assert!(limiter.memory_growing(0, 40, None).unwrap());
        assert!(limiter.memory_growing(0, 40, None).unwrap());
        assert!(!limiter.memory_growing(40, 90, Some(60)).unwrap());
        assert!(limiter.exceeded());
        assert!(limiter.memory_growing(40, 60, Some(60)).unwrap());
        assert_eq!(counters.usage().memory, 100);
        drop(limiter);
        assert_eq!(counters.usage().memory, 0);
    }

    #[test]
    fn a_declared_maximum_is_no_lack_of_memory() {
        let mut limiter = Limiter::new(100, Arc::default());
        assert!(!limiter.memory_growing(0, 40, Some(20)).unwrap());
        assert!(!limiter.exceeded());
    }

    #[test]
    fn processor_time_over_the_limit_is_paid_with_waiting() {
        let start = Instant::now();
        let cpu = Cpu::new(Some(100), start);
        let ms = Duration::from_millis;
        // 100 ms of a tenth of a core: 10 ms at once.
        assert_eq!(cpu.charge(ms(10), start), None);
        assert_eq!(cpu.charge(ms(5), start), Some(ms(50)));
        // After the wait it is even; what follows is paid at the rate.
        assert_eq!(cpu.charge(ms(10), start + ms(50)), Some(ms(100)));
        // Idle time gives no more than the burst.
        assert_eq!(cpu.charge(ms(10), start + Duration::from_secs(60)), None);
        assert_eq!(cpu.charge(ms(1), start + Duration::from_secs(60)), Some(ms(10)));
    }

    #[test]
    fn without_a_limit_nothing_waits() {
        let start = Instant::now();
        assert_eq!(Cpu::new(None, start).charge(Duration::from_secs(100), start), None);
        assert_eq!(Cpu::new(Some(0), start).charge(Duration::from_secs(100), start), None);
    }
}
