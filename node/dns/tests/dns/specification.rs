//! Kubernetes DNS-Based Service Discovery 1.1.0, record by record.

use hickory_resolver::proto::{
    op::ResponseCode::{NXDomain, NoError},
    rr::RecordType::{self, A, AAAA, CNAME, MX, NS, PTR, SOA, SRV, TXT},
};

use crate::cluster::{ask, code, lines, start};

/// Name, type, and the data of every record under that name; `None`: no such name.
type Row = (&'static str, RecordType, Option<&'static [&'static str]>);

const ROWS: &[Row] = &[
    // 2.2 Schema version.
    ("dns-version.cluster.local.", TXT, Some(&["1.1.0"])),
    ("dns-version.cluster.local.", A, Some(&[])),
    // 2.3.1 A and AAAA of a Service with a cluster address.
    ("web.shop.svc.cluster.local.", A, Some(&["10.43.0.20"])),
    ("web.shop.svc.cluster.local.", AAAA, Some(&["fd00::20"])),
    ("gone.shop.svc.cluster.local.", A, Some(&["10.43.0.21"])),
    ("gone.shop.svc.cluster.local.", AAAA, Some(&[])),
    ("kubernetes.default.svc.cluster.local.", A, Some(&["10.43.0.1"])),
    ("web.shop.svc.cluster.local.", MX, Some(&[])),
    ("nothing.shop.svc.cluster.local.", A, None),
    ("web.default.svc.cluster.local.", A, None),
    // 2.3.2 SRV.
    ("_http._tcp.web.shop.svc.cluster.local.", SRV, Some(&["0 100 80 web.shop.svc.cluster.local."])),
    ("_metrics._udp.web.shop.svc.cluster.local.", SRV, Some(&["0 100 9090 web.shop.svc.cluster.local."])),
    ("_http._udp.web.shop.svc.cluster.local.", SRV, None),
    ("_http._tcp.gone.shop.svc.cluster.local.", SRV, None),
    ("_http._tcp.web.shop.svc.cluster.local.", A, Some(&[])),
    ("_tcp.web.shop.svc.cluster.local.", SRV, Some(&[])),
    // 2.3.3 PTR.
    ("20.0.43.10.in-addr.arpa.", PTR, Some(&["web.shop.svc.cluster.local."])),
    ("99.0.43.10.in-addr.arpa.", PTR, None),
    // 2.4.1 A and AAAA of a headless Service; endpoints that are not ready are left out.
    ("db.shop.svc.cluster.local.", A, Some(&["10.42.0.5", "10.42.0.6"])),
    ("db.shop.svc.cluster.local.", AAAA, Some(&["fd00::5"])),
    ("db-0.db.shop.svc.cluster.local.", A, Some(&["10.42.0.5"])),
    ("db-0.db.shop.svc.cluster.local.", AAAA, Some(&["fd00::5"])),
    ("10-42-0-6.db.shop.svc.cluster.local.", A, Some(&["10.42.0.6"])),
    ("db-2.db.shop.svc.cluster.local.", A, None),
    ("empty.shop.svc.cluster.local.", A, Some(&[])),
    ("early.shop.svc.cluster.local.", A, Some(&["10.42.0.8"])),
    // 2.4.2 SRV of a headless Service: a record per endpoint, with the endpoint's own port.
    (
        "_pg._tcp.db.shop.svc.cluster.local.",
        SRV,
        Some(&[
            "0 33 5433 10-42-0-6.db.shop.svc.cluster.local.",
            "0 33 5433 db-0.db.shop.svc.cluster.local.",
            "0 33 5433 db-0.db.shop.svc.cluster.local.",
        ]),
    ),
    // 2.4.3 PTR of endpoints.
    ("5.0.42.10.in-addr.arpa.", PTR, Some(&["db-0.db.shop.svc.cluster.local."])),
    ("6.0.42.10.in-addr.arpa.", PTR, Some(&["10-42-0-6.db.shop.svc.cluster.local."])),
    ("2.0.42.10.in-addr.arpa.", PTR, None),
    (
        "5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.",
        PTR,
        Some(&["db-0.db.shop.svc.cluster.local."]),
    ),
    // 2.5 External names.
    ("out.shop.svc.cluster.local.", CNAME, Some(&["www.example.test."])),
    ("in.shop.svc.cluster.local.", CNAME, Some(&["web.shop.svc.cluster.local."])),
    // Pods by address, as CoreDNS has them.
    ("10-42-0-7.shop.pod.cluster.local.", A, Some(&["10.42.0.7"])),
    ("10-42-0-7.shop.pod.cluster.local.", AAAA, Some(&[])),
    ("169-254-169-254.shop.pod.cluster.local.", A, None),
    ("10-42-0-7.nowhere.pod.cluster.local.", A, None),
    // The apex, and names that exist because of names under them.
    ("cluster.local.", NS, Some(&["ns.dns.cluster.local."])),
    ("cluster.local.", A, Some(&[])),
    ("ns.dns.cluster.local.", A, Some(&["127.0.0.1"])),
    ("svc.cluster.local.", A, Some(&[])),
    ("shop.svc.cluster.local.", A, Some(&[])),
    ("nowhere.svc.cluster.local.", A, None),
    ("a.b.c.d.e.f.svc.cluster.local.", A, None),
    ("nonsense.cluster.local.", A, None),
];

#[tokio::test]
async fn every_record_of_the_specification() {
    let (dns, _) = start(Vec::new()).await;
    let server = dns.addresses()[0];
    for (name, kind, expected) in ROWS {
        // The second time from memory.
        for _ in 0..2 {
            let answer = ask(server, name, *kind).await;
            let mut data: Vec<String> = answer.answers.iter().map(|r| r.data.to_string()).collect();
            data.sort();
            assert_eq!(data, expected.unwrap_or_default(), "{name} {kind}");
            assert_eq!(code(&answer), if expected.is_some() { NoError } else { NXDomain }, "{name} {kind}");
            assert!(answer.metadata.authoritative, "{name} {kind}");
            assert!(answer.answers.iter().all(|record| record.ttl == 5), "{name} {kind}");
            let soa = answer.authorities.iter().filter(|record| record.record_type() == SOA).count();
            assert_eq!(soa, usize::from(data.is_empty()), "{name} {kind}");
        }
    }
    dns.shutdown().await;
}

#[tokio::test]
async fn the_zone_has_a_beginning() {
    let (dns, _) = start(Vec::new()).await;
    let answer = ask(dns.addresses()[0], "cluster.local.", SOA).await;
    assert!(
        lines(&answer.answers)[0]
            .starts_with("cluster.local. SOA ns.dns.cluster.local. hostmaster.cluster.local.")
    );
    dns.shutdown().await;
}

#[tokio::test]
async fn addresses_of_targets_come_along() {
    let (dns, _) = start(Vec::new()).await;
    let answer = ask(dns.addresses()[0], "_pg._tcp.db.shop.svc.cluster.local.", SRV).await;
    let expected = [
        "10-42-0-6.db.shop.svc.cluster.local. A 10.42.0.6",
        "db-0.db.shop.svc.cluster.local. A 10.42.0.5",
        "db-0.db.shop.svc.cluster.local. AAAA fd00::5",
    ];
    assert_eq!(lines(&answer.additionals), expected);
    dns.shutdown().await;
}

#[tokio::test]
async fn aliases_into_the_cluster_are_followed() {
    let (dns, _) = start(Vec::new()).await;
    let answer = ask(dns.addresses()[0], "in.shop.svc.cluster.local.", A).await;
    let expected = [
        "in.shop.svc.cluster.local. CNAME web.shop.svc.cluster.local.",
        "web.shop.svc.cluster.local. A 10.43.0.20",
    ];
    assert_eq!(lines(&answer.answers), expected);
    let answer = ask(dns.addresses()[0], "circle.shop.svc.cluster.local.", A).await;
    assert_ne!(code(&answer), NoError);
    dns.shutdown().await;
}

#[tokio::test]
async fn a_change_of_the_table_is_answered_at_once() {
    let (dns, table) = start(Vec::new()).await;
    let name = "web.shop.svc.cluster.local.";
    assert_eq!(ask(dns.addresses()[0], name, A).await.answers.len(), 1);
    table.store(std::sync::Arc::default());
    assert_eq!(code(&ask(dns.addresses()[0], name, A).await), NXDomain);
    dns.shutdown().await;
}

#[tokio::test]
async fn addresses_take_turns() {
    let (dns, _) = start(Vec::new()).await;
    // One socket, so that one worker answers: each remembers for itself.
    let client = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(dns.addresses()[0]).await.unwrap();
    let packet = crate::cluster::question("db.shop.svc.cluster.local.", A, None).to_vec().unwrap();
    let mut firsts = Vec::new();
    for _ in 0..4 {
        client.send(&packet).await.unwrap();
        let mut buffer = [0; 512];
        let length = client.recv(&mut buffer).await.unwrap();
        let answer = hickory_resolver::proto::op::Message::from_vec(&buffer[..length]).unwrap();
        assert_eq!(answer.answers.len(), 2);
        firsts.push(answer.answers[0].data.to_string());
    }
    assert!(firsts[1] != firsts[2] && firsts[2] != firsts[3], "{firsts:?}");
    dns.shutdown().await;
}
