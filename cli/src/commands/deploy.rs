//! `ketch deploy`: from a file to a URL that answers.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, value_parser};
use ketch_api::wasm::World;
use serde_json::{Value, json};

use super::{Cluster, Connection, apply, upload};
use crate::{output, resources::Resources};

/// What to deploy.
#[derive(Args)]
pub(crate) struct Arguments {
    /// A .wasm file, a manifest (.yaml, .json) or an image reference.
    what: String,
    /// Name of the function or pod [default: from the file's name].
    #[arg(long)]
    name: Option<String>,
    /// Environment of the program.
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Targets outside the cluster it may connect to, `host:port` or `*`.
    #[arg(long, value_name = "PATTERN", value_delimiter = ',')]
    allow: Vec<String>,
    /// TCP port that a program listens on: it becomes a Deployment with a Service of this port.
    #[arg(long)]
    port: Option<u16>,
    /// Seconds to wait until it answers.
    #[arg(long, default_value_t = 60, value_parser = value_parser!(u64).range(..=LONGEST_WAIT))]
    timeout: u64,
    #[command(flatten)]
    connection: Connection,
}

/// A year. The clock that waits are measured with ends somewhere.
const LONGEST_WAIT: u64 = 365 * 86_400;

/// Runs the command.
pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let cluster = arguments.connection.open().await?;
    let path = PathBuf::from(&arguments.what);
    if !path.exists() {
        let image = arguments.what.as_str();
        return match looks_like_image(image) {
            true => function(&cluster, &arguments, &name_of(&arguments, image)?, image.to_owned()).await,
            false => bail!(
                "{image} is neither a file here nor an image reference such as ketch.local/default/hello:latest"
            ),
        };
    }
    if path.is_dir() {
        bail!("{} is a directory; build it and deploy the .wasm file it makes", path.display());
    }
    let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    if !bytes.starts_with(b"\0asm") && is_manifest(&path) {
        return manifest(&cluster, &arguments).await;
    }
    let name = name_of(&arguments, &path.file_stem().unwrap_or_default().to_string_lossy())?;
    output::note(format!("uploading {} ({} kB)", path.display(), bytes.len().div_ceil(1000)));
    let pushed = upload::push(&cluster, &name, "latest", bytes).await?;
    if !pushed.inspection.problems.is_empty() {
        bail!("{} cannot run here: {}", path.display(), pushed.inspection.problems.join("; "));
    }
    match (&pushed.inspection.world, arguments.port) {
        (World::Http | World::HttpAsync, None) => {
            function(&cluster, &arguments, &name, pushed.reference).await
        }
        (World::Http | World::HttpAsync, Some(_)) => {
            bail!("{} answers HTTP requests at a URL of its own; leave out --port", path.display())
        }
        (World::Command, None) => command(&cluster, &arguments, &name, pushed.reference).await,
        (World::Command, Some(port)) => server(&cluster, &arguments, &name, pushed.reference, port).await,
        (World::Library, _) => bail!(
            "{} exports neither wasi:http nor wasi:cli/run, so there is nothing to start; it exports: {}",
            path.display(),
            pushed.inspection.exports.join(", ")
        ),
    }
}

fn is_manifest(path: &Path) -> bool {
    path.extension().is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known))
}

fn looks_like_image(text: &str) -> bool {
    text.contains('/') && !text.starts_with(['.', '/']) && !text.ends_with(".wasm")
}

/// A DNS label made from a file or image name.
fn name_of(arguments: &Arguments, from: &str) -> Result<String> {
    if let Some(name) = &arguments.name {
        return Ok(name.clone());
    }
    let last = from.rsplit('/').next().unwrap_or(from);
    let last = last.split(['@', ':']).next().unwrap_or(last);
    let name: String = last
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(50)
        .collect();
    let name = name.trim_matches('-').to_owned();
    match name.is_empty() {
        true => bail!("no name can be made from \"{from}\"; give one with --name"),
        false => Ok(name),
    }
}

async fn manifest(cluster: &Cluster, arguments: &Arguments) -> Result<()> {
    let resources = Resources::discover(cluster).await?;
    for object in apply::read(&arguments.what)? {
        let function = (object["kind"] == "Function")
            .then(|| object["metadata"]["name"].as_str().unwrap_or_default().to_owned());
        output::note(apply::apply(cluster, &resources, object, false).await?);
        if let Some(name) = function {
            answer(cluster, &name, arguments.timeout).await?;
        }
    }
    Ok(())
}

fn environment(arguments: &Arguments) -> Result<Vec<Value>> {
    arguments
        .env
        .iter()
        .map(|pair| {
            let (name, value) =
                pair.split_once('=').ok_or_else(|| anyhow!("--env {pair}: write it as NAME=VALUE"))?;
            Ok(json!({ "name": name, "value": value }))
        })
        .collect()
}

async fn function(cluster: &Cluster, arguments: &Arguments, name: &str, image: String) -> Result<()> {
    let collection = format!("/apis/ketch.dev/v1/namespaces/{}/functions", cluster.namespace);
    let mut spec = json!({ "image": image });
    if !arguments.env.is_empty() {
        spec["env"] = json!(environment(arguments)?);
    }
    if !arguments.allow.is_empty() {
        spec["permissions"] = json!({ "outbound": arguments.allow });
    }
    let exists = cluster.get(&format!("{collection}/{name}")).await?.is_some();
    let request = match exists {
        true => apply::json_request(
            http::Method::PATCH,
            &format!("{collection}/{name}"),
            &json!({ "spec": spec }),
            "application/merge-patch+json",
        )?,
        false => {
            let function = json!({ "apiVersion": "ketch.dev/v1", "kind": "Function", "metadata": { "name": name }, "spec": spec });
            apply::json_request(http::Method::POST, &collection, &function, "application/json")?
        }
    };
    cluster.send(request).await?;
    output::note(format!("function {name} {}", if exists { "updated" } else { "created" }));
    answer(cluster, name, arguments.timeout).await
}

/// Waits until the newest revision is ready and the URL answers, then prints the URL.
async fn answer(cluster: &Cluster, name: &str, timeout: u64) -> Result<()> {
    let path = format!("/apis/ketch.dev/v1/namespaces/{}/functions/{name}", cluster.namespace);
    let deadline = Instant::now() + Duration::from_secs(timeout);
    let mut last = String::new();
    loop {
        let function = cluster.get(&path).await?.ok_or_else(|| anyhow!("function \"{name}\" was deleted"))?;
        let (status, ready) = (&function["status"], ready(&function));
        let why = status["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == "Ready");
        let why = why.and_then(|condition| condition["message"].as_str()).unwrap_or_default();
        if !why.is_empty() && why != last && !ready {
            output::note(why);
            last = why.to_owned();
        }
        if let (true, Some(url)) = (ready, status["url"].as_str())
            && answers(url).await
        {
            output::line(url);
            return Ok(());
        }
        if Instant::now() > deadline {
            let why = if last.is_empty() { "no reason is known yet".to_owned() } else { last };
            bail!(
                "function {name} does not answer after {timeout} s: {why}; see `ketch logs function/{name}`"
            );
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Whether the newest generation is seen and its revision gets the traffic.
fn ready(function: &Value) -> bool {
    let status = &function["status"];
    let latest = &status["latestRevision"];
    status["observedGeneration"] == function["metadata"]["generation"]
        && latest.is_string()
        && status["traffic"].as_array().into_iter().flatten().any(|target| &target["revisionName"] == latest)
}

/// Whether something behind the gateway answers. `*.localhost` need not resolve: the gateway is on this
/// machine, or the name is a real one.
async fn answers(url: &str) -> bool {
    let Ok(uri) = url.parse::<http::Uri>() else { return false };
    let (Some(host), port) = (uri.host(), uri.port_u16().unwrap_or(80)) else { return false };
    let target =
        if host.ends_with(".localhost") { format!("127.0.0.1:{port}") } else { format!("{host}:{port}") };
    let request = http::Request::get(format!("http://{target}/")).header("host", format!("{host}:{port}"));
    let Ok(request) = request.body(http_body_util::Empty::<bytes::Bytes>::new()) else { return false };
    let client =
        hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new()).build_http();
    client
        .request(request)
        .await
        .is_ok_and(|response| response.status() != http::StatusCode::SERVICE_UNAVAILABLE)
}

/// A program that runs to its end: a pod that is not restarted.
async fn command(cluster: &Cluster, arguments: &Arguments, name: &str, image: String) -> Result<()> {
    let collection = format!("/api/v1/namespaces/{}/pods", cluster.namespace);
    let mut metadata =
        json!({ "generateName": format!("{name}-"), "labels": { "app.kubernetes.io/name": name } });
    if !arguments.allow.is_empty() {
        metadata["annotations"] = json!({ ketch_api::names::OUTBOUND_ANNOTATION: arguments.allow.join(",") });
    }
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
        "spec": {
            "restartPolicy": "Never", "runtimeClassName": ketch_api::names::WASM_RUNTIME_CLASS,
            "containers": [{ "name": "main", "image": image, "env": environment(arguments)? }],
        },
    });
    let response =
        cluster.send(apply::json_request(http::Method::POST, &collection, &pod, "application/json")?).await?;
    let pod: Value = serde_json::from_slice(response.body())?;
    let pod = pod["metadata"]["name"].as_str().context("the server named no pod")?.to_owned();
    let deadline = Instant::now() + Duration::from_secs(arguments.timeout);
    loop {
        let now = cluster
            .get(&format!("{collection}/{pod}"))
            .await?
            .ok_or_else(|| anyhow!("pod \"{pod}\" was deleted"))?;
        match now["status"]["phase"].as_str().unwrap_or_default() {
            phase @ ("Running" | "Succeeded") => {
                output::line(format!("pod/{pod} {}", phase.to_lowercase()));
                return Ok(());
            }
            "Failed" => bail!("pod {pod} failed; see `ketch logs {pod}`"),
            _ if Instant::now() > deadline => {
                bail!("pod {pod} does not run after {} s; see `ketch get pod {pod}`", arguments.timeout)
            }
            _ => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// A program that listens: a Deployment, and a Service that leads to it.
async fn server(
    cluster: &Cluster,
    arguments: &Arguments,
    name: &str,
    image: String,
    port: u16,
) -> Result<()> {
    let (labels, namespace) = (json!({ "app.kubernetes.io/name": name }), &cluster.namespace);
    let mut metadata = json!({ "labels": labels });
    if !arguments.allow.is_empty() {
        metadata["annotations"] = json!({ ketch_api::names::OUTBOUND_ANNOTATION: arguments.allow.join(",") });
    }
    let container = json!({
        "name": "main", "image": image, "env": environment(arguments)?, "ports": [{ "containerPort": port }],
        "readinessProbe": { "tcpSocket": { "port": port }, "periodSeconds": 1 },
    });
    let spec = json!({ "runtimeClassName": ketch_api::names::WASM_RUNTIME_CLASS, "containers": [container] });
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": name },
        "spec": { "selector": { "matchLabels": labels }, "template": { "metadata": metadata, "spec": spec } },
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": name },
        "spec": { "selector": labels, "ports": [{ "port": port }] },
    });
    let resources = Resources::discover(cluster).await?;
    for object in [service, deployment] {
        output::note(apply::apply(cluster, &resources, object, false).await?);
    }
    let path = format!("/apis/apps/v1/namespaces/{namespace}/deployments/{name}");
    let deadline = Instant::now() + Duration::from_secs(arguments.timeout);
    loop {
        let now = cluster.get(&path).await?.ok_or_else(|| anyhow!("deployment \"{name}\" was deleted"))?;
        if rolled_out(&now) {
            output::line(format!("{name}.{namespace}.svc.cluster.local:{port}"));
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!(
                "{name} does not listen on port {port} after {} s; see `ketch logs deployment/{name}`",
                arguments.timeout
            );
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Whether the newest template, and nothing else, is ready.
fn rolled_out(deployment: &Value) -> bool {
    let status = &deployment["status"];
    status["observedGeneration"] == deployment["metadata"]["generation"]
        && status["updatedReplicas"] == deployment["spec"]["replicas"]
        && status["readyReplicas"] == status["updatedReplicas"]
        && status["replicas"] == status["updatedReplicas"]
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::commands::Cli;

    #[test]
    fn ready_means_the_newest_generation_has_traffic() {
        let mut function = json!({"metadata": {"generation": 2}, "status": {"observedGeneration": 2, "latestRevision": "f-00002", "traffic": [{"revisionName": "f-00001", "percent": 100}]}});
        assert!(!ready(&function));
        function["status"]["traffic"][0]["revisionName"] = "f-00002".into();
        assert!(ready(&function));
        function["metadata"]["generation"] = 3.into();
        assert!(!ready(&function));
        assert!(!ready(&json!({})));
    }

    #[test]
    fn rolled_out_means_only_the_newest_pods_are_left() {
        let mut deployment = json!({"metadata": {"generation": 2}, "spec": {"replicas": 1},
            "status": {"observedGeneration": 2, "replicas": 2, "updatedReplicas": 1, "readyReplicas": 2}});
        assert!(!rolled_out(&deployment));
        deployment["status"]["replicas"] = 1.into();
        deployment["status"]["readyReplicas"] = 1.into();
        assert!(rolled_out(&deployment));
        deployment["status"]["observedGeneration"] = 1.into();
        assert!(!rolled_out(&deployment));
    }

    #[test]
    fn a_wait_that_no_clock_can_show_is_refused() {
        let given = |seconds: &str| Cli::try_parse_from(["ketch", "deploy", "a.wasm", "--timeout", seconds]);
        for seconds in ["0", "60", &LONGEST_WAIT.to_string()] {
            assert!(given(seconds).is_ok(), "{seconds}");
        }
        for seconds in [&(LONGEST_WAIT + 1).to_string(), "99999999999999", "18446744073709551615", "1h"] {
            let message = given(seconds).err().expect(seconds).to_string();
            assert!(message.contains("--timeout") && message.contains(seconds), "{message}");
        }
    }

    #[test]
    fn images_are_told_from_paths() {
        assert!(looks_like_image("ketch.local/default/hello:1"));
        for path in ["hello.wasm", "./a/b", "/a/b", "dir/hello.wasm"] {
            assert!(!looks_like_image(path), "{path}");
        }
    }
}
