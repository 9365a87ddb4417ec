//! `ketch up` and `ketch server`: the daemon, from options to a clean end.

use std::{
    net::{SocketAddr, TcpListener},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context, Result};
use ketch_server::Server;
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::{
    connect,
    local_node::{FrontDoor, LocalNode, Precompiler},
};
use crate::{
    options::{Flags, Options, Role},
    output,
};

/// Runs until it is told to end.
pub(crate) fn run(flags: Flags, role: Role) -> Result<ExitCode> {
    let start = Instant::now();
    let print = flags.print_config;
    let options = flags.resolve(role, nix::unistd::Uid::effective().is_root())?;
    if print {
        output::line(toml::to_string_pretty(&options)?.trim_end());
        return Ok(ExitCode::SUCCESS);
    }
    // Logs go to standard error, so that the link on standard output can be read by programs.
    let filter = EnvFilter::try_from_env("KETCH_LOG")
        .unwrap_or_else(|_| EnvFilter::new("warn,ketch=info,ketch::audit=warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
    connect::install_crypto();
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(options, role, start))?;
    // What is left are threads that own nothing.
    runtime.shutdown_background();
    Ok(ExitCode::SUCCESS)
}

async fn serve(options: Options, role: Role, start: Instant) -> Result<()> {
    let front = match role {
        Role::Up => Some(FrontDoor::bind(&options)?),
        Role::Server => None,
    };
    let address = |listener: Option<&TcpListener>| listener.and_then(|listener| listener.local_addr().ok());
    let http = address(front.as_ref().map(|front| &front.http));
    let https = address(front.as_ref().map(|front| &front.https));
    let http_addr = http.unwrap_or(options.http_addr);
    let precompiler = Precompiler::default();
    let server = Server::start(server_options(&options, http_addr), Some(precompiler.hook())).await?;
    let node = match front {
        Some(front) => Some(LocalNode::start(&server, &options, front, &precompiler).await?),
        None => None,
    };
    write_run_file(&server, &options, http, https)?;
    announce(&server, &options, node.as_ref(), start).await?;
    wait_for_the_end().await?;
    output::note("stopping");
    if let Some(node) = node {
        node.shutdown().await;
    }
    server.shutdown().await;
    Ok(())
}

fn server_options(options: &Options, http: SocketAddr) -> ketch_server::Options {
    let function_domain = match http.port() {
        80 => "localhost".to_owned(),
        port => format!("localhost:{port}"),
    };
    let mut subject_names = options.tls_san.clone();
    subject_names.push(options.node_name.clone());
    if !options.api_addr.ip().is_unspecified() {
        subject_names.push(options.api_addr.ip().to_string());
    }
    ketch_server::Options {
        data_dir: options.data_dir.clone(),
        api_addr: options.api_addr,
        ui_addr: options.ui_addr,
        service_cidr: options.service_cidr.clone(),
        subject_names,
        function_domain,
    }
}

/// Addresses in use, under the names of the flags.
fn write_run_file(
    server: &Server,
    options: &Options,
    http: Option<SocketAddr>,
    https: Option<SocketAddr>,
) -> Result<()> {
    let run = json!({
        "pid": std::process::id(), "version": env!("CARGO_PKG_VERSION"), "node-name": options.node_name,
        "api-addr": server.api_addr, "ui-addr": server.ui_addr, "http-addr": http, "https-addr": https,
    });
    server.data_dir().write("run.json", &format!("{run:#}\n")).context("write run.json")
}

async fn announce(
    server: &Server,
    options: &Options,
    node: Option<&LocalNode>,
    start: Instant,
) -> Result<()> {
    let link = server.login_link().await.map_err(|status| anyhow::anyhow!("{}", status.message))?;
    let kubeconfig = options.data_dir.join("admin.kubeconfig");
    output::line(format!(
        "Ketch {} is ready after {:.1} s",
        env!("CARGO_PKG_VERSION"),
        start.elapsed().as_secs_f32()
    ));
    output::line("");
    output::line(format!("  console     {link}"));
    output::line(format!("  kubectl     export KUBECONFIG={}", kubeconfig.display()));
    output::line("  deploy      ketch deploy hello.wasm");
    output::line("");
    output::line(
        "The link logs in once; `ketch token console` prints another. Ctrl-C stops Ketch: containers",
    );
    output::line("go on, everything else comes back with the next start.");
    if let Some(why) = node.and_then(LocalNode::no_containers) {
        output::line(format!("This node runs WebAssembly only: {}.", why.cause));
        output::line(format!("To run containers too: {}.", why.fix));
    }
    Ok(())
}

/// The first request to end; a second one ends the process at once.
async fn wait_for_the_end() -> Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    one_of(&mut interrupt, &mut terminate).await;
    std::thread::spawn(move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        runtime.block_on(one_of(&mut interrupt, &mut terminate));
        std::process::exit(130);
    });
    Ok(())
}

async fn one_of(interrupt: &mut Signal, terminate: &mut Signal) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// A socket per pod and per connection: the soft limit of 1,024 files is for other programs.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}
