//! NetworkPolicy.

use k8s_openapi::{
    api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use serde_json::Value;

use super::pod_spec::invalid_all;
use crate::{
    selector::{self, Selector},
    strategy::{Column, Descriptor, FieldError, Meta, Strategy},
    validation,
};

const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
const TYPES: &[&str] = &["Egress", "Ingress"];

pub(super) struct NetworkPolicies;

impl Strategy for NetworkPolicies {
    type Kind = NetworkPolicy;

    fn descriptor(&self) -> Descriptor {
        Descriptor {
            short_names: &["netpol"],
            generation: true,
            ..Descriptor::namespaced(
                "networking.k8s.io",
                "v1",
                "NetworkPolicy",
                "networkpolicies",
                "networkpolicy",
            )
        }
    }

    fn default(&self, policy: &mut NetworkPolicy) {
        let spec = policy.spec.get_or_insert_default();
        spec.pod_selector.get_or_insert_default();
        if spec.policy_types.as_ref().is_none_or(Vec::is_empty) {
            let egress = spec.egress.as_ref().is_some_and(|rules| !rules.is_empty());
            let types = ["Ingress", "Egress"].into_iter().take(1 + usize::from(egress));
            spec.policy_types = Some(types.map(str::to_owned).collect());
        }
        let inbound = spec.ingress.iter_mut().flatten().flat_map(|rule| rule.ports.iter_mut());
        let outbound = spec.egress.iter_mut().flatten().flat_map(|rule| rule.ports.iter_mut());
        for port in inbound.chain(outbound).flatten() {
            port.protocol.get_or_insert_with(|| "TCP".to_owned());
        }
    }

    fn validate(&self, policy: &NetworkPolicy) -> Vec<FieldError> {
        let spec = policy.spec.clone().unwrap_or_default();
        let mut errors = selects("spec.podSelector", spec.pod_selector.as_ref());
        for (n, rule) in spec.ingress.iter().flatten().enumerate() {
            let path = format!("spec.ingress[{n}]");
            errors.extend(ports(&path, rule.ports.as_deref()));
            errors.extend(peers(&format!("{path}.from"), rule.from.as_deref()));
        }
        for (n, rule) in spec.egress.iter().flatten().enumerate() {
            let path = format!("spec.egress[{n}]");
            errors.extend(ports(&path, rule.ports.as_deref()));
            errors.extend(peers(&format!("{path}.to"), rule.to.as_deref()));
        }
        errors.extend(types(&spec));
        errors
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[Column::NAME, Column::text("Pod-Selector"), Column::AGE];
        COLUMNS
    }

    fn row(&self, policy: &NetworkPolicy, metadata: &Meta<'_>) -> Vec<Value> {
        let selector = policy.spec.as_ref().and_then(|spec| spec.pod_selector.as_ref());
        let shown = selector.map(selector::display).unwrap_or_default();
        vec![metadata.name.into(), shown.into(), metadata.age().into()]
    }
}

fn types(spec: &NetworkPolicySpec) -> Vec<FieldError> {
    let types = spec.policy_types.as_deref().unwrap_or_default();
    if types.len() > TYPES.len() {
        return vec![FieldError::invalid(
            "spec.policyTypes",
            types,
            "may not specify more than two policyTypes",
        )];
    }
    let unknown = types.iter().enumerate().filter(|(_, kind)| !TYPES.contains(&kind.as_str()));
    unknown
        .map(|(n, kind)| FieldError::not_supported(format!("spec.policyTypes[{n}]"), kind, TYPES))
        .collect()
}

fn selects(path: &str, selector: Option<&LabelSelector>) -> Vec<FieldError> {
    let fault = selector.and_then(|selector| Some((selector, Selector::from_object(selector).err()?)));
    fault.map(|(selector, why)| FieldError::invalid(path, selector, &why.to_string())).into_iter().collect()
}

fn ports(path: &str, ports: Option<&[NetworkPolicyPort]>) -> Vec<FieldError> {
    let ports = ports.unwrap_or_default().iter().enumerate();
    ports.flat_map(|(n, one)| port(&format!("{path}.ports[{n}]"), one)).collect()
}

fn port(path: &str, port: &NetworkPolicyPort) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(protocol) = port.protocol.as_deref().filter(|protocol| !PROTOCOLS.contains(protocol)) {
        errors.push(FieldError::not_supported(format!("{path}.protocol"), protocol, PROTOCOLS));
    }
    let (at, end) = (format!("{path}.port"), format!("{path}.endPort"));
    match (&port.port, port.end_port) {
        (Some(IntOrString::Int(first)), last) => {
            errors.extend(out_of_range(&at, *first));
            if let Some(last) = last {
                if last < *first {
                    let detail = "must be greater than or equal to `port`";
                    errors.push(FieldError::invalid(&end, last, detail));
                }
                errors.extend(out_of_range(&end, last));
            }
        }
        (Some(IntOrString::String(name)), last) => {
            errors.extend(invalid_all(&at, name, validation::port_name(name)));
            let detail = "may not be specified when `port` is non-numeric";
            errors.extend(last.map(|last| FieldError::invalid(&end, last, detail)));
        }
        (None, Some(last)) => {
            errors.push(FieldError::invalid(&end, last, "may not be specified when `port` is not specified"));
        }
        (None, None) => {}
    }
    errors
}

fn out_of_range(path: &str, port: i32) -> Vec<FieldError> {
    let faults = validation::port_number(port);
    faults.iter().map(|fault| FieldError::invalid(path, port, fault)).collect()
}

fn peers(path: &str, peers: Option<&[NetworkPolicyPeer]>) -> Vec<FieldError> {
    let peers = peers.unwrap_or_default().iter().enumerate();
    peers.flat_map(|(n, one)| peer(&format!("{path}[{n}]"), one)).collect()
}

fn peer(path: &str, peer: &NetworkPolicyPeer) -> Vec<FieldError> {
    let (pods, namespaces) = (peer.pod_selector.as_ref(), peer.namespace_selector.as_ref());
    let mut errors = selects(&format!("{path}.podSelector"), pods);
    errors.extend(selects(&format!("{path}.namespaceSelector"), namespaces));
    match &peer.ip_block {
        None if pods.is_none() && namespaces.is_none() => {
            errors.push(FieldError::required(path, "must specify a peer"));
        }
        None => {}
        Some(_) if pods.is_some() || namespaces.is_some() => {
            errors.push(FieldError::forbidden(path, "may not specify both ipBlock and another peer"));
        }
        Some(found) => errors.extend(block(&format!("{path}.ipBlock"), found)),
    }
    errors
}

fn block(path: &str, block: &IPBlock) -> Vec<FieldError> {
    let detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
    let at = format!("{path}.cidr");
    if block.cidr.is_empty() {
        return vec![FieldError::required(at, "")];
    }
    let Some(range) = range(&block.cidr) else { return vec![FieldError::invalid(at, &block.cidr, detail)] };
    let mut errors = Vec::new();
    for (n, text) in block.except.iter().flatten().enumerate() {
        let at = format!("{path}.except[{n}]");
        match self::range(text) {
            None => errors.push(FieldError::invalid(at, text, detail)),
            Some(hole) if !inside(hole, range) => {
                let detail = format!("must be a strict subset of `cidr`: \"{}\"", block.cidr);
                errors.push(FieldError::invalid(at, text, &detail));
            }
            Some(_) => {}
        }
    }
    errors
}

/// First address as a number, leading bits that are fixed, and bits in all.
type Range = (u128, u32, u32);

fn range(text: &str) -> Option<Range> {
    let (address, prefix) = text.split_once('/')?;
    let (number, bits) = match address.parse().ok()? {
        std::net::IpAddr::V4(ip) => (u128::from(ip.to_bits()), 32),
        std::net::IpAddr::V6(ip) => (ip.to_bits(), 128),
    };
    let prefix: u32 = prefix.parse().ok().filter(|prefix| *prefix <= bits)?;
    Some((number, prefix, bits))
}

fn inside((hole, longer, bits): Range, (range, shorter, all): Range) -> bool {
    let cut = |number: u128| number.checked_shr(all - shorter).unwrap_or_default();
    bits == all && longer > shorter && cut(hole) == cut(range)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::tests::strategy;

    #[test]
    fn only_what_can_be_enforced_is_accepted() {
        let policies = strategy("NetworkPolicy");
        let faults = |spec: Value| {
            let object = json!({"metadata": {"name": "a", "namespace": "default"}, "spec": spec});
            let policy: NetworkPolicy = serde_json::from_value(object).unwrap();
            let mut paths: Vec<String> =
                NetworkPolicies.validate(&policy).iter().map(|error| error.path.clone()).collect();
            paths.sort();
            paths
        };
        let from = |peer: Value| json!({"podSelector": {}, "ingress": [{"from": [peer]}]});
        let to = |port: Value| json!({"podSelector": {}, "egress": [{"ports": [port]}]});
        let block = |cidr: &str, except: &str| from(json!({"ipBlock": {"cidr": cidr, "except": [except]}}));
        assert_eq!(policies.descriptor().plural, "networkpolicies");
        for (spec, expected) in [
            (json!({}), &[][..]),
            (json!({"policyTypes": ["Ingress", "Sideways"]}), &["spec.policyTypes[1]"]),
            (
                json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "Odd"}]}}),
                &["spec.podSelector"],
            ),
            (from(json!({})), &["spec.ingress[0].from[0]"]),
            (from(json!({"podSelector": {}, "namespaceSelector": {}})), &[]),
            (
                from(json!({"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}})),
                &["spec.ingress[0].from[0]"],
            ),
            (block("10.0.0.0/8", "10.1.0.0/16"), &[]),
            (block("0.0.0.0/0", "169.254.169.254/32"), &[]),
            (block("10.0.0.0/8", "11.0.0.0/16"), &["spec.ingress[0].from[0].ipBlock.except[0]"]),
            (block("10.0.0.0/8", "10.0.0.0/8"), &["spec.ingress[0].from[0].ipBlock.except[0]"]),
            (block("2001:db8::/32", "2001:db8:1::/48"), &[]),
            (block("nonsense", "10.0.0.0/8"), &["spec.ingress[0].from[0].ipBlock.cidr"]),
            (to(json!({"port": 80, "endPort": 90})), &[]),
            (to(json!({"port": 80, "endPort": 70})), &["spec.egress[0].ports[0].endPort"]),
            (to(json!({"port": "http", "endPort": 70})), &["spec.egress[0].ports[0].endPort"]),
            (to(json!({"endPort": 70})), &["spec.egress[0].ports[0].endPort"]),
            (to(json!({"port": 0})), &["spec.egress[0].ports[0].port"]),
            (to(json!({"protocol": "ICMP"})), &["spec.egress[0].ports[0].protocol"]),
        ] {
            assert_eq!(faults(spec.clone()), expected, "{spec}");
        }
    }

    #[test]
    fn the_types_follow_from_the_rules() {
        let types = |spec: Value| {
            let mut policy: NetworkPolicy = serde_json::from_value(json!({"spec": spec})).unwrap();
            NetworkPolicies.default(&mut policy);
            policy.spec.unwrap().policy_types.unwrap()
        };
        assert_eq!(types(json!({})), ["Ingress"]);
        assert_eq!(types(json!({"egress": [{}]})), ["Ingress", "Egress"]);
        assert_eq!(types(json!({"egress": [{}], "policyTypes": ["Egress"]})), ["Egress"]);
    }
}
