//! `ketch port-forward`: ports of a pod on this machine.

use std::net::IpAddr;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use ketch_api::k8s::api::core::v1::Pod;
use kube::Api;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::{Connection, logs};
use crate::output;

/// Which ports of which pod.
#[derive(Args)]
pub(crate) struct Arguments {
    /// POD, or function/NAME for a pod of a function.
    what: String,
    /// `[LOCAL:]REMOTE`; without LOCAL the same number, with 0 or nothing before the colon any.
    #[arg(required = true, value_parser = parse)]
    ports: Vec<(u16, u16)>,
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    address: IpAddr,
    #[command(flatten)]
    connection: Connection,
}

fn parse(text: &str) -> Result<(u16, u16), String> {
    let number = |text: &str| text.parse::<u16>().map_err(|_| format!("{text:?} is not a port"));
    let (local, remote) = match text.split_once(':') {
        Some(("", remote)) => (0, number(remote)?),
        Some((local, remote)) => (number(local)?, number(remote)?),
        None => (number(text)?, number(text)?),
    };
    if remote == 0 { Err("the pod's port must not be 0".to_owned()) } else { Ok((local, remote)) }
}

/// Runs the command, until it is interrupted.
pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let cluster = arguments.connection.open().await?;
    let pods = logs::pods(&cluster, &arguments.what).await?;
    let pod = pods.first().ok_or_else(|| anyhow!("{} has no pods", arguments.what))?;
    let api: Api<Pod> = Api::namespaced(cluster.client, &cluster.namespace);
    api.get(pod).await.map_err(|error| anyhow!("{}", ketch_client::status_text(&error)))?;
    let mut listeners = JoinSet::new();
    for (local, remote) in arguments.ports {
        let listener = TcpListener::bind((arguments.address, local)).await;
        let listener = listener.with_context(|| format!("cannot listen on {}:{local}", arguments.address))?;
        output::line(format!("Forwarding from {} -> {remote}", listener.local_addr()?));
        listeners.spawn(serve(listener, api.clone(), pod.clone(), remote));
    }
    match listeners.join_next().await {
        Some(Ok(result)) => result,
        _ => Err(anyhow!("the port-forward ended")),
    }
}

async fn serve(listener: TcpListener, api: Api<Pod>, pod: String, port: u16) -> Result<()> {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (connection, _) = accepted.context("cannot accept a connection")?;
                output::line(format!("Handling connection for {port}"));
                connections.spawn(forward(connection, api.clone(), pod.clone(), port));
            }
            Some(ended) = connections.join_next(), if !connections.is_empty() => {
                if let Ok(Err(error)) = ended {
                    output::error(&error);
                }
            }
        }
    }
}

async fn forward(mut connection: TcpStream, api: Api<Pod>, pod: String, port: u16) -> Result<()> {
    let forwarder = api.portforward(&pod, &[port]).await;
    let mut forwarder =
        forwarder.map_err(|error| anyhow!("cannot forward: {}", ketch_client::status_text(&error)))?;
    let failure = forwarder.take_error(port);
    let mut stream = forwarder.take_stream(port).ok_or_else(|| anyhow!("no stream for port {port}"))?;
    // Either side may cut the connection off.
    let _ = copy_bidirectional(&mut connection, &mut stream).await;
    drop(stream);
    let told = match failure {
        Some(failure) => failure.await,
        None => None,
    };
    told.map_or(Ok(()), |text| Err(anyhow!("{text}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_pairs() {
        assert_eq!(parse("8080"), Ok((8080, 8080)));
        assert_eq!(parse("80:8080"), Ok((80, 8080)));
        assert_eq!(parse(":8080"), Ok((0, 8080)));
        for bad in ["", "0", "x", "1:0", "70000", "1:2:3"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
