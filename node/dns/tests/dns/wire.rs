//! Packets: sizes, cases, rubbish.

use std::sync::Arc;

use hickory_resolver::proto::{
    op::{
        Message, OpCode,
        ResponseCode::{BADVERS, FormErr, NoError, NotImp, Refused},
    },
    rr::{DNSClass, RecordType},
};
use ketch_dns::zone::{Query, Zone, answer};
use proptest::prelude::*;
use tokio::{io::AsyncReadExt, net::TcpStream};

use crate::cluster::{ask, code, question, start, table, tcp, udp};

#[tokio::test]
async fn long_answers_go_over_tcp() {
    let (dns, _) = start(Vec::new()).await;
    let server = dns.addresses()[0];
    let name = "crowd.shop.svc.cluster.local.";
    for edns in [None, Some(400), Some(1_232), Some(65_535)] {
        let packet = question(name, RecordType::A, edns).to_vec().unwrap();
        let short = udp(server, &packet).await;
        assert!(short.len() <= usize::from(edns.unwrap_or(512).clamp(512, 1_232)));
        let short = Message::from_vec(&short).unwrap();
        assert!(short.metadata.truncation && short.answers.is_empty());
        assert_eq!(short.edns.is_some(), edns.is_some());
        let long = Message::from_vec(&tcp(server, &packet).await).unwrap();
        assert!(!long.metadata.truncation);
        assert_eq!(long.answers.len(), 200);
    }
    dns.shutdown().await;
}

#[tokio::test]
async fn names_come_back_in_the_case_they_were_asked_in() {
    let (dns, _) = start(Vec::new()).await;
    let server = dns.addresses()[0];
    for name in ["WeB.sHoP.SVC.cluster.LOCAL.", "web.shop.svc.cluster.local.", "WEB.SHOP.SVC.CLUSTER.LOCAL."]
    {
        let found = ask(server, name, RecordType::A).await;
        assert_eq!(found.queries[0].name().to_ascii(), name);
        assert_eq!(found.answers[0].name.to_ascii(), name);
        assert_eq!(found.answers[0].data.to_string(), "10.43.0.20");
    }
    dns.shutdown().await;
}

#[tokio::test]
async fn what_is_no_question_is_refused() {
    let (dns, _) = start(Vec::new()).await;
    let server = dns.addresses()[0];
    let plain = || question("web.shop.svc.cluster.local.", RecordType::A, None);
    let class = |class| {
        let mut message = plain();
        message.queries[0].set_query_class(class);
        message
    };
    let mut update = plain();
    update.metadata.op_code = OpCode::Update;
    let mut twice = plain();
    twice.queries.push(twice.queries[0].clone());
    let mut newer = question("web.shop.svc.cluster.local.", RecordType::A, Some(1_232));
    newer.edns.as_mut().unwrap().set_version(1);
    for (message, expected) in [
        (update, NotImp),
        (twice, FormErr),
        (newer, BADVERS),
        (class(DNSClass::CH), Refused),
        (question("cluster.local.", RecordType::AXFR, None), Refused),
        (question("cluster.local.", RecordType::ANY, None), NotImp),
    ] {
        let reply = Message::from_vec(&udp(server, &message.to_vec().unwrap()).await).unwrap();
        assert_eq!(u16::from(code(&reply)), u16::from(expected), "{message:?}");
    }
    dns.shutdown().await;
}

#[tokio::test]
async fn rubbish_and_answers_do_not_stop_it() {
    let (dns, _) = start(Vec::new()).await;
    let server = dns.addresses()[0];
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut response = question("web.shop.svc.cluster.local.", RecordType::A, None).to_vec().unwrap();
    response[2] |= 0x80;
    let long = vec![0xFF; 9_000];
    for packet in [&b""[..], b"x", &[0; 12], &[0xFF; 600], &response, &long] {
        socket.send_to(packet, server).await.unwrap();
    }
    assert_eq!(code(&ask(server, "web.shop.svc.cluster.local.", RecordType::A).await), NoError);
    // A connection that announces more than a question may have is closed.
    let mut stream = TcpStream::connect(server).await.unwrap();
    tokio::io::AsyncWriteExt::write_u16(&mut stream, u16::MAX).await.unwrap();
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
    dns.shutdown().await;
    assert!(TcpStream::connect(server).await.is_err());
}

#[tokio::test]
async fn a_taken_address_is_told() {
    let (dns, _) = start(Vec::new()).await;
    let options = ketch_dns::DnsOptions {
        bind: dns.addresses().to_vec(),
        source: Arc::new(Arc::default),
        upstreams: Vec::new(),
        namespaces: Arc::new(|_| None),
        pod_cidrs: Vec::new(),
        service_cidrs: Vec::new(),
    };
    let error = ketch_dns::Dns::start(options).await.err().unwrap();
    assert!(error.is_taken(), "{error}");
    dns.shutdown().await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_packet_is_a_panic(packet in proptest::collection::vec(any::<u8>(), 0..600), udp in any::<bool>()) {
        ketch_dns::testing::respond(table_once(), &packet, udp);
    }

    /// A good question with some bytes changed.
    #[test]
    fn no_damaged_question_is_a_panic(
        at in proptest::collection::vec((0_usize..80, any::<u8>()), 0..6),
        name in "[a-zA-Z0-9_][a-zA-Z0-9_-]{0,9}(\\.[a-z0-9_][a-z0-9_-]{0,9}){0,3}\\.(shop\\.svc\\.cluster\\.local|43\\.10\\.in-addr\\.arpa|ip6\\.arpa)\\.",
    ) {
        let mut packet = question(&name, RecordType::SRV, Some(512)).to_vec().unwrap();
        for (at, byte) in at {
            if let Some(place) = packet.get_mut(at) {
                *place = byte;
            }
        }
        ketch_dns::testing::respond(table_once(), &packet, true);
    }

    #[test]
    fn no_name_is_a_panic(name in "[^.]{0,10}(\\.[^.]{1,10}){0,5}\\.(svc|pod)\\.cluster\\.local\\.") {
        if let Ok(name) = hickory_resolver::proto::rr::Name::from_ascii(&name) {
            let zone = Zone { table: table_once(), ..Zone::default() };
            for kind in [RecordType::A, RecordType::SRV, RecordType::PTR] {
                answer(&zone, &Query { name: &name, kind });
            }
        }
    }
}

fn table_once() -> Arc<ketch_net::Table> {
    static TABLE: std::sync::OnceLock<Arc<ketch_net::Table>> = std::sync::OnceLock::new();
    Arc::clone(TABLE.get_or_init(|| Arc::new(table())))
}
