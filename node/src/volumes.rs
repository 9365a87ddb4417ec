//! A pod's volumes.

use std::net::IpAddr;

use ketch_api::k8s::api::core::v1 as core;
use ketch_runtime::Mount;

use crate::{context::Context, machine::Failure};

/// Makes the pod's volumes.
pub(crate) async fn prepare(_context: &Context, _pod: &core::Pod, _ip: IpAddr) -> Result<(), Failure> {
    Ok(())
}

/// Brings files up to date.
pub(crate) async fn refresh(_context: &Context, _pod: &core::Pod) -> Result<(), Failure> {
    Ok(())
}

/// The container's mounts.
pub(crate) fn mounts(
    _context: &Context,
    _pod: &core::Pod,
    _container: &core::Container,
    _env: &[(String, String)],
) -> Result<Vec<Mount>, Failure> {
    Ok(Vec::new())
}

/// Removes the pod's directory.
pub(crate) async fn remove(context: &Context, uid: &str) {
    let _ = tokio::fs::remove_dir_all(context.pod_dir(uid)).await;
}
