//! `ketch delete`.

use anyhow::{Result, bail};
use clap::Args;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::{Cluster, Connection, apply};
use crate::{
    output,
    resources::{Resource, Resources, targets},
};

/// What to delete.
#[derive(Args)]
pub(crate) struct Arguments {
    /// TYPE NAME… or TYPE/NAME….
    what: Vec<String>,
    /// The objects of a manifest.
    #[arg(short, long)]
    filename: Vec<String>,
    /// Those a label selector chooses.
    #[arg(short = 'l', long)]
    selector: Option<String>,
    /// All of the type, in the namespace.
    #[arg(long)]
    all: bool,
    /// No error when there is nothing.
    #[arg(long)]
    ignore_not_found: bool,
    #[command(flatten)]
    connection: Connection,
}

/// Runs the command.
pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let cluster = arguments.connection.open().await?;
    let resources = Resources::discover(&cluster).await?;
    for file in &arguments.filename {
        for object in apply::read(file)? {
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            let namespace = object["metadata"]["namespace"].as_str().unwrap_or(&cluster.namespace);
            one(&cluster, resources.of(&object)?, namespace, name, arguments.ignore_not_found).await?;
        }
    }
    if arguments.what.is_empty() {
        return match arguments.filename.is_empty() {
            true => bail!("name what to delete: TYPE NAME, TYPE/NAME or -f FILE"),
            false => Ok(()),
        };
    }
    for (kind, name) in targets(&arguments.what)? {
        let resource = resources.named(&kind)?;
        match name {
            Some(name) => {
                one(&cluster, resource, &cluster.namespace, &name, arguments.ignore_not_found).await?
            }
            None if arguments.all || arguments.selector.is_some() => {
                many(&cluster, resource, arguments.selector.as_deref()).await?
            }
            None => bail!("name the {} to delete, or use --all or --selector", resource.plural),
        }
    }
    Ok(())
}

async fn one(
    cluster: &Cluster,
    resource: &Resource,
    namespace: &str,
    name: &str,
    ignore: bool,
) -> Result<()> {
    let request = http::Request::delete(resource.path(Some(namespace), Some(name))).body(Vec::new())?;
    let response = cluster.send(request).await?;
    if response.status() == http::StatusCode::NOT_FOUND {
        return match ignore {
            true => Ok(()),
            false => Err(super::connect::failure(response.status(), response.body())),
        };
    }
    output::line(format!("{} \"{name}\" deleted", resource.display()));
    Ok(())
}

async fn many(cluster: &Cluster, resource: &Resource, selector: Option<&str>) -> Result<()> {
    let query = selector
        .map(|s| format!("?labelSelector={}", utf8_percent_encode(s, NON_ALPHANUMERIC)))
        .unwrap_or_default();
    let list = cluster
        .get(&format!("{}{query}", resource.path(Some(&cluster.namespace), None)))
        .await?
        .unwrap_or_default();
    for item in list["items"].as_array().into_iter().flatten() {
        one(
            cluster,
            resource,
            &cluster.namespace,
            item["metadata"]["name"].as_str().unwrap_or_default(),
            true,
        )
        .await?;
    }
    Ok(())
}
