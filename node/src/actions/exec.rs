//! Programs of probes and hooks, run in a container.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures::{FutureExt, future::FusedFuture};
use ketch_runtime::{ContainerId, Error, Session, Streams};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::context::{Context, WASM};

/// Bytes kept of a program's output (upstream's figure); the rest is read and dropped.
const OUTPUT: usize = 10 << 10;
/// For output that is still on its way when the program has ended: a child may hold the pipe for ever.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Why a program did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failed {
    /// The container's runtime runs no further programs; what to use instead.
    Unsupported(&'static str),
    /// It ended with another code than 0, or could not be run.
    Command(String),
}

/// Runs `command` in a container. Dropping the future ends the program: the caller bounds the time.
pub(super) async fn run(
    context: &Context,
    runtime: usize,
    container: &ContainerId,
    command: &[String],
) -> Result<(), Failed> {
    let Some(runner) = context.runtime(runtime) else {
        return Err(Failed::Command("the container's runtime is gone".to_owned()));
    };
    let streams = Streams { stdout: true, stderr: true, ..Streams::default() };
    match runner.exec(container, command.to_vec(), streams).await {
        Ok(session) => finish(session).await.map_err(Failed::Command),
        Err(Error::Unsupported(_)) if runtime == WASM => {
            Err(Failed::Unsupported("not supported in Wasm containers"))
        }
        Err(Error::Unsupported(_)) => Err(Failed::Unsupported("not supported by this container's runtime")),
        Err(error) => Err(Failed::Command(error.to_string())),
    }
}

/// Waits for the program's end; `Err`: what it said.
async fn finish(session: Session) -> Result<(), String> {
    let Session { stdout, stderr, mut exit, .. } = session;
    let said = Mutex::new(Vec::new());
    let reading = futures::future::join(keep(stdout, &said), keep(stderr, &said)).fuse();
    tokio::pin!(reading);
    let code = loop {
        tokio::select! {
            code = &mut exit => break code,
            _ = &mut reading, if !reading.is_terminated() => {}
        }
    };
    if !reading.is_terminated() {
        let _ = tokio::time::timeout(LAST_WORDS, &mut reading).await;
    }
    match code {
        Ok(0) => Ok(()),
        Ok(code) => {
            let said = said.lock().unwrap_or_else(PoisonError::into_inner);
            let text = String::from_utf8_lossy(&said).trim().to_owned();
            Err(if text.is_empty() { format!("command ended with exit code {code}") } else { text })
        }
        Err(error) => Err(error.to_string()),
    }
}

async fn keep(stream: Option<Box<dyn AsyncRead + Send + Unpin>>, said: &Mutex<Vec<u8>>) {
    let Some(mut stream) = stream else { return };
    let mut buffer = [0; 1024];
    while let Ok(length @ 1..) = stream.read(&mut buffer).await {
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        let room = OUTPUT.saturating_sub(said.len()).min(length);
        said.extend_from_slice(buffer.get(..room).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(code: i32, output: Vec<u8>) -> Session {
        Session {
            stdin: None,
            stdout: Some(Box::new(std::io::Cursor::new(output))),
            stderr: Some(Box::new(&b""[..])),
            resize: None,
            exit: Box::pin(async move { Ok(code) }),
        }
    }

    #[tokio::test]
    async fn a_failure_says_what_the_program_said() {
        assert_eq!(finish(session(0, b"fine".to_vec())).await, Ok(()));
        assert_eq!(finish(session(1, b"no database\n".to_vec())).await, Err("no database".to_owned()));
        assert_eq!(finish(session(2, Vec::new())).await, Err("command ended with exit code 2".to_owned()));
        let long = finish(session(3, vec![b'x'; 1 << 20])).await.unwrap_err();
        assert_eq!(long.len(), OUTPUT);
    }

    #[tokio::test]
    async fn a_child_that_keeps_the_pipe_does_not_hold_the_probe() {
        let (mut held, stdout) = tokio::io::duplex(64);
        tokio::io::AsyncWriteExt::write_all(&mut held, b"bad").await.unwrap();
        let session = Session { stdout: Some(Box::new(stdout)), ..session(1, Vec::new()) };
        assert_eq!(finish(session).await, Err("bad".to_owned()));
    }
}
