//! Owned, named background tasks that are started again when they fail.

use std::{
    collections::BTreeMap,
    fmt::Display,
    future::Future,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::FutureExt;
use jiff::Timestamp;
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::sync::lock;

/// First pause before a failed task is started again; doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause between two starts.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A run of this length counts as healthy: the pause starts over.
const HEALTHY_RUN: Duration = Duration::from_secs(60);
/// How long [`Tasks::shutdown`] waits before it aborts what is left.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// Why a task ended before it was told to.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TaskError(String);

impl TaskError {
    /// From anything that explains itself.
    pub fn new(why: impl Display) -> Self {
        Self(why.to_string())
    }
}

/// Owner of background tasks: each has a name, is started again when it fails or panics, can be looked
/// at, and ends when the owner is shut down or dropped.
///
/// Cloning gives another handle; the tasks are aborted when the last one is dropped.
#[derive(Clone, Default)]
pub struct Tasks {
    set: Arc<Mutex<JoinSet<()>>>,
    board: Arc<Board>,
    stop: CancellationToken,
}

/// What the tasks write about themselves.
#[derive(Default)]
struct Board(Mutex<BTreeMap<String, Report>>);

/// What a task is doing.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Name it was given.
    pub name: String,
    /// Whether it runs.
    pub state: State,
    /// When it entered `state`.
    pub since: Timestamp,
    /// How often it was started again after a failure.
    pub restarts: u64,
    /// Runs that ended well; periodic tasks count one per round.
    pub completed: u64,
    /// Its last failure, also after it recovered.
    pub last_error: Option<String>,
}

/// State of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It runs.
    Running,
    /// A periodic task between two rounds.
    Waiting,
    /// It failed and will be started again.
    BackingOff,
    /// It ended.
    Finished,
}

// === impl Tasks ===

impl Tasks {
    /// An owner without tasks.
    pub fn new() -> Self {
        Self::default()
    }

    /// The token that tells tasks to end.
    pub fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Runs `run` until it returns `Ok`, starting it again with growing pauses when it fails or panics.
    ///
    /// The future is dropped at its next suspension point once [`Tasks::shutdown`] is called.
    pub fn spawn<F, Fut>(&self, name: impl Into<String>, run: F)
    where
        F: FnMut() -> Fut + Send + 'static,
        Fut: Future<Output = Result<(), TaskError>> + Send + 'static,
    {
        self.start(name.into(), None, run);
    }

    /// Runs `run` now and then each time `every` has passed since its last round ended.
    pub fn periodic<F, Fut>(&self, name: impl Into<String>, every: Duration, run: F)
    where
        F: FnMut() -> Fut + Send + 'static,
        Fut: Future<Output = Result<(), TaskError>> + Send + 'static,
    {
        self.start(name.into(), Some(every), run);
    }

    fn start<F, Fut>(&self, name: String, every: Option<Duration>, run: F)
    where
        F: FnMut() -> Fut + Send + 'static,
        Fut: Future<Output = Result<(), TaskError>> + Send + 'static,
    {
        if self.stop.is_cancelled() {
            return;
        }
        self.board.enter(&name, State::Running);
        let (stop, board) = (self.stop.clone(), Arc::clone(&self.board));
        let mut set = lock(&self.set);
        // Results of ended tasks would pile up otherwise.
        while set.try_join_next().is_some() {}
        set.spawn(async move {
            let supervised = supervise(&name, every, run, &board);
            let _ = stop.run_until_cancelled(supervised).await;
            board.enter(&name, State::Finished);
        });
    }

    /// What each task is doing, by name.
    pub fn reports(&self) -> Vec<Report> {
        lock(&self.board.0).values().cloned().collect()
    }

    /// Tells every task to end and waits until all have; what has not ended after five seconds is aborted.
    /// Tasks started later end at once.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        let mut set = std::mem::take(&mut *lock(&self.set));
        let all_ended = async { while set.join_next().await.is_some() {} };
        if tokio::time::timeout(SHUTDOWN_GRACE, all_ended).await.is_err() {
            set.shutdown().await;
        }
    }
}

async fn supervise<F, Fut>(name: &str, every: Option<Duration>, mut run: F, board: &Board)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<(), TaskError>>,
{
    let mut pause = FIRST_PAUSE;
    loop {
        let started = Instant::now();
        let error = match (AssertUnwindSafe(async { run().await }).catch_unwind().await, every) {
            (Ok(Ok(())), None) => return board.completed(name, State::Finished),
            (Ok(Ok(())), Some(every)) => {
                board.completed(name, State::Waiting);
                pause = FIRST_PAUSE;
                tokio::time::sleep(every).await;
                board.enter(name, State::Running);
                continue;
            }
            (Ok(Err(error)), _) => error.to_string(),
            (Err(panic), _) => format!("panicked: {}", panic_text(panic.as_ref())),
        };
        tracing::warn!(task = name, error, "task failed, starting it again");
        board.failed(name, error);
        if started.elapsed() >= HEALTHY_RUN {
            pause = FIRST_PAUSE;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
        board.restarted(name);
    }
}

/// The message of a panic.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_owned(),
        (_, Some(text)) => text.clone(),
        _ => "without a message".to_owned(),
    }
}

// === impl Board ===

impl Board {
    fn update(&self, name: &str, change: impl FnOnce(&mut Report)) {
        let mut reports = lock(&self.0);
        let report = reports.entry(name.to_owned()).or_insert_with(|| Report {
            name: name.to_owned(),
            state: State::Running,
            since: Timestamp::now(),
            restarts: 0,
            completed: 0,
            last_error: None,
        });
        change(report);
    }

    fn enter(&self, name: &str, state: State) {
        self.update(name, |report| {
            report.state = state;
            report.since = Timestamp::now();
        });
    }

    fn completed(&self, name: &str, state: State) {
        self.enter(name, state);
        self.update(name, |report| report.completed += 1);
    }

    fn failed(&self, name: &str, error: String) {
        self.enter(name, State::BackingOff);
        self.update(name, |report| report.last_error = Some(error));
    }

    fn restarted(&self, name: &str) {
        self.enter(name, State::Running);
        self.update(name, |report| report.restarts += 1);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::{mpsc, oneshot};

    use super::*;

    fn report(tasks: &Tasks, name: &str) -> Report {
        tasks.reports().into_iter().find(|r| r.name == name).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_task_is_started_again_and_says_why() {
        let tasks = Tasks::new();
        let runs = Arc::new(AtomicU32::new(0));
        let (done, finished) = oneshot::channel();
        let done = Mutex::new(Some(done));
        let (counter, done) = (Arc::clone(&runs), Arc::new(done));
        tasks.spawn("flaky", move || {
            let (counter, done) = (Arc::clone(&counter), Arc::clone(&done));
            async move {
                match counter.fetch_add(1, Ordering::SeqCst) {
                    0 => Err(TaskError::new("no luck")),
                    1 => panic!("worse luck"),
                    _ => {
                        if let Some(done) = lock(&done).take() {
                            let _ = done.send(());
                        }
                        std::future::pending().await
                    }
                }
            }
        });
        finished.await.unwrap();
        let seen = report(&tasks, "flaky");
        assert_eq!((seen.state, seen.restarts), (State::Running, 2));
        assert_eq!(seen.last_error.as_deref(), Some("panicked: worse luck"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_periodic_task_runs_now_and_then() {
        let tasks = Tasks::new();
        let (tx, mut rounds) = mpsc::unbounded_channel();
        tasks.periodic("tick", Duration::from_secs(60), move || {
            let tx = tx.clone();
            async move { tx.send(Instant::now()).map_err(TaskError::new) }
        });
        let first = rounds.recv().await.unwrap();
        let second = rounds.recv().await.unwrap();
        assert_eq!((second - first).as_secs(), 60);
        assert_eq!(
            report(&tasks, "tick").completed,
            2 - u64::from(report(&tasks, "tick").state == State::Running)
        );
    }

    /// Tells when it is dropped.
    struct Guard(mpsc::UnboundedSender<()>);

    impl Drop for Guard {
        fn drop(&mut self) {
            let _ = self.0.send(());
        }
    }

    #[tokio::test]
    async fn shutdown_ends_every_task() {
        let tasks = Tasks::new();
        let (tx, mut dropped) = mpsc::unbounded_channel();
        let (started, mut running) = mpsc::unbounded_channel();
        for name in ["one", "two"] {
            let (tx, started) = (tx.clone(), started.clone());
            tasks.spawn(name, move || {
                let (guard, started) = (Guard(tx.clone()), started.clone());
                async move {
                    let _guard = guard;
                    let _ = started.send(());
                    std::future::pending().await
                }
            });
        }
        drop(tx);
        running.recv().await.unwrap();
        running.recv().await.unwrap();
        tasks.shutdown().await;
        assert_eq!(dropped.recv().await, Some(()));
        assert_eq!(dropped.recv().await, Some(()));
        assert_eq!(dropped.recv().await, None, "the closures are gone too");
        assert!(tasks.reports().iter().all(|r| r.state == State::Finished));
    }
}
