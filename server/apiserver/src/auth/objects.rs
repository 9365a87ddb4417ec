//! Stored objects, as far as authentication looks at them.

use jiff::Timestamp;
use ketch_api::Status;
use ketch_store::Storage;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

/// Identity and life of any object.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Object {
    pub(crate) metadata: Metadata,
}

/// The metadata that matters here.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Metadata {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) deletion_timestamp: Option<Timestamp>,
}

/// A Pod's placement.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Pod {
    pub(crate) metadata: Metadata,
    pub(crate) spec: PodSpec,
}

/// The part of a Pod's spec that matters here.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PodSpec {
    pub(crate) node_name: String,
    pub(crate) service_account_name: String,
}

/// Reads the object at `key`.
pub(crate) async fn read<T: DeserializeOwned>(storage: &dyn Storage, key: &str) -> Result<Option<T>, Status> {
    let stored =
        storage.get(key).await.map_err(|error| Status::internal(format!("the store failed: {error}")))?;
    let Some(stored) = stored else { return Ok(None) };
    let object = serde_json::from_slice(&stored.value)
        .map_err(|error| Status::internal(format!("the stored object {key} cannot be read: {error}")))?;
    Ok(Some(object))
}

/// Store key of a namespaced core object.
pub(crate) fn core_key(plural: &str, namespace: &str, name: &str) -> String {
    format!("/core/{plural}/{namespace}/{name}")
}

/// A random (version 4) UUID.
pub(crate) fn new_uid() -> Result<String, Status> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes).map_err(Status::internal)?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let number = u128::from_be_bytes(bytes);
    Ok(format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        number >> 96,
        number >> 80 & 0xffff,
        number >> 64 & 0xffff,
        number >> 48 & 0xffff,
        number & 0xffff_ffff_ffff
    ))
}

/// `N` random bytes as URL-safe base64: a secret nobody guesses.
pub(crate) fn random_secret() -> Result<String, Status> {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    let mut bytes = [0u8; 32];
    getrandom::fill(&mut bytes).map_err(Status::internal)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// SHA-256 in hexadecimal: how secrets are compared and kept, so that neither time nor disk tells them.
pub(crate) fn digest(secret: &str) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(secret.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Sets a field of a JSON object; anything else is left as it is.
pub(crate) fn set(object: &mut Value, field: &str, value: impl Into<Value>) {
    if let Some(fields) = object.as_object_mut() {
        fields.insert(field.to_owned(), value.into());
    }
}
