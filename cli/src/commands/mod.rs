//! The commands, a module each.

mod apply;
mod cluster_dns;
mod connect;
mod delete;
mod deploy;
mod doctor;
mod exec;
mod get;
mod internal;
mod kubeconfig;
mod local_node;
mod logs;
mod machine;
mod node;
mod pod_range;
mod port_forward;
mod process;
mod relay;
mod service_proxy;
mod token;
mod top;
mod traces;
mod uninstall;
mod up;
mod upload;
mod version;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Args, CommandFactory, Parser, Subcommand};

pub(crate) use connect::Cluster;

use crate::options::Flags;

/// WebAssembly components and containers under one Kubernetes API, from one binary.
#[derive(Parser)]
#[command(name = "ketch", version, about, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start everything on this machine and print the link to the console.
    Up(Flags),
    /// Start the control plane only.
    Server(Flags),
    /// Make this machine a node of a cluster on another one.
    Node(Flags),
    /// Put a .wasm file, a manifest or an image to work and wait until it answers.
    Deploy(deploy::Arguments),
    /// Show objects: `ketch get pods`, `ketch get deploy/web -o yaml`.
    Get(get::Arguments),
    /// Create or change what a manifest describes.
    Apply(apply::Arguments),
    /// Delete objects.
    Delete(delete::Arguments),
    /// Print what a pod or a function has written.
    Logs(logs::Arguments),
    /// Run a program in a container that runs: `ketch exec POD -- PROGRAM ARGUMENTS`.
    Exec(exec::Arguments),
    /// Make ports of a pod reachable on this machine: `ketch port-forward POD 8080:80`.
    PortForward(port_forward::Arguments),
    /// Show what nodes or pods use: `ketch top pods -A`.
    Top(top::Arguments),
    /// Make a token: to log in to the console, or to join a node.
    Token(token::Arguments),
    /// Print the administrator's kubeconfig, or merge it into yours.
    Kubeconfig(kubeconfig::Arguments),
    /// Check this machine, and say how to mend what is missing.
    Doctor(Flags),
    /// Take back everything Ketch has made on this machine: pods, rules, routes, data.
    Uninstall(uninstall::Arguments),
    /// Print versions.
    Version(version::Arguments),
    /// Print a completion script for a shell.
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// What Ketch starts itself as.
    #[command(hide = true)]
    Internal(internal::Arguments),
}

/// Which cluster a client command talks to.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Connection {
    /// Kubeconfig file [default: $KUBECONFIG, else the one of a Ketch on this machine].
    #[arg(long, global = true, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context in it.
    #[arg(long, global = true, value_name = "NAME")]
    context: Option<String>,
    /// Namespace.
    #[arg(short, long, global = true, value_name = "NAME")]
    namespace: Option<String>,
    /// Data directory of a Ketch on this machine, to find its kubeconfig.
    #[arg(long, global = true, env = "KETCH_DATA_DIR", value_name = "DIR", hide = true)]
    data_dir: Option<PathBuf>,
}

impl Cli {
    /// Runs the command.
    pub(crate) fn run(self) -> Result<ExitCode> {
        match self.command {
            Command::Up(flags) => up::run(flags, crate::options::Role::Up),
            Command::Server(flags) => up::run(flags, crate::options::Role::Server),
            Command::Node(flags) => node::run(flags),
            Command::Deploy(arguments) => client(deploy::run(arguments)),
            Command::Get(arguments) => client(get::run(arguments)),
            Command::Apply(arguments) => client(apply::run(arguments)),
            Command::Delete(arguments) => client(delete::run(arguments)),
            Command::Logs(arguments) => client(logs::run(arguments)),
            Command::Exec(arguments) => client_code(exec::run(arguments)),
            Command::PortForward(arguments) => client(port_forward::run(arguments)),
            Command::Top(arguments) => client(top::run(arguments)),
            Command::Token(arguments) => client(token::run(arguments)),
            Command::Kubeconfig(arguments) => kubeconfig::run(&arguments),
            Command::Doctor(flags) => doctor::run(flags),
            Command::Uninstall(arguments) => client(uninstall::run(arguments)),
            Command::Version(arguments) => client(version::run(arguments)),
            Command::Completion { shell } => {
                clap_complete::generate(shell, &mut Cli::command(), "ketch", &mut std::io::stdout());
                Ok(ExitCode::SUCCESS)
            }
            Command::Internal(arguments) => internal::run(&arguments),
        }
    }
}

/// Runs a client command on a small runtime.
fn client(command: impl Future<Output = Result<()>>) -> Result<ExitCode> {
    client_code(async {
        command.await?;
        Ok(ExitCode::SUCCESS)
    })
}

/// The same for a command with an exit code of its own.
fn client_code(command: impl Future<Output = Result<ExitCode>>) -> Result<ExitCode> {
    connect::install_crypto();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(command);
    // A thread that reads the terminal would hold up the end until the next key.
    runtime.shutdown_background();
    result
}
