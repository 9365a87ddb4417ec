//! A further instance of a program beside a container's own, its streams pipes instead of the log; and
//! joining the streams of what runs already.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures::stream::unfold;
use ketch_runtime::{ContainerState, Error, Session, Streams, log::Stream};
use tokio::{
    io::{AsyncRead, AsyncWrite, SimplexStream, WriteHalf},
    sync::mpsc,
};
use tokio_util::{io::StreamReader, sync::PollSender, task::TaskTracker};
use wasmtime_wasi::{
    WasiCtxBuilder,
    cli::{AsyncStdinStream, IsTerminal, StdinStream, StdoutStream},
    p2::{InputStream, OutputStream, Pollable, StreamError, StreamResult},
};

use crate::{
    command::{self, Outcome},
    container::Container,
    context::Surroundings,
    program::Program,
};

/// Bytes of input waiting for the guest.
const INPUT: usize = 64 << 10;
/// Bytes a guest writes at a time, and how many such pieces wait for the client.
const PIECE: usize = 16 << 10;
const PIECES: usize = 4;

/// Standard input, output and error of an instance.
#[derive(Clone)]
pub(crate) struct Pipes {
    stdin: Option<Stdin>,
    stdout: Option<Pipe>,
    stderr: Option<Pipe>,
}

impl Pipes {
    /// Gives them to an instance.
    pub(crate) fn connect(&self, wasi: &mut WasiCtxBuilder) {
        if let Some(stdin) = &self.stdin {
            wasi.stdin(stdin.clone());
        }
        if let Some(stdout) = &self.stdout {
            wasi.stdout(stdout.clone());
        }
        if let Some(stderr) = &self.stderr {
            wasi.stderr(stderr.clone());
        }
    }
}

type Reader = Box<dyn AsyncRead + Send + Unpin>;

/// Pipes, and the other ends of them.
fn pipes(wanted: &Streams) -> (Pipes, Option<WriteHalf<SimplexStream>>, Option<Reader>, Option<Reader>) {
    let (stdin, to) = match wanted.stdin {
        true => {
            let (read, write) = tokio::io::simplex(INPUT);
            (Some(Stdin(Arc::new(AsyncStdinStream::new(read)))), Some(write))
        }
        false => (None, None),
    };
    let (out, from_out) = pipe();
    let (err, from_err) = pipe();
    // A terminal has one output, for both.
    let err = if wanted.tty { out.clone() } else { err };
    let stderr = wanted.stderr || wanted.tty;
    let pipes = Pipes { stdin, stdout: wanted.stdout.then_some(out), stderr: stderr.then_some(err) };
    (pipes, to, wanted.stdout.then_some(from_out), (wanted.stderr && !wanted.tty).then_some(from_err))
}

/// Starts `program` with `args` in the surroundings of `container`. Dropping the session ends it.
pub(crate) fn start(
    container: &Container,
    program: Arc<Program>,
    args: Vec<String>,
    wanted: &Streams,
    tasks: &TaskTracker,
) -> Result<Session, Error> {
    let (pipes, stdin, stdout, stderr) = pipes(wanted);
    let around = Surroundings { args, pipes: Some(pipes), ..Surroundings::clone(&container.around) };
    around.check()?;
    let (over, meter) = (container.over.child_token(), container.meter.clone());
    let guard = over.clone().drop_guard();
    let (done, ended) = tokio::sync::oneshot::channel();
    let background = around.engine.background.clone();
    let run = async move {
        let outcome = command::run(&around, &meter, program, &over).await;
        // The pipes end before the program is said to have ended.
        drop(around);
        // Fails when nobody waits any more.
        let _ = done.send(outcome);
    };
    tasks.spawn(background.run(run, &Arc::default()));
    let exit = async move {
        let _guard = guard;
        let outcome = ended.await.map_err(|_| Error::Internal("the runtime is shutting down".to_owned()))?;
        code(outcome?)
    };
    let stdin = stdin.map(|stdin| Box::new(stdin) as Box<dyn AsyncWrite + Send + Unpin>);
    Ok(Session { stdin, stdout, stderr, resize: None, exit: Box::pin(exit) })
}

/// Joins the output of what runs. Dropping the session leaves it alone.
pub(crate) fn join(container: &Container, wanted: &Streams) -> Session {
    let tap = |stream: Stream| -> Reader {
        let (Pipe(to), reader) = pipe();
        container.around.taps.add(stream, to);
        reader
    };
    let stdout = wanted.stdout.then(|| tap(Stream::Stdout));
    let stderr = wanted.stderr.then(|| tap(Stream::Stderr));
    let (mut state, taps) = (container.state.subscribe(), Arc::clone(&container.around.taps));
    let exit = async move {
        let over = state.wait_for(|state| matches!(state, ContainerState::Exited { .. })).await;
        let code = match over.as_deref() {
            Ok(ContainerState::Exited { code, .. }) => *code,
            _ => 0,
        };
        taps.clear();
        Ok(code)
    };
    Session { stdin: None, stdout, stderr, resize: None, exit: Box::pin(exit) }
}

/// A trap has no exit code: it is told in words.
fn code(outcome: Outcome) -> Result<i32, Error> {
    match outcome.reason {
        // The first line says what; the rest is a backtrace with the host's part.
        "Trapped" | "OOMKilled" => {
            Err(Error::Internal(outcome.message.lines().next().unwrap_or_default().to_owned()))
        }
        _ => Ok(outcome.code),
    }
}

/// Standard input that can be handed out more than once, as the host interfaces want it.
#[derive(Clone)]
struct Stdin(Arc<AsyncStdinStream>);

impl IsTerminal for Stdin {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdinStream for Stdin {
    fn p2_stream(&self) -> Box<dyn InputStream> {
        self.0.p2_stream()
    }

    fn async_stream(&self) -> Box<dyn AsyncRead + Send + Sync> {
        self.0.async_stream()
    }
}

/// An output whose guest waits when nobody reads.
#[derive(Clone)]
struct Pipe(mpsc::Sender<Bytes>);

fn pipe() -> (Pipe, Reader) {
    let (to, from) = mpsc::channel(PIECES);
    let pieces = unfold(from, async |mut from: mpsc::Receiver<Bytes>| {
        let piece = from.recv().await?;
        Some((Ok::<_, io::Error>(piece), from))
    });
    (Pipe(to), Box::new(StreamReader::new(Box::pin(pieces))))
}

impl IsTerminal for Pipe {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Pipe {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }

    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(Writer(PollSender::new(self.0.clone())))
    }
}

impl OutputStream for Pipe {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        match self.0.try_send(bytes) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(StreamError::Closed),
            Err(mpsc::error::TrySendError::Full(_)) => {
                Err(StreamError::trap("write without asking check-write"))
            }
        }
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        match self.0.is_closed() {
            true => Err(StreamError::Closed),
            false if self.0.capacity() == 0 => Ok(0),
            false => Ok(PIECE),
        }
    }
}

#[async_trait::async_trait]
impl Pollable for Pipe {
    async fn ready(&mut self) {
        // The place is given back at once; only this instance writes here. Closed is ready too.
        let _ = self.0.reserve().await;
    }
}

struct Writer(PollSender<Bytes>);

impl AsyncWrite for Writer {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let closed = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        ready!(self.0.poll_reserve(cx)).map_err(closed)?;
        let piece = bytes.get(..bytes.len().min(PIECE)).unwrap_or_default();
        self.0.send_item(Bytes::copy_from_slice(piece)).map_err(closed)?;
        Poll::Ready(Ok(piece.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
