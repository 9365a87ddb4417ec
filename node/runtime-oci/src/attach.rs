//! Joining a container's own streams, which CRI alone holds: its streaming server, as a WebSocket on
//! loopback. The protocol (`v4.channel.k8s.io`) puts a channel number before each message, and has no way to end
//! the input but the end of the connection. So the input has a connection of its own: when it ends, containerd ends
//! the container's input where that has `stdinOnce`, and output goes on over the other one. With a terminal there
//! is one connection: a terminal's input ends with a character.

use futures::{FutureExt, SinkExt, StreamExt};
use k8s_cri::v1::AttachRequest;
use ketch_runtime::{Error, Session, Streams, TerminalSize};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream},
    net::TcpStream,
    sync::{oneshot, watch},
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, client::IntoClientRequest, http::HeaderValue},
};
use tokio_util::task::TaskTracker;
use url::Url;

use crate::client::{Client, QUICK};

const PROTOCOL: &str = "v4.channel.k8s.io";
/// Bytes held between the container and whoever reads.
const BUFFER: usize = 64 << 10;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const RESIZE: u8 = 4;

/// Joins the streams of the container that containerd calls `container`. `code` tells how it ended.
pub(crate) async fn attach(
    client: &Client,
    tasks: &TaskTracker,
    container: &str,
    streams: Streams,
    code: impl Future<Output = Result<i32, Error>> + Send + 'static,
) -> Result<Session, Error> {
    let apart = streams.stdin && !streams.tty;
    let request = || AttachRequest {
        container_id: container.to_owned(),
        stdin: true,
        tty: streams.tty,
        ..AttachRequest::default()
    };
    // The connection that lasts as long as the container. Over one without input containerd would see the end of
    // the input at once, and act on it.
    let outputs = AttachRequest { stdout: true, stderr: streams.stderr && !streams.tty, ..request() };
    // First: what the container answers to its input must find somebody who listens.
    let socket = open(client, outputs).await?;
    let feed = if apart { Some(open(client, request()).await?) } else { None };
    let (stdin, input) = pair(streams.stdin);
    let (stdout, output) = pair(streams.stdout || streams.tty);
    let (stderr, errors) = pair(streams.stderr && !streams.tty);
    let (resize, sizes) = watch::channel(None);
    let (done, ended) = oneshot::channel::<()>();
    let (hold, dropped) = oneshot::channel::<()>();
    let (input, fed) = match feed {
        Some(feed) => (None, input.map(|input| self::feed(feed, input))),
        None => (input, None),
    };
    let pump = Pump { socket, input, output, errors, sizes };
    tasks.spawn(async move {
        let fed = async {
            if let Some(fed) = fed {
                fed.await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = pump.run() => {}
            () = fed => {}
            _ = dropped => {}
        }
        _ = done.send(());
    });
    let exit = async move {
        _ = ended.await;
        drop(hold);
        code.await
    };
    Ok(Session {
        stdin: stdin.map(|end| Box::new(end) as Box<dyn AsyncWrite + Send + Unpin>),
        stdout: stdout.map(|end| Box::new(end) as Box<dyn AsyncRead + Send + Unpin>),
        stderr: stderr.map(|end| Box::new(end) as Box<dyn AsyncRead + Send + Unpin>),
        resize: streams.tty.then_some(resize),
        exit: exit.boxed(),
    })
}

fn pair(wanted: bool) -> (Option<DuplexStream>, Option<DuplexStream>) {
    if !wanted {
        return (None, None);
    }
    let (ours, theirs) = tokio::io::duplex(BUFFER);
    (Some(ours), Some(theirs))
}

/// Asks for a connection and makes it.
async fn open(client: &Client, request: AttachRequest) -> Result<WebSocketStream<TcpStream>, Error> {
    let mut runtime = client.runtime();
    let url = client.call("attach", QUICK, runtime.attach(request)).await?.url;
    let socket = tokio::time::timeout(QUICK, connect(&url));
    socket.await.map_err(|_| Error::Internal("attach: no answer in time".to_owned()))?
}

async fn connect(url: &str) -> Result<WebSocketStream<TcpStream>, Error> {
    let failed = |error: &dyn std::fmt::Display| Error::Internal(format!("attach through {url}: {error}"));
    let parsed = Url::parse(url).map_err(|error| failed(&error))?;
    let host = parsed.host_str().unwrap_or_default().to_owned();
    let port = parsed.port_or_known_default().unwrap_or(80);
    let plain = url.replacen("http://", "ws://", 1);
    let mut request = plain.into_client_request().map_err(|error| failed(&error))?;
    request.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static(PROTOCOL));
    let stream = TcpStream::connect((host.as_str(), port)).await.map_err(|error| failed(&error))?;
    let (socket, _) = client_async(request, stream).await.map_err(|error| failed(&error))?;
    Ok(socket)
}

/// Moves bytes between the socket and a session.
struct Pump {
    socket: WebSocketStream<TcpStream>,
    input: Option<DuplexStream>,
    output: Option<DuplexStream>,
    errors: Option<DuplexStream>,
    sizes: watch::Receiver<Option<TerminalSize>>,
}

impl Pump {
    /// Until the container ends or the connection does.
    async fn run(self) {
        let Self { socket, input, mut output, mut errors, sizes } = self;
        let (sink, mut incoming) = socket.split();
        let send = outgoing(sink, input, sizes);
        let receive = async {
            while let Some(Ok(message)) = incoming.next().await {
                let data = message.into_data();
                let to = match data.first() {
                    Some(&STDOUT) => &mut output,
                    Some(&STDERR) => &mut errors,
                    _ => continue,
                };
                let Some(pipe) = to else { continue };
                if pipe.write_all(data.get(1..).unwrap_or_default()).await.is_err() {
                    // Nobody reads any more.
                    *to = None;
                }
            }
        };
        tokio::select! {
            () = receive => {}
            () = send => {}
        }
    }
}

/// Sends input over a connection of its own, and ends that with it.
async fn feed(mut socket: WebSocketStream<TcpStream>, mut input: DuplexStream) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let read = tokio::select! {
            read = input.read(&mut buffer) => read.unwrap_or(0),
            // Nothing is said here but that it is over.
            message = socket.next() => match message {
                Some(Ok(_)) => continue,
                _ => return,
            },
        };
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
        if socket.send(framed(STDIN, bytes)).await.is_err() {
            return;
        }
    }
    // The other end reads in order: it has taken everything when it answers.
    _ = socket.close(None).await;
    while let Some(Ok(_)) = socket.next().await {}
}

/// Sends input and sizes; ends only with the connection.
async fn outgoing(
    mut sink: impl SinkExt<Message> + Unpin,
    mut input: Option<DuplexStream>,
    mut sizes: watch::Receiver<Option<TerminalSize>>,
) {
    let mut buffer = vec![0; 16 << 10];
    let mut resizable = true;
    loop {
        let read = async {
            match &mut input {
                Some(input) => input.read(&mut buffer).await.unwrap_or(0),
                None => std::future::pending().await,
            }
        };
        let message = tokio::select! {
            count = read => match count {
                0 => {
                    input = None;
                    continue;
                }
                count => framed(STDIN, buffer.get(..count).unwrap_or_default()),
            },
            changed = sizes.changed(), if resizable => {
                resizable = changed.is_ok();
                match *sizes.borrow_and_update() {
                    Some(TerminalSize { width, height }) if resizable => {
                        framed(RESIZE, format!(r#"{{"Width":{width},"Height":{height}}}"#).as_bytes())
                    }
                    _ => continue,
                }
            }
        };
        if sink.send(message).await.is_err() {
            return;
        }
    }
}

fn framed(channel: u8, bytes: &[u8]) -> Message {
    let mut frame = Vec::with_capacity(bytes.len() + 1);
    frame.push(channel);
    frame.extend_from_slice(bytes);
    Message::Binary(frame.into())
}
