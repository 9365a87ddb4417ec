//! The downward API: fields of a pod and resources of its containers as text. Pure.

use std::{collections::BTreeMap, net::IpAddr};

use ketch_api::{k8s::api::core::v1 as core, quantity::Quantity};

/// What the downward API can say of a pod beyond its object.
#[derive(Clone, Debug)]
pub(crate) struct Place<'a> {
    /// The pod's address.
    pub(crate) ip: Option<IpAddr>,
    /// The node's addresses.
    pub(crate) host_ips: &'a [String],
    /// CPUs and bytes of the node, for limits that are not set.
    pub(crate) cpus: i64,
    /// See [`Place::cpus`].
    pub(crate) memory: i64,
}

/// The value of a `fieldRef`; `Err` with upstream's message for fields there are not.
pub(crate) fn field(pod: &core::Pod, place: &Place<'_>, path: &str) -> Result<String, String> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    let text = |value: Option<&String>| Ok(value.cloned().unwrap_or_default());
    match path {
        "metadata.name" => text(meta.name.as_ref()),
        "metadata.namespace" => text(meta.namespace.as_ref()),
        "metadata.uid" => text(meta.uid.as_ref()),
        "metadata.labels" => Ok(listing(meta.labels.as_ref())),
        "metadata.annotations" => Ok(listing(meta.annotations.as_ref())),
        "spec.nodeName" => text(spec.and_then(|spec| spec.node_name.as_ref())),
        "spec.serviceAccountName" => text(spec.and_then(|spec| spec.service_account_name.as_ref())),
        "status.podIP" | "status.podIPs" => Ok(place.ip.map(|ip| ip.to_string()).unwrap_or_default()),
        "status.hostIP" => text(place.host_ips.first()),
        "status.hostIPs" => Ok(place.host_ips.join(",")),
        _ => match subscript(path) {
            Some(("metadata.labels", key)) => text(meta.labels.as_ref().and_then(|labels| labels.get(key))),
            Some(("metadata.annotations", key)) => {
                text(meta.annotations.as_ref().and_then(|all| all.get(key)))
            }
            _ => Err(format!("unsupported fieldPath: {path}")),
        },
    }
}

/// `metadata.labels['key']` in two parts.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (field, rest) = path.split_once("['")?;
    Some((field, rest.strip_suffix("']")?))
}

/// `key="value"` lines, quoted as Go does.
fn listing(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> =
        map.into_iter().flatten().map(|(key, value)| format!("{key}={value:?}")).collect();
    lines.join("\n")
}

/// The value of a `resourceFieldRef`: the container's figure over the divisor, rounded up; for a limit that
/// is not set, what the node has.
pub(crate) fn resource(
    pod: &core::Pod,
    container: Option<&core::Container>,
    place: &Place<'_>,
    selector: &core::ResourceFieldSelector,
) -> Result<String, String> {
    let named = |name: &str| {
        let spec = pod.spec.as_ref()?;
        spec.containers.iter().chain(spec.init_containers.iter().flatten()).find(|one| one.name == name)
    };
    let container = match selector.container_name.as_deref().filter(|name| !name.is_empty()) {
        Some(name) => named(name).ok_or_else(|| format!("container {name} not found"))?,
        None => container.ok_or("resourceFieldRef: containerName is required here")?,
    };
    let (kind, name) = selector.resource.split_once('.').unwrap_or_default();
    let resources = container.resources.clone().unwrap_or_default();
    let set = match kind {
        "limits" => resources.limits,
        "requests" => resources.requests,
        _ => return Err(format!("unsupported container resource: {}", selector.resource)),
    };
    let parse = |text: &str| text.parse::<Quantity>().map_err(|error| format!("{text:?}: {error}"));
    let value = set.as_ref().and_then(|set| set.get(name)).map(|quantity| parse(&quantity.0)).transpose()?;
    let divisor = selector.divisor.as_ref().filter(|divisor| !matches!(divisor.0.as_str(), "" | "0"));
    let divisor = parse(divisor.map_or("1", |divisor| &divisor.0))?;
    let (value, divisor) = match name {
        "cpu" => {
            (value.map_or(default(kind, place.cpus.saturating_mul(1000)), |v| v.millis()), divisor.millis())
        }
        "memory" => (value.map_or(default(kind, place.memory), |v| v.value()), divisor.value()),
        "ephemeral-storage" => (value.map_or(0, |v| v.value()), divisor.value()),
        _ => return Err(format!("unsupported container resource: {}", selector.resource)),
    };
    let divisor = divisor.max(1);
    Ok((value / divisor + i64::from(value % divisor > 0)).to_string())
}

/// What stands for a figure that is not set.
fn default(kind: &str, node: i64) -> i64 {
    if kind == "limits" { node } else { 0 }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod() -> core::Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "u", "labels": {"app": "web", "x": "a\"b"}},
            "spec": {"nodeName": "n1", "serviceAccountName": "sa", "containers": [
                {"name": "main", "resources": {"limits": {"cpu": "250m", "memory": "64Mi"}, "requests": {"cpu": "100m"}}},
                {"name": "other"}]}
        }))
        .unwrap()
    }

    fn place(ips: &[String]) -> Place<'_> {
        Place { ip: Some("10.42.0.2".parse().unwrap()), host_ips: ips, cpus: 4, memory: 1 << 30 }
    }

    #[test]
    fn fields_are_text() {
        let ips = ["192.0.2.1".to_owned(), "2001:db8::1".to_owned()];
        for (path, expected) in [
            ("metadata.name", "web"),
            ("metadata.labels['app']", "web"),
            ("metadata.labels['none']", ""),
            ("metadata.labels", "app=\"web\"\nx=\"a\\\"b\""),
            ("spec.nodeName", "n1"),
            ("status.podIP", "10.42.0.2"),
            ("status.hostIPs", "192.0.2.1,2001:db8::1"),
        ] {
            assert_eq!(field(&pod(), &place(&ips), path).as_deref(), Ok(expected), "{path}");
        }
        assert!(field(&pod(), &place(&ips), "spec.containers").is_err());
    }

    #[test]
    fn resources_are_divided_and_rounded_up() {
        let pod = pod();
        let containers = pod.spec.clone().unwrap().containers;
        for (container, resource_name, divisor, expected) in [
            (0, "limits.cpu", "1", "1"),
            (0, "limits.cpu", "1m", "250"),
            (0, "limits.memory", "1Mi", "64"),
            (0, "limits.memory", "0", "67108864"),
            (0, "requests.memory", "1", "0"),
            (1, "limits.cpu", "1", "4"),
            (1, "limits.memory", "1Gi", "1"),
        ] {
            let selector: core::ResourceFieldSelector =
                serde_json::from_value(json!({"resource": resource_name, "divisor": divisor})).unwrap();
            let value = resource(&pod, containers.get(container), &place(&[]), &selector);
            assert_eq!(value.as_deref(), Ok(expected), "{resource_name}/{divisor}");
        }
    }
}
