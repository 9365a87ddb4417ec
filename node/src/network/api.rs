//! The Service of the API: where it leads, and what means it. Pure.

use std::net::SocketAddr;

use ketch_api::names::{API_SERVICE, CLUSTER_DOMAIN};
use ketch_net::{Table, Transport};

/// The Service of the API.
pub(super) const API: (&str, &str) = ("default", API_SERVICE);

/// Where the API answers.
fn endpoints(table: &Table) -> impl Iterator<Item = SocketAddr> + '_ {
    let members = table.entry(API.0, API.1).into_iter().flat_map(|entry| &entry.endpoints);
    members.flat_map(|member| member.ports.iter().map(|port| SocketAddr::new(member.address, port.number)))
}

/// What the door to the API stands for: where the API answers, or its Service when that is on loopback and nobody is
/// told.
pub(super) fn behind_door(table: &Table) -> impl Iterator<Item = SocketAddr> + '_ {
    let entry = table.entry(API.0, API.1).filter(|entry| entry.endpoints.is_empty());
    let fronts = entry.into_iter().flat_map(|entry| {
        let ports = entry.ports.iter().filter(|port| port.transport == Transport::Tcp);
        ports.flat_map(|port| entry.addresses.iter().map(|ip| SocketAddr::new(*ip, port.number)))
    });
    endpoints(table).chain(fronts)
}

/// Whether the API answers there.
pub(super) fn is_at(table: &Table, target: SocketAddr) -> bool {
    endpoints(table).any(|endpoint| endpoint == target)
}

/// Whether a name means the API: one of its Service, in full, or completed as a pod of `namespace` does.
pub(super) fn is_name(namespace: &str, name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let name = name.strip_suffix('.').unwrap_or(&name);
    let name = name.strip_suffix(&format!(".{CLUSTER_DOMAIN}")).unwrap_or(name);
    let name = name.strip_suffix(".svc").unwrap_or(name);
    let (service, home) = name.split_once('.').unwrap_or((name, namespace));
    (home, service) == API
}
