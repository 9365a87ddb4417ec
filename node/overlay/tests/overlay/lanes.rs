//! Several connections between two nodes.

use std::{net::UdpSocket, time::Duration};

use ketch_overlay::{Counters, OverlayError};

use crate::rig::{LONG, Node, Ns, PORT, Pair, able, config, peer, ping, pod, transfer, until};

/// Waits until the lanes that are up are these.
fn lanes_up(node: &Node, peer: &str, expected: &[bool]) {
    until(&format!("lanes to {peer} are {expected:?}"), LONG, || {
        let lanes = node.status(peer)?.lanes;
        (lanes.iter().map(|lane| lane.up).collect::<Vec<_>>() == expected).then_some(())
    });
}

/// Waits until just the first two lanes have carried packets both ways, which the state says after a second at most.
fn two_lanes_used(node: &Node, peer: &str) {
    until(&format!("two lanes to {peer} are used"), LONG, || {
        let lanes = node.status(peer)?.lanes;
        let used = lanes.iter().map(|lane| lane.counters.sent > 100 && lane.counters.received > 100);
        (used.enumerate().all(|(number, used)| used == (number < 2))).then_some(())
    });
    let lanes = node.status(peer).unwrap().lanes;
    for lane in lanes.get(2..).unwrap_or_default() {
        assert_eq!(lane.counters, Counters::default());
    }
}

/// Sends `count` numbered packets from each of `from`, some of each in turn, and checks that they arrive in order.
/// Each flow has a target of its own.
fn in_order(from: &[UdpSocket], to: &[UdpSocket], count: u32) {
    let mut buffer = [0; 64];
    for start in (0..count).step_by(10) {
        for (from, to) in from.iter().zip(to) {
            for number in start..start + 10 {
                from.send_to(&number.to_be_bytes(), to.local_addr().unwrap()).unwrap();
            }
        }
        for to in to {
            to.set_read_timeout(Some(LONG)).unwrap();
            for number in start..start + 10 {
                to.recv_from(&mut buffer).unwrap();
                assert_eq!(buffer[..4], number.to_be_bytes(), "a flow keeps its order");
            }
        }
    }
}

#[test]
fn flows_spread_over_the_lanes_and_keep_their_order() {
    if !able() {
        return;
    }
    let pair = Pair::new(1500);
    let (alpha, beta) = pair.start_with([4, 2]);
    lanes_up(&alpha, "beta", &[true, true, false, false]);
    lanes_up(&beta, "alpha", &[true, true]);
    let near: Vec<UdpSocket> = (0..24).map(|_| pair.a.udp("10.90.1.1:0")).collect();
    let far: Vec<UdpSocket> = (0..24).map(|_| pair.b.udp("10.90.2.1:0")).collect();
    // Flows that begin on the lanes that beta lacks take the first one.
    in_order(&near, &far, 200);
    in_order(&far, &near, 200);
    two_lanes_used(&alpha, "beta");
    two_lanes_used(&beta, "alpha");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| transfer(&pair.a, (&pair.b, pod(2)), 5_000_000));
            scope.spawn(|| transfer(&pair.b, (&pair.a, pod(1)), 5_000_000));
        }
    });
}

#[test]
fn a_lane_that_is_cut_is_carried_by_the_first() {
    if !able() {
        return;
    }
    let pair = Pair::new(1500);
    let (alpha, beta) = pair.start_with([2, 2]);
    for (node, other) in [(&alpha, "beta"), (&beta, "alpha")] {
        lanes_up(node, other, &[true, true]);
    }
    // A firewall that lets through what goes from the port to the port, and no more.
    for ns in [&pair.a, &pair.b] {
        let rules = format!(
            "add table ip cut; add chain ip cut in {{ type filter hook input priority 0; }}; \
             add rule ip cut in iifname eth0 udp dport != {PORT} drop; \
             add rule ip cut in iifname eth0 udp sport != {PORT} drop"
        );
        ns.exec(&["nft", &rules]);
    }
    for (node, other) in [(&alpha, "beta"), (&beta, "alpha")] {
        lanes_up(node, other, &[true, false]);
    }
    let near: Vec<UdpSocket> = (0..16).map(|_| pair.a.udp("10.90.1.1:0")).collect();
    let far: Vec<UdpSocket> = (0..16).map(|_| pair.b.udp("10.90.2.1:0")).collect();
    in_order(&near, &far, 50);
    in_order(&far, &near, 50);
    transfer(&pair.a, (&pair.b, pod(2)), 5_000_000);
    for ns in [&pair.a, &pair.b] {
        ns.exec(&["nft", "delete table ip cut"]);
    }
    for (node, other) in [(&alpha, "beta"), (&beta, "alpha")] {
        lanes_up(node, other, &[true, true]);
    }
}

#[test]
fn a_peer_that_comes_back_has_all_its_lanes_again() {
    if !able() {
        return;
    }
    let pair = Pair::new(1500);
    let (alpha, beta) = pair.start_with([4, 4]);
    lanes_up(&alpha, "beta", &[true; 4]);
    beta.stop();
    lanes_up(&alpha, "beta", &[false; 4]);
    let mut again = config(pair.authority.node("beta", &[]), 2);
    again.lanes = 3;
    let beta = Node::launch(&pair.b, again, vec![peer("alpha", &["192.0.2.1"], 1)]).unwrap();
    lanes_up(&alpha, "beta", &[true, true, true, false]);
    lanes_up(&beta, "alpha", &[true; 3]);
    // A peer that is struck off is gone on all of them.
    alpha.peers.send(Vec::new()).unwrap();
    lanes_up(&beta, "alpha", &[false; 3]);
    alpha.peers.send(vec![peer("beta", &["192.0.2.2"], 2)]).unwrap();
    lanes_up(&beta, "alpha", &[true; 3]);
    ping(&pair.a.udp("10.90.1.1:0"), &pair.b.udp("10.90.2.1:0"), LONG);
}

#[test]
fn a_port_or_a_device_of_somebody_else_is_not_shared() {
    if !able() {
        return;
    }
    let pair = Pair::new(1500);
    let (_alpha, _beta) = pair.start_with([4, 4]);
    let mut second = config(pair.authority.node("gamma", &[]), 3);
    second.lanes = 4;
    let taken = Node::launch(&pair.a, second.clone(), Vec::new()).err().unwrap();
    assert!(matches!(taken, OverlayError::Bind { .. }), "{taken}");
    second.bind.set_port(0);
    let taken = Node::launch(&pair.a, second.clone(), Vec::new()).err().unwrap();
    assert!(matches!(taken, OverlayError::Device { .. }), "{taken}");
    let elsewhere = Ns::new("c");
    Node::launch(&elsewhere, second, Vec::new()).unwrap();
    // Nobody is shut out by a stranger's packets either.
    let noise = pair.a.udp("192.0.2.1:0");
    for length in 0..64_u8 {
        for first in [0x00, 0x40, 0x80, 0xc3, 0xff] {
            noise.send_to(&vec![first; length.into()], ("192.0.2.2", PORT)).unwrap();
        }
    }
    noise.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    ping(&pair.a.udp("10.90.1.1:0"), &pair.b.udp("10.90.2.1:0"), LONG);
}
