//! What a pod's containers share, as runtimes are told.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use ketch_api::{
    k8s::api::core::v1 as core,
    names::{self, CLUSTER_DOMAIN},
};
use ketch_runtime::{Dns, Namespaces, PodId, PodSandbox};

use super::{hosts, spec::annotation, uid};
use crate::{context::Context, kind::Kind};

/// Longest host name of Linux.
const LONGEST_HOSTNAME: usize = 63;
/// Most search domains and servers that resolvers take (upstream's limits).
const MAX_SEARCHES: usize = 32;
const MAX_SERVERS: usize = 3;

/// The pod as runtimes see it. `namespace`: the network namespace that another runtime made for it. Names are
/// resolved in process for pods that are Wasm only: no file is read for them.
pub(super) fn sandbox(
    context: &Context,
    pod: &core::Pod,
    ip: IpAddr,
    kind: Option<Kind>,
    namespace: Option<PathBuf>,
) -> PodSandbox {
    let outbound = annotation(pod, names::OUTBOUND_ANNOTATION).unwrap_or_default();
    let patterns = outbound.split(',').map(str::trim).filter(|pattern| !pattern.is_empty());
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let spec = pod.spec.as_ref();
    let is_set = |field: fn(&core::PodSpec) -> Option<bool>| spec.and_then(field).unwrap_or(false);
    PodSandbox {
        outbound: patterns.map(str::to_owned).collect(),
        network_namespace: namespace,
        hostname: hostname(pod),
        dns: spec
            .filter(|_| kind == Some(Kind::Sandboxed))
            .and_then(|spec| dns(pod, spec, context.dns.as_deref(), &host_resolver())),
        hosts: hosts::table(pod, ip),
        labels: pod.metadata.labels.clone().unwrap_or_default(),
        namespaces: Namespaces {
            host_network: on_host_network(pod),
            host_pid: is_set(|spec| spec.host_pid),
            host_ipc: is_set(|spec| spec.host_ipc),
            shared_pid: is_set(|spec| spec.share_process_namespace),
        },
        security: spec.and_then(|spec| spec.security_context.clone()).unwrap_or_default(),
        logs: crate::logs::pod_dir(&context.root, pod),
        ..PodSandbox::new(
            PodId(uid(pod).to_owned()),
            text(&pod.metadata.namespace),
            text(&pod.metadata.name),
            ip,
        )
    }
}

/// Whether the pod has the node's network.
pub(super) fn on_host_network(pod: &core::Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false)
}

/// The host name inside the pod; empty for the node's.
fn hostname(pod: &core::Pod) -> String {
    if on_host_network(pod) {
        return std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
    }
    let (short, full) = host_names(pod);
    let wants_full = pod.spec.as_ref().and_then(|spec| spec.set_hostname_as_fqdn).unwrap_or(false);
    full.filter(|_| wants_full).unwrap_or(short)
}

/// The pod's short name and, with a subdomain, its full one.
pub(super) fn host_names(pod: &core::Pod) -> (String, Option<String>) {
    let (meta, spec) = (&pod.metadata, pod.spec.as_ref());
    let given = spec.and_then(|spec| spec.hostname.as_deref()).filter(|name| !name.is_empty());
    let name = given.or(meta.name.as_deref()).unwrap_or_default();
    let short: String = name.chars().take(LONGEST_HOSTNAME).collect();
    let short = short.trim_end_matches(['-', '.']).to_owned();
    let namespace = meta.namespace.as_deref().unwrap_or("default");
    let subdomain = spec.and_then(|spec| spec.subdomain.as_deref()).filter(|name| !name.is_empty());
    let full = subdomain.map(|domain| format!("{short}.{domain}.{namespace}.svc.{CLUSTER_DOMAIN}"));
    (short, full)
}

/// The host's own resolver configuration.
fn host_resolver() -> Dns {
    // systemd-resolved puts a stub at 127.0.0.53 there, which no pod reaches, and the real one beside it.
    let read = |path: &str| std::fs::read_to_string(Path::new(path)).map(|text| resolver(&text));
    let main = read("/etc/resolv.conf").unwrap_or_default();
    let only_stub = !main.servers.is_empty() && main.servers.iter().all(|server| server == "127.0.0.53");
    if only_stub { read("/run/systemd/resolve/resolv.conf").unwrap_or(main) } else { main }
}

/// Reads a `resolv.conf`; the last `search` counts, options add up.
pub(super) fn resolver(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines() {
        let mut words =
            line.split(['#', ';']).next().unwrap_or_default().split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => dns.servers.extend(words.next()),
            Some("search" | "domain") => dns.searches = words.collect(),
            Some("options") => dns.options.extend(words),
            _ => {}
        }
    }
    dns
}

/// `dnsPolicy` and `dnsConfig`, as upstream: `ClusterFirst` asks the cluster's DNS, where there is one; a pod
/// on the host's network has the host's unless it asks for `ClusterFirstWithHostNet`.
pub(super) fn dns(
    pod: &core::Pod,
    spec: &core::PodSpec,
    cluster: Option<&[IpAddr]>,
    host: &Dns,
) -> Option<Dns> {
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster = cluster.filter(|servers| !servers.is_empty());
    let wants_cluster = match policy {
        "ClusterFirst" => !on_host_network(pod),
        "ClusterFirstWithHostNet" => true,
        _ => false,
    };
    let mut dns = match (policy, cluster) {
        ("None", _) => Dns::default(),
        (_, Some(servers)) if wants_cluster => {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
            let own = [
                format!("{namespace}.svc.{CLUSTER_DOMAIN}"),
                format!("svc.{CLUSTER_DOMAIN}"),
                CLUSTER_DOMAIN.to_owned(),
            ];
            Dns {
                servers: servers.iter().map(ToString::to_string).collect(),
                searches: own.into_iter().chain(host.searches.iter().cloned()).collect(),
                options: vec!["ndots:5".to_owned()],
            }
        }
        _ => host.clone(),
    };
    if let Some(config) = &spec.dns_config {
        add(&mut dns, config);
    }
    dns.servers = unique(dns.servers, MAX_SERVERS);
    dns.searches = unique(dns.searches, MAX_SEARCHES);
    (dns != Dns::default()).then_some(dns)
}

/// Adds `dnsConfig`: an option replaces one of the same name.
fn add(dns: &mut Dns, config: &core::PodDNSConfig) {
    dns.servers.extend(config.nameservers.iter().flatten().cloned());
    dns.searches.extend(config.searches.iter().flatten().cloned());
    for option in config.options.iter().flatten() {
        let Some(name) = &option.name else { continue };
        dns.options.retain(|known| known.split(':').next() != Some(name));
        dns.options.push(match &option.value {
            Some(value) if !value.is_empty() => format!("{name}:{value}"),
            _ => name.clone(),
        });
    }
}

fn unique(list: Vec<String>, most: usize) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    for one in list {
        if !kept.contains(&one) && kept.len() < most {
            kept.push(one);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(spec: serde_json::Value) -> core::Pod {
        let mut spec = spec;
        spec["containers"] = json!([]);
        serde_json::from_value(json!({"metadata": {"name": "web-0", "namespace": "shop"}, "spec": spec}))
            .unwrap()
    }

    #[test]
    fn names_come_from_the_spec_and_are_short() {
        let long = "a".repeat(62) + "-b";
        for (spec, expected) in [
            (json!({}), "web-0"),
            (json!({"hostname": "db"}), "db"),
            (json!({"hostname": "db", "subdomain": "pg"}), "db"),
            (
                json!({"hostname": "db", "subdomain": "pg", "setHostnameAsFQDN": true}),
                "db.pg.shop.svc.cluster.local",
            ),
            (json!({"hostname": long}), &"a".repeat(62)),
        ] {
            assert_eq!(hostname(&pod(spec.clone())), expected, "{spec}");
        }
    }

    #[test]
    fn the_dns_policy_is_upstreams() {
        let host = resolver("# stub\nnameserver 192.0.2.53\nsearch corp.example\noptions edns0 trust-ad\n");
        let cluster: &[IpAddr] = &["10.43.0.10".parse().unwrap()];
        let of = |spec: serde_json::Value, cluster: Option<&[IpAddr]>| {
            let pod = pod(spec);
            let dns = dns(&pod, pod.spec.as_ref().unwrap(), cluster, &host).unwrap_or_default();
            (dns.servers.join(" "), dns.searches.join(" "), dns.options.join(" "))
        };
        let text = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
        let first = text(
            "10.43.0.10",
            "shop.svc.cluster.local svc.cluster.local cluster.local corp.example",
            "ndots:5",
        );
        let hosts = text("192.0.2.53", "corp.example", "edns0 trust-ad");
        assert_eq!(of(json!({}), Some(cluster)), first);
        assert_eq!(of(json!({}), None), hosts);
        assert_eq!(of(json!({"dnsPolicy": "Default"}), Some(cluster)), hosts);
        assert_eq!(of(json!({"hostNetwork": true}), Some(cluster)), hosts);
        assert_eq!(
            of(json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}), Some(cluster)),
            first
        );
        let config = json!({"nameservers": ["192.0.2.1"], "searches": ["x.example"], "options": [{"name": "ndots", "value": "2"}, {"name": "debug"}]});
        assert_eq!(
            of(json!({"dnsPolicy": "None", "dnsConfig": config}), Some(cluster)),
            text("192.0.2.1", "x.example", "ndots:2 debug")
        );
        let merged = of(json!({"dnsConfig": config}), Some(cluster));
        assert_eq!((merged.0.as_str(), merged.2.as_str()), ("10.43.0.10 192.0.2.1", "ndots:2 debug"));
        assert_eq!(of(json!({"dnsPolicy": "None"}), None), text("", "", ""));
    }
}
