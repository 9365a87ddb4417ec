//! `ketch get`: what the server's `Table` says, or the objects themselves.

use anyhow::{Result, bail};
use clap::Args;
use futures::{AsyncBufReadExt, StreamExt};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::{Cluster, Connection};
use crate::{
    output,
    resources::{Resource, Resources, targets},
};

const TABLE: &str = "application/json;as=Table;g=meta.k8s.io;v=v1,application/json";

/// What to show.
#[derive(Args)]
pub(crate) struct Arguments {
    /// TYPE, TYPE NAME…, or TYPE/NAME….
    #[arg(required = true)]
    what: Vec<String>,
    /// Form: wide, json, yaml, name.
    #[arg(short, long, value_parser = ["wide", "json", "yaml", "name"])]
    output: Option<String>,
    /// Label selector.
    #[arg(short = 'l', long)]
    selector: Option<String>,
    /// Field selector.
    #[arg(long)]
    field_selector: Option<String>,
    /// All namespaces.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Go on with changes.
    #[arg(short, long)]
    watch: bool,
    /// Without the header.
    #[arg(long)]
    no_headers: bool,
    #[command(flatten)]
    connection: Connection,
}

/// Runs the command.
pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let cluster = arguments.connection.open().await?;
    let resources = Resources::discover(&cluster).await?;
    let mut wanted = Vec::new();
    for (kind, name) in targets(&arguments.what)? {
        match resources.category(&kind) {
            members if !members.is_empty() && name.is_none() => {
                wanted.extend(members.into_iter().map(|r| (r, None)))
            }
            _ => wanted.push((resources.named(&kind)?, name)),
        }
    }
    if arguments.watch && wanted.len() != 1 {
        bail!("--watch follows one resource type or one object");
    }
    let several = wanted.len() > 1;
    let mut any = false;
    for (resource, name) in &wanted {
        any |= show(&cluster, &arguments, resource, name.as_deref(), several).await?;
    }
    if !any && !arguments.watch {
        let place = if arguments.all_namespaces {
            String::new()
        } else {
            format!(" in {} namespace", cluster.namespace)
        };
        output::note(format!("No resources found{place}."));
    }
    Ok(())
}

async fn show(
    cluster: &Cluster,
    arguments: &Arguments,
    resource: &Resource,
    name: Option<&str>,
    several: bool,
) -> Result<bool> {
    let namespace = (!arguments.all_namespaces).then_some(cluster.namespace.as_str());
    let mut query = Vec::new();
    let mut add = |key: &str, value: &str| {
        query.push(format!("{key}={}", utf8_percent_encode(value, NON_ALPHANUMERIC)))
    };
    if let Some(selector) = &arguments.selector {
        add("labelSelector", selector);
    }
    if let Some(selector) = &arguments.field_selector {
        add("fieldSelector", selector);
    }
    let tabular = matches!(arguments.output.as_deref(), None | Some("wide"));
    let path = resource.path(namespace, name);
    let accept = if tabular { TABLE } else { "application/json" };
    let request =
        http::Request::get(format!("{path}?{}", query.join("&"))).header("accept", accept).body(Vec::new())?;
    let response = cluster.send(request).await?;
    if response.status() == http::StatusCode::NOT_FOUND {
        return Err(super::connect::failure(response.status(), response.body()));
    }
    let answer: Value = serde_json::from_slice(response.body())?;
    let prefix = several.then(|| resource.display());
    let any = print(&answer, arguments, prefix.as_deref(), resource);
    if arguments.watch {
        follow(cluster, arguments, resource, &path, name, &answer, accept).await?;
    }
    Ok(any)
}

fn print(answer: &Value, arguments: &Arguments, prefix: Option<&str>, resource: &Resource) -> bool {
    match arguments.output.as_deref() {
        Some("json") => output::line(serde_json::to_string_pretty(answer).unwrap_or_default()),
        Some("yaml") => output::line(serde_saphyr::to_string(answer).unwrap_or_default().trim_end()),
        Some("name") => {
            let items = answer["items"].as_array().cloned().unwrap_or_else(|| vec![answer.clone()]);
            for item in &items {
                output::line(format!(
                    "{}/{}",
                    resource.display(),
                    item["metadata"]["name"].as_str().unwrap_or_default()
                ));
            }
            return !items.is_empty();
        }
        _ => {
            let (header, rows) = cells(answer, arguments, prefix);
            if rows.is_empty() {
                return false;
            }
            let text = output::table(&header, &rows);
            let text =
                if arguments.no_headers { text.split_once('\n').map_or("", |(_, rest)| rest) } else { &text };
            output::line(text.trim_end());
            if prefix.is_some() {
                output::line("");
            }
        }
    }
    true
}

/// Header and rows of a `Table`, without the columns that only `-o wide` shows.
fn cells(table: &Value, arguments: &Arguments, prefix: Option<&str>) -> (Vec<String>, Vec<Vec<String>>) {
    let wide = arguments.output.as_deref() == Some("wide");
    let columns: Vec<&Value> = table["columnDefinitions"].as_array().into_iter().flatten().collect();
    let shown: Vec<usize> = columns
        .iter()
        .enumerate()
        .filter(|(_, c)| wide || c["priority"].as_i64() == Some(0))
        .map(|(i, _)| i)
        .collect();
    let mut header: Vec<String> = shown
        .iter()
        .filter_map(|i| columns.get(*i).and_then(|column| column["name"].as_str()))
        .map(str::to_uppercase)
        .collect();
    if arguments.all_namespaces {
        header.insert(0, "NAMESPACE".into());
    }
    let rows = table["rows"].as_array().into_iter().flatten().map(|row| {
        let mut cells: Vec<String> =
            shown.iter().map(|i| text(row["cells"].get(*i).unwrap_or(&Value::Null))).collect();
        if let (Some(prefix), Some(first)) = (prefix, cells.first_mut()) {
            *first = format!("{prefix}/{first}");
        }
        if arguments.all_namespaces {
            cells.insert(0, text(&row["object"]["metadata"]["namespace"]));
        }
        cells
    });
    (header, rows.collect())
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "<none>".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

async fn follow(
    cluster: &Cluster,
    arguments: &Arguments,
    resource: &Resource,
    path: &str,
    name: Option<&str>,
    answer: &Value,
    accept: &str,
) -> Result<()> {
    let version = answer["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    // One object is watched in its collection, by name.
    let (collection, field) = match name {
        Some(name) => (
            path.trim_end_matches(name).trim_end_matches('/'),
            format!("&fieldSelector=metadata.name%3D{name}"),
        ),
        None => (path, String::new()),
    };
    let request = http::Request::get(format!("{collection}?watch=1&resourceVersion={version}{field}"))
        .header("accept", accept)
        .body(Vec::new())?;
    let mut lines = cluster.client.request_stream(request).await?.lines();
    let mut header = None;
    while let Some(line) = lines.next().await {
        let event: Value = serde_json::from_str(&line?)?;
        let mut object = event["object"].clone();
        if event["type"] == "ERROR" {
            bail!("{}", object["message"].as_str().unwrap_or("the watch ended"));
        }
        // Only the first event of a watch carries the columns.
        if object["columnDefinitions"].as_array().is_some_and(|columns| !columns.is_empty()) {
            header = Some(object["columnDefinitions"].clone());
        } else if let (Some(header), true) = (&header, object["kind"] == "Table") {
            object["columnDefinitions"] = header.clone();
        }
        let arguments = Arguments {
            no_headers: true,
            what: Vec::new(),
            connection: Connection::default(),
            output: arguments.output.clone(),
            selector: None,
            field_selector: None,
            watch: false,
            ..*arguments
        };
        print(&object, &arguments, None, resource);
    }
    Ok(())
}
