//! Links that break, peers that move.

use std::time::{Duration, Instant};

use ketch_overlay::Reach;

use crate::rig::{LONG, Pair, able, peer, ping, pod, transfer, until};

/// What a cut may cost after the link is whole again.
const HEALED: Duration = Duration::from_secs(3);

#[test]
fn a_cut_link_heals() {
    if !able() {
        return;
    }
    let pair = Pair::new(1500);
    let (alpha, beta) = pair.start();
    let (a, b) = (pair.a.udp("10.90.1.1:0"), pair.b.udp("10.90.2.1:0"));
    ping(&a, &b, LONG);
    pair.a.ip("link set eth0 down");
    // Both notice, and have been dialing in vain for a while.
    for (node, other) in [(&alpha, "beta"), (&beta, "alpha")] {
        until("the loss is noticed", LONG, || node.status(other).filter(|s| s.reach == Reach::Nothing));
    }
    let cut = Instant::now();
    until("time passes", LONG, || (cut.elapsed() > Duration::from_secs(4)).then_some(()));
    pair.a.ip("link set eth0 up");
    let healed = ping(&a, &b, LONG);
    println!("healed after {healed:?}");
    assert!(healed < HEALED, "{healed:?}");
    transfer(&pair.b, (&pair.a, pod(1)), 1_000_000);
}

#[test]
fn a_short_cut_keeps_the_connection() {
    if !able() {
        return;
    }
    let pair = Pair::new(1500);
    let (_alpha, _beta) = pair.start();
    let (a, b) = (pair.a.udp("10.90.1.1:0"), pair.b.udp("10.90.2.1:0"));
    ping(&a, &b, LONG);
    pair.a.ip("link set eth0 down");
    pair.a.ip("link set eth0 up");
    let healed = ping(&a, &b, LONG);
    assert!(healed < HEALED, "{healed:?}");
}

#[test]
fn a_restarted_peer_is_back_within_seconds() {
    if !able() {
        return;
    }
    let pair = Pair::new(1500);
    let (alpha, beta) = pair.start();
    alpha.connected("beta");
    drop(beta);
    let _beta = pair.beta(pair.authority.node("beta", &[]));
    let (a, b) = (pair.a.udp("10.90.1.1:0"), pair.b.udp("10.90.2.1:0"));
    let back = ping(&a, &b, LONG);
    assert!(back < HEALED, "{back:?}");
}

#[test]
fn a_peer_that_moves_is_followed() {
    if !able() {
        return;
    }
    let pair = Pair::new(1500);
    let (alpha, _beta) = pair.start();
    let (a, b) = (pair.a.udp("10.90.1.1:0"), pair.b.udp("10.90.2.1:0"));
    ping(&a, &b, LONG);
    pair.b.ip("address add 192.0.2.77/24 dev eth0");
    pair.b.ip("address del 192.0.2.2/24 dev eth0");
    if !pair.b.ip("address show dev eth0").contains("192.0.2.77") {
        // Secondary addresses go with the primary one on some systems.
        pair.b.ip("address add 192.0.2.77/24 dev eth0");
    }
    alpha.peers.send(vec![peer("beta", &["192.0.2.77"], 2)]).unwrap();
    let followed = ping(&a, &b, LONG);
    assert!(followed < HEALED, "{followed:?}");
    alpha.reaches("beta", |reach| matches!(reach, Reach::Direct(at) if at.ip().to_string() == "192.0.2.77"));
}
