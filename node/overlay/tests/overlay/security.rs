//! Who gets in, and what from.

use std::time::{Duration, Instant};

use ketch_overlay::{OverlayError, Reach};

use crate::rig::{Authority, LONG, Node, Pair, able, peer, ping, pod, range, until};

/// The honest node may not have taken the other for its peer after both have tried for some time. The
/// other one may believe in a connection for a moment: in TLS 1.3 the dialing side is ready first.
fn stays_alone(honest: &Node, other: &str) {
    let start = Instant::now();
    until("time passes", LONG, || {
        if let Some(status) = honest.status(other) {
            assert_eq!(status.reach, Reach::Nothing);
            assert_eq!(status.counters.received, 0);
        }
        (start.elapsed() > Duration::from_secs(3)).then_some(())
    });
}

#[test]
fn another_authority_is_refused() {
    if !able() {
        return;
    }
    let pair = Pair::new(1500);
    let alpha = pair.alpha(pair.authority.node("alpha", &[]));
    let beta = pair.beta(Authority::new().node("beta", &[]));
    stays_alone(&alpha, "beta");
    stays_alone(&beta, "alpha");
    drop(beta);
    // The same places with a good certificate: it was the certificate.
    let _beta = pair.beta(pair.authority.node("beta", &[]));
    alpha.connected("beta");
}

#[test]
fn a_node_with_another_name_is_refused() {
    if !able() {
        return;
    }
    let pair = Pair::new(1500);
    let alpha = pair.alpha(pair.authority.node("alpha", &[]));
    let _mallory = pair.beta(pair.authority.node("mallory", &[]));
    stays_alone(&alpha, "beta");
}

#[test]
fn certificates_of_users_are_no_identity() {
    if !able() {
        return;
    }
    let pair = Pair::new(1500);
    let device = ketch_overlay::DeviceConfig { name: "pods".into(), address: None };
    let identity = pair.authority.identity("jane", &[]);
    let config =
        ketch_overlay::OverlayConfig::new(identity, "0.0.0.0:6444".parse().unwrap(), device, vec![range(1)]);
    let error = Node::launch(&pair.a, config, Vec::new()).err().unwrap();
    assert!(matches!(&error, OverlayError::Identity(_)), "{error}");
    assert!(error.to_string().contains("jane"), "{error}");
}

#[test]
fn foreign_sources_are_dropped_and_counted() {
    if !able() {
        return;
    }
    let pair = Pair::new(1500);
    let (alpha, beta) = pair.start();
    alpha.connected("beta");
    pair.a.ip("address add 10.90.9.9/32 dev lo");
    let (honest, b) = (pair.a.udp("10.90.1.1:0"), pair.b.udp("10.90.2.1:0"));
    let liar = pair.a.udp("10.90.9.9:0");
    ping(&honest, &b, LONG);
    let mut buffer = [0; 100];
    until("lies are counted", LONG, || {
        liar.send_to(b"lie", b.local_addr().unwrap()).unwrap();
        if let Ok((count, _)) = b.recv_from(&mut buffer) {
            assert_ne!(&buffer[..count], b"lie");
        }
        beta.status("alpha").filter(|s| s.counters.spoofed > 0)
    });
    // A destination that is not beta's: alpha believes it is, beta knows better.
    let mut wrong = peer("beta", &["192.0.2.2"], 2);
    wrong.ranges.push(range(8));
    alpha.peers.send(vec![wrong]).unwrap();
    until("misrouted packets are counted", LONG, || {
        let _ = honest.send_to(b"lost", (std::net::Ipv4Addr::new(10, 90, 8, 1), 9));
        beta.status("alpha").filter(|s| s.counters.foreign > 0)
    });
}

#[test]
fn a_certificate_limits_what_its_node_may_send_from() {
    if !able() {
        return;
    }
    let pair = Pair::new(1500);
    let alpha = pair.alpha(pair.authority.node("alpha", &["10.90.1.128/25"]));
    let beta = pair.beta(pair.authority.node("beta", &["10.90.0.0/16"]));
    alpha.connected("beta");
    beta.connected("alpha");
    pair.a.ip("address add 10.90.1.200/32 dev lo");
    let (inside, outside) = (pair.a.udp("10.90.1.200:0"), pair.a.udp(format!("{}:0", pod(1))));
    let b = pair.b.udp("10.90.2.1:0");
    ping(&inside, &b, LONG);
    until("the rest is dropped", LONG, || {
        outside.send_to(b"x", b.local_addr().unwrap()).unwrap();
        beta.status("alpha").filter(|s| s.counters.spoofed > 0)
    });
}
