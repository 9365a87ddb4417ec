//! `ketch logs`: of a pod, or of the pods of a function.

use anyhow::{Context, Result, anyhow};
use clap::Args;
use futures::{AsyncBufReadExt, StreamExt, TryStreamExt, stream};

use super::{Cluster, Connection};
use crate::output;

/// Whose logs, and how much.
#[derive(Args)]
pub(crate) struct Arguments {
    /// POD, or function/NAME for every pod of a function.
    what: String,
    /// Container; needed when the pod has several.
    #[arg(short, long)]
    container: Option<String>,
    /// Go on with what is written from now.
    #[arg(short, long)]
    follow: bool,
    /// Of the container's previous run.
    #[arg(short, long)]
    previous: bool,
    /// Only so many of the last lines.
    #[arg(long)]
    tail: Option<u32>,
    /// Only what is younger than so many seconds.
    #[arg(long)]
    since_seconds: Option<u32>,
    /// With the time of each line.
    #[arg(long)]
    timestamps: bool,
    #[command(flatten)]
    connection: Connection,
}

/// Runs the command.
pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let cluster = arguments.connection.open().await?;
    let pods = pods(&cluster, &arguments.what).await?;
    let several = pods.len() > 1;
    let mut streams = Vec::new();
    for pod in pods {
        let prefix = if several { format!("[{pod}] ") } else { String::new() };
        let reader = cluster.client.request_stream(request(&arguments, &cluster.namespace, &pod)?).await;
        let reader = reader.map_err(|e| anyhow!("{}", ketch_client::status_text(&e)))?;
        streams.push(reader.lines().map_ok(move |line| format!("{prefix}{line}")));
    }
    let mut lines = stream::select_all(streams);
    while let Some(line) = lines.next().await {
        output::line(line.context("the log ended early")?);
    }
    Ok(())
}

/// Names of the pods that POD or function/NAME means.
pub(super) async fn pods(cluster: &Cluster, what: &str) -> Result<Vec<String>> {
    match what.split_once('/') {
        Some(("function" | "functions" | "fn", name)) => function_pods(cluster, name).await,
        Some(("pod" | "pods" | "po", name)) => Ok(vec![name.to_owned()]),
        Some((kind, _)) => Err(anyhow!("this is about pods and functions, not about {kind}")),
        None => Ok(vec![what.to_owned()]),
    }
}

async fn function_pods(cluster: &Cluster, name: &str) -> Result<Vec<String>> {
    let path = format!(
        "/api/v1/namespaces/{}/pods?labelSelector={}%3D{name}",
        cluster.namespace,
        ketch_api::names::FUNCTION_LABEL
    );
    let list = cluster.get(&path).await?.unwrap_or_default();
    let pods: Vec<String> = list["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned))
        .collect();
    match pods.is_empty() {
        true => Err(anyhow!("function \"{name}\" has no pods in namespace \"{}\"", cluster.namespace)),
        false => Ok(pods),
    }
}

fn request(arguments: &Arguments, namespace: &str, pod: &str) -> Result<http::Request<Vec<u8>>> {
    let mut query = vec![
        format!("follow={}", arguments.follow),
        format!("previous={}", arguments.previous),
        format!("timestamps={}", arguments.timestamps),
    ];
    query.extend(arguments.container.iter().map(|name| format!("container={name}")));
    query.extend(arguments.tail.map(|lines| format!("tailLines={lines}")));
    query.extend(arguments.since_seconds.map(|seconds| format!("sinceSeconds={seconds}")));
    Ok(http::Request::get(format!("/api/v1/namespaces/{namespace}/pods/{pod}/log?{}", query.join("&")))
        .body(Vec::new())?)
}
