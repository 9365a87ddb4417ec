//! From a packet to the packet that answers it: at once for what the cluster knows, later for the rest.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use hickory_resolver::proto::{
    op::ResponseCode,
    rr::{Name, Record, RecordType},
};
use ketch_net::{Cidr, Table};

use crate::{
    message::{self, Body, Packet, Question},
    search,
    server::{Namespaces, Source},
    upstream::Upstream,
    zone::{self, Answer, Query, Zone},
};

/// Aliases of aliases that are followed.
const ALIASES: usize = 8;

/// What a packet leads to.
pub(crate) enum Verdict {
    /// Nothing.
    Silence,
    /// A packet. `cluster`: it says nothing that is not in the table.
    Reply { packet: Vec<u8>, cluster: bool },
    /// A question for outside.
    Ask(Box<Ask>),
}

/// A question for outside, and what to do with the answer.
pub(crate) struct Ask {
    question: Question,
    name: Name,
    /// Aliases that led to it.
    prefix: Vec<Record>,
    /// What to say if there is no such name outside either.
    otherwise: Option<Body>,
}

/// What stays the same between packets.
pub(crate) struct Handler {
    pub(crate) source: Source,
    pub(crate) namespaces: Namespaces,
    pub(crate) pods: Arc<[Cidr]>,
    pub(crate) services: Arc<[Cidr]>,
    pub(crate) servers: Arc<[IpAddr]>,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) turn: AtomicUsize,
}

/// Where a name leads.
enum Found {
    Body(Body),
    Outside(Name, Vec<Record>),
}

impl Handler {
    /// The zone of now.
    pub(crate) fn table(&self) -> Arc<Table> {
        (self.source)()
    }

    fn zone(&self, table: Arc<Table>) -> Zone {
        Zone {
            table,
            pods: Arc::clone(&self.pods),
            services: Arc::clone(&self.services),
            servers: Arc::clone(&self.servers),
        }
    }

    /// Answers a packet, or says what has to be asked first.
    pub(crate) fn respond(&self, table: Arc<Table>, packet: &[u8], client: SocketAddr, udp: bool) -> Verdict {
        let question = match message::read(packet, udp) {
            Packet::Question(question) => *question,
            Packet::Refused(packet) => return Verdict::Reply { packet, cluster: false },
            Packet::Noise => return Verdict::Silence,
        };
        if self.upstream.is_loop(&question.query) {
            return Verdict::Silence;
        }
        let zone = self.zone(table);
        let kind = question.query.query_type();
        match follow(&zone, question.query.name(), kind) {
            Found::Body(body) if body.code == ResponseCode::NXDomain => {
                self.search(&zone, question, client.ip(), body)
            }
            Found::Body(body) => self.reply(&question, body),
            Found::Outside(name, prefix) => {
                Verdict::Ask(Box::new(Ask { question, name, prefix, otherwise: None }))
            }
        }
    }

    fn reply(&self, question: &Question, mut body: Body) -> Verdict {
        let count = body.answers.len();
        if count > 1
            && body.answers.iter().all(|r| matches!(r.record_type(), RecordType::A | RecordType::AAAA))
        {
            body.answers.rotate_left(self.turn.fetch_add(1, Ordering::Relaxed) % count);
        }
        Verdict::Reply { packet: message::write(question, body), cluster: !question.special }
    }

    /// Walks the rest of the client's search path.
    fn search(&self, zone: &Zone, question: Question, client: IpAddr, otherwise: Body) -> Verdict {
        let (asked, kind) = (question.query.name().clone(), question.query.query_type());
        let namespace = (self.namespaces)(client);
        let path = namespace.map(|namespace| search::path(&asked, kind, &namespace)).unwrap_or_default();
        for name in path {
            match follow(zone, &name, kind) {
                Found::Body(body) if body.code == ResponseCode::NXDomain => {}
                Found::Body(mut body) => {
                    body.answers.insert(0, search::alias(&asked, &name));
                    let packet = message::write(&question, body);
                    // Only pods of this namespace get it.
                    return Verdict::Reply { packet, cluster: false };
                }
                Found::Outside(outside, mut prefix) => {
                    prefix.insert(0, search::alias(&asked, &name));
                    let ask = Ask { question, name: outside, prefix, otherwise: Some(otherwise) };
                    return Verdict::Ask(Box::new(ask));
                }
            }
        }
        Verdict::Reply { packet: message::write(&question, otherwise), cluster: false }
    }

    /// Asks outside and finishes the answer.
    pub(crate) async fn ask(&self, ask: Ask) -> Vec<u8> {
        let Ask { question, name, mut prefix, otherwise } = ask;
        let mut body = self.upstream.ask(&name, question.query.query_type()).await;
        // Whatever failed was not what was asked for; the client goes on along its path and will be told.
        if let Some(otherwise) = otherwise.filter(|_| body.code != ResponseCode::NoError) {
            return message::write(&question, otherwise);
        }
        prefix.append(&mut body.answers);
        message::write(&question, Body { answers: prefix, ..body })
    }
}

/// Answers from the zone, along aliases.
fn follow(zone: &Zone, name: &Name, kind: RecordType) -> Found {
    let mut prefix = Vec::new();
    let mut name = name.clone();
    let good = |answers, authorities, additionals, code| {
        Found::Body(Body { code, authoritative: true, answers, authorities, additionals, why: None })
    };
    for _ in 0..ALIASES {
        match zone::answer(zone, &Query { name: &name, kind }) {
            Answer::Records(records, more) => {
                prefix.extend(records);
                return good(prefix, Vec::new(), more, ResponseCode::NoError);
            }
            Answer::NoData(soa) => return good(prefix, vec![soa], Vec::new(), ResponseCode::NoError),
            Answer::NoName(soa) => return good(prefix, vec![soa], Vec::new(), ResponseCode::NXDomain),
            Answer::Outside => return Found::Outside(name, prefix),
            Answer::Alias(record, target) => {
                prefix.push(record);
                if kind == RecordType::CNAME {
                    return good(prefix, Vec::new(), Vec::new(), ResponseCode::NoError);
                }
                name = target;
            }
        }
    }
    Found::Body(Body::failure(0, "aliases lead in a circle"))
}
