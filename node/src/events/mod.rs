//! Events about pods and the node: aggregated, limited, written in the background.

mod aggregate;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use ketch_api::k8s::{
    api::core::v1 as core,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::api::{Api, Patch, PatchParams, PostParams};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub(crate) use aggregate::Note;
use aggregate::{Aggregator, Write};

/// Events wait this long, so that a status written at the same moment goes first.
const GATHER: Duration = Duration::from_millis(100);
/// Notes that may wait to be written; more are dropped.
const QUEUE: usize = 16_384;

/// Where events are left. Cheap to clone; never waits.
#[derive(Clone)]
pub(crate) struct Recorder {
    queue: mpsc::Sender<Note>,
}

impl Recorder {
    /// A recorder, and what writes its events until `stop`.
    pub(crate) fn new(
        client: kube::Client,
        node: Arc<str>,
        stop: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (queue, notes) = mpsc::channel(QUEUE);
        (Self { queue }, write(client, node, notes, stop))
    }

    /// Leaves a note. Lost when too many wait.
    pub(crate) fn record(&self, note: Note) {
        if self.queue.try_send(note).is_err() {
            tracing::debug!("an event was dropped: too many wait");
        }
    }
}

async fn write(
    client: kube::Client,
    node: Arc<str>,
    mut notes: mpsc::Receiver<Note>,
    stop: CancellationToken,
) {
    let mut aggregator = Aggregator::default();
    let mut batch = Vec::new();
    loop {
        let stopped = tokio::select! {
            biased;
            count = notes.recv_many(&mut batch, 512) => count == 0,
            () = stop.cancelled() => true,
        };
        if !stopped {
            let _ = stop.run_until_cancelled(tokio::time::sleep(GATHER)).await;
            while batch.len() < 2_048
                && let Ok(note) = notes.try_recv()
            {
                batch.push(note);
            }
        }
        for note in batch.drain(..) {
            if let Some(write) = aggregator.take(note, Timestamp::now()) {
                send(&client, &node, write).await;
            }
        }
        if stopped {
            return;
        }
    }
}

async fn send(client: &kube::Client, node: &str, write: Write) {
    let namespace = write.note.object.namespace.clone().unwrap_or_else(|| "default".to_owned());
    let api: Api<core::Event> = Api::namespaced(client.clone(), &namespace);
    let result = if write.count > 1 {
        let patch = serde_json::json!({ "count": write.count, "lastTimestamp": Time(write.last), "message": write.note.message });
        let sent = api.patch(&write.name, &PatchParams::default(), &Patch::Merge(&patch)).await;
        match sent {
            // It expired: begin anew.
            Err(kube::Error::Api(status)) if status.code == 404 => {
                create(&api, node, &namespace, &write).await
            }
            other => other.map(|_| ()),
        }
    } else {
        create(&api, node, &namespace, &write).await
    };
    if let Err(error) = result {
        tracing::debug!(reason = write.note.reason, %error, "an event could not be written");
    }
}

async fn create(
    api: &Api<core::Event>,
    node: &str,
    namespace: &str,
    write: &Write,
) -> Result<(), kube::Error> {
    let note = &write.note;
    let event = core::Event {
        metadata: ObjectMeta {
            name: Some(write.name.clone()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: note.object.clone(),
        reason: Some(note.reason.to_owned()),
        message: Some(note.message.clone()),
        type_: Some(note.kind().to_owned()),
        count: Some(write.count),
        first_timestamp: Some(Time(write.first)),
        last_timestamp: Some(Time(write.last)),
        source: Some(core::EventSource {
            component: Some("kubelet".to_owned()),
            host: Some(node.to_owned()),
        }),
        reporting_component: Some("kubelet".to_owned()),
        reporting_instance: Some(node.to_owned()),
        ..core::Event::default()
    };
    api.create(&PostParams::default(), &event).await.map(|_| ())
}
