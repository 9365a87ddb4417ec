//! Programs beside a fake container: real ones, of this machine.

use std::process::Stdio;

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    process::Command,
    sync::watch,
};

use crate::{Error, Session, Streams};

type Reader = Box<dyn AsyncRead + Send + Unpin>;
type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// Runs `command` as a process of this machine. The command `size` is built in: it prints the first size of
/// its terminal as `WIDTHxHEIGHT`.
pub(super) fn start(command: &[String], streams: &Streams) -> Result<Session, Error> {
    let (name, arguments) =
        command.split_first().ok_or_else(|| Error::Config("no command was given".to_owned()))?;
    if name == "size" {
        return Ok(size());
    }
    let pipe = |wanted| if wanted { Stdio::piped() } else { Stdio::null() };
    let mut process = Command::new(name)
        .args(arguments)
        .stdin(pipe(streams.stdin))
        .stdout(pipe(streams.stdout))
        .stderr(pipe(streams.stderr))
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| Error::Internal(format!("cannot run {name:?}: {error}")))?;
    Ok(Session {
        stdin: process.stdin.take().map(|stdin| Box::new(stdin) as Writer),
        stdout: process.stdout.take().map(|stdout| Box::new(stdout) as Reader),
        stderr: process.stderr.take().map(|stderr| Box::new(stderr) as Reader),
        resize: None,
        exit: Box::pin(async move {
            let status = process.wait().await.map_err(|error| Error::Internal(error.to_string()))?;
            Ok(status.code().unwrap_or(137))
        }),
    })
}

fn size() -> Session {
    let (sizes, mut watched) = watch::channel::<Option<crate::TerminalSize>>(None);
    let (near, mut far) = tokio::io::duplex(1024);
    let exit = async move {
        // The session holds the sender as long as it wants an answer.
        let size = watched.wait_for(Option::is_some).await.ok().and_then(|size| *size);
        if let Some(size) = size {
            // Fails when nobody reads.
            let _ = far.write_all(format!("{}x{}\n", size.width, size.height).as_bytes()).await;
        }
        Ok(0)
    };
    Session {
        stdin: None,
        stdout: Some(Box::new(near)),
        stderr: None,
        resize: Some(sizes),
        exit: Box::pin(exit),
    }
}

/// A container's own program: it says its name, then all that it is told, until it is told no more.
pub(super) fn attached(name: &str) -> Session {
    let (near, far) = tokio::io::duplex(1024);
    let (from, to) = tokio::io::split(near);
    let greeting = format!("{name} runs\n");
    let exit = async move {
        let (mut reader, mut writer) = tokio::io::split(far);
        let echo = async {
            writer.write_all(greeting.as_bytes()).await?;
            tokio::io::copy(&mut reader, &mut writer).await?;
            writer.shutdown().await
        };
        echo.await.map_err(|error| Error::Internal(error.to_string()))?;
        Ok(0)
    };
    Session {
        stdin: Some(Box::new(to)),
        stdout: Some(Box::new(from)),
        stderr: None,
        resize: None,
        exit: Box::pin(exit),
    }
}
