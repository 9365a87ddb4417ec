//! The node's own HTTP API, in the kubelet's shape: logs, streams, statistics, health. It has no authentication of
//! its own: it is reached only over connections that the node opened, or in process.

mod stats;

use std::{collections::BTreeSet, sync::Arc};

use axum::{
    Router,
    body::Body,
    extract::{Path, Query as Parameters, State},
    http::{Response, StatusCode, header},
    response::IntoResponse,
    routing::{any, get},
};
use jiff::Timestamp;
use ketch_api::k8s::api::core::v1 as core;

use crate::{
    context::Context,
    logs::{self, Query, Reader},
    machine::container_id,
    streaming,
};

/// Parameters of a log request.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct LogParameters {
    follow: Option<String>,
    previous: Option<String>,
    timestamps: Option<String>,
    tail_lines: Option<u64>,
    since_seconds: Option<i64>,
    since_time: Option<Timestamp>,
    limit_bytes: Option<u64>,
}

/// The node's API.
pub(crate) fn router(context: Arc<Context>) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok"))
        .route("/containerLogs/{namespace}/{pod}/{container}", get(container_logs))
        .route("/exec/{namespace}/{pod}/{container}", any(streaming::exec))
        .route("/attach/{namespace}/{pod}/{container}", any(streaming::attach))
        .route("/portForward/{namespace}/{pod}", any(streaming::port_forward))
        .route("/stats/summary", get(stats::summary))
        .with_state(context)
}

async fn container_logs(
    State(context): State<Arc<Context>>,
    Path((namespace, name, container)): Path<(String, String, String)>,
    Parameters(parameters): Parameters<LogParameters>,
) -> Response<Body> {
    match open(&context, &namespace, &name, &container, &parameters) {
        Ok((reader, instance)) => stream(context, reader, instance),
        Err((status, message)) => (status, message).into_response(),
    }
}

/// The reader of the instance that was asked for, and the instance's id.
fn open(
    context: &Context,
    namespace: &str,
    name: &str,
    container: &str,
    parameters: &LogParameters,
) -> Result<(Reader, String), (StatusCode, String)> {
    let Some(pod) = context.index.get(namespace, name) else {
        return Err((
            StatusCode::NOT_FOUND,
            format!("pod \"{name}\" not found in namespace \"{namespace}\" on this node"),
        ));
    };
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    if !has_container(&pod, container) {
        return Err((StatusCode::BAD_REQUEST, format!("container {container} is not valid for pod {name}")));
    }
    let known = context.index.attempts(uid, container);
    let attempts: BTreeSet<u32> =
        logs::attempts(&context.root, &pod, container).into_iter().chain(known).collect();
    let previous = is_set(parameters.previous.as_deref());
    let attempt = if previous { attempts.iter().rev().nth(1) } else { attempts.last() };
    let Some(attempt) = attempt else {
        let text = if previous {
            format!("previous terminated container \"{container}\" in pod \"{name}\" not found")
        } else {
            let reason = waiting_reason(&pod, container).unwrap_or_else(|| "ContainerCreating".to_owned());
            format!("container \"{container}\" in pod \"{name}\" is waiting to start: {reason}")
        };
        return Err((StatusCode::BAD_REQUEST, text));
    };
    let query = Query {
        follow: is_set(parameters.follow.as_deref()) && !previous,
        tail: parameters.tail_lines,
        since: since(parameters, Timestamp::now()),
        timestamps: is_set(parameters.timestamps.as_deref()),
        limit: parameters.limit_bytes,
    };
    let path = logs::file(&context.root, &pod, container, *attempt);
    let reader = Reader::open(&path, &query)
        .map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, format!("the log cannot be read: {error}")))?;
    Ok((reader, container_id(uid, container, *attempt)))
}

fn stream(context: Arc<Context>, reader: Reader, instance: String) -> Response<Body> {
    let pieces =
        futures::stream::unfold((context, reader, instance), |(context, mut reader, instance)| async {
            let piece = reader.next(&|| context.index.runs(&instance) == Some(true)).await?;
            Some((piece, (context, reader, instance)))
        });
    let headers = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
    (headers, Body::from_stream(pieces)).into_response()
}

/// A flag as Go reads it; `?follow` alone counts as set.
fn is_set(value: Option<&str>) -> bool {
    value.is_some_and(|value| !matches!(value, "false" | "0" | "f" | "F" | "FALSE" | "False"))
}

fn since(parameters: &LogParameters, now: Timestamp) -> Option<Timestamp> {
    let seconds = parameters.since_seconds.map(jiff::SignedDuration::from_secs);
    parameters.since_time.or_else(|| seconds.and_then(|seconds| now.checked_sub(seconds).ok()))
}

fn has_container(pod: &core::Pod, name: &str) -> bool {
    pod.spec.as_ref().is_some_and(|spec| {
        spec.containers.iter().chain(spec.init_containers.iter().flatten()).any(|one| one.name == name)
    })
}

fn waiting_reason(pod: &core::Pod, container: &str) -> Option<String> {
    let status = pod.status.as_ref()?;
    let mut all =
        status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten());
    all.find(|one| one.name == container)?.state.as_ref()?.waiting.as_ref()?.reason.clone()
}
