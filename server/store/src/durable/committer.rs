//! The thread that owns all writing.
//!
//! A batch is what is waiting when the last one is done, up to a limit. Its callbacks run against the state
//! the batch leads to; only when that state is on disk is it published, and only then are callers answered.

use super::failure::Failure;
use super::open::load;
use super::tables::{self, Batch};
use super::{Medium, Slot};
use crate::feed::Shared;
use crate::state::Pending;
use crate::{Error, Event, Revision, UpdateFn, Written};
use redb::Database;
use std::fs::File;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// History forgotten per transaction, so that compaction never holds up writes for long.
const COMPACTION_STEP: u64 = 1_000;
/// Time between attempts to reopen the file after a failure: reopening can mean reading all of it.
const REOPEN_AFTER: Duration = Duration::from_millis(200);

/// Work for the committer.
pub(super) enum Request {
    /// See [`crate::Storage::update`].
    Update {
        /// Key to update.
        key: Arc<str>,
        /// The decision.
        update: UpdateFn,
        /// Answered after the commit.
        reply: Reply<Written>,
    },
    /// One step of forgetting history up to `to`; answers whether it was the last.
    Compact {
        /// Last revision to forget.
        to: Revision,
        /// Answered after the commit.
        reply: Reply<bool>,
    },
}

/// State of the thread.
pub(super) struct Committer {
    shared: Arc<Shared>,
    medium: Medium,
    slot: Slot,
    /// Held to the end, so that nobody else opens the directory meanwhile.
    lock: Option<File>,
    /// Last revision missing from the log on disk.
    forgotten: Revision,
    batch: usize,
    failed: Option<(Instant, Failure)>,
}

/// Where an answer of type `T` goes.
type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// Answers that wait for the commit.
#[derive(Default)]
struct Answers {
    updates: Vec<(Reply<Written>, Result<Written, Error>)>,
    compactions: Vec<(Reply<bool>, Revision)>,
}

impl Committer {
    pub(super) fn new(
        shared: Arc<Shared>,
        medium: Medium,
        slot: Slot,
        lock: Option<File>,
        forgotten: Revision,
        batch: usize,
    ) -> Self {
        Committer { shared, medium, slot, lock, forgotten, batch, failed: None }
    }

    /// Serves requests until all senders are gone.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        let mut batch = Vec::with_capacity(self.batch);
        while let Some(first) = queue.blocking_recv() {
            batch.push(first);
            while batch.len() < self.batch
                && let Ok(next) = queue.try_recv()
            {
                batch.push(next);
            }
            self.commit(&mut batch);
        }
        self.shared.close();
        self.slot.set(None);
        drop(self.lock);
    }

    fn commit(&mut self, batch: &mut Vec<Request>) {
        let database = match self.database() {
            Ok(database) => database,
            Err(failure) => return refuse(batch, &failure),
        };
        let mut pending = Pending::new(self.shared.view());
        let mut answers = Answers::default();
        for request in batch.drain(..) {
            match request {
                Request::Update { key, update, reply } => {
                    answers.updates.push((reply, pending.apply(&key, update)));
                }
                Request::Compact { to, reply } => answers.compactions.push((reply, to)),
            }
        }
        let forget = self.compaction_step(&answers);
        match write(&database, &pending.events, forget.clone()) {
            Ok(()) => {
                self.forgotten = forget.map_or(self.forgotten, |step| *step.end());
                if !pending.events.is_empty() {
                    self.shared.publish(pending.view, pending.events);
                }
                answers.send(self.forgotten);
            }
            Err(failure) => {
                drop(database);
                self.fail(&failure);
                answers.fail(&failure);
            }
        }
    }

    fn compaction_step(&self, answers: &Answers) -> Option<RangeInclusive<Revision>> {
        let to = answers.compactions.iter().map(|(_, to)| *to).max()?;
        let step = self.forgotten + 1..=to.min(self.forgotten + COMPACTION_STEP);
        (!step.is_empty()).then_some(step)
    }

    /// The open database. After a failure it is opened again: an IO error leaves redb's own state unusable.
    fn database(&mut self) -> Result<Arc<Database>, Failure> {
        if let Some(database) = self.slot.get() {
            return Ok(database);
        }
        if let Some((at, failure)) = &self.failed
            && at.elapsed() < REOPEN_AFTER
        {
            return Err(failure.clone());
        }
        let reopened = (self.medium)()
            .map_err(|error| Failure::new("reopening the store's file", error))
            .and_then(|database| self.reconcile(&database).map(|()| Arc::new(database)));
        match reopened {
            Ok(database) => {
                tracing::info!(revision = self.shared.revision(), "the store takes writes again");
                self.failed = None;
                self.slot.set(Some(database.clone()));
                Ok(database)
            }
            Err(failure) => {
                self.failed = Some((Instant::now(), failure.clone()));
                Err(failure)
            }
        }
    }

    /// Brings memory in line with a reopened file. A commit that reported failure can still have reached
    /// the disk; then its events are published now, late but in order.
    fn reconcile(&mut self, database: &Database) -> Result<(), Failure> {
        let loaded = load(database)?;
        let published = self.shared.revision();
        if loaded.view.revision < published {
            let message = format!("it is at revision {}, {published} was reached", loaded.view.revision);
            return Err(Failure::corrupt("the store's file has lost acknowledged writes", message));
        }
        let missed = usize::try_from(loaded.view.revision - published).unwrap_or(usize::MAX);
        let (events, _) = tables::read_log(database, published, missed)?;
        if events.len() != missed {
            return Err(Failure::corrupt("reading the store's history", "revisions are missing"));
        }
        self.forgotten = loaded.compacted;
        if missed > 0 {
            self.shared.publish(loaded.view, events);
        }
        Ok(())
    }

    fn fail(&mut self, failure: &Failure) {
        tracing::error!(error = %failure.error(), "a commit failed, the store will be reopened");
        self.slot.set(None);
        self.failed = Some((Instant::now(), failure.clone()));
    }
}

fn write(
    database: &Database,
    events: &[Arc<Event>],
    forget: Option<RangeInclusive<Revision>>,
) -> Result<(), Failure> {
    if events.is_empty() && forget.is_none() {
        return Ok(());
    }
    tables::write(database, &Batch { events, forget })
        .map_err(|error| Failure::new("writing to the store's file", error))
}

fn refuse(batch: &mut Vec<Request>, failure: &Failure) {
    for request in batch.drain(..) {
        // A caller that went away needs no answer.
        match request {
            Request::Update { reply, .. } => drop(reply.send(Err(failure.error()))),
            Request::Compact { reply, .. } => drop(reply.send(Err(failure.error()))),
        }
    }
}

impl Answers {
    fn send(self, forgotten: Revision) {
        for (reply, outcome) in self.updates {
            drop(reply.send(outcome));
        }
        for (reply, to) in self.compactions {
            drop(reply.send(Ok(forgotten >= to)));
        }
    }

    fn fail(self, failure: &Failure) {
        for (reply, _) in self.updates {
            drop(reply.send(Err(failure.error())));
        }
        for (reply, _) in self.compactions {
            drop(reply.send(Err(failure.error())));
        }
    }
}
