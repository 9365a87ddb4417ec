//! What the table should hold. Pure.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
};

use nftables::{expr::MetaKey, stmt::Statement};

use super::model::{Collection, Key, Name, Rules, Shape};
use super::syntax::{
    Stmt, any_of, goto, is, is_marked, is_new, is_not, jump, look_up, mark, masquerade, meta, port, ranges,
    remember, rename, rewrite, source, source_kind, target, target_kind, text, unmark,
};
use crate::{
    cidr::Cidr,
    forward::{Backend, Forward, HostPort},
    services::Table,
};

/// Bit of the packet mark that asks for masquerade, as kube-proxy has it.
const MARK: u32 = 0x4000;
/// Devices to other nodes.
const OVERLAY: &str = "ketch-*";
/// Longest part of a name that says what it is about.
const NAME: usize = 100;

pub(super) const SERVICES: &str = "services";
pub(super) const NODE_PORTS: &str = "node-ports";
pub(super) const NOBODY: &str = "no-endpoint-services";
pub(super) const NOBODY_PORTS: &str = "no-endpoint-node-ports";
/// Ports of pods on every address of the node, and on one of them.
pub(super) const HOST_PORTS: &str = "host-ports";
pub(super) const HOST_ADDRESSES: &str = "host-port-addresses";
pub(super) const CLUSTER_IPS: &str = "cluster-ips";
pub(super) const NODE_IPS: &str = "node-ips";

/// What the rules need to know about the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Name of the Node: endpoints on it are local.
    pub node: String,
    /// Its addresses: where NodePorts answer.
    pub addresses: Vec<Ipv4Addr>,
    /// Pod addresses of the cluster.
    pub pods: Vec<Cidr>,
    /// Pod addresses of this node: what they send out of the cluster gets the node's address.
    pub local_pods: Vec<Cidr>,
    /// Service addresses of the cluster.
    pub services: Vec<Cidr>,
    /// Service addresses that the node itself answers at, such as cluster DNS: left alone.
    pub served: Vec<Ipv4Addr>,
    /// Where pods of this node are led that connect to the Service of the API, whatever endpoints it has; `None`: to
    /// these.
    pub door: Option<SocketAddrV4>,
}

/// The rules for the Services of `table`, and for the ports that pods of the node have on it.
pub fn rules(table: &Table, ports: &[HostPort], facts: &Facts) -> Rules {
    let mut rules = Rules { chains: fixed(facts), collections: collections(), ..Rules::default() };
    for address in &facts.addresses {
        rules.insert(NODE_IPS, Key::Address(*address));
    }
    for forward in table.forwards() {
        rules.add(forward, facts);
    }
    for port in ports.iter().filter(|port| port.host.is_none_or(|host| is_nodes(host, facts))) {
        rules.add_host_port(port);
    }
    rules
}

/// Whether an address may be the node's: those of other pods and of Services are theirs.
fn is_nodes(address: Ipv4Addr, facts: &Facts) -> bool {
    let among = |ranges: &[Cidr]| ranges.iter().any(|range| range.contains(address.into()));
    let own = facts.local_pods.iter().any(|range| range.nth(1) == Some(address.into()));
    own || !(among(&facts.pods) || among(&facts.services))
}

/// Sets and maps that every node has.
fn collections() -> BTreeMap<Name, Collection> {
    let all = [
        (SERVICES, Collection::Map(Shape::Service)),
        (NODE_PORTS, Collection::Map(Shape::Port)),
        (NOBODY, Collection::Map(Shape::Service)),
        (NOBODY_PORTS, Collection::Map(Shape::Port)),
        (HOST_PORTS, Collection::Map(Shape::Port)),
        (HOST_ADDRESSES, Collection::Map(Shape::Service)),
        (CLUSTER_IPS, Collection::Set(Shape::Address)),
        (NODE_IPS, Collection::Set(Shape::Address)),
    ];
    all.into_iter().map(|(name, collection)| (name.into(), collection)).collect()
}

/// Chains that every node has. Hooks are in [`super::batch`].
fn fixed(facts: &Facts) -> BTreeMap<String, Vec<Vec<Stmt>>> {
    let [transport, number] = port();
    let service_key = vec![target(), transport.clone(), number.clone()];
    let at_node = || is(target(), text(format!("@{NODE_IPS}")));
    let node_key = vec![transport, number];
    let on_host = [
        // Whatever pods say: only addresses of the node are theirs to use.
        vec![is(target_kind(), text("local")), look_up(service_key.clone(), HOST_ADDRESSES)],
        vec![at_node(), look_up(node_key.clone(), HOST_PORTS)],
    ];
    // Who reaches a cluster address from outside has to get its answers through this node.
    let mut foreign = vec![is(target(), text(format!("@{CLUSTER_IPS}")))];
    if !facts.pods.is_empty() {
        foreign.push(is_not(source(), ranges(&facts.pods)));
    }
    foreign.extend([is_not(source_kind(), text("local")), jump("masquerade-later")]);
    let mut services = vec![foreign, vec![look_up(service_key.clone(), SERVICES)]];
    services.extend(on_host);
    services.push(vec![at_node(), look_up(node_key.clone(), NODE_PORTS)]);
    let nobody = vec![vec![look_up(service_key, NOBODY)], vec![at_node(), look_up(node_key, NOBODY_PORTS)]];
    let mut strays = Vec::new();
    for address in &facts.served {
        strays.push(vec![is(target(), text(address.to_string())), Statement::Return(None)]);
    }
    strays.push(vec![is(target(), text(format!("@{CLUSTER_IPS}"))), goto("refuse")]);
    if !facts.services.is_empty() {
        strays.push(vec![is(target(), ranges(&facts.services)), goto("refuse")]);
    }
    let first = |chain: &'static str| vec![is_new(), jump(chain)];
    let both = vec![first("nobody"), first("strays")];
    BTreeMap::from([
        ("prerouting".to_owned(), vec![vec![jump("service-choice")]]),
        ("output".to_owned(), vec![vec![jump("service-choice")]]),
        ("postrouting".to_owned(), postrouting(facts)),
        ("filter-input".to_owned(), vec![first("nobody")]),
        ("filter-forward".to_owned(), both.clone()),
        ("filter-output".to_owned(), both),
        ("service-choice".to_owned(), services),
        ("nobody".to_owned(), nobody),
        ("strays".to_owned(), strays),
        ("refuse".to_owned(), vec![vec![Statement::Reject(None)]]),
        ("drop".to_owned(), vec![vec![Statement::Drop(None)]]),
        ("masquerade-later".to_owned(), vec![vec![mark(MARK)]]),
    ])
}

/// What was marked, and what pods send to the world, gets the node's address.
fn postrouting(facts: &Facts) -> Vec<Vec<Stmt>> {
    let mut rules = Vec::new();
    if let Some(IpAddr::V4(base)) = facts.local_pods.first().map(Cidr::base) {
        // On other nodes the node's own connections count as the node's. These are not: they come from an
        // address of its range that neither it nor a pod has.
        let away = is(meta(MetaKey::Oifname), text(OVERLAY));
        rules.push(vec![is_marked(MARK), away, unmark(MARK), rename(base)]);
    }
    rules.push(vec![is_marked(MARK), unmark(MARK), masquerade()]);
    if !facts.local_pods.is_empty() {
        let multicast = Cidr::new(IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 4);
        let inside: Vec<Cidr> =
            facts.pods.iter().chain(&facts.services).copied().chain([multicast]).collect();
        rules.push(vec![
            is(source(), ranges(&facts.local_pods)),
            is_not(target(), ranges(&inside)),
            is_not(meta(MetaKey::Oifname), text("lo")),
            masquerade(),
        ]);
    }
    rules
}

/// Endpoints of a Service port that a node may send to.
struct Choice<'a> {
    all: Vec<&'a Backend>,
    local: Vec<&'a Backend>,
}

impl<'a> Choice<'a> {
    fn new(forward: &'a Forward, facts: &Facts) -> Self {
        let four = |backend: &&Backend| backend.address.is_ipv4();
        let local = |backend: &&Backend| backend.node.as_deref() == Some(&facts.node);
        let all: Vec<&Backend> = forward.backends.iter().filter(four).collect();
        Self { local: all.iter().copied().filter(local).collect(), all }
    }
}

impl Rules {
    fn add(&mut self, forward: &Forward, facts: &Facts) {
        let four = |ips: &[IpAddr]| -> Vec<Ipv4Addr> {
            let four = ips.iter().filter_map(|ip| if let IpAddr::V4(ip) = ip { Some(*ip) } else { None });
            four.filter(|ip| !facts.served.contains(ip)).collect()
        };
        let (cluster, balancer) = (four(&forward.cluster), four(&forward.balancer));
        if cluster.is_empty() {
            return;
        }
        let choice = Choice::new(forward, facts);
        let id = name("", forward, None);
        for address in &cluster {
            self.insert(CLUSTER_IPS, Key::Address(*address));
        }
        let door = facts.door.filter(|_| forward.is_api());
        let inside = self.inside(forward, &choice, door, &id);
        self.lead(forward, &cluster, None, inside, choice.all.is_empty());
        let outside = self.outside(forward, &choice, facts, &id);
        self.lead(
            forward,
            &four(&forward.external),
            forward.node_port,
            outside.clone(),
            choice.all.is_empty(),
        );
        let guarded = match (outside, forward.sources.is_empty()) {
            (Some(outside), false) => Some(self.guard(forward, &id, outside)),
            (outside, _) => outside,
        };
        self.lead(forward, &balancer, None, guarded, choice.all.is_empty());
    }

    /// The chain for clients in the cluster.
    fn inside(
        &mut self,
        forward: &Forward,
        choice: &Choice<'_>,
        door: Option<SocketAddrV4>,
        id: &str,
    ) -> Option<String> {
        let door = door.map(|door| Backend { address: door.into(), node: None });
        let chain = format!("svc-{id}");
        match &door {
            Some(door) => self.choose(&chain, forward, &[door]),
            None if forward.internal_local => self.choose(&chain, forward, &choice.local),
            None => self.choose(&chain, forward, &choice.all),
        }
    }

    /// The chain for clients outside.
    fn outside(&mut self, forward: &Forward, choice: &Choice<'_>, facts: &Facts, id: &str) -> Option<String> {
        let exposed =
            forward.node_port.is_some() || !forward.external.is_empty() || !forward.balancer.is_empty();
        if !exposed || choice.all.is_empty() {
            return None;
        }
        let chain = format!("ext-{id}");
        let all = self.choose(&format!("all-{id}"), forward, &choice.all)?;
        if !forward.external_local {
            self.chains.insert(chain.clone(), vec![vec![jump("masquerade-later")], vec![goto(all)]]);
            return Some(chain);
        }
        // Clients inside the cluster are not bound to the node.
        let mut rules = Vec::new();
        if !facts.pods.is_empty() {
            rules.push(vec![is(source(), ranges(&facts.pods)), goto(all.clone())]);
        }
        rules.push(vec![is(source_kind(), text("local")), jump("masquerade-later")]);
        rules.push(vec![is(source_kind(), text("local")), goto(all)]);
        let local = self.choose(&format!("loc-{id}"), forward, &choice.local);
        rules.push(vec![goto(local.unwrap_or_else(|| "drop".to_owned()))]);
        self.chains.insert(chain.clone(), rules);
        Some(chain)
    }

    /// A chain that lets only some clients through.
    fn guard(&mut self, forward: &Forward, id: &str, next: String) -> String {
        let chain = format!("lbs-{id}");
        let others = vec![is_not(source(), ranges(&forward.sources)), Statement::Drop(None)];
        self.chains.insert(chain.clone(), vec![others, vec![goto(next)]]);
        chain
    }

    /// A chain that chooses among endpoints, which is the endpoint's own if there is one; `None` without any.
    fn choose(&mut self, chain: &str, forward: &Forward, backends: &[&Backend]) -> Option<String> {
        if backends.is_empty() {
            return None;
        }
        let targets: Vec<String> = backends.iter().map(|backend| self.target(forward, backend)).collect();
        if let [only] = targets.as_slice() {
            return Some(only.clone());
        }
        let mut rules = Vec::new();
        if forward.affinity.is_some() {
            let known = |target: &String| {
                vec![is(source(), text(format!("@{}", clients(target)))), goto(target.clone())]
            };
            rules.extend(targets.iter().map(known));
        }
        rules.push(vec![any_of(&targets)]);
        self.chains.insert(chain.to_owned(), rules);
        Some(chain.to_owned())
    }

    /// The chain that rewrites the target of a packet to an endpoint.
    fn target(&mut self, forward: &Forward, backend: &Backend) -> String {
        let chain = name("ep-", forward, Some(backend));
        let IpAddr::V4(address) = backend.address.ip() else { return chain };
        let mut rules = vec![hairpin(address)];
        let mut last = Vec::new();
        if let Some(timeout) = forward.affinity {
            let set = clients(&chain);
            last.push(remember(&set));
            self.collections.insert(set.into(), Collection::Clients(timeout));
        }
        last.extend(rewrite(forward.port.transport, address, backend.address.port()));
        rules.push(last);
        self.chains.insert(chain.clone(), rules);
        chain
    }

    /// A pod's port on the node. Clients are not hidden: answers come back this way anyhow.
    fn add_host_port(&mut self, port: &HostPort) {
        let (transport, number, (address, target)) = (port.transport, port.port, port.target);
        let at = port.host.map_or_else(|| "any".to_owned(), |host| host.to_string());
        let chain = format!("hp-{}/{number}/{at}", super::syntax::protocol(transport));
        let rules = vec![hairpin(address), rewrite(transport, address, target).into()];
        self.chains.insert(chain.clone(), rules);
        match port.host {
            Some(host) => self.map(HOST_ADDRESSES, Key::Service(host, transport, number), chain),
            None => self.map(HOST_PORTS, Key::Port(transport, number), chain),
        }
    }

    /// Leads addresses and a node port to a chain, or, without one, to a refusal: `empty` says that there is
    /// no endpoint anywhere, else the ones there are are not for this node.
    fn lead(
        &mut self,
        forward: &Forward,
        addresses: &[Ipv4Addr],
        node_port: Option<u16>,
        chain: Option<String>,
        empty: bool,
    ) {
        let (transport, number) = (forward.port.transport, forward.port.number);
        let (services, ports) = if chain.is_some() { (SERVICES, NODE_PORTS) } else { (NOBODY, NOBODY_PORTS) };
        let verdict = chain.unwrap_or_else(|| if empty { "refuse" } else { "drop" }.to_owned());
        for address in addresses {
            self.map(services, Key::Service(*address, transport, number), verdict.clone());
        }
        if let Some(port) = node_port {
            self.map(ports, Key::Port(transport, port), verdict);
        }
    }
}

/// A pod that reaches itself has to see another address than its own.
fn hairpin(address: Ipv4Addr) -> Vec<Stmt> {
    vec![is(source(), text(address.to_string())), jump("masquerade-later")]
}

/// The set of clients of an endpoint's chain.
fn clients(chain: &str) -> String {
    format!("of-{chain}")
}

/// A name that is unique, stays the same between runs, and says what it is about.
fn name(prefix: &str, forward: &Forward, backend: Option<&Backend>) -> String {
    let (namespace, service) = &forward.service;
    let transport = super::syntax::protocol(forward.port.transport);
    let address = backend.map(|backend| format!("/{}/{}", backend.address.ip(), backend.address.port()));
    let text =
        format!("{namespace}/{service}/{transport}/{}{}", forward.port.number, address.unwrap_or_default());
    let mut hasher = DefaultHasher::new();
    (&text, &forward.port.name).hash(&mut hasher);
    let short: String = text.chars().take(NAME).collect();
    format!("{prefix}{:08x}-{short}", hasher.finish() >> 32)
}
