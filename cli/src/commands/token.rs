//! `ketch token`: one-time login to the console.

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
}

/// Runs the command.
pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let cluster = arguments.connection.open().await?;
    let Kind::Console = arguments.kind;
    let request = json_request(http::Method::POST, "/console/tokens", &json!({}), "application/json")?;
    let response = cluster.send(request).await?;
    let answer: Value =
        serde_json::from_slice(response.body()).context("the server's answer cannot be read")?;
    output::line(answer["link"].as_str().context("the server's answer has no link")?);
    Ok(())
}
