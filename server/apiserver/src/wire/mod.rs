//! Bytes to values and back: request bodies, stored objects, content negotiation, tables.
//!
//! Nothing here knows about requests or storage transactions.

pub(crate) mod body;
pub(crate) mod json;
pub(crate) mod negotiate;
pub(crate) mod stored;
pub(crate) mod table;
pub(crate) mod yaml;

use serde_json::Value;

/// Sets a member of a JSON object; anything else is left as it is.
pub(crate) fn set(object: &mut Value, key: &str, value: impl Into<Value>) {
    if let Some(map) = object.as_object_mut() {
        map.insert(key.to_owned(), value.into());
    }
}
