//! The `ketch` binary: the control plane, the node and the client in one program.
//!
//! Alone in seeing both the server and the node; alone in using `anyhow`. Each command is a module of
//! [`commands`]; how flags, environment and `config.toml` become options is in [`options`].

#![allow(clippy::indexing_slicing, reason = "only serde_json values are indexed, which yields null")]

mod commands;
mod options;
mod output;
mod resources;

use std::process::ExitCode;

use clap::Parser;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Configuration that cannot be used; nothing has been started.
const EXIT_CONFIGURATION: u8 = 64;

fn main() -> ExitCode {
    // containerd starts this program under the name of its network plugin.
    if ketch_runtime_oci::cni::invoked(std::env::args_os().next().as_deref()) {
        return ketch_runtime_oci::cni::main();
    }
    let cli = commands::Cli::parse();
    match cli.run() {
        Ok(code) => code,
        Err(error) => {
            output::error(&error);
            let code = if error.is::<options::Unusable>() { EXIT_CONFIGURATION } else { 1 };
            ExitCode::from(code)
        }
    }
}
