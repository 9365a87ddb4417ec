//! Running one try of a probe.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ketch_api::k8s::api::core::v1 as core;
use ketch_runtime::ContainerId;

use super::{
    Done,
    exec::{self, Failed},
    grpc, http, instance, reference,
};
use crate::{
    context::{Context, Report},
    machine::{Outcome, ProbeKind, Unit},
};

/// The instance a probe asks.
pub(crate) struct ProbeTarget {
    pub(crate) unit: Unit,
    pub(crate) runtime: usize,
    pub(crate) attempt: u32,
    pub(crate) ip: IpAddr,
}

/// Runs a probe once; a failure leaves an event.
pub(crate) async fn probe(
    context: Arc<Context>,
    pod: Arc<core::Pod>,
    target: ProbeTarget,
    kind: ProbeKind,
) -> Done {
    let ProbeTarget { unit, runtime, attempt, ip } = target;
    let Some(spec) = unit.probe(kind) else {
        return Done::Outcome(Outcome::Probed(unit.name, attempt, kind, true));
    };
    let id = instance(&pod, &unit.name, attempt);
    let called = call(&context, &unit, &spec.probe, ip, (runtime, &id));
    let result = match tokio::time::timeout(spec.timeout, called).await {
        Ok(result) => result,
        Err(_) => Err(Failed::Command(format!("no answer within {}s", spec.timeout.as_secs()))),
    };
    let result = match result {
        Err(Failed::Unsupported(why)) => {
            let text = format!("{} probe: exec probes are {why}; use httpGet or tcpSocket", kind.title());
            context.event(&pod, reference(&unit), Report::warning("Unsupported", text));
            // A container is not restarted for a question that cannot be asked, but not called ready either.
            return Done::Outcome(Outcome::Probed(unit.name, attempt, kind, kind != ProbeKind::Readiness));
        }
        Err(Failed::Command(message)) => Err(message),
        Ok(()) => Ok(()),
    };
    let passed = match result {
        Ok(()) => true,
        Err(message) => {
            let text = format!("{} probe failed: {message}", kind.title());
            context.event(&pod, reference(&unit), Report::warning("Unhealthy", text));
            false
        }
    };
    Done::Outcome(Outcome::Probed(unit.name, attempt, kind, passed))
}

async fn call(
    context: &Context,
    unit: &Unit,
    probe: &core::Probe,
    ip: IpAddr,
    (runtime, id): (usize, &ContainerId),
) -> Result<(), Failed> {
    if let Some(exec) = &probe.exec {
        return exec::run(context, runtime, id, exec.command.as_deref().unwrap_or_default()).await;
    }
    ask(context, unit, probe, ip).await.map_err(Failed::Command)
}

/// Probes that ask over the network.
async fn ask(context: &Context, unit: &Unit, probe: &core::Probe, ip: IpAddr) -> Result<(), String> {
    if let Some(get) = &probe.http_get {
        let status = http::get(context, &unit.container, get, ip).await?;
        // Upstream counts redirects as success.
        let good = (200..400).contains(&status);
        return if good { Ok(()) } else { Err(format!("HTTP probe failed with statuscode: {status}")) };
    }
    if let Some(tcp) = &probe.tcp_socket {
        let port = http::port_number(&unit.container, &tcp.port)?;
        let host = tcp.host.clone().filter(|host| !host.is_empty()).unwrap_or_else(|| ip.to_string());
        let connected = tokio::net::TcpStream::connect((host.as_str(), port)).await;
        return connected.map(|_| ()).map_err(|error| format!("dial tcp {host}:{port}: {error}"));
    }
    if let Some(call) = &probe.grpc {
        let port = u16::try_from(call.port).map_err(|_| format!("invalid port: {}", call.port))?;
        return grpc::check(SocketAddr::new(ip, port), call.service.as_deref().unwrap_or_default()).await;
    }
    Ok(())
}
