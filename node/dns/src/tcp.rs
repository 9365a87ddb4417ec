//! DNS over TCP (RFC 7766), for answers that do not fit into a packet.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    handler::{Handler, Verdict},
    message::MAX_QUERY,
};

/// Connections at a time; more wait in the kernel's queue.
const CONNECTIONS: usize = 256;
/// How long a connection may be silent, or refuse to take its answer.
const IDLE: Duration = Duration::from_secs(5);
/// After a failure to accept.
const PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections until `stop`, which closes them too.
pub(crate) async fn serve(listener: TcpListener, handler: Arc<Handler>, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let Some((place, accepted)) = stop.run_until_cancelled(next).await else { return };
        match accepted {
            Ok((stream, client)) => {
                let handler = Arc::clone(&handler);
                connections.spawn(async move {
                    let _place = place;
                    let _ = converse(stream, client, &handler).await;
                });
            }
            Err(error) => {
                tracing::debug!(%error, "a DNS connection could not be accepted");
                // Out of files: some have to be closed first.
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Questions and answers in order, until the client has no more.
async fn converse(mut stream: TcpStream, client: SocketAddr, handler: &Handler) -> std::io::Result<()> {
    let mut packet = vec![0; MAX_QUERY];
    loop {
        let length = usize::from(timeout(IDLE, stream.read_u16()).await??);
        let Some(packet) = packet.get_mut(..length) else { return Ok(()) };
        timeout(IDLE, stream.read_exact(packet)).await??;
        let reply = match handler.respond(handler.table(), packet, client, false) {
            Verdict::Silence => return Ok(()),
            Verdict::Reply { packet, .. } => packet,
            Verdict::Ask(ask) => handler.ask(*ask).await,
        };
        let Ok(length) = u16::try_from(reply.len()) else { return Ok(()) };
        let framed = [&length.to_be_bytes()[..], &reply].concat();
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
}
