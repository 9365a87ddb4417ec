//! Services as this process sees them: an immutable [`Table`] built from Service and EndpointSlice objects.
//!
//! Guests that dial in process have an endpoint chosen when they connect, so there is no address
//! translation on their path.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ketch_api::k8s::api::{
    core::v1::{Service, ServicePort},
    discovery::v1::{Endpoint, EndpointPort, EndpointSlice},
};

use crate::forward::{Backend, Forward};

/// Transport of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    fn parse(text: Option<&str>) -> Option<Self> {
        match text {
            None | Some("TCP") => Some(Self::Tcp),
            Some("UDP") => Some(Self::Udp),
            Some(_) => None,
        }
    }
}

/// Namespace and name.
pub type Key = (String, String);

/// What clients of a Service see.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    /// Cluster addresses; empty for headless Services and aliases.
    pub addresses: Vec<IpAddr>,
    /// Ports in order.
    pub ports: Vec<EntryPort>,
    /// Another name that stands for it (`ExternalName`).
    pub alias: Option<String>,
    /// Whether it has no cluster address on purpose: its endpoints are its addresses.
    pub headless: bool,
    /// Ready endpoints, by address.
    pub endpoints: Vec<Member>,
}

/// An endpoint of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name under a headless Service.
    pub hostname: Option<String>,
    /// Its address.
    pub address: IpAddr,
    /// Its own ports, under the names that the Service has for them.
    pub ports: Arc<[EntryPort]>,
}

/// A Service's port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryPort {
    /// Name; empty when there is only one.
    pub name: String,
    /// Number.
    pub number: u16,
    /// Transport.
    pub transport: Transport,
}

#[derive(Clone, Debug, Default)]
struct Frontend {
    service: Key,
    endpoints: Vec<SocketAddr>,
    sticky: bool,
}

/// Who an address belongs to, for reverse look-ups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The Service.
    pub service: Key,
    /// For an endpoint of a headless Service: its name under it, when it has one.
    pub endpoint: Option<Option<String>>,
}

/// What a Service's address and port leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice<'a> {
    /// That is no Service.
    NotService,
    /// A Service without a ready endpoint.
    Empty(&'a Key),
    /// One of its endpoints.
    Endpoint(&'a Key, SocketAddr),
}

/// Every Service of the cluster at one time.
#[derive(Clone, Debug, Default)]
pub struct Table {
    entries: HashMap<String, BTreeMap<String, Entry>>,
    owners: HashMap<IpAddr, Vec<Owner>>,
    forwards: Vec<Forward>,
    frontends: HashMap<(SocketAddr, Transport), Frontend>,
}

impl Table {
    /// Builds the table. Slices of Services that do not exist are left out.
    pub fn build<'a>(
        services: impl IntoIterator<Item = &'a Service>,
        slices: impl IntoIterator<Item = &'a EndpointSlice>,
    ) -> Self {
        let mut by_service: HashMap<Key, Vec<&EndpointSlice>> = HashMap::new();
        for slice in slices {
            if let Some(key) = owner(slice) {
                by_service.entry(key).or_default().push(slice);
            }
        }
        let mut table = Self::default();
        for service in services {
            let key = key(service);
            let slices = by_service.remove(&key).unwrap_or_default();
            table.add(key, service, &slices);
        }
        table
    }

    fn add(&mut self, key: Key, service: &Service, slices: &[&EndpointSlice]) {
        let Some(spec) = &service.spec else { return };
        let listed = spec.cluster_ips.clone().or_else(|| spec.cluster_ip.clone().map(|ip| vec![ip]));
        let addresses: Vec<IpAddr> = listed.iter().flatten().filter_map(|ip| ip.parse().ok()).collect();
        let external = spec.external_ips.iter().flatten().filter_map(|ip| ip.parse().ok());
        let balancer = service
            .status
            .iter()
            .flat_map(|s| s.load_balancer.iter())
            .flat_map(|b| b.ingress.iter().flatten());
        let balancer = balancer.filter_map(|ingress| ingress.ip.as_deref()?.parse().ok());
        let sticky = spec.session_affinity.as_deref() == Some("ClientIP");
        let fronts: Vec<IpAddr> = addresses.iter().copied().chain(external).chain(balancer).collect();
        let mut ports = Vec::new();
        for port in spec.ports.iter().flatten() {
            let (Some(entry), Some(endpoints)) = (entry_port(port), endpoints(port, slices)) else {
                continue;
            };
            let all = backends(port, slices);
            self.forwards.push(Forward::new(service, (&key, &entry), port, &addresses, all));
            for address in &fronts {
                let frontend = Frontend { service: key.clone(), endpoints: endpoints.clone(), sticky };
                self.frontends.insert((SocketAddr::new(*address, entry.number), entry.transport), frontend);
            }
            ports.push(entry);
        }
        let alias = spec.external_name.clone().filter(|_| spec.type_.as_deref() == Some("ExternalName"));
        let headless = spec.cluster_ip.as_deref() == Some("None");
        let publish = spec.publish_not_ready_addresses == Some(true);
        let entry = Entry { addresses, ports, alias, headless, endpoints: members(slices, publish) };
        self.own(&key, &entry);
        let (namespace, name) = key;
        self.entries.entry(namespace).or_default().insert(name, entry);
    }

    fn own(&mut self, key: &Key, entry: &Entry) {
        for address in &entry.addresses {
            let owner = Owner { service: key.clone(), endpoint: None };
            self.owners.entry(*address).or_default().push(owner);
        }
        for member in entry.endpoints.iter().filter(|_| entry.headless) {
            let owner = Owner { service: key.clone(), endpoint: Some(member.hostname.clone()) };
            self.owners.entry(member.address).or_default().push(owner);
        }
    }

    /// A Service.
    pub fn entry(&self, namespace: &str, name: &str) -> Option<&Entry> {
        self.entries.get(namespace)?.get(name)
    }

    /// Whether there is a Service in a namespace.
    pub fn has_namespace(&self, namespace: &str) -> bool {
        self.entries.contains_key(namespace)
    }

    /// Every port of every Service that has a cluster address, or is to have none.
    pub fn forwards(&self) -> &[Forward] {
        &self.forwards
    }

    /// Services whose cluster address it is, and headless ones it is an endpoint of.
    pub fn owners(&self, address: IpAddr) -> &[Owner] {
        self.owners.get(&address).map_or(&[], Vec::as_slice)
    }

    /// Services of a namespace, by name.
    pub fn namespace(&self, namespace: &str) -> BTreeMap<&str, &Entry> {
        let inside = self.entries.get(namespace).into_iter().flatten();
        inside.map(|(name, entry)| (name.as_str(), entry)).collect()
    }

    /// Where a connection of `client` to `target` goes. `turn` is a counter of the caller's: endpoints take
    /// turns. A Service with session affinity always gives a client the same endpoint while its endpoints
    /// stay the same, and moves as few clients as possible when they change (rendezvous hashing).
    pub fn choose(
        &self,
        client: IpAddr,
        target: SocketAddr,
        transport: Transport,
        turn: usize,
    ) -> Choice<'_> {
        let Some(frontend) = self.frontends.get(&(target, transport)) else { return Choice::NotService };
        let endpoints = &frontend.endpoints;
        let chosen = if frontend.sticky {
            endpoints.iter().max_by_key(|endpoint| weight(client, **endpoint))
        } else {
            turn.checked_rem(endpoints.len()).and_then(|index| endpoints.get(index))
        };
        match chosen {
            Some(endpoint) => Choice::Endpoint(&frontend.service, *endpoint),
            None => Choice::Empty(&frontend.service),
        }
    }
}

fn weight(client: IpAddr, endpoint: SocketAddr) -> u64 {
    let mut hasher = DefaultHasher::new();
    (client, endpoint).hash(&mut hasher);
    hasher.finish()
}

fn key(service: &Service) -> Key {
    let meta = &service.metadata;
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

fn owner(slice: &EndpointSlice) -> Option<Key> {
    let name = slice.metadata.labels.as_ref()?.get("kubernetes.io/service-name")?;
    Some((slice.metadata.namespace.clone().unwrap_or_default(), name.clone()))
}

fn entry_port(port: &ServicePort) -> Option<EntryPort> {
    Some(EntryPort {
        name: port.name.clone().unwrap_or_default(),
        number: u16::try_from(port.port).ok()?,
        transport: Transport::parse(port.protocol.as_deref())?,
    })
}

/// Endpoints in use: the ready ones, else, while a rollout ends the last of them, those that still serve.
fn usable<'a>(slices: &[&'a EndpointSlice]) -> Vec<(&'a EndpointSlice, &'a Endpoint)> {
    let all =
        || slices.iter().flat_map(|slice| slice.endpoints.iter().map(move |endpoint| (*slice, endpoint)));
    let ready = |e: &Endpoint| e.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true);
    let serving = |e: &Endpoint| {
        e.conditions.as_ref().is_some_and(|c| c.serving.unwrap_or(true) && c.terminating.unwrap_or(false))
    };
    let chosen: Vec<_> = all().filter(|(_, endpoint)| ready(endpoint)).collect();
    if chosen.is_empty() { all().filter(|(_, endpoint)| serving(endpoint)).collect() } else { chosen }
}

fn endpoints(port: &ServicePort, slices: &[&EndpointSlice]) -> Option<Vec<SocketAddr>> {
    Transport::parse(port.protocol.as_deref())?;
    let mut found: Vec<SocketAddr> =
        backends(port, slices).into_iter().map(|backend| backend.address).collect();
    found.dedup();
    Some(found)
}

/// Endpoints of a port, with the nodes they are on.
fn backends(port: &ServicePort, slices: &[&EndpointSlice]) -> Vec<Backend> {
    let transport = Transport::parse(port.protocol.as_deref());
    let name = port.name.as_deref().unwrap_or_default();
    let mut found = Vec::new();
    for (slice, endpoint) in usable(slices) {
        let ports = slice.ports.as_deref().unwrap_or_default();
        let target = ports.iter().find(|one| {
            one.name.as_deref().unwrap_or_default() == name
                && Transport::parse(one.protocol.as_deref()) == transport
        });
        let Some(number) = target.and_then(|one| u16::try_from(one.port?).ok()) else { continue };
        let addresses = endpoint.addresses.iter().filter_map(|address| address.parse().ok());
        let node = || endpoint.node_name.clone();
        found.extend(addresses.map(|ip| Backend { address: SocketAddr::new(ip, number), node: node() }));
    }
    found.sort();
    found.dedup();
    found
}

/// Endpoints as names show them; with `publish` those that are not ready too.
fn members(slices: &[&EndpointSlice], publish: bool) -> Vec<Member> {
    let shown: Vec<(&EndpointSlice, &Endpoint)> = match publish {
        true => slices.iter().flat_map(|slice| slice.endpoints.iter().map(move |e| (*slice, e))).collect(),
        false => usable(slices),
    };
    let mut found: Vec<Member> = Vec::new();
    for (slice, endpoint) in shown {
        let ports: Arc<[EntryPort]> = slice.ports.iter().flatten().filter_map(slice_port).collect();
        let addresses = endpoint.addresses.iter().filter_map(|address| address.parse().ok());
        found.extend(addresses.map(|address| Member {
            hostname: endpoint.hostname.clone(),
            address,
            ports: Arc::clone(&ports),
        }));
    }
    merge(found)
}

/// One member per address and name: slices of one Service differ in ports.
fn merge(mut found: Vec<Member>) -> Vec<Member> {
    found.sort_by(|a, b| (a.address, &a.hostname).cmp(&(b.address, &b.hostname)));
    let mut merged: Vec<Member> = Vec::with_capacity(found.len());
    for member in found {
        match merged.last_mut() {
            Some(last) if (last.address, &last.hostname) == (member.address, &member.hostname) => {
                let fresh = member.ports.iter().filter(|port| !last.ports.contains(port));
                let both: Vec<EntryPort> = last.ports.iter().chain(fresh).cloned().collect();
                last.ports = both.into();
            }
            _ => merged.push(member),
        }
    }
    merged
}

fn slice_port(port: &EndpointPort) -> Option<EntryPort> {
    Some(EntryPort {
        name: port.name.clone().unwrap_or_default(),
        number: u16::try_from(port.port?).ok()?,
        transport: Transport::parse(port.protocol.as_deref())?,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;

    /// `web` with two ready endpoints, one not ready; `db` headless; `gone` without endpoints; `out` an alias.
    pub(crate) fn table(affinity: &str) -> Table {
        let services: Vec<Service> = serde_json::from_value(json!([
            {"metadata": {"namespace": "shop", "name": "web"}, "spec": {"clusterIP": "10.43.0.10", "clusterIPs": ["10.43.0.10"],
                "sessionAffinity": affinity, "ports": [{"name": "http", "port": 80, "targetPort": 8080}, {"name": "dns", "port": 53, "protocol": "UDP"}]}},
            {"metadata": {"namespace": "shop", "name": "db"}, "spec": {"clusterIP": "None", "ports": [{"port": 5432}]}},
            {"metadata": {"namespace": "shop", "name": "gone"}, "spec": {"clusterIP": "10.43.0.11", "ports": [{"port": 80}]}},
            {"metadata": {"namespace": "shop", "name": "out"}, "spec": {"type": "ExternalName", "externalName": "example.com"}},
            {"metadata": {"namespace": "default", "name": "web"}, "spec": {"clusterIP": "10.43.0.12", "ports": [{"port": 80}]}},
        ]))
        .unwrap();
        let slices: Vec<EndpointSlice> = serde_json::from_value(json!([
            {"addressType": "IPv4", "metadata": {"namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
                "ports": [{"name": "http", "port": 8080}, {"name": "dns", "port": 5353, "protocol": "UDP"}],
                "endpoints": [{"addresses": ["10.42.0.2"]}, {"addresses": ["10.42.0.3"], "conditions": {"ready": true}},
                    {"addresses": ["10.42.0.4"], "conditions": {"ready": false}}]},
            {"addressType": "IPv4", "metadata": {"namespace": "shop", "labels": {"kubernetes.io/service-name": "db"}},
                "ports": [{"port": 5432}],
                "endpoints": [{"addresses": ["10.42.0.5"], "hostname": "db-0"}, {"addresses": ["10.42.0.6"], "hostname": "db-1"}]},
            {"addressType": "IPv4", "metadata": {"namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
                "ports": [{"port": 80}],
                "endpoints": [{"addresses": ["10.42.0.9"], "conditions": {"ready": false, "serving": true, "terminating": true}}]},
        ]))
        .unwrap();
        Table::build(&services, &slices)
    }

    fn endpoint(
        table: &Table,
        client: &str,
        target: &str,
        transport: Transport,
        turn: usize,
    ) -> Option<String> {
        match table.choose(client.parse().unwrap(), target.parse().unwrap(), transport, turn) {
            Choice::Endpoint(_, endpoint) => Some(endpoint.to_string()),
            _ => None,
        }
    }

    #[test]
    fn ready_endpoints_take_turns() {
        let table = table("None");
        let at = |turn| endpoint(&table, "10.42.0.2", "10.43.0.10:80", Transport::Tcp, turn).unwrap();
        assert_eq!([at(0), at(1), at(2)], ["10.42.0.2:8080", "10.42.0.3:8080", "10.42.0.2:8080"]);
        let udp = endpoint(&table, "10.42.0.2", "10.43.0.10:53", Transport::Udp, 0);
        assert_eq!(udp.as_deref(), Some("10.42.0.2:5353"));
        assert_eq!(endpoint(&table, "10.42.0.2", "10.43.0.10:53", Transport::Tcp, 0), None);
    }

    #[test]
    fn affinity_keeps_a_client_and_spreads_clients() {
        let table = table("ClientIP");
        let at =
            |client: &str, turn| endpoint(&table, client, "10.43.0.10:80", Transport::Tcp, turn).unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for n in 1..50 {
            let client = format!("10.42.1.{n}");
            assert_eq!(at(&client, 0), at(&client, 1));
            seen.insert(at(&client, 0));
        }
        assert_eq!(seen.len(), 2);
    }

    #[test]
    fn services_without_endpoints_are_told_from_other_addresses() {
        let table = table("None");
        let choose = |target: &str| {
            table.choose("10.42.0.2".parse().unwrap(), target.parse().unwrap(), Transport::Tcp, 0)
        };
        assert_eq!(choose("10.43.0.11:80"), Choice::Empty(&("shop".into(), "gone".into())));
        assert_eq!(choose("10.43.0.99:80"), Choice::NotService);
        assert_eq!(choose("10.43.0.10:81"), Choice::NotService);
        // The last endpoint serves until it has ended.
        assert!(matches!(choose("10.43.0.12:80"), Choice::Endpoint(..)));
    }
}
