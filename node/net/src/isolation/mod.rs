//! NetworkPolicy (`networking.k8s.io/v1`): which connections policies let through. Pure.
//!
//! A pod that no policy selects takes and makes any connection. One that some policy selects, for a
//! direction, has only the connections of that direction that some rule of some such policy allows. A
//! connection between pods needs both: the one's egress and the other's ingress.

mod filter;

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use ketch_api::{
    k8s::{
        api::networking::v1::{
            NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer,
            NetworkPolicyPort,
        },
        apimachinery::pkg::util::intstr::IntOrString,
    },
    selector::Selector,
};

pub use filter::{Clause, Direction, Door, Filter, Peers, Ports, Profile};

use crate::{cidr::Cidr, services::Transport};

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// A pod as policies see it. Pods in the node's network are none: they are [`End::Outside`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Namespace.
    pub namespace: String,
    /// Labels.
    pub labels: Labels,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// Named ports of its containers.
    pub ports: Vec<(String, Transport, u16)>,
}

/// One end of a connection.
#[derive(Clone, Copy, Debug)]
pub enum End<'a> {
    /// A pod.
    Pod(&'a Pod),
    /// The node that the other end is on: its probes are always let in.
    Node,
    /// Anybody else.
    Outside(IpAddr),
}

/// Direction in which a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Isolated {
    /// The one that makes it may not.
    #[error("no NetworkPolicy allows this pod to connect there")]
    Egress,
    /// The one it goes to does not take it.
    #[error("no NetworkPolicy allows connections from here to that pod")]
    Ingress,
}

/// The policies of a cluster.
#[derive(Clone, Debug, Default)]
pub struct Policies {
    by_namespace: HashMap<String, Vec<Compiled>>,
    namespaces: HashMap<String, Labels>,
}

#[derive(Clone, Debug)]
struct Compiled {
    name: String,
    pods: Selector,
    ingress: Option<Vec<Rule>>,
    egress: Option<Vec<Rule>>,
}

/// Peers and ports that are allowed together; an empty list is everybody, or every port.
#[derive(Clone, Debug)]
struct Rule {
    peers: Vec<Peer>,
    ports: Vec<Port>,
}

#[derive(Clone, Debug)]
enum Peer {
    Block {
        range: Cidr,
        except: Vec<Cidr>,
    },
    Pods {
        namespaces: Option<Selector>,
        pods: Option<Selector>,
    },
    /// Something that cannot be read, and thus allows nobody.
    Nobody,
}

#[derive(Clone, Debug)]
struct Port {
    transport: Option<Transport>,
    number: Number,
}

#[derive(Clone, Debug)]
enum Number {
    Any,
    Range(u16, u16),
    Named(String),
}

impl Policies {
    /// Compiles policies. `namespaces` are all there are, with their labels. What cannot be read allows
    /// nothing: the API has refused it already.
    pub fn new<'a>(
        policies: impl IntoIterator<Item = &'a NetworkPolicy>,
        namespaces: impl IntoIterator<Item = (String, Labels)>,
    ) -> Self {
        let mut by_namespace: HashMap<String, Vec<Compiled>> = HashMap::new();
        for policy in policies {
            let namespace = policy.metadata.namespace.clone().unwrap_or_default();
            by_namespace.entry(namespace).or_default().extend(compile(policy));
        }
        Self { by_namespace, namespaces: namespaces.into_iter().collect() }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_namespace.is_empty()
    }

    /// Whether a connection may be made.
    ///
    /// # Errors
    /// The direction in which it is refused.
    pub fn allowed(
        &self,
        from: End<'_>,
        to: End<'_>,
        transport: Transport,
        port: u16,
    ) -> Result<(), Isolated> {
        if let (End::Pod(from), End::Pod(to)) = (from, to)
            && from.addresses == to.addresses
        {
            // A pod always reaches itself.
            return Ok(());
        }
        let target = Target { transport, port, pod: if let End::Pod(pod) = to { Some(pod) } else { None } };
        if let End::Pod(pod) = from
            && !self.passes(pod, to, target, |policy| policy.egress.as_deref())
        {
            return Err(Isolated::Egress);
        }
        match (from, to) {
            (End::Node, _) => Ok(()),
            (_, End::Pod(pod)) if !self.passes(pod, from, target, |policy| policy.ingress.as_deref()) => {
                Err(Isolated::Ingress)
            }
            _ => Ok(()),
        }
    }

    /// Whether the policies of one direction that select `pod` let `peer` through.
    fn passes(
        &self,
        pod: &Pod,
        peer: End<'_>,
        target: Target<'_>,
        rules: impl Fn(&Compiled) -> Option<&[Rule]>,
    ) -> bool {
        let policies = self.by_namespace.get(&pod.namespace).into_iter().flatten();
        let selecting = policies.filter(|policy| policy.pods.matches(&pod.labels));
        let mut isolated = false;
        for rules in selecting.filter_map(rules) {
            isolated = true;
            let fits = |rule: &Rule| {
                (rule.peers.is_empty() || rule.peers.iter().any(|one| self.is(one, peer, &pod.namespace)))
                    && (rule.ports.is_empty() || rule.ports.iter().any(|port| port.is(target)))
            };
            if rules.iter().any(fits) {
                return true;
            }
        }
        !isolated
    }

    /// Whether a peer of a rule of a policy in `namespace` is meant.
    fn is(&self, peer: &Peer, end: End<'_>, namespace: &str) -> bool {
        match (peer, end) {
            (Peer::Block { range, except }, End::Outside(address)) => in_block(range, except, address),
            (Peer::Block { range, except }, End::Pod(pod)) => {
                pod.addresses.iter().any(|address| in_block(range, except, *address))
            }
            (Peer::Pods { namespaces, pods }, End::Pod(pod)) => {
                let at_home = match namespaces {
                    None => pod.namespace == namespace,
                    Some(selector) => selector.matches_optional(self.namespaces.get(&pod.namespace)),
                };
                at_home && pods.as_ref().is_none_or(|selector| selector.matches(&pod.labels))
            }
            _ => false,
        }
    }
}

#[derive(Clone, Copy)]
struct Target<'a> {
    transport: Transport,
    port: u16,
    pod: Option<&'a Pod>,
}

impl Port {
    fn is(&self, target: Target<'_>) -> bool {
        if self.transport != Some(target.transport) {
            return false;
        }
        match &self.number {
            Number::Any => true,
            Number::Range(first, last) => (*first..=*last).contains(&target.port),
            Number::Named(name) => target.pod.is_some_and(|pod| {
                pod.ports.iter().any(|(own, transport, number)| {
                    own == name && *transport == target.transport && *number == target.port
                })
            }),
        }
    }
}

fn in_block(range: &Cidr, except: &[Cidr], address: IpAddr) -> bool {
    range.contains(address) && !except.iter().any(|hole| hole.contains(address))
}

fn compile(policy: &NetworkPolicy) -> Option<Compiled> {
    let spec = policy.spec.as_ref()?;
    let types = spec.policy_types.as_deref().unwrap_or_default();
    let is = |name: &str| types.iter().any(|kind| kind == name);
    let ingress = is("Ingress") || types.is_empty();
    let egress =
        is("Egress") || (types.is_empty() && spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()));
    let inbound = |rule: &NetworkPolicyIngressRule| rules(rule.from.as_deref(), rule.ports.as_deref());
    let outbound = |rule: &NetworkPolicyEgressRule| rules(rule.to.as_deref(), rule.ports.as_deref());
    Some(Compiled {
        name: policy.metadata.name.clone().unwrap_or_default(),
        // Rather everything isolated than nothing.
        pods: spec
            .pod_selector
            .as_ref()
            .map_or_else(Selector::everything, |pods| Selector::from_object(pods).unwrap_or_default()),
        ingress: ingress.then(|| spec.ingress.iter().flatten().map(inbound).collect()),
        egress: egress.then(|| spec.egress.iter().flatten().map(outbound).collect()),
    })
}

fn rules(peers: Option<&[NetworkPolicyPeer]>, ports: Option<&[NetworkPolicyPort]>) -> Rule {
    Rule {
        peers: peers.unwrap_or_default().iter().map(peer).collect(),
        ports: ports.unwrap_or_default().iter().map(port).collect(),
    }
}

fn peer(peer: &NetworkPolicyPeer) -> Peer {
    if let Some(block) = &peer.ip_block {
        let except: Result<Vec<Cidr>, _> = block.except.iter().flatten().map(|hole| hole.parse()).collect();
        return match (block.cidr.parse(), except) {
            (Ok(range), Ok(except)) => Peer::Block { range, except },
            _ => Peer::Nobody,
        };
    }
    let selector = |selector: Option<_>| selector.map(Selector::from_object).transpose();
    match (selector(peer.namespace_selector.as_ref()), selector(peer.pod_selector.as_ref())) {
        (Ok(None), Ok(None)) | (Err(_), _) | (_, Err(_)) => Peer::Nobody,
        (Ok(namespaces), Ok(pods)) => Peer::Pods { namespaces, pods },
    }
}

fn port(port: &NetworkPolicyPort) -> Port {
    let transport = match port.protocol.as_deref() {
        None | Some("TCP") => Some(Transport::Tcp),
        Some("UDP") => Some(Transport::Udp),
        Some(_) => None,
    };
    let short = |number: i32| u16::try_from(number).ok();
    let number = match &port.port {
        None => Some(Number::Any),
        Some(IntOrString::String(name)) => Some(Number::Named(name.clone())),
        Some(IntOrString::Int(first)) => {
            let last = port.end_port.unwrap_or(*first);
            short(*first).zip(short(last)).map(|(first, last)| Number::Range(first, last))
        }
    };
    // A number that is no port allows none.
    Port { transport: transport.filter(|_| number.is_some()), number: number.unwrap_or(Number::Any) }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::services::Transport::{Tcp, Udp};

    fn pod(namespace: &str, app: &str, address: &str) -> Pod {
        Pod {
            namespace: namespace.into(),
            labels: [("app".to_owned(), app.to_owned())].into(),
            addresses: vec![address.parse().unwrap()],
            ports: vec![("http".into(), Tcp, 8080)],
        }
    }

    fn policies(specs: &[Value]) -> Policies {
        let objects: Vec<NetworkPolicy> = specs
            .iter()
            .enumerate()
            .map(|(n, spec)| {
                let metadata = json!({"namespace": "shop", "name": format!("p{n}")});
                serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
            })
            .collect();
        let label = |team: &str| Labels::from([("team".to_owned(), team.to_owned())]);
        Policies::new(&objects, [("shop".to_owned(), label("red")), ("other".to_owned(), label("blue"))])
    }

    /// Who reaches whom: `from → to`, transport and port, under these policies.
    #[test]
    fn connections_are_judged_as_the_api_says() {
        let (web, db, far) = (
            pod("shop", "web", "10.42.0.2"),
            pod("shop", "db", "10.42.0.3"),
            pod("other", "web", "10.42.0.4"),
        );
        let outside = End::Outside("192.0.2.7".parse().unwrap());
        let all_pods = [&web, &db, &far];
        let address = |end: End<'_>| match end {
            End::Pod(pod) => pod.addresses[0],
            End::Outside(address) => address,
            End::Node => "192.0.2.1".parse().unwrap(),
        };
        let (web, db, far) = (End::Pod(&web), End::Pod(&db), End::Pod(&far));
        let on = |app: &str, more: Value| {
            let mut spec = json!({"podSelector": {"matchLabels": {"app": app}}});
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            spec
        };
        let from = |peer: Value| on("db", json!({"ingress": [{"from": [peer]}]}));
        let port = |port: Value| on("db", json!({"ingress": [{"ports": [port]}]}));
        let all = || json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]});
        let (no_in, no_out, yes) = (Err(Isolated::Ingress), Err(Isolated::Egress), Ok(()));
        let block = || json!({"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.128/25"]}});
        let hole = End::Outside("192.0.2.200".parse().unwrap());
        for (n, (specs, from, to, transport, number, expected)) in [
            // Without policies, and where none selects the pod.
            (vec![], outside, db, Tcp, 80, yes),
            (vec![on("web", json!({}))], outside, db, Tcp, 80, yes),
            // Default deny, for each direction; ingress is the default type.
            (vec![on("db", json!({}))], web, db, Tcp, 80, no_in),
            (vec![on("db", json!({}))], db, web, Tcp, 80, yes),
            (vec![all()], web, outside, Tcp, 80, no_out),
            (vec![json!({"podSelector": {}, "policyTypes": ["Egress"]})], outside, db, Tcp, 80, yes),
            (vec![all()], web, web, Tcp, 80, yes),
            (vec![all()], End::Node, db, Tcp, 80, yes),
            // Both ends have a say.
            (
                vec![on("db", json!({"ingress": [{}]})), on("web", json!({"policyTypes": ["Egress"]}))],
                web,
                db,
                Tcp,
                80,
                no_out,
            ),
            // Policies add up.
            (vec![all(), from(json!({"podSelector": {}}))], outside, db, Tcp, 80, no_in),
            (vec![on("db", json!({})), on("db", json!({"ingress": [{}]}))], outside, db, Tcp, 80, yes),
            // Peers: pods of the own namespace, of others, of all, or both at once.
            (vec![from(json!({"podSelector": {"matchLabels": {"app": "web"}}}))], web, db, Tcp, 80, yes),
            (vec![from(json!({"podSelector": {"matchLabels": {"app": "web"}}}))], far, db, Tcp, 80, no_in),
            (
                vec![from(json!({"namespaceSelector": {"matchLabels": {"team": "blue"}}}))],
                far,
                db,
                Tcp,
                80,
                yes,
            ),
            (
                vec![from(json!({"namespaceSelector": {"matchLabels": {"team": "blue"}}}))],
                web,
                db,
                Tcp,
                80,
                no_in,
            ),
            (vec![from(json!({"namespaceSelector": {}}))], far, db, Tcp, 80, yes),
            (vec![from(json!({"namespaceSelector": {}}))], outside, db, Tcp, 80, no_in),
            (
                vec![from(
                    json!({"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "nobody"}}}),
                )],
                far,
                db,
                Tcp,
                80,
                no_in,
            ),
            (vec![from(json!({}))], web, db, Tcp, 80, no_in),
            // Addresses, with holes; they hold for pods too.
            (vec![from(block())], outside, db, Tcp, 80, yes),
            (vec![from(block())], hole, db, Tcp, 80, no_in),
            (vec![from(json!({"ipBlock": {"cidr": "10.42.0.4/32"}}))], far, db, Tcp, 80, yes),
            (vec![from(json!({"ipBlock": {"cidr": "nonsense"}}))], far, db, Tcp, 80, no_in),
            // Ports: number, range, name, protocol.
            (vec![port(json!({"port": 80}))], web, db, Tcp, 80, yes),
            (vec![port(json!({"port": 80}))], web, db, Tcp, 81, no_in),
            (vec![port(json!({"port": 80}))], web, db, Udp, 80, no_in),
            (vec![port(json!({"protocol": "UDP"}))], web, db, Udp, 1234, yes),
            (vec![port(json!({"port": 8000, "endPort": 8100}))], web, db, Tcp, 8100, yes),
            (vec![port(json!({"port": 8000, "endPort": 8100}))], web, db, Tcp, 8101, no_in),
            (vec![port(json!({"port": "http"}))], web, db, Tcp, 8080, yes),
            (vec![port(json!({"port": "http"}))], web, db, Tcp, 80, no_in),
            (vec![port(json!({"protocol": "SCTP", "port": 80}))], web, db, Tcp, 80, no_in),
            (vec![port(json!({"port": -1}))], web, db, Tcp, 80, no_in),
            // Egress with a named port means the other pod's; nobody outside has one.
            (vec![on("web", json!({"egress": [{"ports": [{"port": "http"}]}]}))], web, db, Tcp, 8080, yes),
            (
                vec![on("web", json!({"egress": [{"ports": [{"port": "http"}]}]}))],
                web,
                outside,
                Tcp,
                8080,
                no_out,
            ),
            (vec![on("web", json!({"egress": [{"to": [{"podSelector": {}}]}]}))], web, far, Tcp, 1, no_out),
            // Egress rules alone make it an egress policy, and an ingress policy too.
            (vec![on("web", json!({"egress": [{}]}))], db, web, Tcp, 1, no_in),
        ]
        .into_iter()
        .enumerate()
        {
            let policies = policies(&specs);
            assert_eq!(policies.allowed(from, to, transport, number), expected, "row {n}: {specs:?}");
            // The kernel, which sees packets, comes to the same. It does not ask about the node's own.
            let (IpAddr::V4(source), IpAddr::V4(target)) = (address(from), address(to)) else { continue };
            if !matches!(from, End::Node) {
                let found = policies.filter(all_pods, &all_pods).allowed((source, target), transport, number);
                assert_eq!(found, expected, "row {n} for the kernel: {specs:?}");
            }
        }
    }
}
