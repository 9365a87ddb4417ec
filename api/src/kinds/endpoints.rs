//! Endpoints and EndpointSlice: where a Service's traffic goes.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use k8s_openapi::api::{
    core::v1::Endpoints,
    discovery::v1::{EndpointPort, EndpointSlice},
};
use serde_json::Value;

use super::{
    or_none,
    pod_spec::{invalid_all, one_of},
};
use crate::{
    strategy::{Column, Descriptor, FieldError, Meta, Strategy},
    validation::{self, IMMUTABLE},
};

/// Entries a cell lists before it says how many more there are.
const LISTED: usize = 3;
/// Most endpoints and ports of a slice.
const ENDPOINTS_MAX: usize = 1000;
const PORTS_MAX: usize = 20_000;
/// Most addresses of one endpoint.
const ADDRESSES_MAX: usize = 100;
const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

fn tcp(protocol: &mut Option<String>) {
    if protocol.as_deref().unwrap_or_default().is_empty() {
        *protocol = Some("TCP".to_owned());
    }
}

/// `a,b,c + 2 more...`
fn shortened(all: &[String]) -> String {
    let shown: Vec<&str> = all.iter().take(LISTED).map(String::as_str).collect();
    match all.len().saturating_sub(LISTED) {
        0 => or_none(Some(&shown.join(","))),
        more => format!("{} + {more} more...", shown.join(",")),
    }
}

fn join_host_port(ip: &str, port: i32) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

pub(super) struct EndpointsObjects;

impl Strategy for EndpointsObjects {
    type Kind = Endpoints;

    fn descriptor(&self) -> Descriptor {
        Descriptor {
            short_names: &["ep"],
            ..Descriptor::namespaced("", "v1", "Endpoints", "endpoints", "endpoints")
        }
    }

    fn default(&self, endpoints: &mut Endpoints) {
        for subset in endpoints.subsets.iter_mut().flatten() {
            subset.ports.iter_mut().flatten().for_each(|port| tcp(&mut port.protocol));
        }
    }

    fn validate(&self, endpoints: &Endpoints) -> Vec<FieldError> {
        let mut errors = Vec::new();
        for (n, subset) in endpoints.subsets.iter().flatten().enumerate() {
            let path = format!("subsets[{n}]");
            let ready = subset.addresses.as_deref().unwrap_or_default();
            let waiting = subset.not_ready_addresses.as_deref().unwrap_or_default();
            if ready.is_empty() && waiting.is_empty() {
                errors.push(FieldError::required(&path, "must specify `addresses` or `notReadyAddresses`"));
            }
            for (field, list) in [("addresses", ready), ("notReadyAddresses", waiting)] {
                for (m, address) in list.iter().enumerate() {
                    errors.extend(ip(&address.ip, &format!("{path}.{field}[{m}].ip")));
                }
            }
            for (m, port) in subset.ports.iter().flatten().enumerate() {
                let path = format!("{path}.ports[{m}]");
                for fault in validation::port_number(port.port) {
                    errors.push(FieldError::invalid(format!("{path}.port"), port.port, &fault));
                }
                errors.extend(one_of(&format!("{path}.protocol"), port.protocol.as_deref(), PROTOCOLS));
            }
        }
        errors
    }

    fn warnings(&self, _: &Endpoints) -> Vec<String> {
        vec!["v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice".to_owned()]
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[Column::NAME, Column::text("Endpoints"), Column::AGE];
        COLUMNS
    }

    fn row(&self, endpoints: &Endpoints, metadata: &Meta<'_>) -> Vec<Value> {
        let mut all = Vec::new();
        for subset in endpoints.subsets.iter().flatten() {
            let addresses = subset.addresses.as_deref().unwrap_or_default();
            match subset.ports.as_deref().unwrap_or_default() {
                // Headless Services need no port.
                [] => all.extend(addresses.iter().map(|a| a.ip.clone())),
                ports => {
                    for port in ports {
                        all.extend(addresses.iter().map(|a| join_host_port(&a.ip, port.port)));
                    }
                }
            }
        }
        vec![metadata.name.into(), shortened(&all).into(), metadata.age().into()]
    }
}

pub(super) struct EndpointSlices;

impl Strategy for EndpointSlices {
    type Kind = EndpointSlice;

    fn descriptor(&self) -> Descriptor {
        Descriptor {
            generation: true,
            ..Descriptor::namespaced(
                "discovery.k8s.io",
                "v1",
                "EndpointSlice",
                "endpointslices",
                "endpointslice",
            )
        }
    }

    fn default(&self, slice: &mut EndpointSlice) {
        for port in slice.ports.iter_mut().flatten() {
            port.name.get_or_insert_default();
            tcp(&mut port.protocol);
        }
    }

    fn validate(&self, slice: &EndpointSlice) -> Vec<FieldError> {
        let mut errors = one_of("addressType", Some(&slice.address_type), &["FQDN", "IPv4", "IPv6"]);
        if slice.endpoints.len() > ENDPOINTS_MAX {
            errors.push(FieldError::too_many("endpoints", slice.endpoints.len(), ENDPOINTS_MAX));
            return errors;
        }
        for (n, endpoint) in slice.endpoints.iter().enumerate() {
            let path = format!("endpoints[{n}].addresses");
            if endpoint.addresses.is_empty() {
                errors.push(FieldError::required(&path, "must contain at least 1 address"));
            } else if endpoint.addresses.len() > ADDRESSES_MAX {
                errors.push(FieldError::too_many(&path, endpoint.addresses.len(), ADDRESSES_MAX));
            }
            for (m, address) in endpoint.addresses.iter().enumerate() {
                errors.extend(self::address(&slice.address_type, address, &format!("{path}[{m}]")));
            }
            if let Some(name) = endpoint.hostname.as_deref() {
                errors.extend(invalid_all(
                    &format!("endpoints[{n}].hostname"),
                    name,
                    validation::dns1123_label(name),
                ));
            }
        }
        errors.extend(ports(slice.ports.as_deref().unwrap_or_default()));
        errors
    }

    fn validate_update(&self, new: &EndpointSlice, old: &EndpointSlice) -> Vec<FieldError> {
        if new.address_type == old.address_type {
            return Vec::new();
        }
        vec![FieldError::invalid("addressType", &new.address_type, IMMUTABLE)]
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[
            Column::NAME,
            Column::text("AddressType"),
            Column::text("Ports"),
            Column::text("Endpoints"),
            Column::AGE,
        ];
        COLUMNS
    }

    fn row(&self, slice: &EndpointSlice, metadata: &Meta<'_>) -> Vec<Value> {
        let unset = |list: Vec<String>| if list.is_empty() { "<unset>".to_owned() } else { shortened(&list) };
        let port = |p: &EndpointPort| p.port.map_or_else(|| "*".to_owned(), |port| port.to_string());
        let ports: Vec<String> = slice.ports.iter().flatten().map(port).collect();
        let addresses: Vec<String> = slice.endpoints.iter().flat_map(|e| e.addresses.clone()).collect();
        vec![
            metadata.name.into(),
            slice.address_type.clone().into(),
            unset(ports).into(),
            unset(addresses).into(),
            metadata.age().into(),
        ]
    }
}

/// An address traffic may be sent to.
fn ip(text: &str, path: &str) -> Vec<FieldError> {
    match text.parse::<IpAddr>() {
        Ok(ip) => invalid_all(path, text, validation::endpoint_address(ip)),
        Err(_) => {
            let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            vec![FieldError::invalid(path, text, detail)]
        }
    }
}

fn address(kind: &str, address: &str, path: &str) -> Vec<FieldError> {
    match kind {
        "IPv4" if address.parse::<Ipv4Addr>().is_err() => {
            vec![FieldError::invalid(path, address, "must be an IPv4 address")]
        }
        "IPv6" if address.parse::<Ipv6Addr>().is_err() => {
            vec![FieldError::invalid(path, address, "must be an IPv6 address")]
        }
        "IPv4" | "IPv6" => ip(address, path),
        "FQDN" => invalid_all(path, address, validation::dns1123_subdomain(address)),
        _ => Vec::new(),
    }
}

fn ports(ports: &[EndpointPort]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut names = BTreeSet::new();
    if ports.len() > PORTS_MAX {
        return vec![FieldError::too_many("ports", ports.len(), PORTS_MAX)];
    }
    for (n, port) in ports.iter().enumerate() {
        let path = format!("ports[{n}]");
        let name = port.name.as_deref().unwrap_or_default();
        if !name.is_empty() {
            errors.extend(invalid_all(&format!("{path}.name"), name, validation::dns1123_label(name)));
        }
        if !names.insert(name) {
            errors.push(FieldError::duplicate(format!("{path}.name"), name));
        }
        for fault in port.port.map(validation::port_number).into_iter().flatten() {
            errors.push(FieldError::invalid(format!("{path}.port"), port.port, &fault));
        }
        errors.extend(one_of(&format!("{path}.protocol"), port.protocol.as_deref(), PROTOCOLS));
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::kinds::tests::{create, row, update};

    #[test]
    fn rows() {
        let slice = json!({"metadata": {"name": "web-x"}, "addressType": "IPv4", "ports": [{"port": 80}],
            "endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"]}, {"addresses": ["10.0.0.3"]}, {"addresses": ["10.0.0.4"]}]});
        assert_eq!(
            row("EndpointSlice", &slice),
            "web-x|IPv4|80|10.0.0.1,10.0.0.2,10.0.0.3 + 1 more...|<unknown>"
        );
        let empty = json!({"metadata": {"name": "e"}, "addressType": "IPv4", "endpoints": []});
        assert_eq!(row("EndpointSlice", &empty), "e|IPv4|<unset>|<unset>|<unknown>");
        let endpoints = json!({"metadata": {"name": "web"}, "subsets": [{"addresses": [{"ip": "10.0.0.1"}, {"ip": "2001:db8::1"}], "ports": [{"port": 80}]}]});
        assert_eq!(row("Endpoints", &endpoints), "web|10.0.0.1:80,[2001:db8::1]:80|<unknown>");
        assert_eq!(row("Endpoints", &json!({"metadata": {"name": "web"}})), "web|<none>|<unknown>");
    }

    #[test]
    fn rules() {
        let slice = |kind: &str, ip: &str| json!({"metadata": {"name": "s"}, "addressType": kind, "endpoints": [{"addresses": [ip]}], "ports": [{"port": 80}]});
        assert!(create("EndpointSlice", slice("IPv4", "10.0.0.1")).is_ok());
        assert!(
            create("EndpointSlice", slice("IPv4", "::1"))
                .unwrap_err()
                .message
                .contains("must be an IPv4 address")
        );
        assert!(
            create("EndpointSlice", slice("IPv7", "1"))
                .unwrap_err()
                .message
                .contains("Unsupported value: \"IPv7\"")
        );
        assert!(update("EndpointSlice", slice("IPv6", "2001:db8::1"), &slice("IPv4", "10.0.0.1")).is_err());
        assert!(
            create("EndpointSlice", slice("IPv4", "127.0.0.1")).unwrap_err().message.contains("loopback")
        );
        let bad = json!({"metadata": {"name": "e"}, "subsets": [{"addresses": [{"ip": "x"}], "ports": [{"port": 0}]}]});
        assert_eq!(create("Endpoints", bad).unwrap_err().details.unwrap().causes.len(), 2);
    }
}
