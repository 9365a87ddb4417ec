//! Bytes to values and back: request bodies, stored objects, content negotiation, tables.
//!
//! Nothing here knows about requests or storage transactions.

pub(crate) mod body;
pub(crate) mod json;
pub(crate) mod negotiate;
pub(crate) mod stored;
pub(crate) mod table;
pub(crate) mod yaml;
