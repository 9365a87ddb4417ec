//! Where guests that compute go on: a few threads that the kernel puts behind all others of this process, so
//! that short work is not kept waiting by long.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::{OwnedSemaphorePermit, Semaphore},
};

/// Ticks of the clock that a turn may last.
const SLICES: u32 = 10;

/// A thread per processor, and turns on them.
pub(crate) struct Background {
    turns: Arc<Semaphore>,
    threads: rayon::ThreadPool,
}

impl Background {
    /// # Errors
    /// When no threads can be had.
    pub(crate) fn new() -> wasmtime::Result<Self> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = rayon::ThreadPoolBuilder::new()
            .num_threads(processors)
            .thread_name(|number| format!("wasm-long-{number}"))
            .start_handler(|_| ketch_runtime::priority::step_back())
            .build()
            .map_err(|error| wasmtime::format_err!("threads for long work: {error}"))?;
        Ok(Self { turns: Arc::new(Semaphore::new(processors)), threads })
    }

    /// Waits for a turn; first come, first served.
    pub(crate) fn turn(&self) -> impl Future<Output = Option<OwnedSemaphorePermit>> + Send + use<> {
        let turns = Arc::clone(&self.turns);
        async move { turns.acquire_owned().await.ok() }
    }

    /// Does something nobody waits for.
    pub(crate) fn spawn(&self, work: impl FnOnce() + Send + 'static) {
        let executor = Handle::try_current().ok();
        self.threads.spawn(move || {
            let _entered = executor.as_ref().map(Handle::enter);
            work();
        });
    }

    /// Polls on one of the threads, again and again while `poll` ends only because the clock says so, but for no
    /// longer than [`SLICES`]. Whether there is more of that to do.
    ///
    /// Polls here, and once, when the executor cannot do without this thread.
    pub(crate) fn poll<T: Send>(
        &self,
        context: &mut Context<'_>,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<T> + Send,
    ) -> (Poll<T>, bool) {
        let executor = Handle::try_current().ok();
        let executor = executor.filter(|executor| executor.runtime_flavor() == RuntimeFlavor::MultiThread);
        let Some(executor) = executor else { return (poll(context), true) };
        let woken = Arc::new(Woken { itself: AtomicBool::new(false), outer: context.waker().clone() });
        let slices = || {
            let _entered = executor.enter();
            let waker = Waker::from(Arc::clone(&woken));
            for _ in 0..SLICES {
                woken.itself.store(false, Ordering::Relaxed);
                let result = poll(&mut Context::from_waker(&waker));
                if result.is_ready() || !woken.itself.load(Ordering::Relaxed) {
                    return (result, false);
                }
            }
            (Poll::Pending, true)
        };
        tokio::task::block_in_place(|| self.threads.install(slices))
    }
}

/// Notices whether a guest wants to go on at once.
struct Woken {
    itself: AtomicBool,
    outer: Waker,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.itself.store(true, Ordering::Relaxed);
        self.outer.wake_by_ref();
    }
}

#[cfg(test)]
mod tests {
    use ketch_runtime::priority::NICE;

    use super::*;

    #[allow(unsafe_code)]
    fn nice() -> i32 {
        // SAFETY: reads the priority of the calling thread.
        unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
    }

    #[test]
    fn long_work_steps_back_and_sees_the_executor() {
        let background = Background::new().unwrap();
        let poll = |_: &mut Context<'_>| Poll::Ready((nice(), Handle::try_current().is_ok()));
        let run = || background.poll(&mut Context::from_waker(Waker::noop()), poll).0;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let before = nice();
        assert_eq!(runtime.block_on(async { run() }), Poll::Ready((NICE.max(before), true)));
        assert_eq!(nice(), before, "only those threads step back");
        assert_eq!(run(), Poll::Ready((before, false)), "without an executor it stays here");
    }

    #[test]
    fn a_turn_ends_with_the_work_with_a_wait_or_in_time() {
        let background = Background::new().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        // Wakes itself so many times, then waits for something else.
        let turn = |wakes: u32| {
            let mut polls = 0;
            let mut guest = |context: &mut Context<'_>| {
                polls += 1;
                if polls <= wakes {
                    context.waker().wake_by_ref();
                }
                Poll::<()>::Pending
            };
            let context = &mut Context::from_waker(Waker::noop());
            let (result, more) = runtime.block_on(async { background.poll(context, &mut guest) });
            assert!(result.is_pending());
            (polls, more)
        };
        assert_eq!(turn(0), (1, false));
        assert_eq!(turn(2), (3, false));
        assert_eq!(turn(u32::MAX), (SLICES, true));
    }
}
