//! A socket's loop: cluster names are answered in it, and again from memory as long as the table is the
//! same; the rest gets a task.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use ketch_net::Table;
use tokio::net::UdpSocket;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    handler::{Handler, Verdict},
    message::{MAX_QUERY, Turns},
};

/// Encoded answers that are kept per socket.
const MOST: usize = 4_096;
/// Longest question whose answer is kept.
const KEPT_QUESTION: usize = 300;
/// Packets answered before others get their turn on the thread.
const BURST: usize = 64;

/// Answers from `socket` until `stop`. Questions for outside run as tasks of `tasks`, as many as
/// the upstream side lets in.
pub(crate) async fn serve(
    socket: Arc<UdpSocket>,
    handler: Arc<Handler>,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    let mut buffer = vec![0; MAX_QUERY + 1];
    let mut memory = Memory { table: handler.table(), kept: HashMap::new() };
    loop {
        match stop.run_until_cancelled(socket.readable()).await {
            None => return,
            Some(Err(error)) => tracing::warn!(%error, "a DNS socket fails"),
            Some(Ok(())) => {}
        }
        for _ in 0..BURST {
            let Ok((length, client)) = socket.try_recv_from(&mut buffer) else { break };
            let Some(packet) = buffer.get(..length) else { break };
            if client.port() == 0 {
                continue;
            }
            memory.refresh(handler.table());
            if let Some(reply) = memory.recall(packet) {
                // A client that does not take its answers loses them.
                let _ = socket.try_send_to(reply, client);
                continue;
            }
            match handler.respond(Arc::clone(&memory.table), packet, client, true) {
                Verdict::Silence => {}
                Verdict::Reply { packet: reply, cluster } => {
                    let _ = socket.try_send_to(&reply, client);
                    if cluster {
                        memory.keep(packet, reply);
                    }
                }
                Verdict::Ask(ask) => {
                    let (socket, handler, stop) = (Arc::clone(&socket), Arc::clone(&handler), stop.clone());
                    tasks.spawn(async move {
                        if let Some(reply) = stop.run_until_cancelled(handler.ask(*ask)).await {
                            send(&socket, &reply, client).await;
                        }
                    });
                }
            }
        }
        tokio::task::yield_now().await;
    }
}

async fn send(socket: &UdpSocket, reply: &[u8], client: SocketAddr) {
    if let Err(error) = socket.send_to(reply, client).await {
        tracing::debug!(%error, %client, "a DNS answer could not be sent");
    }
}

/// An encoded answer, and the addresses in it that take turns.
type Kept = (Vec<u8>, Option<Turns>);

/// Encoded answers of one table, by everything of the question but its number.
struct Memory {
    table: Arc<Table>,
    kept: HashMap<Box<[u8]>, Kept>,
}

impl Memory {
    fn refresh(&mut self, table: Arc<Table>) {
        if !Arc::ptr_eq(&self.table, &table) {
            self.table = table;
            self.kept.clear();
        }
    }

    /// The answer to the same question as before, with this one's number, and the next address in front.
    fn recall(&mut self, packet: &[u8]) -> Option<&[u8]> {
        let (id, question) = packet.split_at_checked(2)?;
        let (reply, turns) = self.kept.get_mut(question)?;
        reply.get_mut(..2)?.copy_from_slice(id);
        if let Some(turns) = turns {
            turns.advance(reply);
        }
        Some(reply)
    }

    fn keep(&mut self, packet: &[u8], reply: Vec<u8>) {
        let Some(question) = packet.get(2..KEPT_QUESTION.min(packet.len())) else { return };
        if packet.len() > KEPT_QUESTION {
            return;
        }
        if self.kept.len() >= MOST {
            self.kept.clear();
        }
        let turns = Turns::find(&reply);
        self.kept.insert(question.into(), (reply, turns));
    }
}
