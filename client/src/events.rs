//! Events about what happened to objects, aggregated and limited.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use jiff::Timestamp;
use ketch_api::k8s::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::sync::mpsc;

use crate::{Tasks, error, sync::lock};

/// Events waiting to be written; more are dropped, so that telling never slows down doing.
const BACKLOG: usize = 1024;
/// Distinct events whose count is remembered.
const REMEMBERED: usize = 4096;
/// An object may have this many events at once, then one more every [`REFILL_SECONDS`] (client-go's
/// spam filter).
const BURST: f64 = 25.0;
/// See [`BURST`].
const REFILL_SECONDS: f64 = 300.0;
/// Longest message, as the API allows.
const LONGEST_MESSAGE: usize = 1024;

/// The object an event is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Subject {
    /// For instance `apps/v1`.
    pub api_version: String,
    /// Kind.
    pub kind: String,
    /// Namespace, empty for a cluster-scoped object.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// Part of the object, for instance `spec.containers{web}`; usually empty.
    pub field_path: String,
}

/// Writes `core/v1` events in the background. What is repeated is counted on the first event, as `kubectl
/// describe` shows it: `x7 over 3m`.
#[derive(Clone)]
pub struct Recorder {
    component: Arc<str>,
    outbox: mpsc::Sender<Note>,
}

struct Note {
    subject: Subject,
    warning: bool,
    reason: String,
    message: String,
    component: Arc<str>,
    at: Timestamp,
}

// === impl Subject ===

impl Subject {
    /// The subject of events about `object`.
    pub fn of<K: Resource<DynamicType = ()>>(object: &K) -> Self {
        let meta = object.meta();
        Self {
            api_version: K::api_version(&()).into_owned(),
            kind: K::kind(&()).into_owned(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            field_path: String::new(),
        }
    }

    fn reference(&self) -> ObjectReference {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        ObjectReference {
            api_version: some(&self.api_version),
            kind: some(&self.kind),
            namespace: some(&self.namespace),
            name: some(&self.name),
            uid: some(&self.uid),
            field_path: some(&self.field_path),
            resource_version: None,
        }
    }
}

// === impl Recorder ===

impl Recorder {
    /// A recorder whose events come from `component`; the writing belongs to `tasks`.
    pub fn new(client: Client, component: &str, tasks: &Tasks) -> Self {
        let (outbox, inbox) = mpsc::channel(BACKLOG);
        // Survives a panic of the writer, which takes the lock again when it is started again.
        let shared = Arc::new(tokio::sync::Mutex::new((inbox, Memory::default())));
        tasks.spawn(format!("events of {component}"), move || {
            let (client, shared) = (client.clone(), Arc::clone(&shared));
            async move {
                let (inbox, memory) = &mut *shared.lock().await;
                while let Some(note) = inbox.recv().await {
                    write(&client, memory, note).await;
                }
                Ok(())
            }
        });
        Self { component: component.into(), outbox }
    }

    /// The same writer under another component name.
    pub fn named(&self, component: &str) -> Self {
        Self { component: component.into(), outbox: self.outbox.clone() }
    }

    /// Something went as it should.
    pub fn normal(&self, subject: Subject, reason: &str, message: impl Into<String>) {
        self.note(subject, false, reason, message.into());
    }

    /// Something a person may have to look at.
    pub fn warning(&self, subject: Subject, reason: &str, message: impl Into<String>) {
        self.note(subject, true, reason, message.into());
    }

    fn note(&self, subject: Subject, warning: bool, reason: &str, message: String) {
        let note = Note {
            subject,
            warning,
            reason: reason.to_owned(),
            message: shorten(message),
            component: Arc::clone(&self.component),
            at: Timestamp::now(),
        };
        if self.outbox.try_send(note).is_err() {
            tracing::debug!(reason, "event dropped: too many are waiting");
        }
    }
}

fn shorten(mut message: String) -> String {
    if message.len() > LONGEST_MESSAGE {
        let mut end = LONGEST_MESSAGE - 3;
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
        message.push_str("...");
    }
    message
}

async fn write(client: &Client, memory: &mut Memory, note: Note) {
    let namespace = match note.subject.namespace.as_str() {
        "" => "default",
        namespace => namespace,
    };
    let api = Api::<Event>::namespaced(client.clone(), namespace);
    let result = match memory.decide(&note) {
        Decision::Drop => return,
        Decision::Create(name) => api.create(&PostParams::default(), &event(&note, namespace, name)).await,
        Decision::Count { name, count } => {
            let patch = json!({"count": count, "lastTimestamp": Time(note.at)});
            match api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await {
                // It expired: a new one is due.
                Err(gone) if error::is_not_found(&gone) => {
                    let name = memory.start_over(&note);
                    api.create(&PostParams::default(), &event(&note, namespace, name)).await
                }
                other => other,
            }
        }
    };
    if let Err(failure) = result
        && !error::is_forbidden_by_termination(&failure)
    {
        tracing::debug!(error = error::status_text(&failure), reason = note.reason, "event not written");
    }
}

fn event(note: &Note, namespace: &str, name: String) -> Event {
    Event {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: note.subject.reference(),
        type_: Some(if note.warning { "Warning" } else { "Normal" }.to_owned()),
        reason: Some(note.reason.clone()),
        message: Some(note.message.clone()),
        count: Some(1),
        first_timestamp: Some(Time(note.at)),
        last_timestamp: Some(Time(note.at)),
        source: Some(EventSource { component: Some(note.component.to_string()), host: None }),
        reporting_component: Some(note.component.to_string()),
        reporting_instance: Some(String::new()),
        ..Event::default()
    }
}

/// What was written before, to count instead of repeating, and to stop a storm.
#[derive(Default)]
struct Memory {
    written: HashMap<(Subject, bool, String, String), Written>,
    budgets: HashMap<Subject, Budget>,
    /// Makes names unique within one nanosecond.
    sequence: Mutex<u64>,
}

struct Written {
    name: String,
    count: i32,
}

struct Budget {
    tokens: f64,
    at: Timestamp,
}

#[derive(Debug, PartialEq)]
enum Decision {
    Create(String),
    Count { name: String, count: i32 },
    Drop,
}

// === impl Memory ===

impl Memory {
    fn decide(&mut self, note: &Note) -> Decision {
        if !self.spend(note) {
            return Decision::Drop;
        }
        if let Some(written) = self.written.get_mut(&identity(note)) {
            written.count = written.count.saturating_add(1);
            return Decision::Count { name: written.name.clone(), count: written.count };
        }
        Decision::Create(self.start_over(note))
    }

    /// Remembers a first event and names it.
    fn start_over(&mut self, note: &Note) -> String {
        if self.written.len() >= REMEMBERED {
            self.written.clear();
        }
        let mut sequence = lock(&self.sequence);
        *sequence += 1;
        let unique = note.at.as_nanosecond().wrapping_add(i128::from(*sequence));
        let name = format!("{}.{unique:x}", note.subject.name);
        self.written.insert(identity(note), Written { name: name.clone(), count: 1 });
        name
    }

    fn spend(&mut self, note: &Note) -> bool {
        if self.budgets.len() >= REMEMBERED {
            self.budgets.clear();
        }
        let full = Budget { tokens: BURST, at: note.at };
        let budget = self.budgets.entry(note.subject.clone()).or_insert(full);
        let passed = note.at.duration_since(budget.at).as_secs_f64().max(0.0);
        budget.tokens = (budget.tokens + passed / REFILL_SECONDS).min(BURST);
        budget.at = note.at;
        let affordable = budget.tokens >= 1.0;
        if affordable {
            budget.tokens -= 1.0;
        }
        affordable
    }
}

fn identity(note: &Note) -> (Subject, bool, String, String) {
    (note.subject.clone(), note.warning, note.reason.clone(), note.message.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(message: &str, at: i64) -> Note {
        Note {
            subject: Subject { name: "web-1".into(), namespace: "a".into(), ..Subject::default() },
            warning: true,
            reason: "BackOff".into(),
            message: message.into(),
            component: "kubelet".into(),
            at: Timestamp::from_second(at).unwrap(),
        }
    }

    #[test]
    fn repeats_are_counted_on_the_first_event() {
        let mut memory = Memory::default();
        let Decision::Create(first) = memory.decide(&note("a", 0)) else { panic!("new") };
        assert_eq!(memory.decide(&note("a", 1)), Decision::Count { name: first.clone(), count: 2 });
        let Decision::Create(second) = memory.decide(&note("b", 1)) else { panic!("another message") };
        assert_ne!(first, second);
        assert!(first.starts_with("web-1."));
    }

    #[test]
    fn a_storm_is_cut_off_and_recovers() {
        let mut memory = Memory::default();
        let kept = (0..100).filter(|i| memory.decide(&note(&i.to_string(), 0)) != Decision::Drop).count();
        assert_eq!(kept, 25);
        assert_ne!(memory.decide(&note("later", 301)), Decision::Drop);
        assert_eq!(memory.decide(&note("too soon", 302)), Decision::Drop);
    }

    #[test]
    fn messages_are_cut_at_a_character() {
        let long = "é".repeat(600);
        let short = shorten(long);
        assert!(short.len() <= LONGEST_MESSAGE && short.ends_with("é..."));
    }
}
