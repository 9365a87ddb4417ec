//! Sparing clients their search path.
//!
//! A pod's resolver asks for `example.com` first as `example.com.NAMESPACE.svc.cluster.local`, then under
//! `svc.cluster.local`, then under `cluster.local`, and only then for what was meant (`ndots:5`). The first
//! of these questions says all there is to know, if it comes from a pod of that namespace: the rest of the
//! path is walked here, and the answer is an alias to the name that was found (CoreDNS's autopath). Pure.

use hickory_resolver::proto::rr::{Name, RData, Record, RecordType, rdata::CNAME};
use ketch_api::names::CLUSTER_DOMAIN;

use crate::zone::{TTL, absolute};

/// Names to try, in order, instead of `name`, which the cluster does not have. Empty: `name` is not the
/// first step of a search by a pod of `namespace`.
pub(crate) fn path(name: &Name, kind: RecordType, namespace: &str) -> Vec<Name> {
    if !matches!(kind, RecordType::A | RecordType::AAAA) {
        return Vec::new();
    }
    let Some(first) = absolute(&format!("{namespace}.svc.{CLUSTER_DOMAIN}")) else { return Vec::new() };
    let labels = usize::from(name.num_labels());
    let meant = labels.saturating_sub(usize::from(first.num_labels()));
    // A single label is never a name outside, nor of another namespace.
    if meant < 2 || !first.zone_of(name) {
        return Vec::new();
    }
    let Ok(rest) = Name::from_labels(name.iter().take(meant)) else { return Vec::new() };
    let under = |suffix: &str| rest.clone().append_domain(&absolute(suffix)?).ok();
    let mut names: Vec<Name> = [format!("svc.{CLUSTER_DOMAIN}"), CLUSTER_DOMAIN.to_owned()]
        .iter()
        .filter_map(|s| under(s))
        .collect();
    let mut bare = rest;
    bare.set_fqdn(true);
    names.push(bare);
    names
}

/// The record that leads from the name asked for to the one found.
pub(crate) fn alias(asked: &Name, found: &Name) -> Record {
    Record::from_rdata(asked.clone(), TTL, RData::CNAME(CNAME(found.clone())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_step_of_the_pods_own_search_is_taken() {
        for (name, namespace, expected) in [
            (
                "example.com.shop.svc.cluster.local.",
                "shop",
                &["example.com.svc.cluster.local.", "example.com.cluster.local.", "example.com."][..],
            ),
            (
                "Web.Other.SHOP.svc.cluster.local.",
                "shop",
                &["Web.Other.svc.cluster.local.", "Web.Other.cluster.local.", "Web.Other."],
            ),
            ("example.com.shop.svc.cluster.local.", "other", &[]),
            ("example.com.svc.cluster.local.", "shop", &[]),
            ("web.shop.svc.cluster.local.", "shop", &[]),
            ("shop.svc.cluster.local.", "shop", &[]),
            ("example.com.", "shop", &[]),
        ] {
            let name = Name::from_ascii(name).unwrap();
            let found: Vec<String> =
                path(&name, RecordType::A, namespace).iter().map(Name::to_ascii).collect();
            assert_eq!(found, expected, "{name} in {namespace}");
            assert!(path(&name, RecordType::MX, namespace).is_empty());
        }
    }
}
