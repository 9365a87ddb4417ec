//! WebAssembly components as containers. This crate alone uses wasmtime.
//!
//! [`WasmRuntime`] implements [`ketch_runtime::Runtime`]: it pulls Wasm images, compiles them once in a limited
//! process ([`compile`]), and runs them in this one. An HTTP component is a [`Service`](http) that costs next to
//! nothing while idle; a command is a task. The engine's sizes come from the host ([`engine`]); each guest's
//! limits from its container ([`limits`]).
//!
//! Nothing of the API server, the cluster's objects or other node parts may be imported here: what guests reach
//! of the network goes through [`ketch_runtime::Network`].

mod background;
mod cache;
mod command;
mod compile;
mod config;
mod container;
mod context;
mod engine;
mod exec;
mod http;
mod images;
mod keyvalue;
mod limits;
mod outbound;
mod output;
mod program;
mod runtime;
mod sockets;
mod trust;

pub use compile::{Compiler, InProcessCompiler, ProcessCompiler, compile_main};
pub use engine::{Host, Layout};
pub use keyvalue::{KeyValue, KeyValueError, Memory};
pub use runtime::{Options, WasmRuntime};

/// Version of the engine, as Cargo.toml pins it.
pub(crate) const WASMTIME_VERSION: &str = "48.0.8";

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String does not fail.
        _ = write!(text, "{byte:02x}");
        text
    })
}
