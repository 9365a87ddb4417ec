//! A container's environment.

use std::net::IpAddr;

use ketch_api::k8s::api::core::v1 as core;

use crate::{context::Context, machine::Failure};

/// The container's environment, resolved.
pub(crate) async fn resolve(
    context: &Context,
    _pod: &core::Pod,
    container: &core::Container,
    _ip: IpAddr,
) -> Result<Vec<(String, String)>, Failure> {
    let mut env = vec![
        ("KUBERNETES_SERVICE_HOST".to_owned(), context.api.host.clone()),
        ("KUBERNETES_SERVICE_PORT".to_owned(), context.api.port.to_string()),
    ];
    for one in container.env.iter().flatten() {
        env.push((one.name.clone(), one.value.clone().unwrap_or_default()));
    }
    Ok(env)
}

/// Replaces `$(NAME)`.
pub(crate) fn expand(text: &str, _env: &[(String, String)]) -> String {
    text.to_owned()
}
