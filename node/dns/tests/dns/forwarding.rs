//! Names outside the cluster. The resolver they go to is a second server of ours, whose cluster plays the
//! rest of the world.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use hickory_resolver::proto::{
    op::{
        Message, MessageType, OpCode,
        ResponseCode::{NXDomain, NoError, ServFail},
    },
    rr::{
        RData, Record,
        RecordType::{A, AAAA, MX, SOA},
        rdata,
    },
};
use tokio::net::UdpSocket;

use crate::cluster::{ask, code, lines, start};

/// A resolver that knows `www.example.test` A 192.0.2.7, and counts questions.
struct World {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl World {
    async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (address, asked) = (socket.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            let mut buffer = [0; 2_048];
            while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
                let question = Message::from_vec(&buffer[..length]).unwrap();
                let reply = Self::answer(&question, &count);
                socket.send_to(&reply.to_vec().unwrap(), client).await.unwrap();
            }
        });
        Self { address, asked, task }
    }

    fn answer(question: &Message, count: &AtomicUsize) -> Message {
        let query = question.queries[0].clone();
        let mut reply = Message::new(question.metadata.id, MessageType::Response, OpCode::Query);
        let name = query.name().to_lowercase();
        if !name.to_ascii().ends_with("loop.ketch.dev.") {
            count.fetch_add(1, Ordering::SeqCst);
        }
        let soa = rdata::SOA::new("ns.test.".parse().unwrap(), "h.test.".parse().unwrap(), 1, 2, 3, 4, 60);
        let soa = Record::from_rdata("test.".parse().unwrap(), 600, RData::SOA(soa));
        match (name.to_ascii().as_str(), query.query_type()) {
            ("www.example.test.", A) => {
                let data = RData::A(rdata::A([192, 0, 2, 7].into()));
                reply.add_answer(Record::from_rdata(query.name().clone(), 86_000, data));
            }
            ("www.example.test.", _) => {
                reply.add_authority(soa);
            }
            ("broken.example.test.", _) => reply.metadata.response_code = ServFail,
            _ => {
                reply.metadata.response_code = NXDomain;
                reply.add_authority(soa);
            }
        }
        reply.metadata.recursion_available = true;
        reply.add_query(query);
        reply
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test]
async fn names_outside_are_asked_once_and_remembered() {
    let world = World::start().await;
    let (dns, _) = start(vec![world.address]).await;
    let server = dns.addresses()[0];
    for _ in 0..3 {
        let answer = ask(server, "www.example.test.", A).await;
        assert_eq!(lines(&answer.answers), ["www.example.test. A 192.0.2.7"]);
        assert!(!answer.metadata.authoritative && answer.metadata.recursion_available);
        assert!(answer.answers[0].ttl <= 300, "capped");
    }
    assert_eq!(world.asked.load(Ordering::SeqCst), 1);
    let none = ask(server, "www.example.test.", MX).await;
    assert_eq!((code(&none), none.answers.len()), (NoError, 0));
    assert!(none.authorities.iter().any(|record| record.record_type() == SOA));
    assert_eq!(code(&ask(server, "nowhere.example.test.", A).await), NXDomain);
    dns.shutdown().await;
}

#[tokio::test]
async fn external_names_are_followed_outside() {
    let world = World::start().await;
    let (dns, _) = start(vec![world.address]).await;
    let answer = ask(dns.addresses()[0], "out.shop.svc.cluster.local.", A).await;
    let expected = ["out.shop.svc.cluster.local. CNAME www.example.test.", "www.example.test. A 192.0.2.7"];
    assert_eq!(lines(&answer.answers), expected);
    dns.shutdown().await;
}

#[tokio::test]
async fn the_search_path_is_walked_for_the_client() {
    let world = World::start().await;
    let (dns, _) = start(vec![world.address]).await;
    let server = dns.addresses()[0];
    let answer = ask(server, "www.example.test.shop.svc.cluster.local.", A).await;
    let expected =
        ["www.example.test. A 192.0.2.7", "www.example.test.shop.svc.cluster.local. CNAME www.example.test."];
    assert_eq!(lines(&answer.answers), expected);
    // No AAAA is not the same as no name: the client has to believe the A record.
    let six = ask(server, "www.example.test.shop.svc.cluster.local.", AAAA).await;
    assert_eq!((code(&six), six.answers.len()), (NoError, 1));
    // Within the cluster nobody is asked.
    let asked = world.asked.load(Ordering::SeqCst);
    let inside = ask(server, "kubernetes.default.shop.svc.cluster.local.", A).await;
    assert!(lines(&inside.answers).contains(&"kubernetes.default.svc.cluster.local. A 10.43.0.1".to_owned()));
    let full = ask(server, "web.shop.svc.cluster.local.shop.svc.cluster.local.", A).await;
    assert!(lines(&full.answers).contains(&"web.shop.svc.cluster.local. A 10.43.0.20".to_owned()));
    assert_eq!(world.asked.load(Ordering::SeqCst), asked);
    // Another namespace's search path, and names that nobody has.
    assert_eq!(code(&ask(server, "www.example.test.other.svc.cluster.local.", A).await), NXDomain);
    assert_eq!(code(&ask(server, "nowhere.test.shop.svc.cluster.local.", A).await), NXDomain);
    dns.shutdown().await;
}

#[tokio::test]
async fn failures_say_why() {
    let world = World::start().await;
    let closed = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for (upstreams, name) in [
        (vec![], "www.example.test."),
        (vec![closed], "www.example.test."),
        (vec![world.address], "broken.example.test."),
    ] {
        let (dns, _) = start(upstreams.clone()).await;
        let answer = ask(dns.addresses()[0], name, A).await;
        assert_eq!(code(&answer), ServFail, "{upstreams:?}");
        let explained =
            answer.edns.unwrap().options().as_ref().iter().any(|(code, _)| u16::from(*code) == 15);
        assert!(explained || name.starts_with("broken"), "{upstreams:?}");
        // What the cluster knows does not depend on it.
        assert_eq!(ask(dns.addresses()[0], "web.shop.svc.cluster.local.", A).await.answers.len(), 1);
        dns.shutdown().await;
    }
}

#[tokio::test]
async fn the_next_resolver_is_asked_when_one_is_dead() {
    let world = World::start().await;
    let closed = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (dns, _) = start(vec![closed, world.address]).await;
    assert_eq!(ask(dns.addresses()[0], "www.example.test.", A).await.answers.len(), 1);
    dns.shutdown().await;
}

#[tokio::test]
async fn a_resolver_that_asks_back_is_found_out() {
    // A socket that hands every packet on to the server, as a host's resolver in a loop would.
    let relay = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let (dns, _) = start(vec![relay.local_addr().unwrap()]).await;
    let server = dns.addresses()[0];
    let mut buffer = [0; 2_048];
    loop {
        let (length, _) = relay.recv_from(&mut buffer).await.unwrap();
        let probe = Message::from_vec(&buffer[..length]).unwrap().queries[0].name().to_ascii();
        if probe.ends_with(".loop.ketch.dev.") {
            relay.send_to(&buffer[..length], server).await.unwrap();
            break;
        }
    }
    let answer = loop {
        let answer = ask(server, "www.example.test.", A).await;
        let text = format!("{:?}", answer.edns);
        if text.contains(&format!("{:?}", b"loop").replace(['[', ']'], "")) || code(&answer) == ServFail {
            break answer;
        }
    };
    assert_eq!(code(&answer), ServFail);
    dns.shutdown().await;
}
