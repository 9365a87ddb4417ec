//! exec and attach: a program's streams as channels, and its end as a status.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use ketch_api::Status;
use ketch_runtime::{Error, Session, TerminalSize};
use ketch_spdy::{Connection, Incoming, Limits};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

use super::{
    CREATION,
    channel::{Input, Output},
    options::Options,
    websocket::{self, Form, Inputs, Outgoing},
};

/// Protocols over SPDY.
pub(super) const SPDY: &[&str] =
    &["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io", ""];
/// Protocols over WebSockets.
pub(super) const WEBSOCKET: &[&str] = &[
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
    "",
];

/// Numbers of the channels of a WebSocket.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

/// Bytes of output taken at a time.
const PIECE: usize = 16 << 10;
/// How long output that a program left behind is waited for: its children may hold it open for ever.
const QUIET: Duration = Duration::from_secs(5);

/// The client's side of a program.
struct Channels {
    stdin: Option<Input>,
    /// The other direction of a SPDY input, which carries nothing: kubectl takes its end for the end of the program,
    /// and sends no more.
    unused: Option<Output>,
    stdout: Option<Output>,
    stderr: Option<Output>,
    resize: Option<Input>,
    error: Output,
    /// Whether the end is told as a `Status`; else as a text, and success by nothing (before v4).
    status: bool,
}

fn tells_status(protocol: &str) -> bool {
    protocol.starts_with("v4.") || protocol.starts_with("v5.")
}

/// Serves a program over SPDY until it ends or the client goes.
pub(super) async fn over_spdy<T: AsyncRead + AsyncWrite + Unpin>(
    io: T,
    protocol: &str,
    session: Result<Session, Error>,
    options: &Options,
    exec: bool,
) {
    let (connection, mut incoming, closer) = Connection::new(io, Limits::default());
    let work = async {
        let channels = tokio::time::timeout(CREATION, collect(&mut incoming, protocol, options)).await;
        if let Ok(Some(channels)) = channels {
            run(session, channels, exec).await;
        }
        closer.close().await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        result = connection.run() => {
            if let Err(error) = result {
                tracing::debug!(%error, "a stream ended early");
            }
        }
        () = work => {}
    }
}

/// The streams that the client opens, once all it asked for are there.
async fn collect(incoming: &mut Incoming, protocol: &str, options: &Options) -> Option<Channels> {
    let wanted = &options.streams;
    let resizes = wanted.tty && matches!(protocol, "v3.channel.k8s.io" | "v4.channel.k8s.io");
    let (mut stdin, mut stdout, mut stderr, mut resize, mut error) = (None, None, None, None, None);
    let mut unused = None;
    loop {
        let missing = error.is_none()
            || (wanted.stdin && stdin.is_none())
            || (wanted.stdout && stdout.is_none())
            || (wanted.stderr && stderr.is_none())
            || (resizes && resize.is_none());
        if !missing {
            break;
        }
        let stream = incoming.next().await?;
        let kind = stream.headers.get("streamtype").unwrap_or_default();
        match kind {
            "stdin" => {
                unused = Some(Output::Spdy(stream.sender));
                stdin = Some(Input::Spdy(stream.receiver));
            }
            // This side is over from the start, without a reset.
            "resize" => {
                stream.sender.finish().await;
                resize = Some(Input::Spdy(stream.receiver));
            }
            "stdout" => stdout = Some(Output::Spdy(stream.sender)),
            "stderr" => stderr = Some(Output::Spdy(stream.sender)),
            "error" => error = Some(Output::Spdy(stream.sender)),
            other => tracing::debug!(other, "a stream of an unknown type"),
        }
    }
    Some(Channels { stdin, unused, stdout, stderr, resize, error: error?, status: tells_status(protocol) })
}

/// Serves a program over a WebSocket until it ends or the client goes.
pub(super) async fn over_websocket<T: AsyncRead + AsyncWrite + Unpin>(
    io: T,
    protocol: &str,
    session: Result<Session, Error>,
    options: &Options,
    exec: bool,
) {
    let (mut inputs, (to, outgoing)) = (Inputs::new(), websocket::outputs());
    let wanted = &options.streams;
    let output = |channel| Output::WebSocket { channel, to: to.clone() };
    let mut channels = Channels {
        stdin: wanted.stdin.then(|| Input::WebSocket(inputs.open(STDIN))),
        unused: None,
        stdout: wanted.stdout.then(|| output(STDOUT)),
        stderr: wanted.stderr.then(|| output(STDERR)),
        resize: wanted.tty.then(|| Input::WebSocket(inputs.open(RESIZE))),
        error: output(ERROR),
        status: tells_status(protocol),
    };
    let work = async {
        // Upstream tells that the connection stands by an empty message on the lowest channel to the client.
        let Channels { stdout, stderr, error, .. } = &mut channels;
        let first = stdout.as_mut().or(stderr.as_mut()).unwrap_or(error);
        if first.send(Bytes::new()).await.is_ok() {
            run(session, channels, exec).await;
        }
        let _ = to.send(Outgoing::Close).await;
        std::future::pending::<()>().await;
    };
    let socket = websocket::socket(io).await;
    tokio::select! {
        () = websocket::serve(socket, Form::of(protocol), inputs, outgoing) => {}
        () = work => {}
    }
}

/// Moves bytes until the program has ended and its output is sent, then tells the end.
async fn run(session: Result<Session, Error>, channels: Channels, exec: bool) {
    let Channels { stdin, unused, stdout, stderr, resize, mut error, status } = channels;
    let end = match session {
        Err(failure) => Err(failure),
        Ok(session) => {
            let ended = CancellationToken::new();
            let gone = AtomicBool::new(false);
            let Session { stdin: to_stdin, stdout: from_stdout, stderr: from_stderr, resize: sizes, exit } =
                session;
            let outputs = async {
                tokio::join!(
                    output(from_stdout, stdout, &ended, &gone),
                    output(from_stderr, stderr, &ended, &gone)
                );
            };
            let inputs = async {
                tokio::join!(input(stdin, to_stdin), resizes(resize, sizes));
                std::future::pending::<()>().await;
            };
            let program = async {
                let code = async {
                    let code = exit.await;
                    ended.cancel();
                    code
                };
                tokio::join!(code, outputs).0
            };
            tokio::select! {
                code = program => code,
                () = inputs => return,
            }
        }
    };
    if let Some(text) = told(end, status, exec) {
        // Fails when the client is gone: nobody is left to tell.
        let _ = error.send(text.into()).await;
    }
    error.finish().await;
    if let Some(unused) = unused {
        unused.finish().await;
    }
}

/// What the error channel says at the end.
fn told(end: Result<i32, Error>, status: bool, exec: bool) -> Option<String> {
    let failure = match end {
        Ok(code) if code == 0 || !exec => {
            return status.then(|| json!({"metadata": {}, "status": "Success"}).to_string());
        }
        Ok(code) => ended_with(code),
        Err(error) => {
            let what =
                if exec { "error executing command in container" } else { "error attaching to container" };
            Status::internal(format!("{what}: {error}")).to_json()
        }
    };
    match status {
        true => Some(failure.to_string()),
        false => failure.get("message").and_then(Value::as_str).map(str::to_owned),
    }
}

/// Upstream's status of a program that failed (`remotecommand.NonZeroExitCodeReason`).
fn ended_with(code: i32) -> Value {
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}

type Reader = Box<dyn AsyncRead + Send + Unpin>;
type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// From the program to the client. After the program's end what is quiet for [`QUIET`] is over.
async fn output(from: Option<Reader>, to: Option<Output>, ended: &CancellationToken, gone: &AtomicBool) {
    let Some(mut to) = to else { return };
    // What the program does not have is over from the start.
    let Some(mut from) = from else { return to.finish().await };
    let mut piece = BytesMut::with_capacity(PIECE);
    while !gone.load(Ordering::Relaxed) {
        piece.reserve(PIECE);
        let quiet = async {
            ended.cancelled().await;
            tokio::time::sleep(QUIET).await;
        };
        let size = tokio::select! {
            biased;
            size = from.read_buf(&mut piece) => size.unwrap_or(0),
            () = quiet => 0,
        };
        if size == 0 {
            break;
        }
        if to.send(piece.split().freeze()).await.is_err() {
            gone.store(true, Ordering::Relaxed);
        }
    }
    to.finish().await;
}

/// From the client to the program.
async fn input(from: Option<Input>, to: Option<Writer>) {
    let Some(mut to) = to else { return };
    if let Some(mut from) = from {
        while let Some(bytes) = from.next().await {
            // A program that closed its input is no failure.
            if to.write_all(&bytes).await.is_err() || to.flush().await.is_err() {
                return;
            }
        }
    }
    let _ = to.shutdown().await;
}

/// A message of the resize channel.
#[derive(serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

async fn resizes(from: Option<Input>, to: Option<watch::Sender<Option<TerminalSize>>>) {
    /// Most bytes of a size that is not complete yet.
    const MAX_SIZE: usize = 1024;
    let (Some(mut from), Some(to)) = (from, to) else { return };
    let mut text = BytesMut::new();
    while let Some(bytes) = from.next().await {
        text.extend_from_slice(&bytes);
        // Go's encoder ends each with a line feed; over SPDY one may come in two, or two in one.
        let mut stream = serde_json::Deserializer::from_slice(&text).into_iter::<Size>();
        for size in stream.by_ref().map_while(Result::ok) {
            to.send_replace(Some(TerminalSize { width: size.width, height: size.height }));
        }
        let used = stream.byte_offset();
        let _ = text.split_to(used.min(text.len()));
        if text.len() > MAX_SIZE {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_as_upstream_tells_them() {
        let json = |end, exec| serde_json::from_str::<Value>(&told(end, true, exec).unwrap()).unwrap();
        assert_eq!(json(Ok(0), true), json!({"metadata": {}, "status": "Success"}));
        assert_eq!(json(Ok(3), false)["status"], "Success");
        let failed = json(Ok(3), true);
        assert_eq!(failed["reason"], "NonZeroExitCode");
        assert_eq!(failed["details"]["causes"], json!([{"reason": "ExitCode", "message": "3"}]));
        let broken = json(Err(Error::Internal("no sh".into())), true);
        assert_eq!((&broken["reason"], &broken["code"]), (&json!("InternalError"), &json!(500)));
        assert!(broken["message"].as_str().unwrap().ends_with("error executing command in container: no sh"));
        assert_eq!(told(Ok(0), false, true), None);
        assert_eq!(
            told(Ok(2), false, true).unwrap(),
            "command terminated with non-zero exit code: exit status 2"
        );
    }

    #[tokio::test]
    async fn sizes_come_in_pieces() {
        let (sender, receiver) = tokio::sync::mpsc::channel(8);
        for piece in ["{\"Width\":80,\"Hei", "ght\":24}\n{\"Width\":100,\"Height\":30}\n", "{\"Wid"] {
            sender.send(Bytes::from_static(piece.as_bytes())).await.unwrap();
        }
        drop(sender);
        let (to, sizes) = watch::channel(None);
        resizes(Some(Input::WebSocket(receiver)), Some(to)).await;
        assert_eq!(*sizes.borrow(), Some(TerminalSize { width: 100, height: 30 }));
    }
}
