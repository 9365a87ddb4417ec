//! Names as a pod sees them: cluster names (Kubernetes DNS specification 1.1.0) with search-path
//! completion, answered from the [`Table`]. Pure; names outside the cluster are the caller's to look up.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ketch_api::names::CLUSTER_DOMAIN;

use crate::{
    cidr::Cidr,
    services::{Member, Table},
};

/// Names with fewer dots are completed first (`ndots:5`).
const DOTS: usize = 5;
/// Aliases of aliases that are followed.
const ALIASES: usize = 8;

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The pod itself.
    Own,
    /// These addresses.
    Addresses(Vec<IpAddr>),
    /// A name outside the cluster.
    Outside(String),
    /// A name of the cluster that nothing has.
    Unknown,
}

/// What `name` stands for in a pod of `namespace`. `pods` are the ranges of pod addresses.
pub fn resolve(table: &Table, pods: &[Cidr], namespace: &str, name: &str) -> Answer {
    let mut name = name.to_ascii_lowercase();
    for _ in 0..ALIASES {
        if let Ok(address) = name.trim_matches(['[', ']']).parse() {
            return Answer::Addresses(vec![address]);
        }
        if is_localhost(&name) {
            return Answer::Own;
        }
        let found =
            candidates(namespace, &name).into_iter().find_map(|candidate| lookup(table, pods, &candidate));
        match found {
            Some(Found::Addresses(addresses)) => return Answer::Addresses(addresses),
            Some(Found::Alias(alias)) => name = alias.to_ascii_lowercase(),
            None => {
                let absolute = name.trim_end_matches('.');
                let inside = absolute == CLUSTER_DOMAIN || absolute.ends_with(&format!(".{CLUSTER_DOMAIN}"));
                let plausible = !absolute.is_empty() && absolute.len() <= 253;
                return if inside || !plausible {
                    Answer::Unknown
                } else {
                    Answer::Outside(absolute.to_owned())
                };
            }
        }
    }
    Answer::Unknown
}

/// RFC 6761: the name and everything under it.
fn is_localhost(name: &str) -> bool {
    let name = name.trim_end_matches('.');
    name == "localhost" || name.ends_with(".localhost")
}

/// Absolute names to try in order, without the last dot.
fn candidates(namespace: &str, name: &str) -> Vec<String> {
    if let Some(absolute) = name.strip_suffix('.') {
        return vec![absolute.to_owned()];
    }
    let completed = [
        format!("{name}.{namespace}.svc.{CLUSTER_DOMAIN}"),
        format!("{name}.svc.{CLUSTER_DOMAIN}"),
        format!("{name}.{CLUSTER_DOMAIN}"),
    ];
    if name.matches('.').count() >= DOTS {
        std::iter::once(name.to_owned()).chain(completed).collect()
    } else {
        completed.into_iter().chain([name.to_owned()]).collect()
    }
}

enum Found {
    Addresses(Vec<IpAddr>),
    Alias(String),
}

fn lookup(table: &Table, pods: &[Cidr], absolute: &str) -> Option<Found> {
    let inside = absolute.strip_suffix(CLUSTER_DOMAIN)?.strip_suffix('.')?;
    let labels: Vec<&str> = inside.split('.').collect();
    match labels.as_slice() {
        [service, namespace, "svc"] => {
            let entry = table.entry(namespace, service)?;
            if let Some(alias) = &entry.alias {
                return Some(Found::Alias(alias.clone() + "."));
            }
            if !entry.addresses.is_empty() {
                return Some(Found::Addresses(entry.addresses.clone()));
            }
            let addresses: Vec<IpAddr> = entry.endpoints.iter().map(|member| member.address).collect();
            Some(Found::Addresses(addresses))
        }
        [host, service, namespace, "svc"] => {
            let entry = table.entry(namespace, service)?;
            let named = entry.endpoints.iter().filter(|member| is_named(member, host));
            let addresses: Vec<IpAddr> = named.map(|member| member.address).collect();
            (!addresses.is_empty()).then_some(Found::Addresses(addresses))
        }
        [host, _, "pod"] => {
            let address = dashed(host)?;
            pods.iter().any(|range| range.contains(address)).then(|| Found::Addresses(vec![address]))
        }
        _ => None,
    }
}

/// Whether an endpoint's name under its Service is `host`: its host name, or its address in dashes.
pub fn is_named(member: &Member, host: &str) -> bool {
    match &member.hostname {
        Some(hostname) => hostname == host,
        None => dashed(host) == Some(member.address),
    }
}

/// `10-42-0-7` and `2001-db8--7` as addresses.
pub fn dashed(label: &str) -> Option<IpAddr> {
    let dotted: Option<Ipv4Addr> = label.replace('-', ".").parse().ok();
    let colons = || label.replace('-', ":").parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    dotted.map(IpAddr::V4).or_else(colons)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_resolve_as_in_a_pod() {
        let table = crate::services::tests::table("None");
        let pods = ["10.42.0.0/16".parse().unwrap()];
        let found = |list: &[&str]| Answer::Addresses(list.iter().map(|ip| ip.parse().unwrap()).collect());
        let outside = |name: &str| Answer::Outside(name.to_owned());
        for (name, expected) in [
            ("web", found(&["10.43.0.10"])),
            ("WEB", found(&["10.43.0.10"])),
            ("web.shop", found(&["10.43.0.10"])),
            ("web.default", found(&["10.43.0.12"])),
            ("web.shop.svc", found(&["10.43.0.10"])),
            ("web.shop.svc.cluster.local", found(&["10.43.0.10"])),
            ("web.shop.svc.cluster.local.", found(&["10.43.0.10"])),
            ("web.", outside("web")),
            ("db", found(&["10.42.0.5", "10.42.0.6"])),
            ("db-1.db", found(&["10.42.0.6"])),
            ("db-1.db.shop.svc.cluster.local", found(&["10.42.0.6"])),
            ("db-7.db.shop.svc.cluster.local", Answer::Unknown),
            ("10-42-0-2.web.shop.svc.cluster.local", found(&["10.42.0.2"])),
            ("10-42-0-7.shop.pod.cluster.local", found(&["10.42.0.7"])),
            ("169-254-169-254.shop.pod.cluster.local", Answer::Unknown),
            ("nothing.shop.svc.cluster.local", Answer::Unknown),
            ("out", outside("example.com")),
            ("example.com", outside("example.com")),
            ("a.b.c.d.e.example.com", outside("a.b.c.d.e.example.com")),
            ("10.1.2.3", found(&["10.1.2.3"])),
            ("[::1]", found(&["::1"])),
            ("localhost", Answer::Own),
            ("foo.localhost.", Answer::Own),
            ("", Answer::Unknown),
            (&"a".repeat(300), Answer::Unknown),
        ] {
            assert_eq!(resolve(&table, &pods, "shop", name), expected, "{name}");
        }
    }
}
