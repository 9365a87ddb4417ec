//! The thread that owns all writing.
//!
//! A batch is what is waiting when the last one is done, up to a limit. Its callbacks run against the state
//! the batch leads to; only when that state is on disk is it published, and only then are callers answered.
//! On disk means in the journal; the database follows when there is nothing to do, or the journal is full.

use super::failure::Failure;
use super::journal::Journal;
use super::open::load;
use super::tables::{self, Checkpoint};
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
/// Events worth a checkpoint when nobody is waiting.
const CHECKPOINT_IDLE: usize = 512;
/// Events that are put into the database even if somebody is.
const CHECKPOINT_BUSY: usize = 4_096;
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
    pub(super) shared: Arc<Shared>,
    pub(super) medium: Medium,
    pub(super) slot: Slot,
    /// Held to the end, so that nobody else opens the directory meanwhile.
    pub(super) lock: Option<File>,
    pub(super) journal: Journal,
    /// Published events that are in the journal only.
    pub(super) unlogged: Vec<Arc<Event>>,
    /// Last revision missing from the log on disk.
    pub(super) forgotten: Revision,
    pub(super) batch: usize,
    pub(super) failed: Option<(Instant, Failure)>,
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
            let worthwhile = if queue.is_empty() { CHECKPOINT_IDLE } else { CHECKPOINT_BUSY };
            if self.unlogged.len() >= worthwhile {
                // What fails here is not lost, and is tried again; whoever writes next is told.
                let _ = self.checkpoint(None, &[]);
            }
        }
        // The journal has it all, but a database that is whole is quicker to open.
        let _ = self.checkpoint(None, &[]);
        self.shared.close();
        self.slot.set(None);
        drop(self.lock);
    }

    fn commit(&mut self, batch: &mut Vec<Request>) {
        // Before anything is decided: a checkpoint that seemed to fail may have written events.
        if let Err(failure) = self.database() {
            return refuse(batch, &failure);
        }
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
        match self.write(pending, self.compaction_step(&answers)) {
            Ok(()) => answers.send(self.forgotten),
            Err(failure) => answers.fail(&failure),
        }
    }

    /// Makes a batch durable and publishes it.
    fn write(&mut self, pending: Pending, forget: Option<RangeInclusive<Revision>>) -> Result<(), Failure> {
        let Pending { view, events } = pending;
        let journaled = events.is_empty() || forget.is_none() && self.journal.append(&events)?;
        if !journaled || forget.is_some() {
            self.checkpoint(forget, &events)?;
        } else {
            self.unlogged.extend_from_slice(&events);
        }
        if !events.is_empty() {
            self.shared.publish(view, events);
        }
        Ok(())
    }

    /// Puts into the database what is in the journal only, and `more`, which is not published yet.
    fn checkpoint(
        &mut self,
        forget: Option<RangeInclusive<Revision>>,
        more: &[Arc<Event>],
    ) -> Result<(), Failure> {
        let events = [&*self.unlogged, more].concat();
        if events.is_empty() && forget.is_none() {
            return Ok(());
        }
        let database = self.database()?;
        let written = tables::new_salt().and_then(|salt| {
            let checkpoint = Checkpoint { events: &events, forget: forget.clone(), salt };
            tables::write(&database, &checkpoint).map(|()| salt)
        });
        match written {
            Ok(salt) => {
                self.journal.restart(salt);
                self.unlogged.clear();
                self.forgotten = forget.map_or(self.forgotten, |step| *step.end());
                self.shared.set_logged(events.last().map_or(self.shared.revision(), |event| event.revision));
                Ok(())
            }
            Err(error) => {
                drop(database);
                let failure = Failure::new("writing to the store's file", error);
                self.fail(&failure);
                Err(failure)
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

    /// Brings memory in line with a reopened file. A checkpoint that reported failure can still have reached
    /// the disk; then it counts, and what it held beyond the journal is published now, late but in order.
    fn reconcile(&mut self, database: &Database) -> Result<(), Failure> {
        let loaded = load(database)?;
        let (logged, published) = (loaded.view.revision, self.shared.revision());
        self.unlogged.retain(|event| event.revision > logged);
        if logged + (self.unlogged.len() as u64) < published {
            let message = format!("it is at revision {logged}, {published} was reached");
            return Err(Failure::corrupt("the store's file has lost acknowledged writes", message));
        }
        if loaded.journal != self.journal.salt() {
            self.journal.restart(loaded.journal);
        }
        self.forgotten = loaded.compacted;
        let missed = usize::try_from(logged.saturating_sub(published)).unwrap_or(usize::MAX);
        if missed > 0 {
            let (events, _) = tables::read_log(database, published, missed)?;
            if events.len() != missed {
                return Err(Failure::corrupt("reading the store's history", "revisions are missing"));
            }
            self.shared.publish(loaded.view, events);
        }
        self.shared.set_logged(logged);
        Ok(())
    }

    fn fail(&mut self, failure: &Failure) {
        tracing::error!(error = %failure.error(), "a commit failed, the store will be reopened");
        self.slot.set(None);
        self.failed = Some((Instant::now(), failure.clone()));
    }
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
