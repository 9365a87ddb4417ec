//! What pods notice when all is well: nothing.

use std::time::Duration;

use ketch_overlay::Reach;

use crate::rig::{LONG, Pair, able, peer, ping, pod, transfer, until};

#[test]
fn udp_and_tcp_cross_both_ways() {
    if !able() {
        return;
    }
    let pair = Pair::new(1500);
    let (alpha, beta) = pair.start();
    alpha.connected("beta");
    beta.connected("alpha");
    let (a, b) = (pair.a.udp("10.90.1.1:0"), pair.b.udp("10.90.2.1:0"));
    ping(&a, &b, LONG);
    ping(&b, &a, LONG);
    transfer(&pair.a, (&pair.b, pod(2)), 20_000_000);
    transfer(&pair.b, (&pair.a, pod(1)), 20_000_000);
    let status = until("counters arrive", LONG, || alpha.status("beta").filter(|s| s.counters.sent > 1000));
    assert!(matches!(status.reach, Reach::Direct(address) if address.ip().to_string() == "192.0.2.2"));
    assert!(status.rtt > Duration::ZERO);
    assert_eq!((status.counters.spoofed, status.counters.foreign), (0, 0));
}

#[test]
fn routes_follow_the_peers_and_vanish_at_the_end() {
    if !able() {
        return;
    }
    let pair = Pair::new(1500);
    let (alpha, beta) = pair.start();
    alpha.connected("beta");
    // Once the path is known, packets as large as it carries fit without being cut.
    let routes = until("the route has the path's size", LONG, || {
        let routes = pair.a.ip("route show dev pods");
        routes.contains("mtu 1434").then_some(routes)
    });
    assert!(routes.contains("10.90.2.0/24"), "{routes}");
    assert!(!routes.contains("10.90.1.0"), "own pods are not routed into the overlay: {routes}");
    let mut gamma = peer("gamma", &["192.0.2.9"], 3);
    gamma.ranges.push(crate::rig::range(1));
    alpha.peers.send(vec![gamma]).unwrap();
    until("routes follow", LONG, || {
        let routes = pair.a.ip("route show dev pods");
        (routes.contains("10.90.3.0/24") && !routes.contains("10.90.2.0/24")).then_some(())
    });
    assert!(!pair.a.ip("route show dev pods").contains("10.90.1.0"), "a peer cannot take own addresses");
    assert_eq!(alpha.status("beta").map(|s| s.name), None);
    until("beta is told", LONG, || beta.status("alpha").filter(|s| s.reach == Reach::Nothing));
    alpha.stop();
    assert!(!pair.a.ip("link show").contains("pods"));
    assert!(!pair.a.ip("route show").contains("10.90"));
}

#[test]
fn nothing_readable_is_on_the_cable() {
    if !able() {
        return;
    }
    let pair = Pair::new(1500);
    let (alpha, _beta) = pair.start();
    alpha.connected("beta");
    let tap = pair.b.within(|| {
        let all = Some(socket2::Protocol::from(i32::from(0x0003_u16.to_be())));
        let tap = socket2::Socket::new(socket2::Domain::PACKET, socket2::Type::RAW, all).unwrap();
        tap.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        tap.set_recv_buffer_size(8 << 20).unwrap();
        tap
    });
    let marker = b"a-word-that-nobody-may-read";
    let (a, b) = (pair.a.udp("10.90.1.1:0"), pair.b.udp("10.90.2.1:0"));
    let heard = |on_cable: bool| {
        let mut frame = vec![0; 65_536];
        let mut seen = (0, false);
        while let Ok(count) = std::io::Read::read(&mut (&tap), &mut frame) {
            // Frames of the cable begin with Ethernet addresses; those of the device with the IP header.
            let inner = frame[0] >> 4 == 4 && frame[9] == 17 && frame[12..14] == [10, 90];
            if !inner || !on_cable {
                seen.0 += 1;
                seen.1 |= frame[..count].windows(marker.len()).any(|window| window == marker);
            }
        }
        seen
    };
    let mut buffer = [0; 100];
    until("the marker crosses the overlay", LONG, || {
        a.send_to(marker, b.local_addr().unwrap()).unwrap();
        b.recv_from(&mut buffer).ok()
    });
    let (frames, readable) = heard(true);
    assert!(frames > 0 && !readable, "{frames} frames, readable: {readable}");
    // The tap does read what is not encrypted.
    let plain = pair.a.udp("192.0.2.1:0");
    let target = pair.b.udp("192.0.2.2:0");
    plain.send_to(marker, target.local_addr().unwrap()).unwrap();
    target.recv_from(&mut buffer).unwrap();
    assert!(heard(true).1);
}
