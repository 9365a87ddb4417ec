//! Doors to the parsers of request bodies, for the fuzz targets only.

use ketch_api::Status;
use serde_json::Value;

use crate::wire;

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
