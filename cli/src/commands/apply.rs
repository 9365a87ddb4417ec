//! `ketch apply`: creates what is missing and merges what is there.
//!
//! The last applied configuration is kept in upstream's annotation, so that a field taken out of the
//! manifest is taken out of the object, and so that `kubectl apply` can go on where this left off.

use std::io::Read;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use serde_json::{Map, Value, json};

use super::{Cluster, Connection};
use crate::{output, resources::Resources};

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// What to apply.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Manifest, YAML or JSON; `-` for standard input.
    #[arg(short, long, required = true)]
    filename: Vec<String>,
    /// Ask the server what would happen, without doing it.
    #[arg(long, value_parser = ["server"])]
    dry_run: Option<String>,
    #[command(flatten)]
    connection: Connection,
}

/// Runs the command.
pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let mut objects = Vec::new();
    for name in &arguments.filename {
        objects.extend(read(name)?);
    }
    let cluster = arguments.connection.open().await?;
    let resources = Resources::discover(&cluster).await?;
    for object in objects {
        let done = apply(&cluster, &resources, object, arguments.dry_run.is_some()).await?;
        output::line(done);
    }
    Ok(())
}

/// The objects of a manifest, lists taken apart.
pub(crate) fn read(name: &str) -> Result<Vec<Value>> {
    let mut text = String::new();
    match name {
        "-" => std::io::stdin().read_to_string(&mut text).context("read standard input")?,
        path => std::fs::File::open(path)
            .and_then(|mut file| file.read_to_string(&mut text))
            .with_context(|| format!("cannot read {path}"))?,
    };
    parse(&text).with_context(|| name.to_owned())
}

fn parse(text: &str) -> Result<Vec<Value>> {
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(text).map_err(|e| anyhow!("not YAML or JSON: {e}"))?;
    let mut objects = Vec::new();
    for document in documents {
        match document {
            Value::Null => {}
            Value::Object(mut list) if list.get("items").is_some_and(Value::is_array) => {
                if let Some(Value::Array(items)) = list.remove("items") {
                    objects.extend(items);
                }
            }
            object => objects.push(object),
        }
    }
    for object in &objects {
        if object["kind"].as_str().is_none() || object["apiVersion"].as_str().is_none() {
            bail!("every object needs apiVersion and kind");
        }
    }
    match objects.is_empty() {
        true => bail!("there is no object in it"),
        false => Ok(objects),
    }
}

/// Creates or changes one object and says which.
pub(crate) async fn apply(
    cluster: &Cluster,
    resources: &Resources,
    mut object: Value,
    dry_run: bool,
) -> Result<String> {
    let resource = resources.of(&object)?;
    let name = object["metadata"]["name"].as_str().context("metadata.name is missing")?.to_owned();
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or(&cluster.namespace).to_owned();
    let flag = if dry_run { "?dryRun=All&fieldValidation=Strict" } else { "?fieldValidation=Strict" };
    let remark = if dry_run { " (server dry run)" } else { "" };
    let path = resource.path(Some(&namespace), Some(&name));
    let applied = object.to_string();
    annotate(&mut object, &applied);
    let Some(live) = cluster.get(&path).await? else {
        let request = json_request(
            http::Method::POST,
            &format!("{}{flag}", resource.path(Some(&namespace), None)),
            &object,
            "application/json",
        )?;
        let response = cluster.send(request).await?;
        if response.status() == http::StatusCode::NOT_FOUND {
            return Err(super::connect::failure(response.status(), response.body()));
        }
        return Ok(format!("{}/{name} created{remark}", resource.display()));
    };
    let before: Value = live["metadata"]["annotations"][LAST_APPLIED]
        .as_str()
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default();
    let patch = merge_patch(&before, &object, &live);
    if patch == json!({}) {
        return Ok(format!("{}/{name} unchanged{remark}", resource.display()));
    }
    let request =
        json_request(http::Method::PATCH, &format!("{path}{flag}"), &patch, "application/merge-patch+json")?;
    cluster.send(request).await?;
    Ok(format!("{}/{name} configured{remark}", resource.display()))
}

/// A request with a JSON body.
pub(crate) fn json_request(
    method: http::Method,
    path: &str,
    body: &Value,
    media_type: &str,
) -> Result<http::Request<Vec<u8>>> {
    Ok(http::Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", media_type)
        .header("accept", "application/json")
        .body(serde_json::to_vec(body)?)?)
}

fn annotate(object: &mut Value, applied: &str) {
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
    if let Some(annotations) = annotations.as_object_mut() {
        annotations.insert(LAST_APPLIED.into(), applied.into());
    }
}

/// The merge patch that makes `live` say what `wanted` says and drops what only `before` said.
fn merge_patch(before: &Value, wanted: &Value, live: &Value) -> Value {
    let (Some(wanted), Some(live)) = (wanted.as_object(), live.as_object()) else { return wanted.clone() };
    let mut patch = Map::new();
    for (key, value) in wanted {
        match live.get(key) {
            Some(current) if value.is_object() && current.is_object() => {
                let inner = merge_patch(before.get(key).unwrap_or(&Value::Null), value, current);
                if inner != json!({}) {
                    patch.insert(key.clone(), inner);
                }
            }
            Some(current) if current == value => {}
            _ => {
                patch.insert(key.clone(), value.clone());
            }
        }
    }
    for key in before.as_object().into_iter().flat_map(Map::keys) {
        if !wanted.contains_key(key) && live.contains_key(key) {
            patch.insert(key.clone(), Value::Null);
        }
    }
    Value::Object(patch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_are_taken_apart() {
        let text = "apiVersion: v1\nkind: A\n---\n---\napiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: B}\n";
        let kinds: Vec<_> =
            parse(text).unwrap().iter().map(|o| o["kind"].as_str().unwrap().to_owned()).collect();
        assert_eq!(kinds, ["A", "B"]);
        for bad in ["", "kind: A", "a: [", "- 1"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_left_the_manifest_leaves_the_object() {
        let before = json!({"spec": {"a": 1, "b": 2}});
        let wanted = json!({"spec": {"a": 5}});
        let live = json!({"spec": {"a": 1, "b": 2, "server": true}});
        assert_eq!(merge_patch(&before, &wanted, &live), json!({"spec": {"a": 5, "b": null}}));
        assert_eq!(merge_patch(&wanted, &wanted, &json!({"spec": {"a": 5, "x": 1}})), json!({}));
    }
}
