//! `ketch up` and `ketch server`: the daemon, from options to a clean end.

use std::{
    net::{SocketAddr, TcpListener},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context, Result, anyhow};
use ketch_node::{Cidr, NodeOverlay};
use ketch_server::Server;
use serde_json::json;

use super::{
    cluster_dns,
    local_node::{self, Precompiler},
    machine::{self, FrontDoor, Machine},
    process, relay,
};
use crate::{
    options::{Flags, Options, Role},
    output,
};

/// Runs until it is told to end.
pub(crate) fn run(flags: Flags, role: Role) -> Result<ExitCode> {
    process::daemon(flags, role, |options, start| serve(options, role, start))
}

async fn serve(options: Options, role: Role, start: Instant) -> Result<()> {
    let front = match role {
        Role::Up => Some(FrontDoor::bind(&options)?),
        Role::Server | Role::Node => None,
    };
    let address = |listener: Option<&TcpListener>| listener.and_then(|listener| listener.local_addr().ok());
    let http = address(front.as_ref().map(|front| &front.http));
    let https = address(front.as_ref().map(|front| &front.https));
    let http_addr = http.unwrap_or(options.http_addr);
    let precompiler = Precompiler::default();
    let mut server = Server::start(server_options(&options, http_addr), Some(precompiler.hook())).await?;
    let node = match front {
        Some(front) => Some(local_node::start(&mut server, &options, front, &precompiler).await?),
        None => {
            if let Some(endpoint) = machine::reached_at(server.api_addr) {
                server.publish_api(endpoint);
            }
            None
        }
    };
    let relay = match node {
        Some(_) => None,
        None => beside(&server, &options).await?,
    };
    let reserved: Vec<String> = node.iter().map(|node| node.range.to_string()).collect();
    let own = node.as_ref().map(|node| (node, options.node_name.as_str()));
    server.admit_nodes(&reserved, relay::told(own, relay.as_ref())).await;
    let dns = node.as_ref().and_then(|node| node.dns.address());
    write_run_file(&server, &options, (http, https), dns)?;
    announce(&server, &options, node.as_ref(), start).await?;
    process::wait_for_the_end().await?;
    output::note("stopping");
    if let Some(node) = node {
        node.shutdown().await;
    }
    if let Some(relay) = relay {
        relay.shutdown().await;
    }
    server.shutdown().await;
    Ok(())
}

/// What a server without a node does for its nodes.
async fn beside(server: &Server, options: &Options) -> Result<Option<NodeOverlay>> {
    let services: Cidr = options.service_cidr.parse().map_err(|why| anyhow!("--service-cidr: {why}"))?;
    if let Some(address) = cluster_dns::usual_address(&services) {
        cluster_dns::publish(server, address).await;
    }
    relay::start(server, options).await
}

fn server_options(options: &Options, http: SocketAddr) -> ketch_server::Options {
    let function_domain = match http.port() {
        80 => "localhost".to_owned(),
        port => format!("localhost:{port}"),
    };
    let mut subject_names = options.tls_san.clone();
    subject_names.push(options.node_name.clone());
    if options.api_addr.ip().is_unspecified() {
        let own = process::own_addresses();
        subject_names.extend(own.iter().filter(|(_, ip)| !ip.is_loopback()).map(|(_, ip)| ip.to_string()));
    } else {
        subject_names.push(options.api_addr.ip().to_string());
    }
    ketch_server::Options {
        data_dir: options.data_dir.clone(),
        api_addr: options.api_addr,
        ui_addr: options.ui_addr,
        quic_addr: options.quic_addr,
        pod_cidr: options.pod_cidr.clone(),
        service_cidr: options.service_cidr.clone(),
        subject_names,
        function_domain,
        node_cert_life: options.node_cert_life(),
    }
}

/// Addresses in use, under the names of the flags.
fn write_run_file(
    server: &Server,
    options: &Options,
    (http, https): (Option<SocketAddr>, Option<SocketAddr>),
    dns: Option<SocketAddr>,
) -> Result<()> {
    let run = json!({
        "pid": std::process::id(), "version": env!("CARGO_PKG_VERSION"), "node-name": options.node_name,
        "api-addr": server.api_addr, "ui-addr": server.ui_addr, "http-addr": http, "https-addr": https,
        "quic-addr": server.quic_addr, "dns-addr": dns,
    });
    server.data_dir().write("run.json", &format!("{run:#}\n")).context("write run.json")
}

async fn announce(server: &Server, options: &Options, node: Option<&Machine>, start: Instant) -> Result<()> {
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
    let ketch = process::own_name();
    output::line(format!("  deploy      {ketch} deploy hello.wasm"));
    output::line("");
    let Some(node) = node else {
        output::line(format!(
            "The link logs in once; `{ketch} token console` prints another. This is a server without a node:",
        ));
        output::line(format!("`{ketch} token create` prints the command that makes another machine one."));
        return Ok(());
    };
    output::line(format!("The link logs in once; `{ketch} token console` prints another."));
    output::line("Ctrl-C stops Ketch: containers go on, everything else comes back with the next start.");
    if let Some(why) = node.no_containers() {
        output::line(format!("This node runs WebAssembly only: {}.", why.cause));
        output::line(format!("To run containers too: {}.", why.fix));
    }
    Ok(())
}
