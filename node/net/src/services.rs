//! Services as this process sees them: an immutable [`Table`] built from Service and EndpointSlice objects.
//!
//! Guests that dial in process have an endpoint chosen when they connect, so there is no address
//! translation on their path.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    net::{IpAddr, SocketAddr},
};

use ketch_api::k8s::api::{
    core::v1::{Service, ServicePort},
    discovery::v1::{Endpoint, EndpointSlice},
};

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
    /// Ready endpoints with their host names.
    pub endpoints: Vec<(Option<String>, IpAddr)>,
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
    entries: HashMap<Key, Entry>,
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
            for address in &fronts {
                let frontend = Frontend { service: key.clone(), endpoints: endpoints.clone(), sticky };
                self.frontends.insert((SocketAddr::new(*address, entry.number), entry.transport), frontend);
            }
            ports.push(entry);
        }
        let alias = spec.external_name.clone().filter(|_| spec.type_.as_deref() == Some("ExternalName"));
        let entry = Entry { addresses, ports, alias, endpoints: named_endpoints(slices) };
        self.entries.insert(key, entry);
    }

    /// A Service.
    pub fn entry(&self, namespace: &str, name: &str) -> Option<&Entry> {
        self.entries.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// Services of a namespace, by name.
    pub fn namespace(&self, namespace: &str) -> BTreeMap<&str, &Entry> {
        let inside = self.entries.iter().filter(|((ns, _), _)| ns == namespace);
        inside.map(|((_, name), entry)| (name.as_str(), entry)).collect()
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
    let transport = Transport::parse(port.protocol.as_deref())?;
    let name = port.name.as_deref().unwrap_or_default();
    let mut found = Vec::new();
    for (slice, endpoint) in usable(slices) {
        let ports = slice.ports.as_deref().unwrap_or_default();
        let target = ports.iter().find(|one| {
            one.name.as_deref().unwrap_or_default() == name
                && Transport::parse(one.protocol.as_deref()) == Some(transport)
        });
        let Some(number) = target.and_then(|one| u16::try_from(one.port?).ok()) else { continue };
        let addresses = endpoint.addresses.iter().filter_map(|address| address.parse().ok());
        found.extend(addresses.map(|address| SocketAddr::new(address, number)));
    }
    found.sort();
    found.dedup();
    Some(found)
}

fn named_endpoints(slices: &[&EndpointSlice]) -> Vec<(Option<String>, IpAddr)> {
    let mut found: Vec<(Option<String>, IpAddr)> = Vec::new();
    for (_, endpoint) in usable(slices) {
        let addresses = endpoint.addresses.iter().filter_map(|address| address.parse().ok());
        found.extend(addresses.map(|address| (endpoint.hostname.clone(), address)));
    }
    found.sort();
    found.dedup();
    found
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
