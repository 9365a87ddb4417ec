//! From `create` to Ready of a Wasm pod whose image is cached, and the first byte of a pod that has never
//! been called.

use std::time::Instant;

use anyhow::{Context, Result};
use futures::TryStreamExt;
use ketch_api::k8s::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, PostParams, WatchEvent, WatchParams},
};
use serde_json::json;

use crate::{
    Row,
    cluster::{Cluster, guest},
    statistics::percentile,
};

/// Pods made, one after the other.
const PODS: usize = 200;

/// Measures both.
pub(crate) fn run() -> Result<Vec<Row>> {
    let cluster = Cluster::start()?;
    cluster.deploy(&guest("hello"))?;
    let runtime = tokio::runtime::Runtime::new()?;
    let (mut ready, mut first) = runtime.block_on(measure(&cluster))?;
    let line = |values: &mut [f64]| {
        format!("p50 {:.1} ms, p99 {:.1} ms", percentile(values, 500), percentile(values, 990))
    };
    Ok(vec![
        Row::alone("Wasm pod, create to Ready, image cached", line(&mut ready)),
        Row::alone("first byte of a pod never called (load + instantiation)", line(&mut first)),
    ])
}

async fn measure(cluster: &Cluster) -> Result<(Vec<f64>, Vec<f64>)> {
    let api: Api<Pod> = Api::namespaced(cluster.client().await?, "default");
    let (mut ready, mut first) = (Vec::new(), Vec::new());
    for number in 0..PODS {
        let name = format!("bench-{number}");
        let (time, address) = create(&api, &pod(&name)?).await?;
        ready.push(time);
        first.push(first_byte(&address)?);
        api.delete(&name, &DeleteParams::default().grace_period(0)).await?;
    }
    Ok((ready, first))
}

/// Creates a pod: milliseconds until a watch shows it Ready, and its address.
pub(crate) async fn create(api: &Api<Pod>, pod: &Pod) -> Result<(f64, String)> {
    let version = api.list_metadata(&Default::default()).await?.metadata.resource_version.unwrap_or_default();
    let params = WatchParams::default().fields(&format!("metadata.name={}", pod.name_any()));
    let mut events = Box::pin(api.watch(&params, &version).await?);
    let start = Instant::now();
    api.create(&PostParams::default(), pod).await?;
    loop {
        let event = events.try_next().await?.context("the watch ended")?;
        if let WatchEvent::Modified(pod) = event
            && let Some(address) = ready_address(&pod)
        {
            return Ok((start.elapsed().as_secs_f64() * 1e3, address));
        }
    }
}

fn pod(name: &str) -> Result<Pod> {
    let container = json!({"name": "c", "image": "ketch.local/default/hello:latest", "imagePullPolicy": "IfNotPresent",
        "ports": [{"containerPort": 8080}]});
    let spec = json!({"runtimeClassName": "ketch-wasm", "containers": [container]});
    Ok(serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec}))?)
}

fn ready_address(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let conditions = status.conditions.as_ref()?;
    conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True").then(|| status.pod_ip.clone())?
}

/// Milliseconds until the first byte of an answer, connecting included.
fn first_byte(address: &str) -> Result<f64> {
    use std::io::{Read, Write};
    let start = Instant::now();
    let mut stream = std::net::TcpStream::connect((address, 8080))?;
    write!(stream, "GET / HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n")?;
    stream.read_exact(&mut [0])?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}
