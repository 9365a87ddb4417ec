//! What Ketch starts itself as: work that must not share the daemon's memory or fate.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Result, anyhow};
use clap::{Args, Subcommand};

/// Which work.
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    work: Work,
}

#[derive(Subcommand)]
enum Work {
    /// Compile a component.
    CompileWasm {
        /// The component.
        input: PathBuf,
        /// The native code.
        output: PathBuf,
    },
}

/// Does it.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let Work::CompileWasm { input, output } = &arguments.work;
    ketch_runtime_wasm::compile_main(input, output).map_err(|why| anyhow!("{why}"))?;
    Ok(ExitCode::SUCCESS)
}
