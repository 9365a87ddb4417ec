//! Builds, checks and starts Ketch: what the README and continuous integration call.
//!
//! `cargo xtask up` and `cargo xtask test` work on a bare Debian or Ubuntu machine with rustup. Each
//! installs what it misses, says what it does, and is quick when nothing is missing.

#![allow(clippy::indexing_slicing, reason = "only serde_json values are indexed, which yields null")]

mod bench;
mod console;
mod debian;
mod fuzz;
mod guests;
mod images;
mod shell;
mod suites;
mod test;
mod tidy;
mod tools;
mod up;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, checks and starts Ketch")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build everything, start Ketch on this machine and print the link to the console.
    Up {
        /// A debug build: quicker to make, slower to run.
        #[arg(long)]
        debug: bool,
        /// Passed to `ketch up`.
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Everything continuous integration runs.
    Test {
        /// Only the steps whose name contains this text.
        filter: Option<String>,
    },
    /// Build the console into `ui/dist`.
    Ui,
    /// Build the sample workloads into `workloads/dist`.
    Workloads,
    /// Build the sample container images into `workloads/dist/images`.
    Images,
    /// Check crate arrows, sizes and docs.
    Tidy,
    /// Run the fuzz targets, each for a while.
    Fuzz {
        /// Only this one.
        target: Option<String>,
        /// How long each runs.
        #[arg(long, default_value_t = 60)]
        seconds: u32,
        /// Instead, give the target this input once.
        #[arg(long, requires = "target")]
        replay: Option<std::path::PathBuf>,
    },
    /// Measure against peers; see docs/benchmarks.md.
    Bench {
        /// Passed to `ketch-bench`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

fn main() -> std::process::ExitCode {
    match run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
            shell::say(&format!("error: {}", causes.join(": ")));
            std::process::ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    std::env::set_current_dir(shell::root())?;
    match Cli::parse().command {
        Command::Up { debug, args } => up::run(debug, &args),
        Command::Test { filter } => test::run(filter.as_deref()),
        Command::Ui => console::build(),
        Command::Workloads => guests::build(),
        Command::Images => images::build(),
        Command::Tidy => tidy::run(),
        Command::Fuzz { target, seconds, replay } => fuzz::run(target.as_deref(), seconds, replay.as_deref()),
        Command::Bench { args } => bench::run_all(&args),
    }
}
