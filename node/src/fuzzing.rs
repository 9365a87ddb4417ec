//! Doors to what the node reads of others, for the fuzz targets only.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use ketch_api::k8s::api::core::v1 as core;

use crate::{actions, env, images, logs, machine::Desired, streaming, volumes};

/// Small texts: references of images, `resolv.conf`, queries, texts with variables.
pub fn text(text: &str) {
    images::fuzzing::reference(text);
    actions::fuzzing::resolver(text);
    env::fuzzing::expand(text);
    let (query, protocols) = text.split_once('\n').unwrap_or((text, ""));
    streaming::fuzzing::request(query, protocols.as_bytes());
    let _ = text.parse::<crate::membership::ServerAddress>();
}

/// A log file of a container.
pub fn log(bytes: &[u8], limit: u64) {
    logs::fuzzing::log(bytes, limit);
}

/// What a registry answers.
pub fn registry(bytes: &[u8]) {
    images::fuzzing::answer(bytes);
}

/// Credentials for registries.
pub fn keyring(config: &[u8], host: &str, repository: &str) {
    images::fuzzing::keyring(config, host, repository);
}

/// A message of a client of exec, and an answer of a health service.
pub fn message(bytes: &[u8]) {
    streaming::fuzzing::message(bytes);
    actions::fuzzing::health(bytes);
}

/// A pod that the server let through.
pub fn pod(pod: &Arc<core::Pod>, now: Timestamp) {
    let desired = Desired::new(Arc::clone(pod));
    let _ = (desired.deadline(now), desired.grace().checked_add(Duration::from_secs(1)));
    env::fuzzing::containers(pod, "text of $(A)");
    volumes::fuzzing::volumes(pod);
    actions::fuzzing::pod(pod);
}
