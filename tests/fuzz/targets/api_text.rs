//! Small texts inside requests: paths, queries, selectors, quantities, ranges, outbound patterns.
#![no_main]

use ketch_api::{quantity::Quantity, request::RequestInfo, selector};
use ketch_net::{Cidr, Pattern};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let (path, query) = text.split_once('?').unwrap_or((text, ""));
    for method in ["GET", "POST", "PATCH", "DELETE"] {
        let _ = RequestInfo::parse(method, path, Some(query));
    }
    let _ = selector::Selector::parse(text);
    let _ = selector::FieldSelector::parse(text);
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
