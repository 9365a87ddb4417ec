//! `ketch exec`: a program in a container that runs.

use std::{io::IsTerminal, process::ExitCode};

use anyhow::{Context, Result, anyhow};
use clap::Args;
use ketch_api::k8s::api::core::v1::Pod;
use kube::{
    Api,
    api::{AttachParams, AttachedProcess, TerminalSize},
};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::{
    io::{AsyncWriteExt, copy, stderr, stdin, stdout},
    signal::unix::{SignalKind, signal},
};

use super::{Connection, logs};

/// What to run, and where.
#[derive(Args)]
pub(crate) struct Arguments {
    /// POD, or function/NAME for a pod of a function.
    what: String,
    /// Container; needed when the pod has several.
    #[arg(short, long)]
    container: Option<String>,
    /// Pass standard input on.
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Give the program a terminal.
    #[arg(short, long)]
    tty: bool,
    /// The program and its arguments, after `--`.
    #[arg(last = true, required = true)]
    command: Vec<String>,
    #[command(flatten)]
    connection: Connection,
}

/// Runs the command; the exit code is the program's.
pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode> {
    let cluster = arguments.connection.open().await?;
    let pods = logs::pods(&cluster, &arguments.what).await?;
    let pod = pods.first().ok_or_else(|| anyhow!("{} has no pods", arguments.what))?;
    let tty = arguments.tty && std::io::stdin().is_terminal();
    let parameters = AttachParams {
        container: arguments.container,
        stdin: arguments.stdin,
        stdout: true,
        stderr: !tty,
        tty,
        ..AttachParams::default()
    };
    let api: Api<Pod> = Api::namespaced(cluster.client, &cluster.namespace);
    let process = api.exec(pod, arguments.command, &parameters).await;
    let process =
        process.map_err(|error| anyhow!("cannot run it in {pod}: {}", ketch_client::status_text(&error)))?;
    let _raw = if tty { Some(Raw::enter()?) } else { None };
    converse(process).await
}

async fn converse(mut process: AttachedProcess) -> Result<ExitCode> {
    let status = process.take_status();
    let (to, out, err) = (process.stdin(), process.stdout(), process.stderr());
    let sizes = process.terminal_size();
    let output = async {
        if let Some(mut out) = out {
            // Whoever read it has gone away: no error of ours.
            let _ = copy(&mut out, &mut stdout()).await;
            let _ = stdout().flush().await;
        }
    };
    let errors = async {
        if let Some(mut err) = err {
            let _ = copy(&mut err, &mut stderr()).await;
        }
    };
    let input = async {
        if let Some(mut to) = to {
            let _ = copy(&mut stdin(), &mut to).await;
            let _ = to.shutdown().await;
        }
        std::future::pending::<()>().await;
    };
    let resizes = async {
        if let Some(mut sizes) = sizes {
            let mut changed = signal(SignalKind::window_change()).ok();
            while let Ok(size) = tcgetwinsize(std::io::stdin()) {
                use futures::SinkExt;
                let size = TerminalSize { width: size.ws_col, height: size.ws_row };
                if sizes.send(size).await.is_err() {
                    break;
                }
                match &mut changed {
                    Some(changed) => changed.recv().await,
                    None => break,
                };
            }
        }
        std::future::pending::<()>().await;
    };
    let ended = async {
        let status = async { status?.await };
        tokio::join!(output, errors, status).2
    };
    let status = tokio::select! {
        status = ended => status,
        () = async { tokio::join!(input, resizes); } => None,
    };
    let status = status.ok_or_else(|| anyhow!("the connection ended before the program"))?;
    if status.status.as_deref() == Some("Success") {
        return Ok(ExitCode::SUCCESS);
    }
    let causes = status.details.and_then(|details| details.causes).unwrap_or_default();
    let code = causes.iter().find(|cause| cause.reason.as_deref() == Some("ExitCode"));
    match code.and_then(|cause| cause.message.as_deref()?.parse::<u8>().ok()) {
        Some(code) => Ok(ExitCode::from(code)),
        None => Err(anyhow!("{}", status.message.unwrap_or_else(|| "the program failed".to_owned()))),
    }
}

/// The terminal, passing keys on as they are until this is dropped.
struct Raw(Termios);

impl Raw {
    fn enter() -> Result<Self> {
        let before = tcgetattr(std::io::stdin()).context("cannot read the terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Now, &raw).context("cannot set the terminal")?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Nothing better can be done than to leave it as it is.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}
