//! From `create` to Ready of a container pod, beside `ctr run` of the same image on the same containerd.
//!
//! `ctr run` makes one container in the host's network; a pod is a sandbox with a network of its own, an
//! address and a container, and an API, a scheduler and a node that talk about it.

use std::time::Instant;

use anyhow::Result;
use ketch_api::k8s::api::core::v1::Pod;
use kube::{Api, api::DeleteParams, runtime::wait};
use serde_json::json;

use crate::{Row, cluster::Cluster, pods, statistics::median};

const PODS: usize = 20;
/// The peer's name for the image, and containerd's namespace that it uses.
const IMAGE: &str = "bench/busybox:latest";
const NAMESPACE: &str = "bench";

/// Measures both, in turns.
pub(crate) fn run() -> Result<Vec<Row>> {
    let cluster = Cluster::with_containers()?;
    let import = ["images", "import", "--base-name", "bench/busybox", "workloads/dist/images/busybox.tar"];
    peer(&cluster, &import)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let api: Api<Pod> = Api::namespaced(runtime.block_on(cluster.client())?, "default");
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for number in 0..=PODS {
        let name = format!("bench-{number}");
        let (time, _) = runtime.block_on(pods::create(&api, &pod(&name)?))?;
        runtime.block_on(delete(&api, &name))?;
        let alone = run_alone(&cluster, &name)?;
        // The first of each unpacks the image.
        if number > 0 {
            ours.push(time);
            theirs.push(alone);
        }
    }
    let (us, them) = (median(&mut ours), median(&mut theirs));
    Ok(vec![Row {
        what: "container pod, create to Ready, image there".into(),
        ours: format!("{us:.0} ms"),
        peer: format!("ctr run {them:.0} ms"),
        ratio: format!("{:.2} × the time", us / them),
    }])
}

fn pod(name: &str) -> Result<Pod> {
    let container = json!({"name": "c", "image": "ketch.local/default/busybox:latest",
        "imagePullPolicy": "IfNotPresent", "command": ["sleep", "3600"]});
    let spec = json!({"terminationGracePeriodSeconds": 0, "containers": [container]});
    Ok(serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec}))?)
}

async fn delete(api: &Api<Pod>, name: &str) -> Result<()> {
    let uid = api.get(name).await?.metadata.uid.unwrap_or_default();
    api.delete(name, &DeleteParams::default().grace_period(0)).await?;
    wait::await_condition(api.clone(), name, wait::conditions::is_deleted(&uid)).await?;
    Ok(())
}

/// Milliseconds until `ctr run` says that the container runs.
fn run_alone(cluster: &Cluster, name: &str) -> Result<f64> {
    let start = Instant::now();
    peer(cluster, &["run", "--detach", IMAGE, name, "sleep", "3600"])?;
    let time = start.elapsed().as_secs_f64() * 1e3;
    peer(cluster, &["tasks", "rm", "--force", name])?;
    peer(cluster, &["containers", "rm", name])?;
    Ok(time)
}

fn peer(cluster: &Cluster, args: &[&str]) -> Result<String> {
    cluster.ctr(&[&["--namespace", NAMESPACE], args].concat())
}
