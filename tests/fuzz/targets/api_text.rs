//! Small texts: paths, queries, selectors, quantities, ranges, outbound patterns, tokens; files and lines that
//! clients read.
#![no_main]

use ketch_api::{join::Token, quantity::Quantity, request::RequestInfo, selector};
use ketch_client::kubeconfig;
use ketch_net::{Cidr, Pattern};
use ketch_ui_core::{logs, manifest, sniff};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let (path, query) = text.split_once('?').unwrap_or((text, ""));
    for method in ["GET", "POST", "PATCH", "DELETE"] {
        let _ = RequestInfo::parse(method, path, Some(query));
    }
    if let Ok(selector) = selector::Selector::parse(text) {
        let again = selector::Selector::parse(&selector.to_string());
        assert_eq!(again.as_ref(), Ok(&selector));
    }
    let _ = selector::FieldSelector::parse(text);
    let _ = text.parse::<Token>();
    ketch_apiserver::fuzzing::text(text);
    ketch_registry::fuzzing::ranges(text, 1 << 20);
    clients(text);
    let _ = text.parse::<Pattern>();
    if let Ok(quantity) = text.parse::<Quantity>() {
        // What is written back means the same.
        let again: Quantity = quantity.to_string().parse().expect("a quantity reads its own text");
        assert_eq!(again.value(), quantity.value());
    }
    if let Ok(range) = text.parse::<Cidr>() {
        assert_eq!(range.to_string().parse::<Cidr>().ok(), Some(range));
    }
});

fn clients(text: &str) {
    let _ = kubeconfig::remove(text, "ketch");
    let _ = logs::Line::parse(0, text).fields();
    let _ = (logs::Splitter::default().push(text.as_bytes()), sniff::sniff(text.as_bytes()));
    let _ = manifest::parse_outbound(text);
}
