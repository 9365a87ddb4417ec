//! What the machine's files and pods' health services say, and what pods are told.

use axum::http::{HeaderMap, HeaderValue};
use ketch_api::k8s::api::core::v1 as core;

use super::{grpc, hosts, http, sandbox};

/// A `resolv.conf`.
pub(crate) fn resolver(text: &str) {
    let _ = sandbox::resolver(text);
}

/// An answer of a health service and its trailers.
pub(crate) fn health(answer: &[u8]) {
    let _ = grpc::status(answer);
    let mut trailers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_bytes(answer) {
        trailers.insert("grpc-status", value.clone());
        trailers.insert("grpc-message", value);
    }
    let _ = grpc::judge(&trailers);
}

/// Names, resolvers and ports of a pod.
pub(crate) fn pod(pod: &core::Pod) {
    let ip = std::net::IpAddr::from([10, 42, 0, 2]);
    let _ = (hosts::text(pod, ip, None), hosts::table(pod, ip), sandbox::host_names(pod));
    let Some(spec) = &pod.spec else { return };
    let host = sandbox::resolver("nameserver 192.0.2.1\nsearch example.com\n");
    let _ = sandbox::dns(pod, spec, Some(&[ip]), &host);
    for container in &spec.containers {
        for probe in [&container.liveness_probe, &container.readiness_probe].into_iter().flatten() {
            let _ = probe.http_get.as_ref().map(|get| http::port_number(container, &get.port));
            let _ = probe.tcp_socket.as_ref().map(|tcp| http::port_number(container, &tcp.port));
        }
    }
}
