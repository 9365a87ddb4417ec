//! Where guests that compute go on: a few threads that the kernel puts behind all others of this process, so
//! that short work is not kept waiting by long.

use std::{
    any::Any,
    cell::Cell,
    io,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{
            AtomicBool, AtomicU8,
            Ordering::{Relaxed, SeqCst},
        },
        mpsc,
    },
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use futures::task::AtomicWaker;
use ketch_runtime::priority;
use tokio::{runtime::Handle, sync::oneshot};

use crate::engine::TICK;

/// Polls of one turn, each ended by the clock.
const SLICES: u32 = 10;

/// A poll this long was ended by the clock: the guest computes.
const SLICE: Duration = Duration::from_micros(TICK.as_micros() as u64 / 2);

type Work = Box<dyn FnOnce() + Send>;

/// A thread per processor, and what waits for them: first come, first served. The threads end with the last
/// handle.
#[derive(Clone)]
pub(crate) struct Background {
    queue: mpsc::Sender<Work>,
}

impl Background {
    /// # Errors
    /// When no threads can be had.
    pub(crate) fn new() -> io::Result<Self> {
        let (queue, work) = mpsc::channel();
        let work = Arc::new(Mutex::new(work));
        for number in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            let work = Arc::clone(&work);
            std::thread::Builder::new().name(format!("wasm-long-{number}")).spawn(move || go_on(&work))?;
        }
        Ok(Self { queue })
    }

    /// Does something nobody waits for, as if on the executor.
    pub(crate) fn spawn(&self, work: impl FnOnce() + Send + 'static) {
        let executor = Handle::try_current().ok();
        let work = move || {
            let _entered = executor.as_ref().map(Handle::enter);
            work();
        };
        // The threads go on as long as `self` is there.
        _ = self.queue.send(Box::new(work));
    }

    /// Runs a task that runs guests. It begins on the executor; if it uses the processor for a whole tick it goes
    /// on here, [`SLICES`] ticks at a time and in turn with others of its kind, until it waits for something. Where
    /// it is the `habit` of such tasks to compute, it begins here.
    pub(crate) fn run<F: Future>(&self, task: F, habit: &Arc<Habit>) -> Task<F> {
        Task {
            place: Place::Here(Box::pin(task)),
            woken: habit.computes().then(Arc::default),
            begun: false,
            computed: false,
            habit: Arc::clone(habit),
            background: self.clone(),
        }
    }
}

/// Whether tasks of a kind usually compute: more than a third of the latest ones did.
#[derive(Debug, Default)]
pub(crate) struct Habit(AtomicU8);

impl Habit {
    fn computes(&self) -> bool {
        self.0.load(Relaxed) >= 6
    }

    fn note(&self, computed: bool) {
        let next = |score: u8| Some(if computed { (score + 2).min(12) } else { score.saturating_sub(1) });
        // Never refuses.
        _ = self.0.fetch_update(Relaxed, Relaxed, next);
    }
}

thread_local! {
    static LONG: Cell<bool> = const { Cell::new(false) };
}

fn go_on(queue: &Mutex<mpsc::Receiver<Work>>) {
    priority::step_back();
    LONG.set(true);
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(work) = next else { return };
        if catch_unwind(AssertUnwindSafe(work)).is_err() {
            tracing::error!("work in the background panicked");
        }
    }
}

/// Measures processor time, as exactly as is worth its while: on these threads, which are kept waiting most, by
/// the kernel's account; elsewhere by the clock on the wall.
pub(crate) fn stopwatch() -> impl Fn() -> Duration {
    let start = Instant::now();
    let before = LONG.get().then(priority::used);
    move || before.map_or_else(|| start.elapsed(), |before| priority::used().saturating_sub(before))
}

/// See [`Background::run`].
pub(crate) struct Task<F: Future> {
    place: Place<F>,
    /// Made by the first long poll. Polls before it are neither watched nor measured, which would cost more than
    /// most of them.
    woken: Option<Arc<Woken>>,
    begun: bool,
    computed: bool,
    habit: Arc<Habit>,
    background: Background,
}

enum Place<F: Future> {
    Here(Pin<Box<F>>),
    Away(oneshot::Receiver<Turned<F>>),
    /// For a moment, or after a panic.
    Nowhere,
}

impl<F: Future> Task<F> {
    fn done(&self, result: Poll<F::Output>) -> Poll<F::Output> {
        self.habit.note(self.computed);
        result
    }

    /// Polls on the executor; who notices wakes if the task computes.
    fn look(
        &mut self,
        task: Pin<&mut F>,
        context: &mut Context<'_>,
    ) -> (Poll<F::Output>, Option<Arc<Woken>>) {
        let Some(woken) = &self.woken else {
            let start = Instant::now();
            let result = task.poll(context);
            if start.elapsed() >= SLICE {
                // That may have been the kernel's doing. Next time we know.
                self.woken = Some(Arc::default());
            }
            return (result, None);
        };
        woken.outer.register(context.waker());
        let before = priority::used();
        let (result, again) = woken.poll(task);
        let computed = priority::used().saturating_sub(before) >= SLICE;
        let woken = (computed && again).then(|| Arc::clone(woken));
        self.computed |= computed;
        (result, woken)
    }
}

/// One turn in the background, then another or back. `computed`: in the turns before.
fn take_turn<F>(
    background: &Background,
    mut task: Pin<Box<F>>,
    woken: Arc<Woken>,
    back: Back<F>,
    computed: bool,
) where
    F: Future<Output: Send> + Send + 'static,
{
    woken.away.store(true, SeqCst);
    let next = background.clone();
    background.spawn(move || {
        let before = priority::used();
        let has_computed = || priority::used().saturating_sub(before) >= SLICE;
        for _ in 0..SLICES {
            if back.is_closed() {
                // Nobody waits for the task any more: it ends here.
                return;
            }
            let polled = catch_unwind(AssertUnwindSafe(|| woken.poll(task.as_mut())));
            let result = match polled {
                Ok((Poll::Pending, true)) => continue,
                Ok((result, _)) => Ok(result),
                Err(panic) => Err(panic),
            };
            woken.away.store(false, SeqCst);
            let computed = computed || has_computed();
            // Fails when nobody waits any more.
            _ = back.send(Turned { task, result, computed });
            return;
        }
        take_turn(&next, task, woken, back, computed || has_computed());
    });
}

type Back<F> = oneshot::Sender<Turned<F>>;

/// A task that is back, and what its last poll gave.
struct Turned<F: Future> {
    task: Pin<Box<F>>,
    result: Result<Poll<F::Output>, Box<dyn Any + Send>>,
    /// Whether one of its turns was used for a tick or more.
    computed: bool,
}

impl<F: Future<Output: Send> + Send + 'static> Future for Task<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        loop {
            match std::mem::replace(&mut self.place, Place::Nowhere) {
                Place::Here(mut task) => {
                    let begun = std::mem::replace(&mut self.begun, true);
                    let woken = match (begun, &self.woken) {
                        (false, Some(woken)) => {
                            woken.outer.register(context.waker());
                            Arc::clone(woken)
                        }
                        _ => match self.look(task.as_mut(), context) {
                            (Poll::Pending, Some(woken)) => woken,
                            (Poll::Pending, None) => {
                                self.place = Place::Here(task);
                                return Poll::Pending;
                            }
                            (result, _) => return self.done(result),
                        },
                    };
                    let (back, turned) = oneshot::channel();
                    take_turn(&self.background, task, woken, back, false);
                    self.place = Place::Away(turned);
                }
                Place::Away(mut turned) => {
                    let Poll::Ready(back) = Pin::new(&mut turned).poll(context) else {
                        self.place = Place::Away(turned);
                        return Poll::Pending;
                    };
                    let Ok(Turned { task, result, computed }) = back else { return Poll::Pending };
                    self.computed |= computed;
                    match result {
                        // Whatever woke it while it was away is seen by the next poll.
                        Ok(Poll::Pending) => self.place = Place::Here(task),
                        Ok(result) => return self.done(result),
                        Err(panic) => resume_unwind(panic),
                    }
                }
                Place::Nowhere => return Poll::Pending,
            }
        }
    }
}

/// Notices whether a task wants to go on at once. While it is away that is all a wake does.
#[derive(Default)]
struct Woken {
    itself: AtomicBool,
    away: AtomicBool,
    outer: AtomicWaker,
}

impl Woken {
    /// What a poll gave, and whether the task was woken meanwhile.
    fn poll<F: Future>(self: &Arc<Self>, task: Pin<&mut F>) -> (Poll<F::Output>, bool) {
        self.itself.store(false, SeqCst);
        let result = task.poll(&mut Context::from_waker(&Waker::from(Arc::clone(self))));
        (result, self.itself.load(SeqCst))
    }
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.itself.store(true, SeqCst);
        if !self.away.load(SeqCst) {
            self.outer.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures::future::join_all;

    use super::*;

    fn executor() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
    }

    fn is_here() -> bool {
        !LONG.get()
    }

    fn compute(time: Duration) {
        let start = priority::used();
        while priority::used() - start < time {}
    }

    /// Computes for `ticks`; where it was polled, `true` for the executor.
    async fn computing(ticks: usize) -> Vec<bool> {
        let mut places = Vec::new();
        poll_fn(|context| {
            places.push(is_here());
            if places.len() > ticks {
                return Poll::Ready(());
            }
            compute(TICK);
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
        places
    }

    #[test]
    fn work_sees_the_executor() {
        let background = Background::new().unwrap();
        let (tell, told) = mpsc::channel();
        let work = move || tell.send((is_here(), Handle::try_current().is_ok())).unwrap();
        executor().block_on(async { background.spawn(work) });
        assert_eq!(told.recv().unwrap(), (false, true));
    }

    #[test]
    fn work_that_panics_takes_no_thread_away() {
        let background = Background::new().unwrap();
        for _ in 0..100 {
            background.spawn(|| panic!("on purpose"));
        }
        let (tell, told) = mpsc::channel();
        background.spawn(move || tell.send(()).unwrap());
        told.recv().unwrap();
    }

    #[test]
    fn a_task_that_computes_goes_away() {
        let (background, executor) = (Background::new().unwrap(), executor());
        let task = background.run(computing(30), &Arc::default());
        let places = executor.block_on(executor.spawn(task)).unwrap();
        // The first long poll may have been the kernel's doing.
        assert_eq!(places.len(), 31);
        assert!(places[..2].iter().all(|here| *here) && places[2..].iter().all(|here| !here), "{places:?}");
    }

    #[test]
    fn a_task_that_waits_stays_or_comes_back() {
        let (background, executor) = (Background::new().unwrap(), executor());
        let (ask, mut asked) = tokio::sync::mpsc::channel::<oneshot::Sender<()>>(1);
        let task = async move {
            assert_eq!(computing(0).await, [true]);
            assert!(!computing(5).await[5]);
            // What is answered at once it takes with it.
            while !is_here() {
                let (tell, told) = oneshot::channel();
                ask.send(tell).await.unwrap();
                told.await.unwrap();
            }
        };
        let task = executor.spawn(background.run(task, &Arc::default()));
        executor.block_on(async {
            while let Some(answer) = asked.recv().await {
                answer.send(()).unwrap();
            }
            task.await.unwrap();
        });
    }

    #[test]
    fn tasks_begin_where_their_kind_usually_goes() {
        let (background, executor) = (Background::new().unwrap(), executor());
        let habit = Arc::new(Habit::default());
        let begins = |ticks| {
            let task = background.run(computing(ticks), &habit);
            executor.block_on(executor.spawn(task)).unwrap()[0]
        };
        assert_eq!([5; 5].map(begins), [true, true, true, false, false]);
        // A call that does not compute now and then changes nothing.
        assert_eq!([0, 5, 0, 5].map(begins), [false; 4]);
        // What was done before the last turn counts, too.
        assert_eq!([SLICES as usize; 12].map(begins), [false; 12]);
        let later = [0; 20].map(begins);
        assert!(!later[0] && later[19], "{later:?}");
    }

    #[test]
    fn a_panic_is_the_tasks() {
        let (background, executor) = (Background::new().unwrap(), executor());
        let task = async {
            computing(5).await;
            panic!("on purpose")
        };
        let task = executor.spawn(background.run::<_>(task, &Arc::default()));
        let error: Result<(), _> = executor.block_on(task);
        assert!(error.unwrap_err().is_panic());
    }

    #[test]
    fn nobody_goes_on_with_a_task_that_is_dropped() {
        struct Dropped(Option<oneshot::Sender<()>>);
        impl Drop for Dropped {
            fn drop(&mut self) {
                self.0.take().unwrap().send(()).unwrap();
            }
        }
        let (background, executor) = (Background::new().unwrap(), executor());
        let (tell, told) = oneshot::channel();
        let dropped = Dropped(Some(tell));
        let task = async move {
            let _dropped = dropped;
            computing(usize::MAX - 1).await;
        };
        let task = executor.spawn(background.run(task, &Arc::default()));
        task.abort();
        executor.block_on(told).unwrap();
    }

    #[test]
    fn many_that_compute_take_turns() {
        let (background, executor) = (Background::new().unwrap(), executor());
        let ended = Arc::new(Mutex::new(Vec::new()));
        let tasks: Vec<_> = (0..8)
            .map(|number| {
                let ended = Arc::clone(&ended);
                // The first has the most to do, the last the least.
                let task = async move {
                    computing((8 - number) * 4 * SLICES as usize).await;
                    ended.lock().unwrap_or_else(PoisonError::into_inner).push(number);
                };
                executor.spawn(background.run(task, &Arc::default()))
            })
            .collect();
        executor.block_on(join_all(tasks));
        let ended = ended.lock().unwrap();
        let place = |number| ended.iter().position(|ended| *ended == number);
        assert!(place(7) < place(0), "{ended:?}");
    }
}
