//! Running one try of a probe.

use std::{net::IpAddr, sync::Arc};

use ketch_api::k8s::api::core::v1 as core;

use super::{Done, http, reference};
use crate::{
    context::{Context, Report},
    machine::{Outcome, ProbeKind, Unit},
};

/// The instance a probe asks.
pub(crate) struct ProbeTarget {
    pub(crate) unit: Unit,
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
    let ProbeTarget { unit, attempt, ip } = target;
    let Some(spec) = unit.probe(kind) else {
        return Done::Outcome(Outcome::Probed(unit.name, attempt, kind, true));
    };
    if let Some(text) = unsupported(&spec.probe) {
        context.event(
            &pod,
            reference(&unit),
            Report::warning("Unsupported", format!("{} probe: {text}", kind.title())),
        );
        // A container is not restarted for a question that cannot be asked, but not called ready either.
        return Done::Outcome(Outcome::Probed(unit.name, attempt, kind, kind != ProbeKind::Readiness));
    }
    let result = match tokio::time::timeout(spec.timeout, call(&context, &unit, &spec.probe, ip)).await {
        Ok(result) => result,
        Err(_) => Err(format!("no answer within {}s", spec.timeout.as_secs())),
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

async fn call(context: &Context, unit: &Unit, probe: &core::Probe, ip: IpAddr) -> Result<(), String> {
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
    Ok(())
}

/// Why a probe cannot be run here.
fn unsupported(probe: &core::Probe) -> Option<&'static str> {
    if probe.exec.is_some() {
        return Some("exec probes are not supported in Wasm containers; use httpGet or tcpSocket");
    }
    probe.grpc.is_some().then_some("gRPC probes are not supported on this node; use httpGet or tcpSocket")
}
