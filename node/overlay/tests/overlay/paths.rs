//! Paths that are narrow, and paths that are none.

use ketch_net::Cidr;
use ketch_overlay::{OverlayConfig, Peer, Reach};

use crate::rig::{Authority, LONG, Node, Ns, Pair, able, cable, peer, ping, pod, transfer, until};

#[test]
fn a_narrow_path_carries_everything() {
    if !able() {
        return;
    }
    let pair = Pair::new(1280);
    let (alpha, beta) = pair.start();
    alpha.connected("beta");
    beta.connected("alpha");
    // At once, while the size is still searched for, and after that.
    transfer(&pair.a, (&pair.b, pod(2)), 2_000_000);
    for ns in [&pair.a, &pair.b] {
        let mtu = until("the route has the path's size", LONG, || route_mtu(ns).filter(|mtu| *mtu < 1380));
        // 1,280 less IP, UDP and datagram headers, found by halving.
        assert!((1195..=1214).contains(&mtu), "{mtu}");
    }
    transfer(&pair.a, (&pair.b, pod(2)), 5_000_000);
    transfer(&pair.b, (&pair.a, pod(1)), 5_000_000);
    // Datagrams of an application that are larger are cut by the kernel, and arrive whole.
    let (a, b) = (pair.a.udp("10.90.1.1:0"), pair.b.udp("10.90.2.1:0"));
    let mut buffer = [0; 4096];
    let received = until("a large datagram arrives", LONG, || {
        a.send_to(&[7; 3000], b.local_addr().unwrap()).unwrap();
        b.recv_from(&mut buffer).ok()
    });
    assert_eq!(received.0, 3000);
    assert!((1195..=1214).contains(&alpha.status("beta").unwrap().mtu));
}

/// What the kernel sends at most to the other node's pods.
fn route_mtu(ns: &Ns) -> Option<u32> {
    let routes = ns.ip("route show dev pods");
    routes.split("mtu ").nth(1)?.split_whitespace().next()?.parse().ok()
}

#[test]
fn a_path_that_becomes_narrow_is_followed() {
    if !able() {
        return;
    }
    let pair = Pair::new(1500);
    let (_alpha, _beta) = pair.start();
    transfer(&pair.a, (&pair.b, pod(2)), 2_000_000);
    until("the path is known", LONG, || route_mtu(&pair.a).filter(|mtu| *mtu == 1434));
    pair.a.ip("link set eth0 mtu 1300");
    pair.b.ip("link set eth0 mtu 1300");
    transfer(&pair.a, (&pair.b, pod(2)), 2_000_000);
    transfer(&pair.b, (&pair.a, pod(1)), 2_000_000);
}

#[test]
fn ipv6_pods_over_ipv6() {
    if !able() {
        return;
    }
    let (a, b) = (Ns::new("a"), Ns::new("b"));
    cable(&a, &b, ("eth0", "eth0"), "192.0.2", 1280);
    let authority = Authority::new();
    let mut nodes = Vec::new();
    for (ns, own, other, number, peer_number) in [(&a, "alpha", "beta", 1, 2), (&b, "beta", "alpha", 2, 1)] {
        ns.ip(&format!("address add fd01::{number}/64 dev eth0 nodad"));
        let range: Cidr = format!("fd02:0:0:{number}::/64").parse().unwrap();
        let far: Cidr = format!("fd02:0:0:{peer_number}::/64").parse().unwrap();
        let address = range.nth(1).unwrap();
        let device = ketch_overlay::DeviceConfig { name: "pods".into(), address: Some(address) };
        let bind = "[::]:6444".parse().unwrap();
        let config = OverlayConfig::new(authority.node(own, &[]), bind, device, vec![range]);
        let addresses = vec![format!("[fd01::{peer_number}]:6444").parse().unwrap()];
        let peers = vec![Peer { name: other.into(), addresses, ranges: vec![far], relay: None }];
        nodes.push(Node::launch(ns, config, peers).unwrap());
    }
    let (near, far) = (a.udp("[fd02:0:0:1::1]:0"), b.udp("[fd02:0:0:2::1]:0"));
    ping(&near, &far, LONG);
    // Full IPv6 packets of 1,280 bytes, which no datagram on this path holds. The kernel would cut them to
    // the route's size; this socket is told not to listen to that.
    quinn_udp::UdpSocketState::new((&near).into()).unwrap();
    let mut buffer = [0; 4096];
    let received = until("a full packet arrives", LONG, || {
        near.send_to(&[7; 1232], far.local_addr().unwrap()).unwrap();
        far.recv_from(&mut buffer).ok()
    });
    assert_eq!(received.0, 1232);
    until("it went over a stream", LONG, || nodes[0].status("beta").filter(|s| s.counters.streamed > 0));
}

/// Two nodes behind address translation of their own, and a relay that both reach.
struct Apart {
    a: Ns,
    b: Ns,
    hub: Ns,
    // Between them; gone with this.
    _nats: [Ns; 2],
    authority: Authority,
}

impl Apart {
    /// `masquerade`: how ports are translated, as nft has it.
    fn new(masquerade: &str) -> Self {
        let [a, b, nat_a, nat_b, hub] = ["a", "b", "na", "nb", "hub"].map(Ns::new);
        cable(&nat_a, &a, ("in", "eth0"), "192.168.7", 1500);
        cable(&nat_b, &b, ("in", "eth0"), "192.168.7", 1500);
        cable(&hub, &nat_a, ("to-a", "out"), "198.51.100", 1500);
        cable(&hub, &nat_b, ("to-b", "out"), "203.0.113", 1500);
        for ns in [&a, &b] {
            ns.ip("route add default via 192.168.7.1");
        }
        for (nat, via) in [(&nat_a, "198.51.100.1"), (&nat_b, "203.0.113.1")] {
            nat.ip(&format!("route add default via {via}"));
            nat.exec(&["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]);
            nat.exec(&[
                "nft",
                &format!(
                    "add table ip nat; add chain ip nat post {{ type nat hook postrouting priority 100; }}; \
                 add rule ip nat post oifname out {masquerade}; \
                 add chain ip nat in {{ type filter hook input priority 0; }}; \
                 add rule ip nat in iifname out ct state new drop"
                ),
            ]);
        }
        hub.exec(&["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]);
        Self { a, b, hub, _nats: [nat_a, nat_b], authority: Authority::new() }
    }

    /// The relay and both nodes.
    fn start(&self) -> [Node; 3] {
        // What the cluster knows of the nodes are addresses that mean nothing outside their network.
        let (mut alpha, mut beta) = (peer("alpha", &["192.168.7.2"], 1), peer("beta", &["192.168.7.2"], 2));
        alpha.relay = Some("hub".into());
        beta.relay = Some("hub".into());
        let hub_for = |address: &str| {
            let addresses = vec![format!("{address}:6444").parse().unwrap()];
            Peer { name: "hub".into(), addresses, ranges: Vec::new(), relay: None }
        };
        let identity = |name| self.authority.node(name, &[]);
        let config = OverlayConfig::relay(identity("hub"), "0.0.0.0:6444".parse().unwrap());
        let relay = Node::launch(&self.hub, config, vec![alpha.clone(), beta.clone()]).unwrap();
        let on_a = Node::start(&self.a, identity("alpha"), 1, vec![beta, hub_for("198.51.100.1")]);
        let on_b = Node::start(&self.b, identity("beta"), 2, vec![alpha, hub_for("203.0.113.1")]);
        [relay, on_a, on_b]
    }
}

#[test]
fn nodes_behind_nat_meet_through_a_relay() {
    if !able() {
        return;
    }
    // A port of its own for each target: what the relay sees is of no use to others.
    let apart = Apart::new("masquerade random");
    let [relay, on_a, on_b] = apart.start();
    on_a.reaches("beta", |reach| *reach == Reach::Relayed("hub".into()));
    on_b.reaches("alpha", |reach| *reach == Reach::Relayed("hub".into()));
    let (near, far) = (apart.a.udp("10.90.1.1:0"), apart.b.udp("10.90.2.1:0"));
    ping(&near, &far, LONG);
    ping(&far, &near, LONG);
    transfer(&apart.a, (&apart.b, pod(2)), 5_000_000);
    transfer(&apart.b, (&apart.a, pod(1)), 5_000_000);
    // The relay has no pods, and nothing it carries is for it to read.
    assert_eq!(relay.status("alpha").unwrap().counters, ketch_overlay::Counters::default());
    // Without the relay they are apart.
    drop(relay);
    until("the loss is noticed", LONG, || on_a.status("beta").filter(|s| s.reach == Reach::Nothing));
}

#[test]
fn nodes_behind_nat_find_the_direct_way() {
    if !able() {
        return;
    }
    let apart = Apart::new("masquerade");
    let [relay, on_a, on_b] = apart.start();
    let direct = |network: &'static str| move |reach: &Reach| matches!(reach, Reach::Direct(at) if at.ip().to_string().starts_with(network));
    on_a.reaches("beta", direct("203.0.113."));
    on_b.reaches("alpha", direct("198.51.100."));
    // What they have found needs the relay no more.
    drop(relay);
    transfer(&apart.a, (&apart.b, pod(2)), 5_000_000);
    transfer(&apart.b, (&apart.a, pod(1)), 5_000_000);
}
