//! `ketch token`: one-time login to the console, and tokens that let nodes join.

mod join;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{Connection, apply::json_request};
use crate::output;

/// Which token.
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    kind: Kind,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Subcommand)]
enum Kind {
    /// A link that logs in to the console once.
    Console,
    /// A token that lets one machine join as a node, once; prints the command for that machine, too.
    Create(join::Create),
    /// Tokens that have not been used.
    List,
    /// Delete tokens, so that they let nobody in.
    Delete {
        /// Their names, from `ketch token list`; a whole token works, too.
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
    },
}

/// Runs the command.
pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let connection = &arguments.connection;
    match arguments.kind {
        Kind::Console => console(connection).await,
        Kind::Create(create) => join::create(connection, create).await,
        Kind::List => join::list(connection).await,
        Kind::Delete { ids } => join::delete(connection, &ids).await,
    }
}

async fn console(connection: &Connection) -> Result<()> {
    let cluster = connection.open().await?;
    let request = json_request(http::Method::POST, "/console/tokens", &json!({}), "application/json")?;
    let response = cluster.send(request).await?;
    let answer: Value =
        serde_json::from_slice(response.body()).context("the server's answer cannot be read")?;
    output::line(answer["link"].as_str().context("the server's answer has no link")?);
    Ok(())
}
