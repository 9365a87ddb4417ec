//! The rules for NetworkPolicies. Pure.
//!
//! Packets are judged where they come in for this machine or are forwarded, after Services have been rewritten to
//! endpoints and before anything is masqueraded: between real addresses. What this machine sends itself is not
//! judged here: that is the node, which always reaches its pods, or a guest in this process, whose dials were
//! judged when they were made.

use nftables::expr::{Expression, FibFlag, FibResult, MetaKey, NamedExpression, Range, SetItem};

use super::{
    model::{Collection, Key, Rules, Shape},
    syntax::{
        Expr, Stmt, accept, by_route, concat, forbid, goto, in_state, is, is_not, jump, look_up_one, meta,
        number, port, protocol, ranges, source, target, text,
    },
};
use crate::{
    cidr::Cidr,
    isolation::{Clause, Direction, Door, Filter, Peers, Ports},
    services::Transport,
};

/// Hooked chains.
pub(super) const SPOOFED: &str = "spoofed";
pub(super) const INPUT: &str = "judge-input";
pub(super) const FORWARD: &str = "judge-forward";

const EGRESS: &str = "egress-pods";
const INGRESS: &str = "ingress-pods";
const OWN: &str = "own";
const NODES: &str = "nodes";
/// The node's ends of the cables to its pods.
const CABLES: &str = "kt*";

/// The rules that let through what `filter` lets through.
pub fn judge(filter: &Filter) -> Rules {
    let mut rules = Rules::default();
    rules.fixed();
    for (name, profile) in &filter.profiles {
        rules.profile(name, profile, filter);
    }
    for (pods, map) in [(&filter.egress, EGRESS), (&filter.ingress, INGRESS)] {
        for (address, profile) in pods {
            rules.map(map, Key::Address(*address), profile.clone());
            // A pod always reaches itself.
            rules.insert(OWN, Key::Pair(*address, *address));
        }
    }
    for node in &filter.nodes {
        rules.insert(NODES, Key::Address(*node));
    }
    rules
}

impl Rules {
    /// What is there whatever the policies are.
    fn fixed(&mut self) {
        let known = || vec![in_state(&["established", "related"]), accept()];
        let own = || vec![is(concat(vec![source(), target()]), text(format!("@{OWN}"))), Stmt::Return(None)];
        let both = [vec![jump("egress")], vec![jump("ingress")]];
        let mut input = vec![vec![is(meta(MetaKey::Iifname), text("lo")), accept()], known()];
        let mut forward = vec![known()];
        input.extend(both.clone());
        forward.extend(both);
        let chains = [
            // Policies go by addresses, so a pod sends in its own name or not at all.
            (
                SPOOFED,
                vec![vec![
                    is(meta(MetaKey::Iifname), text(CABLES)),
                    is(by_route(FibResult::Oif, [FibFlag::Saddr, FibFlag::Iif]), Expression::Boolean(false)),
                    Stmt::Drop(None),
                ]],
            ),
            (INPUT, input),
            (FORWARD, forward),
            ("egress", vec![own(), vec![look_up_one(source(), EGRESS)]]),
            (
                "ingress",
                vec![
                    own(),
                    vec![is(source(), text(format!("@{NODES}"))), Stmt::Return(None)],
                    vec![look_up_one(target(), INGRESS)],
                ],
            ),
            ("forbid", vec![vec![forbid()]]),
        ];
        self.chains.extend(chains.map(|(name, rules)| (name.to_owned(), rules)));
        let collections = [
            (EGRESS, Collection::Map(Shape::Address)),
            (INGRESS, Collection::Map(Shape::Address)),
            (OWN, Collection::Set(Shape::Pair)),
            (NODES, Collection::Set(Shape::Address)),
        ];
        self.collections.extend(collections.map(|(name, collection)| (name.into(), collection)));
    }

    fn profile(&mut self, name: &str, profile: &[Clause], filter: &Filter) {
        let inwards = filter.ingress.values().any(|of| of == name);
        let direction = if inwards { Direction::Ingress } else { Direction::Egress };
        let mut chain: Vec<Vec<Stmt>> = Vec::new();
        if let (Direction::Egress, Some(door)) = (direction, &filter.door) {
            chain.push(through(door, door.opens(profile)));
        }
        for clause in profile {
            let mut rule = self.peers(&clause.peers, direction);
            rule.extend(self.ports(&clause.ports));
            rule.push(Stmt::Return(None));
            chain.push(rule);
        }
        chain.push(vec![goto("forbid")]);
        self.chains.insert(name.to_owned(), chain);
    }

    fn peers(&mut self, peers: &Peers, direction: Direction) -> Vec<Stmt> {
        let peer = || if direction == Direction::Ingress { source() } else { target() };
        match peers {
            Peers::All => Vec::new(),
            Peers::Set(name, addresses) => {
                self.set(name, Shape::Address, addresses.iter().map(|address| Key::Address(*address)));
                vec![is(peer(), text(format!("@{name}")))]
            }
            Peers::Block(range, except) => {
                let whole = |range: &Cidr| range.prefix() == 0;
                if except.iter().any(whole) {
                    // Nobody is left.
                    return vec![is(peer(), text("0.0.0.0"))];
                }
                let inside = (!whole(range)).then(|| is(peer(), ranges(&[*range])));
                let holes = except.iter().filter(|hole| hole.base().is_ipv4());
                inside.into_iter().chain(holes.map(|hole| is_not(peer(), ranges(&[*hole])))).collect()
            }
        }
    }

    fn ports(&mut self, ports: &Ports) -> Vec<Stmt> {
        let [transport, number] = port();
        let over = |of| is(transport.clone(), text(protocol(of)));
        match ports {
            Ports::All => Vec::new(),
            Ports::Of(of) => vec![over(*of)],
            Ports::Ranges(of, ranges) => vec![over(*of), is(number, numbers(ranges))],
            Ports::Set(name, all) => {
                let keys = all.iter().map(|(address, of, number)| Key::Service(*address, *of, *number));
                self.set(name, Shape::Service, keys);
                vec![is(concat(vec![target(), transport, number]), text(format!("@{name}")))]
            }
        }
    }

    fn set(&mut self, name: &str, shape: Shape, keys: impl Iterator<Item = Key>) {
        self.collections.insert(name.to_owned().into(), Collection::Set(shape));
        for key in keys {
            self.insert(name.to_owned(), key);
        }
    }
}

/// What becomes of connections to a door. Later rules would judge them by its address.
fn through(door: &Door, open: bool) -> Vec<Stmt> {
    let [transport, port] = port();
    vec![
        is(target(), text(door.at.ip().to_string())),
        is(transport, text(protocol(Transport::Tcp))),
        is(port, number(door.at.port())),
        if open { Stmt::Return(None) } else { goto("forbid") },
    ]
}

fn numbers(ranges: &[(u16, u16)]) -> Expr {
    let one = |(first, last): &(u16, u16)| match first == last {
        true => number(*first),
        false => Expression::Range(Box::new(Range { range: [number(*first), number(*last)] })),
    };
    if let [range] = ranges {
        return one(range);
    }
    Expression::Named(NamedExpression::Set(ranges.iter().map(|range| SetItem::Element(one(range))).collect()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::{Value, json};

    use super::*;
    use crate::{nft::change, services::Transport::Tcp};

    fn filter(peers: &[[u8; 4]]) -> Filter {
        let set = peers.iter().map(|ip| (*ip).into()).collect::<BTreeSet<_>>();
        let clause = Clause {
            peers: Peers::Set("in-1-shop".into(), set),
            ports: Ports::Ranges(Tcp, vec![(80, 80), (8000, 8100)]),
        };
        let block = Clause {
            peers: Peers::Block(
                "10.0.0.0/8".parse().unwrap(),
                vec!["10.9.0.0/16".parse().unwrap(), "2001:db8::/32".parse().unwrap()],
            ),
            ports: Ports::All,
        };
        Filter {
            profiles: [("in-2-shop".to_owned(), vec![clause, block])].into(),
            ingress: [([10, 42, 0, 2].into(), "in-2-shop".to_owned())].into(),
            ..Filter::default()
        }
    }

    #[test]
    fn a_profile_in_full() {
        let rules = judge(&filter(&[[10, 42, 0, 3]]));
        let chain = serde_json::to_value(&rules.chains["in-2-shop"]).unwrap();
        let saddr = || json!({"payload": {"protocol": "ip", "field": "saddr"}});
        let range = |addr: &str, len: u32| json!({"prefix": {"addr": addr, "len": len}});
        let matches =
            |left: Value, op: &str, right: Value| json!({"match": {"left": left, "op": op, "right": right}});
        let expected = json!([
            [
                matches(saddr(), "==", json!("@in-1-shop")),
                matches(json!({"meta": {"key": "l4proto"}}), "==", json!("tcp")),
                matches(json!({"payload": {"protocol": "th", "field": "dport"}}), "==", json!({"set": [80, {"range": [8000, 8100]}]})),
                {"return": null},
            ],
            [
                matches(saddr(), "==", range("10.0.0.0", 8)),
                matches(saddr(), "!=", range("10.9.0.0", 16)),
                {"return": null},
            ],
            [{"goto": {"target": "forbid"}}],
        ]);
        assert_eq!(chain, expected);
    }

    #[test]
    fn connections_to_a_door_are_judged_first() {
        let clause = |range: &str| Clause {
            peers: Peers::Block(range.parse().unwrap(), Vec::new()),
            ports: Ports::All,
        };
        let profile = |name: &str, range: &str| (name.to_owned(), vec![clause(range)]);
        let filter = Filter {
            profiles: [
                profile("out-1-shop", "192.0.2.0/24"),
                profile("out-2-shop", "10.42.0.0/16"),
                profile("in-1-shop", "192.0.2.0/24"),
            ]
            .into(),
            egress: [
                ([10, 42, 3, 5].into(), "out-1-shop".to_owned()),
                ([10, 42, 3, 6].into(), "out-2-shop".to_owned()),
            ]
            .into(),
            ingress: [([10, 42, 3, 5].into(), "in-1-shop".to_owned())].into(),
            door: Some(Door {
                at: "10.42.3.1:6443".parse().unwrap(),
                leads_to: ["192.0.2.9:6443".parse().unwrap()].into(),
            }),
            ..Filter::default()
        };
        let rules = judge(&filter);
        let first = |chain: &str| serde_json::to_value(&rules.chains[chain][0]).unwrap();
        let to_door = |verdict: Value| {
            let equal =
                |left: Value, right: Value| json!({"match": {"left": left, "op": "==", "right": right}});
            json!([
                equal(json!({"payload": {"protocol": "ip", "field": "daddr"}}), json!("10.42.3.1")),
                equal(json!({"meta": {"key": "l4proto"}}), json!("tcp")),
                equal(json!({"payload": {"protocol": "th", "field": "dport"}}), json!(6443)),
                verdict,
            ])
        };
        assert_eq!(first("out-1-shop"), to_door(json!({"return": null})));
        assert_eq!(first("out-2-shop"), to_door(json!({"goto": {"target": "forbid"}})));
        assert_eq!(rules.chains["in-1-shop"].len(), 2, "who comes in uses no door");
    }

    #[test]
    fn a_pod_that_comes_is_an_element() {
        let before = judge(&filter(&[[10, 42, 0, 3]]));
        let after = judge(&filter(&[[10, 42, 0, 3], [10, 42, 0, 4]]));
        let commands = change("t", &before, &after).unwrap();
        let commands = commands["nftables"].as_array().unwrap().clone();
        assert_eq!(commands.len(), 1, "{commands:?}");
        assert_eq!(commands[0]["add"]["element"]["elem"], json!(["10.42.0.4"]));
    }
}
