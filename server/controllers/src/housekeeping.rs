//! What goes by itself with time: pods nobody will end, old events, Leases of nodes that are gone, expired
//! bootstrap tokens. Each a pure choice and a periodic task.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use ketch_api::k8s::api::{
    coordination::v1::Lease,
    core::v1::{Event, Node, Pod, Secret},
};
use ketch_client::{Informer, Key, TaskError, is_conflict, is_not_found, status_text};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Preconditions},
};

use crate::{owner, pod};

/// How long a node may be missing before its pods are removed, as upstream: it may be re-registering.
const QUARANTINE: Duration = Duration::from_secs(40);
/// A Lease of a node that is gone is kept as long.
const LEASE_QUARANTINE: SignedDuration = SignedDuration::from_hours(1);
/// Objects per request of a list that is walked once.
const PAGE: u32 = 500;

fn failed(doing: &str) -> impl Fn(kube::Error) -> TaskError + '_ {
    move |error| TaskError::new(format!("{doing}: {}", status_text(&error)))
}

/// Removes pods that no node will end, and the oldest ended ones beyond a limit.
#[derive(Clone)]
pub(crate) struct Pods {
    pub(crate) client: Client,
    pub(crate) pods: Informer<Pod>,
    pub(crate) nodes: Informer<Node>,
    /// Ended pods that are kept.
    pub(crate) limit: usize,
    /// Since when each node that pods refer to is missing.
    pub(crate) missing: Arc<Mutex<HashMap<String, Timestamp>>>,
}

impl Pods {
    /// One round.
    pub(crate) async fn sweep(&self) -> Result<(), TaskError> {
        tokio::join!(self.pods.ready(), self.nodes.ready());
        let (pods, now) = (self.pods.all(), Timestamp::now());
        let lost = self.lost_nodes(&pods, now).await?;
        for (pod, why) in surplus(&pods, &lost, self.limit) {
            let (namespace, name) =
                (pod.metadata.namespace.as_deref().unwrap_or("default"), owner::name(&pod.metadata));
            tracing::info!(pod = %Key::of(&pod.metadata), why, "removing pod");
            let preconditions = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
            let params = DeleteParams::default().grace_period(0).preconditions(preconditions);
            match Api::<Pod>::namespaced(self.client.clone(), namespace).delete(name, &params).await {
                Err(error) if !is_not_found(&error) && !is_conflict(&error) => {
                    return Err(failed("removing a pod")(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Nodes that have been missing long enough, and are missing on the server too.
    async fn lost_nodes(&self, pods: &[Arc<Pod>], now: Timestamp) -> Result<HashSet<String>, TaskError> {
        let named = pods.iter().map(|pod| pod::node(pod)).filter(|node| !node.is_empty());
        let gone: HashSet<&str> =
            named.filter(|node| self.nodes.get(&Key::cluster(*node)).is_none()).collect();
        let long_gone: Vec<String> = {
            let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
            missing.retain(|node, _| gone.contains(node.as_str()));
            for node in gone {
                missing.entry(node.to_owned()).or_insert(now);
            }
            let is_long = |since: Timestamp| {
                Duration::try_from(now.duration_since(since)).is_ok_and(|d| d >= QUARANTINE)
            };
            missing.iter().filter(|(_, since)| is_long(**since)).map(|(node, _)| node.clone()).collect()
        };
        let api = Api::<Node>::all(self.client.clone());
        let mut lost = HashSet::new();
        for node in long_gone {
            if api.get_opt(&node).await.map_err(failed("looking for a node"))?.is_none() {
                lost.insert(node);
            }
        }
        Ok(lost)
    }
}

/// The pods to remove, each with the reason.
fn surplus<'a>(pods: &'a [Arc<Pod>], lost: &HashSet<String>, limit: usize) -> Vec<(&'a Pod, &'static str)> {
    let mut chosen: BTreeMap<Key, (&Pod, &'static str)> = BTreeMap::new();
    let mut ended: Vec<&Pod> = pods.iter().map(Arc::as_ref).filter(|pod| pod::is_finished(pod)).collect();
    ended.sort_by_key(|pod| (pod.metadata.creation_timestamp.clone(), pod.metadata.name.clone()));
    let too_many = ended.len().saturating_sub(limit);
    for pod in ended.into_iter().take(too_many) {
        chosen.insert(Key::of(&pod.metadata), (pod, "too many ended pods"));
    }
    for pod in pods {
        if lost.contains(pod::node(pod)) {
            chosen.insert(Key::of(&pod.metadata), (pod, "its node is gone"));
        } else if pod::is_terminating(pod) && pod::node(pod).is_empty() {
            chosen.insert(Key::of(&pod.metadata), (pod, "it was never bound to a node"));
        }
    }
    chosen.into_values().collect()
}

/// Deletes events older than `ttl`; returns how long until the next one is due.
pub(crate) async fn sweep_events(client: &Client, ttl: Duration) -> Result<Duration, TaskError> {
    let (now, api) = (Timestamp::now(), Api::<Event>::all(client.clone()));
    let (mut oldest, mut token) = (now, None::<String>);
    loop {
        let mut params = ListParams::default().limit(PAGE);
        if let Some(token) = &token {
            params = params.continue_token(token);
        }
        let page = match api.list(&params).await {
            // The list took longer than the history is kept: the rest follows next time.
            Err(kube::Error::Api(status)) if status.code == 410 => break,
            other => other.map_err(failed("listing events"))?,
        };
        for event in &page.items {
            let last = last_seen(event).unwrap_or(now);
            if !is_older(last, ttl, now) {
                oldest = oldest.min(last);
                continue;
            }
            let namespace = event.metadata.namespace.as_deref().unwrap_or("default");
            let events = Api::<Event>::namespaced(client.clone(), namespace);
            match events.delete(owner::name(&event.metadata), &DeleteParams::default()).await {
                Err(error) if !is_not_found(&error) => return Err(failed("deleting an event")(error)),
                _ => {}
            }
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(next) => token = Some(next),
            None => break,
        }
    }
    Ok(ttl.saturating_sub(Duration::try_from(now.duration_since(oldest)).unwrap_or_default()))
}

fn last_seen(event: &Event) -> Option<Timestamp> {
    let series =
        event.series.as_ref().and_then(|series| series.last_observed_time.as_ref()).map(|time| time.0);
    let last = event.last_timestamp.as_ref().map(|time| time.0);
    let first = event.event_time.as_ref().map(|time| time.0);
    let created = event.metadata.creation_timestamp.as_ref().map(|time| time.0);
    [series, last, first, created].into_iter().flatten().max()
}

fn is_older(at: Timestamp, than: Duration, now: Timestamp) -> bool {
    Duration::try_from(now.duration_since(at)).is_ok_and(|age| age >= than)
}

/// Deletes Leases of nodes that have been gone for long.
pub(crate) async fn sweep_leases(
    client: &Client,
    leases: &Informer<Lease>,
    nodes: &Informer<Node>,
) -> Result<(), TaskError> {
    tokio::join!(leases.ready(), nodes.ready());
    let now = Timestamp::now();
    let api = Api::<Lease>::namespaced(client.clone(), "kube-node-lease");
    for lease in leases.in_namespace("kube-node-lease") {
        let name = owner::name(&lease.metadata);
        if nodes.get(&Key::cluster(name)).is_none() && is_stale(&lease, now) {
            match api.delete(name, &DeleteParams::default()).await {
                Err(error) if !is_not_found(&error) => return Err(failed("deleting a lease")(error)),
                _ => {}
            }
        }
    }
    Ok(())
}

fn is_stale(lease: &Lease, now: Timestamp) -> bool {
    let renewed = lease.spec.as_ref().and_then(|spec| spec.renew_time.as_ref()).map(|time| time.0);
    let created = lease.metadata.creation_timestamp.as_ref().map(|time| time.0);
    renewed.or(created).is_some_and(|at| now.duration_since(at) >= LEASE_QUARANTINE)
}

/// Deletes bootstrap tokens whose time is over.
pub(crate) async fn sweep_tokens(client: &Client) -> Result<(), TaskError> {
    let api = Api::<Secret>::namespaced(client.clone(), "kube-system");
    let params = ListParams::default().fields("type=bootstrap.kubernetes.io/token");
    let now = Timestamp::now();
    for token in api.list(&params).await.map_err(failed("listing bootstrap tokens"))?.items {
        if is_expired(&token, now) {
            match api.delete(owner::name(&token.metadata), &DeleteParams::default()).await {
                Err(error) if !is_not_found(&error) => {
                    return Err(failed("deleting a bootstrap token")(error));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn is_expired(token: &Secret, now: Timestamp) -> bool {
    let text = token.data.as_ref().and_then(|data| data.get("expiration"));
    let text = text.and_then(|bytes| std::str::from_utf8(&bytes.0).ok());
    text.and_then(|text| text.parse::<Timestamp>().ok()).is_some_and(|at| at <= now)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn now() -> Timestamp {
        "2026-01-01T02:00:00Z".parse().unwrap()
    }

    fn pod(name: &str, object: Value) -> Arc<Pod> {
        let mut object = object;
        object["metadata"]["name"] = name.into();
        object["metadata"]["namespace"] = "a".into();
        Arc::new(serde_json::from_value(object).unwrap())
    }

    #[test]
    fn pods_nobody_will_end_are_removed() {
        let bound = |node: &str| json!({"spec": {"nodeName": node, "containers": []}});
        let ended = |at: &str| json!({"metadata": {"creationTimestamp": at}, "status": {"phase": "Failed"}});
        let pods = [
            pod("fine", bound("n1")),
            pod("lost", bound("gone")),
            pod("unbound", json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})),
            pod("waiting", json!({"metadata": {}})),
            pod("ended-new", ended("2026-01-01T01:00:00Z")),
            pod("ended-old", ended("2026-01-01T00:00:00Z")),
        ];
        let lost = HashSet::from(["gone".to_owned()]);
        let names = |limit: usize| -> Vec<_> {
            surplus(&pods, &lost, limit)
                .into_iter()
                .map(|(pod, _)| pod.metadata.name.clone().unwrap())
                .collect()
        };
        assert_eq!(names(1), ["ended-old", "lost", "unbound"]);
        assert_eq!(names(9), ["lost", "unbound"]);
    }

    #[test]
    fn an_event_is_as_old_as_its_last_repetition() {
        let event: Event = serde_json::from_value(
            json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}, "involvedObject": {},
            "lastTimestamp": "2026-01-01T01:30:00Z"}),
        )
        .unwrap();
        let last = last_seen(&event).unwrap();
        assert!(!is_older(last, Duration::from_secs(3600), now()));
        assert!(is_older(last, Duration::from_secs(1800), now()));
    }

    #[test]
    fn leases_and_tokens_expire() {
        let lease = |at: &str| -> Lease {
            serde_json::from_value(json!({"metadata": {}, "spec": {"renewTime": at}})).unwrap()
        };
        assert!(is_stale(&lease("2026-01-01T00:59:00.000000Z"), now()));
        assert!(!is_stale(&lease("2026-01-01T01:30:00.000000Z"), now()));
        let token = |at: &str| Secret {
            data: Some([("expiration".to_owned(), ketch_api::k8s::ByteString(at.into()))].into()),
            ..Secret::default()
        };
        assert!(is_expired(&token("2026-01-01T01:59:59Z"), now()));
        assert!(!is_expired(&token("2026-01-01T02:00:01Z"), now()));
        assert!(!is_expired(&Secret::default(), now()), "without an expiration it stays");
    }
}
