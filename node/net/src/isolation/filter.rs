//! What policies come to for the pods of one node, where nothing but packets is seen: addresses, transport,
//! ports. Pure.
//!
//! Pods that the same policies select share a [`Profile`]; pods that a peer means are a named set. So a pod that
//! comes or goes changes elements of sets, and a policy the profiles it is part of.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
};

use super::{Compiled, Number, Peer, Pod, Policies, Port, Rule};
use crate::{cidr::Cidr, services::Transport};

/// What is let through for each isolated pod of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// By name.
    pub profiles: BTreeMap<String, Profile>,
    /// Profiles of pods whose connections out are judged.
    pub egress: BTreeMap<Ipv4Addr, String>,
    /// Profiles of pods whose connections in are judged.
    pub ingress: BTreeMap<Ipv4Addr, String>,
    /// Where other nodes' own connections come from: let in, as those of this node are.
    pub nodes: BTreeSet<Ipv4Addr>,
    /// The node's own way to the API, when it has one.
    pub door: Option<Door>,
}

/// An address and TCP port of this node that stands for others: whoever may connect to one of these may connect to
/// it, and nobody else, whatever policies say of the address itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Door {
    /// Where it is.
    pub at: SocketAddrV4,
    /// What it stands for.
    pub leads_to: BTreeSet<SocketAddrV4>,
}

/// Any of the clauses lets a connection through.
pub type Profile = Vec<Clause>;

/// Which way connections go, seen from the pod that is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// To it.
    Ingress,
    /// From it.
    Egress,
}

/// Peers and ports that are let through together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clause {
    /// The other end.
    pub peers: Peers,
    /// Ports of whoever the connection goes to.
    pub ports: Ports,
}

/// Other ends of connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peers {
    /// Everybody.
    All,
    /// Addresses of pods, and the name of the set of them.
    Set(String, BTreeSet<Ipv4Addr>),
    /// A range with holes.
    Block(Cidr, Vec<Cidr>),
}

/// Ports of targets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    /// Every one, of every protocol.
    All,
    /// Every one of a transport.
    Of(Transport),
    /// Ranges, first and last.
    Ranges(Transport, Vec<(u16, u16)>),
    /// Those that pods have names for, and the name of the set of them.
    Set(String, BTreeSet<(Ipv4Addr, Transport, u16)>),
}

impl Door {
    /// Whether pods with this profile may use it.
    pub fn opens(&self, profile: &[Clause]) -> bool {
        let lets = |to: &SocketAddrV4| {
            let lets = |clause: &Clause| clause.lets(*to.ip(), *to.ip(), Transport::Tcp, to.port());
            profile.iter().any(lets)
        };
        self.leads_to.iter().any(lets)
    }
}

impl Clause {
    /// Whether it lets a connection to a port of `to` through, whose other end is `peer`.
    fn lets(&self, peer: Ipv4Addr, to: Ipv4Addr, transport: Transport, port: u16) -> bool {
        let is_peer = match &self.peers {
            Peers::All => true,
            Peers::Set(_, set) => set.contains(&peer),
            Peers::Block(range, except) => super::in_block(range, except, peer.into()),
        };
        is_peer
            && match &self.ports {
                Ports::All => true,
                Ports::Of(of) => *of == transport,
                Ports::Ranges(of, ranges) => {
                    *of == transport && ranges.iter().any(|(first, last)| (*first..=*last).contains(&port))
                }
                Ports::Set(_, set) => set.contains(&(to, transport, port)),
            }
    }
}

impl Policies {
    /// What holds for the pods `local`, among `all` pods.
    pub fn filter<'a>(&self, local: impl IntoIterator<Item = &'a Pod>, all: &[&'a Pod]) -> Filter {
        let mut filter = Filter::default();
        let mut pods: BTreeMap<&str, Vec<&Pod>> = BTreeMap::new();
        for pod in all {
            pods.entry(&pod.namespace).or_default().push(pod);
        }
        let compiler = Compiler { policies: self, pods };
        for pod in local {
            for direction in [Direction::Ingress, Direction::Egress] {
                compiler.add(&mut filter, pod, direction);
            }
        }
        filter
    }
}

struct Compiler<'a> {
    policies: &'a Policies,
    /// By namespace.
    pods: BTreeMap<&'a str, Vec<&'a Pod>>,
}

impl Compiled {
    fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }
}

impl Compiler<'_> {
    fn add(&self, filter: &mut Filter, pod: &Pod, direction: Direction) {
        let policies = self.policies.by_namespace.get(&pod.namespace).into_iter().flatten();
        let selecting: Vec<&Compiled> = policies
            .filter(|policy| policy.rules(direction).is_some() && policy.pods.matches(&pod.labels))
            .collect();
        if selecting.is_empty() {
            return;
        }
        let names: Vec<&str> = selecting.iter().map(|policy| policy.name.as_str()).collect();
        let profile = name(direction, &pod.namespace, &names);
        if !filter.profiles.contains_key(&profile) {
            let clauses = selecting.iter().flat_map(|policy| self.policy(policy, &pod.namespace, direction));
            filter.profiles.insert(profile.clone(), clauses.collect());
        }
        let pods = match direction {
            Direction::Ingress => &mut filter.ingress,
            Direction::Egress => &mut filter.egress,
        };
        pods.extend(four(pod).map(|address| (address, profile.clone())));
    }

    fn policy(&self, policy: &Compiled, namespace: &str, direction: Direction) -> Vec<Clause> {
        let rules = policy.rules(direction).unwrap_or_default().iter().enumerate();
        rules
            .flat_map(|(index, rule)| {
                let set = name(direction, namespace, &(&policy.name, index));
                let place = Place { policy, namespace, direction, set };
                self.rule(rule, &place)
            })
            .collect()
    }

    fn rule(&self, rule: &Rule, place: &Place<'_>) -> Vec<Clause> {
        let peers = self.peers(rule, place);
        let mut clauses: Vec<Clause> = Vec::new();
        for ports in numbers(&rule.ports) {
            clauses.extend(peers.iter().map(|peers| Clause { peers: peers.clone(), ports: ports.clone() }));
        }
        let named = self.named(rule, place);
        if !named.is_empty() {
            let ports = Ports::Set(format!("{}-named", place.set), named);
            // On the way out the targets that have the names are the peers.
            let peers = if place.direction == Direction::Egress { vec![Peers::All] } else { peers };
            clauses.extend(peers.into_iter().map(|peers| Clause { peers, ports: ports.clone() }));
        }
        clauses
    }

    /// Peers of a rule: everybody, or its ranges, and one set of the pods it means.
    fn peers(&self, rule: &Rule, place: &Place<'_>) -> Vec<Peers> {
        if rule.peers.is_empty() {
            return vec![Peers::All];
        }
        let mut found = Vec::new();
        let mut pods = BTreeSet::new();
        for peer in &rule.peers {
            match peer {
                Peer::Block { range, except } if range.base().is_ipv4() => {
                    found.push(Peers::Block(*range, except.clone()));
                }
                Peer::Pods { .. } => {
                    pods.extend(self.meant(peer, place.namespace).flat_map(four));
                }
                Peer::Block { .. } | Peer::Nobody => {}
            }
        }
        if !pods.is_empty() {
            found.push(Peers::Set(place.set.clone(), pods));
        }
        found
    }

    /// Pods that a peer of a rule of a policy in `namespace` means.
    fn meant<'s>(&'s self, peer: &'s Peer, namespace: &'s str) -> impl Iterator<Item = &'s Pod> + 's {
        let own = matches!(peer, Peer::Pods { namespaces: None, .. });
        let namespaces = self.pods.iter().filter(move |(name, _)| !own || **name == namespace);
        let pods = namespaces.flat_map(|(_, pods)| pods.iter().copied());
        pods.filter(move |pod| self.policies.is(peer, super::End::Pod(pod), namespace))
    }

    /// Ports that the rule means by name: of the pods that the policy selects, or, on the way out, of its peers.
    fn named(&self, rule: &Rule, place: &Place<'_>) -> BTreeSet<(Ipv4Addr, Transport, u16)> {
        let mut found = BTreeSet::new();
        for port in &rule.ports {
            let (Port { transport: Some(transport), number: Number::Named(name) }, direction) =
                (port, place.direction)
            else {
                continue;
            };
            let selected = |pod: &&&Pod| match direction {
                Direction::Ingress => {
                    pod.namespace == place.namespace && place.policy.pods.matches(&pod.labels)
                }
                Direction::Egress => {
                    let is = |peer| self.policies.is(peer, super::End::Pod(pod), place.namespace);
                    rule.peers.is_empty() || rule.peers.iter().any(is)
                }
            };
            for pod in self.pods.values().flatten().filter(selected) {
                let ports = pod.ports.iter().filter(|(own, over, _)| own == name && over == transport);
                for (_, _, number) in ports {
                    found.extend(four(pod).map(|address| (address, *transport, *number)));
                }
            }
        }
        found
    }
}

/// Where a rule is.
struct Place<'a> {
    policy: &'a Compiled,
    namespace: &'a str,
    direction: Direction,
    /// Name of the set of its peers.
    set: String,
}

/// Ports of a rule that are numbers; none at all means all of them.
fn numbers(ports: &[Port]) -> Vec<Ports> {
    if ports.is_empty() {
        return vec![Ports::All];
    }
    let mut found = Vec::new();
    for transport in [Transport::Tcp, Transport::Udp] {
        let of = ports.iter().filter(|port| port.transport == Some(transport));
        if of.clone().any(|port| matches!(port.number, Number::Any)) {
            found.push(Ports::Of(transport));
            continue;
        }
        let ranges = of.filter_map(|port| match port.number {
            Number::Range(first, last) if first <= last => Some((first, last)),
            _ => None,
        });
        let ranges = merged(ranges.collect());
        if !ranges.is_empty() {
            found.push(Ports::Ranges(transport, ranges));
        }
    }
    found
}

/// The same ports without overlaps, in order.
fn merged(mut ranges: Vec<(u16, u16)>) -> Vec<(u16, u16)> {
    ranges.sort_unstable();
    let mut found: Vec<(u16, u16)> = Vec::new();
    for (first, last) in ranges {
        match found.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => found.push((first, last)),
        }
    }
    found
}

fn four(pod: &Pod) -> impl Iterator<Item = Ipv4Addr> + '_ {
    pod.addresses.iter().filter_map(|ip| if let IpAddr::V4(ip) = ip { Some(*ip) } else { None })
}

/// A name that is unique, stays the same between runs, and says what it is about.
fn name(direction: Direction, namespace: &str, what: &impl Hash) -> String {
    let mut hasher = DefaultHasher::new();
    (direction, namespace, what).hash(&mut hasher);
    let prefix = if direction == Direction::Ingress { "in" } else { "out" };
    format!("{prefix}-{:012x}-{namespace}", hasher.finish() >> 16)
}

#[cfg(test)]
impl Filter {
    /// Judges as a kernel with these rules does.
    pub(super) fn allowed(
        &self,
        (from, to): (Ipv4Addr, Ipv4Addr),
        transport: Transport,
        port: u16,
    ) -> Result<(), super::Isolated> {
        let passes = |profile: Option<&String>, peer: Ipv4Addr| {
            let Some(profile) = profile.and_then(|name| self.profiles.get(name)) else { return true };
            profile.iter().any(|clause| clause.lets(peer, to, transport, port))
        };
        if from == to {
            return Ok(());
        }
        if !passes(self.egress.get(&from), to) {
            return Err(super::Isolated::Egress);
        }
        match self.nodes.contains(&from) || passes(self.ingress.get(&to), from) {
            true => Ok(()),
            false => Err(super::Isolated::Ingress),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_door_opens_for_whom_what_is_behind_it_is_open() {
        let door = Door {
            at: "10.42.3.1:6443".parse().unwrap(),
            leads_to: ["192.0.2.9:6443".parse().unwrap()].into(),
        };
        let block = |range: &str, except: &[&str]| {
            Peers::Block(range.parse().unwrap(), except.iter().map(|hole| hole.parse().unwrap()).collect())
        };
        let tcp = |port| Ports::Ranges(Transport::Tcp, vec![(port, port)]);
        for (n, (peers, ports, expected)) in [
            (Peers::All, Ports::All, true),
            (Peers::All, Ports::Of(Transport::Udp), false),
            (Peers::All, tcp(443), false),
            (block("192.0.2.9/32", &[]), tcp(6443), true),
            (block("192.0.2.0/24", &["192.0.2.8/29"]), Ports::All, false),
            // Its own address says nothing.
            (block("10.42.0.0/16", &[]), Ports::All, false),
            (Peers::Set("s".into(), [*door.at.ip()].into()), Ports::All, false),
            (Peers::All, Ports::Set("p".into(), [(*door.at.ip(), Transport::Tcp, 6443)].into()), false),
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(door.opens(&[Clause { peers, ports }]), expected, "case {n}");
        }
        assert!(!door.opens(&[]));
        let nowhere = Door { leads_to: BTreeSet::new(), ..door };
        assert!(!nowhere.opens(&[Clause { peers: Peers::All, ports: Ports::All }]));
    }

    #[test]
    fn ranges_are_merged() {
        for (given, expected) in [
            (vec![(80, 80), (80, 80)], vec![(80, 80)]),
            (vec![(100, 200), (1, 2), (150, 300), (3, 3)], vec![(1, 3), (100, 300)]),
            (vec![(65535, 65535), (0, 65535)], vec![(0, 65535)]),
        ] {
            assert_eq!(merged(given), expected);
        }
    }
}
