//! Doors to the parsers of requests, for the fuzz targets only.

use http::{HeaderMap, HeaderValue, header};
use ketch_api::{Descriptor, Status};
use serde_json::Value;

use crate::{
    auth::token::bootstrap,
    rest::{page_token::PageToken, patch::Patch},
    route::query::Query,
    wire,
};

/// A JSON body.
///
/// # Errors
/// When it is none.
pub fn json(bytes: &[u8]) -> Result<Value, serde_json::Error> {
    wire::json::parse(bytes).map(|parsed| parsed.value)
}

/// A YAML body.
///
/// # Errors
/// When it is none.
pub fn yaml(bytes: &[u8]) -> Result<Value, Status> {
    wire::yaml::parse(bytes).map(|parsed| parsed.value)
}

/// Applies a patch of each type to an object. What comes out can be stored and read again.
pub fn patch(descriptor: &Descriptor, object: &Value, patch: &[u8]) {
    for kind in ["json-patch", "merge-patch", "strategic-merge-patch"] {
        let mut headers = HeaderMap::new();
        if let Ok(value) = HeaderValue::from_str(&format!("application/{kind}+json")) {
            headers.insert(header::CONTENT_TYPE, value);
        }
        let Ok(parsed) = Patch::parse(&headers, patch) else { continue };
        let Ok(patched) = parsed.patch.apply(descriptor, object.clone()) else { continue };
        let stored = serde_json::to_vec(&patched).unwrap_or_default();
        assert!(serde_json::from_slice::<Value>(&stored).is_ok(), "{kind}");
    }
}

/// Small texts of requests: a query, a token of a page, a token, an `Accept` header.
pub fn text(text: &str) {
    let query = Query::parse(text);
    let _ = (query.flag("watch"), query.integer("limit"), query.dry_run(), bootstrap::parse(text));
    if let Ok(token) = PageToken::decode(text) {
        assert!(PageToken::decode(&token.encode()).is_ok_and(|again| again == token));
    }
    if let Ok(value) = HeaderValue::from_str(text) {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, value.clone());
        headers.insert(header::CONTENT_TYPE, value);
        let _ = (wire::negotiate::negotiate(&headers, true), wire::body::media(&headers));
    }
}
