//! `metrics.k8s.io`: NodeMetrics and PodMetrics, as metrics-server answers them. They are read off the measured
//! nodes and pods; nothing is stored. What has not been measured is not in a list.

use std::time::Duration;

use axum::response::Response;
use ketch_api::{Status, request::RequestInfo, status::GroupResource};
use serde_json::{Value, json};

use super::{Call, answer, list, transaction::failure};
use crate::{
    metrics::{Measured, Metrics, Usage},
    wire::{set, stored},
};

pub(crate) const GROUP: &str = "metrics.k8s.io";
pub(crate) const VERSION: &str = "v1beta1";

/// A kind of it, under the plural of the core kind it is about.
pub(crate) struct Kind {
    pub(crate) kind: &'static str,
    pub(crate) plural: &'static str,
    pub(crate) namespaced: bool,
}

/// All of them.
pub(crate) const ALL: &[Kind] = &[
    Kind { kind: "NodeMetrics", plural: "nodes", namespaced: false },
    Kind { kind: "PodMetrics", plural: "pods", namespaced: true },
];

/// The kind a request is about.
pub(crate) fn kind_of(info: &RequestInfo) -> Option<&'static Kind> {
    let ours = info.group == GROUP && info.version == VERSION && info.subresource.is_empty();
    ALL.iter().find(|kind| ours && kind.plural == info.resource)
}

/// Answers a get or a list.
pub(crate) async fn handle(call: &Call, kind: &Kind) -> Result<Response, Status> {
    let Some(metrics) = call.server.metrics.as_deref() else { return Err(Status::no_resource()) };
    let Some(resource) = call.server.registry.get("", "v1", kind.plural) else {
        return Err(Status::no_resource());
    };
    let (gr, info) = (GroupResource { group: GROUP, resource: kind.plural }, &call.info);
    super::check_scope(info, resource)?;
    match info.verb.as_str() {
        "get" => {
            let key = resource.key(&info.namespace, &info.name);
            let found = call.server.storage.get(&key).await.map_err(failure)?;
            let object = found.as_ref().map(stored::decode).transpose()?;
            let item = object.and_then(|object| item(kind, &object, metrics));
            answer::value(call, 200, &item.ok_or_else(|| Status::not_found(gr, &info.name))?)
        }
        "list" => {
            let selected = list::select(call, resource).await?;
            let mut items = Vec::with_capacity(selected.items.len());
            for object in &selected.items {
                items.extend(item(kind, &stored::decode(object)?, metrics));
            }
            let mut metadata = json!({});
            if let Some(token) = selected.token {
                set(&mut metadata, "continue", token);
            }
            let list = json!({"kind": format!("{}List", kind.kind), "apiVersion": format!("{GROUP}/{VERSION}"),
                "metadata": metadata, "items": items});
            answer::value(call, 200, &list)
        }
        other => Err(Status::method_not_allowed(gr, other)),
    }
}

/// What is used by a node or a pod, if that is known.
fn item(kind: &Kind, object: &Value, metrics: &dyn Metrics) -> Option<Value> {
    let text = |field: &str| object.pointer(&format!("/metadata/{field}")).and_then(Value::as_str);
    let (name, uid) = (text("name")?, text("uid")?);
    match kind.namespaced {
        false => {
            let node = metrics.node(name)?;
            let mut item = envelope(kind, object, &node);
            set(&mut item, "usage", quantities(node.usage));
            Some(item)
        }
        true => {
            let pod = metrics.pod(uid)?;
            let mut item = envelope(kind, object, &pod);
            let each = |(name, usage): &(String, Usage)| json!({"name": name, "usage": quantities(*usage)});
            set(&mut item, "containers", pod.usage.iter().map(each).collect::<Vec<_>>());
            Some(item)
        }
    }
}

fn envelope<T>(kind: &Kind, object: &Value, measured: &Measured<T>) -> Value {
    let at = measured.at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let mut metadata = json!({"creationTimestamp": at});
    for field in ["name", "namespace", "labels"] {
        if let Some(value) = object.pointer(&format!("/metadata/{field}")) {
            set(&mut metadata, field, value.clone());
        }
    }
    json!({"kind": kind.kind, "apiVersion": format!("{GROUP}/{VERSION}"), "metadata": metadata,
        "timestamp": at, "window": window(measured.window)})
}

/// As Go prints a duration of less than an hour: `15.02s`, `1m0.5s`.
fn window(duration: Duration) -> String {
    let (minutes, seconds) = (duration.as_secs() / 60, duration.as_millis() % 60_000);
    let seconds = format!("{}.{:03}", seconds / 1000, seconds % 1000);
    let seconds = seconds.trim_end_matches('0').trim_end_matches('.');
    if minutes == 0 { format!("{seconds}s") } else { format!("{minutes}m{seconds}s") }
}

/// In metrics-server's units.
fn quantities(usage: Usage) -> Value {
    let cpu = if usage.nanocores == 0 { "0".to_owned() } else { format!("{}n", usage.nanocores) };
    json!({"cpu": cpu, "memory": format!("{}Ki", usage.memory.div_ceil(1024))})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_go_s() {
        for (milliseconds, text) in [(15_020, "15.02s"), (15_000, "15s"), (500, "0.5s"), (60_500, "1m0.5s")] {
            assert_eq!(window(Duration::from_millis(milliseconds)), text);
        }
    }
}
