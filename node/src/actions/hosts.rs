//! Names that a pod is told: `/etc/hosts` of containers with a file system of their own, a table for guests.

use std::{collections::BTreeMap, net::IpAddr};

use ketch_api::k8s::api::core::v1 as core;
use ketch_runtime::Mount;

use super::{
    sandbox::{host_names, on_host_network},
    uid,
};
use crate::context::Context;

const TARGET: &str = "/etc/hosts";

/// The pod's file, written anew, and where it is mounted.
pub(super) fn mount(context: &Context, pod: &core::Pod, ip: IpAddr) -> Result<Option<Mount>, String> {
    let node = on_host_network(pod).then(|| std::fs::read_to_string(TARGET).unwrap_or_default());
    let source = context.pod_dir(uid(pod)).join("etc-hosts");
    let text = text(pod, ip, node.as_deref());
    let failed = |error: std::io::Error| format!("cannot write {}: {error}", source.display());
    std::fs::create_dir_all(context.pod_dir(uid(pod))).map_err(failed)?;
    std::fs::write(&source, text).map_err(failed)?;
    Ok(Some(Mount { source, target: TARGET.to_owned(), ..Mount::default() }))
}

/// The same for guests, which read no file: the pod's own names and its aliases, in lower case.
pub(super) fn table(pod: &core::Pod, ip: IpAddr) -> BTreeMap<String, Vec<IpAddr>> {
    let (short, full) = host_names(pod);
    let own =
        [Some(short), full].into_iter().flatten().filter(|_| !on_host_network(pod)).map(|name| (name, ip));
    let aliases = pod.spec.iter().flat_map(|spec| spec.host_aliases.iter().flatten());
    let aliases = aliases.flat_map(|alias| {
        let ip: Option<IpAddr> = alias.ip.parse().ok();
        alias.hostnames.iter().flatten().filter_map(move |name| Some((name.clone(), ip?)))
    });
    let mut table: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    for (name, ip) in own.chain(aliases) {
        table.entry(name.to_ascii_lowercase()).or_default().push(ip);
    }
    table
}

/// The file's text, in upstream's form. `node`: the node's own, for a pod on its network.
pub(super) fn text(pod: &core::Pod, ip: IpAddr, node: Option<&str>) -> String {
    let mut text = match node {
        Some(node) => format!("# Kubernetes-managed hosts file (host network).\n{node}"),
        None => {
            let (short, full) = host_names(pod);
            let names = full.map_or_else(|| short.clone(), |full| format!("{full}\t{short}"));
            format!(
                "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
                 fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n\
                 {ip}\t{names}\n"
            )
        }
    };
    let aliases = pod.spec.iter().flat_map(|spec| spec.host_aliases.iter().flatten());
    for (index, alias) in aliases.enumerate() {
        if index == 0 {
            text.push_str("\n# Entries added by HostAliases.\n");
        }
        let names = alias.hostnames.clone().unwrap_or_default().join("\t");
        text.push_str(&format!("{}\t{names}\n", alias.ip));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_finds_itself_and_its_aliases() {
        let pod: core::Pod = serde_json::from_value(json!({"metadata": {"name": "db-0", "namespace": "shop"},
            "spec": {"containers": [], "subdomain": "db", "hostAliases": [{"ip": "192.0.2.9", "hostnames": ["a", "b"]}]}}))
        .unwrap();
        let own = text(&pod, "10.42.0.130".parse().unwrap(), None);
        assert!(own.contains("\n127.0.0.1\tlocalhost\n"), "{own}");
        assert!(own.contains("\n10.42.0.130\tdb-0.db.shop.svc.cluster.local\tdb-0\n"), "{own}");
        assert!(own.ends_with("\n# Entries added by HostAliases.\n192.0.2.9\ta\tb\n"), "{own}");
        let table = table(&pod, "10.42.0.130".parse().unwrap());
        let names: Vec<&str> = table.keys().map(String::as_str).collect();
        assert_eq!(names, ["a", "b", "db-0", "db-0.db.shop.svc.cluster.local"]);
        assert_eq!(table["b"], ["192.0.2.9".parse::<IpAddr>().unwrap()]);
        let node = text(&pod, "192.0.2.1".parse().unwrap(), Some("127.0.0.1 localhost\n"));
        assert!(node.starts_with("# Kubernetes-managed hosts file (host network).\n127.0.0.1 localhost\n"));
        assert!(!node.contains("10.42"));
    }
}
