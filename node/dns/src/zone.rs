//! What the cluster's names stand for: the Kubernetes DNS specification 1.1.0 over a [`Table`]. Pure.

use std::{net::IpAddr, str::FromStr, sync::Arc};

use hickory_resolver::proto::rr::{
    Name, RData, Record, RecordType,
    rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT},
};
use ketch_api::names::CLUSTER_DOMAIN;
use ketch_net::{
    Cidr, Table, Transport,
    names::{dashed, is_named},
    services::{Entry, EntryPort, Member},
};

/// Seconds that answers may be kept, as CoreDNS has it.
pub const TTL: u32 = 5;
/// The version of the specification, under `dns-version.cluster.local`.
const SPECIFICATION: &str = "1.1.0";

/// Everything cluster names are answered from, at one time.
#[derive(Clone, Debug, Default)]
pub struct Zone {
    /// Services.
    pub table: Arc<Table>,
    /// Ranges of pod addresses: what `1-2-3-4.namespace.pod` may stand for.
    pub pods: Arc<[Cidr]>,
    /// Ranges of Service addresses. Reverse names of these and of `pods` are never asked for outside.
    pub services: Arc<[Cidr]>,
    /// Addresses of this server, under `ns.dns.cluster.local`.
    pub servers: Arc<[IpAddr]>,
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// Name, in any case; answers repeat it as it is.
    pub name: &'a Name,
    /// Type.
    pub kind: RecordType,
}

/// What there is to say.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// These records; the second list helps to use the first.
    Records(Vec<Record>, Vec<Record>),
    /// The name is another one's alias: the record that says so, and the other name.
    Alias(Record, Name),
    /// The name exists and has nothing of this type; the record is the zone's SOA.
    NoData(Record),
    /// There is no such name; the record is the zone's SOA.
    NoName(Record),
    /// It is not a name of the cluster.
    Outside,
}

/// What a name of the cluster has.
#[derive(Default)]
struct Found {
    data: Vec<RData>,
    alias: Option<String>,
    targets: Vec<(Name, IpAddr)>,
}

impl Found {
    /// A name that exists, but only because of names under it.
    fn nothing() -> Option<Self> {
        Some(Self::default())
    }

    fn data(data: impl IntoIterator<Item = RData>) -> Option<Self> {
        Some(Self { data: data.into_iter().collect(), ..Self::default() })
    }

    fn addresses(addresses: impl IntoIterator<Item = IpAddr>) -> Option<Self> {
        Self::data(addresses.into_iter().map(address))
    }
}

/// Answers a question. Never panics, whatever the name; never looks anywhere but in `zone`.
pub fn answer(zone: &Zone, query: &Query<'_>) -> Answer {
    let labels: Option<Vec<String>> =
        query.name.iter().map(|label| std::str::from_utf8(label).ok().map(str::to_ascii_lowercase)).collect();
    let Some(labels) = labels else {
        let inside = cluster().is_some_and(|cluster| cluster.zone_of(query.name));
        return if inside { Answer::NoName(soa(CLUSTER_DOMAIN)) } else { Answer::Outside };
    };
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    match labels.as_slice() {
        [inside @ .., "cluster", "local"] => shape(query, CLUSTER_DOMAIN, forward(zone, inside, query.kind)),
        [.., "in-addr" | "ip6", "arpa"] => reverse(zone, query, labels.last_chunk::<2>()),
        _ => Answer::Outside,
    }
}

fn shape(query: &Query<'_>, apex: &str, found: Option<Found>) -> Answer {
    let Some(found) = found else { return Answer::NoName(soa(apex)) };
    let record = |data| Record::from_rdata(query.name.clone(), TTL, data);
    if let Some(alias) = found.alias.as_deref().and_then(absolute) {
        return Answer::Alias(record(RData::CNAME(CNAME(alias.clone()))), alias);
    }
    let data = found.data.into_iter().filter(|data| data.record_type() == query.kind);
    let records: Vec<Record> = data.map(record).collect();
    if records.is_empty() {
        return Answer::NoData(soa(apex));
    }
    let targets = found.targets.into_iter().filter(|_| query.kind == RecordType::SRV);
    let more = targets.map(|(name, ip)| Record::from_rdata(name, TTL, address(ip)));
    Answer::Records(records, more.collect())
}

/// What a name has; `None`: it does not exist. `inside` is the name without the cluster's domain.
fn forward(zone: &Zone, inside: &[&str], kind: RecordType) -> Option<Found> {
    let table = &*zone.table;
    match inside {
        [] => Found::data([RData::SOA(soa_data()), RData::NS(NS(server_name()?))]),
        ["dns-version"] => Found::data([RData::TXT(TXT::new(vec![SPECIFICATION.to_owned()]))]),
        ["ns", "dns"] => Found::addresses(zone.servers.iter().copied()),
        ["dns" | "svc" | "pod"] => Found::nothing(),
        [namespace, "svc" | "pod"] => table.has_namespace(namespace).then(Found::default),
        [host, namespace, "pod"] => {
            let address = dashed(host)?;
            let known = table.has_namespace(namespace) && zone.pods.iter().any(|p| p.contains(address));
            known.then(|| Found::addresses([address])).flatten()
        }
        [service, namespace, "svc"] => {
            let entry = table.entry(namespace, service)?;
            Some(whole(entry, service, namespace, kind))
        }
        [host, service, namespace, "svc"] => {
            let entry = table.entry(namespace, service)?;
            if let Some(transport) = protocol(host) {
                return entry.ports.iter().any(|port| port.transport == transport).then(Found::default);
            }
            let members: Vec<&Member> = entry.endpoints.iter().filter(|m| is_named(m, host)).collect();
            (!members.is_empty()).then(|| Found::addresses(members.iter().map(|m| m.address))).flatten()
        }
        [port, proto, service, namespace, "svc"] => {
            let entry = table.entry(namespace, service)?;
            let (port, transport) = (port.strip_prefix('_')?, protocol(proto)?);
            let wanted = |p: &EntryPort| p.transport == transport && !port.is_empty() && p.name == port;
            entry.ports.iter().any(wanted).then(|| srv(entry, service, namespace, wanted))
        }
        _ => None,
    }
}

/// A Service's own name.
fn whole(entry: &Entry, service: &str, namespace: &str, kind: RecordType) -> Found {
    if entry.alias.is_some() {
        return Found { alias: entry.alias.clone(), ..Found::default() };
    }
    if kind == RecordType::SRV {
        return srv(entry, service, namespace, |_| true);
    }
    let members = entry.endpoints.iter().filter(|_| entry.headless).map(|member| member.address);
    let mut addresses: Vec<IpAddr> = entry.addresses.iter().copied().chain(members).collect();
    addresses.dedup();
    Found { data: addresses.into_iter().map(address).collect(), ..Found::default() }
}

/// Where ports of a Service are: at its own name, or, headless, at its endpoints' names.
fn srv(entry: &Entry, service: &str, namespace: &str, wanted: impl Fn(&EntryPort) -> bool) -> Found {
    let mut targets: Vec<(Name, IpAddr, u16)> = Vec::new();
    let own = format!("{service}.{namespace}.svc.{CLUSTER_DOMAIN}");
    let ports: Vec<&EntryPort> = entry.ports.iter().filter(|port| wanted(port)).collect();
    if let (false, Some(name), Some(ip)) = (entry.headless, absolute(&own), entry.addresses.first()) {
        targets.extend(ports.iter().map(|port| (name.clone(), *ip, port.number)));
    }
    for member in entry.endpoints.iter().filter(|_| entry.headless) {
        let Some(name) = absolute(&format!("{}.{own}", label(member.hostname.as_deref(), member.address)))
        else {
            continue;
        };
        // An endpoint's port has the Service port's name, and a number of its own.
        let of_ports = member
            .ports
            .iter()
            .filter(|p| ports.iter().any(|port| port.name == p.name && port.transport == p.transport));
        targets.extend(of_ports.map(|port| (name.clone(), member.address, port.number)));
    }
    let weight = u16::try_from(100 / targets.len().max(1)).unwrap_or(1).max(1);
    let data = targets.iter().map(|(name, _, port)| RData::SRV(SRV::new(0, weight, *port, name.clone())));
    let data = data.collect();
    let mut targets: Vec<(Name, IpAddr)> = targets.into_iter().map(|(name, ip, _)| (name, ip)).collect();
    targets.dedup();
    Found { data, targets, alias: None }
}

/// Reverse names, of Services and of the endpoints of headless ones.
fn reverse(zone: &Zone, query: &Query<'_>, tree: Option<&[&str; 2]>) -> Answer {
    let Some(address) = reverse_address(query.name) else { return Answer::Outside };
    let names: Vec<Name> = zone
        .table
        .owners(address)
        .iter()
        .filter_map(|owner| {
            let (namespace, service) = &owner.service;
            let whole = format!("{service}.{namespace}.svc.{CLUSTER_DOMAIN}");
            match &owner.endpoint {
                None => absolute(&whole),
                Some(host) => absolute(&format!("{}.{whole}", label(host.as_deref(), address))),
            }
        })
        .collect();
    let ours = zone.pods.iter().chain(zone.services.iter()).any(|range| range.contains(address));
    if names.is_empty() && !ours {
        return Answer::Outside;
    }
    let found = (!names.is_empty()).then(|| Found::data(names.into_iter().map(|n| RData::PTR(PTR(n)))));
    shape(query, &tree.map(|tree| tree.join(".")).unwrap_or_default(), found.flatten())
}

/// The address of a complete reverse name.
fn reverse_address(name: &Name) -> Option<IpAddr> {
    let range = name.parse_arpa_name().ok()?;
    (range.prefix_len() == range.max_prefix_len()).then(|| range.addr())
}

/// `_tcp` and `_udp`.
fn protocol(label: &str) -> Option<Transport> {
    match label {
        "_tcp" => Some(Transport::Tcp),
        "_udp" => Some(Transport::Udp),
        _ => None,
    }
}

/// The name of an endpoint under its Service.
fn label(hostname: Option<&str>, address: IpAddr) -> String {
    hostname.map_or_else(|| address.to_string().replace(['.', ':'], "-"), str::to_owned)
}

fn address(ip: IpAddr) -> RData {
    match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    }
}

/// A name with its last dot; `None` for text that is no name.
pub(crate) fn absolute(text: &str) -> Option<Name> {
    let mut name = Name::from_str(text.trim_end_matches('.')).ok()?;
    name.set_fqdn(true);
    Some(name)
}

/// The cluster's domain.
pub(crate) fn cluster() -> Option<Name> {
    absolute(CLUSTER_DOMAIN)
}

fn server_name() -> Option<Name> {
    absolute(&format!("ns.dns.{CLUSTER_DOMAIN}"))
}

fn soa_data() -> SOA {
    let admin = absolute(&format!("hostmaster.{CLUSTER_DOMAIN}")).unwrap_or_default();
    SOA::new(server_name().unwrap_or_default(), admin, 1, 7200, 1800, 86400, TTL)
}

fn soa(apex: &str) -> Record {
    Record::from_rdata(absolute(apex).unwrap_or_default(), TTL, RData::SOA(soa_data()))
}
