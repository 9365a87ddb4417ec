//! What a Wasm artifact is and asks for, as the registry reports it and the console shows it.

use serde::{Deserialize, Serialize};

/// Media type of a Wasm layer (CNCF layout).
pub const LAYER_MEDIA_TYPE: &str = "application/wasm";
/// Media type of a Wasm image's config (CNCF layout).
pub const CONFIG_MEDIA_TYPE: &str = "application/vnd.wasm.config.v0+json";
/// Older layer media types that are Wasm too.
pub const LEGACY_LAYER_MEDIA_TYPES: &[&str] = &[
    "application/vnd.wasm.content.layer.v1+wasm",
    "application/vnd.module.wasm.content.layer.v1+wasm",
    "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
];

/// What can be read off the binary without running it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Inspection {
    /// Whether it is a component or a core module.
    pub encoding: Encoding,
    /// What it can be run as.
    pub world: World,
    /// Interfaces it needs, for instance `wasi:http/outgoing-handler@0.2.3`, sorted.
    pub imports: Vec<String>,
    /// Interfaces and functions it offers, sorted.
    pub exports: Vec<String>,
    /// Bytes.
    pub size: u64,
    /// `sha256:…` of the bytes.
    pub digest: String,
    /// Why it cannot run here, one line each; empty when it can.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

/// The binary form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Encoding {
    /// A component-model component.
    Component,
    /// A core module, run as WASI preview 1.
    Module,
}

/// What a binary can be run as, by its exports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum World {
    /// Exports `wasi:http/incoming-handler@0.2.x`: a function or a server.
    Http,
    /// Exports `wasi:http/handler@0.3.x`: the same, asynchronous.
    HttpAsync,
    /// Exports `wasi:cli/run` or `_start`: a program that runs until it ends.
    Command,
    /// Exports neither.
    Library,
}

impl World {
    /// Whether it answers HTTP requests.
    pub fn is_http(self) -> bool {
        matches!(self, World::Http | World::HttpAsync)
    }
}
