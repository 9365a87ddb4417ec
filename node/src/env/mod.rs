//! A container's environment: read what it refers to, then build it.

mod build;
mod expand;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;

use std::{collections::BTreeMap, net::IpAddr};

use ketch_api::k8s::api::core::v1 as core;

use build::{Inputs, build, references};
pub(crate) use expand::Variables;

use crate::{
    context::{Context, Report},
    fields::Place,
    machine::Failure,
    sources::{Data, Kind},
};

/// What a container's environment refers to, by kind and name.
type Found = BTreeMap<(Kind, String), Option<Data>>;

/// The container's environment, in order, later ones over earlier ones.
pub(crate) async fn resolve(
    context: &Context,
    pod: &core::Pod,
    container: &core::Container,
    ip: IpAddr,
) -> Result<Vec<(String, String)>, Failure> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let mut found = Found::new();
    for (kind, name) in references(container) {
        let data = context.sources.read(kind, namespace, &name, false).await.map_err(failure)?;
        found.insert((kind, name), data);
    }
    let services = context.service_env(pod);
    let place = context.place(Some(ip));
    let built = build(&Inputs { pod, container, place: &place, services, found: &found }).map_err(failure)?;
    if !built.skipped.is_empty() {
        let text = format!(
            "Keys [{}] from the container's envFrom were skipped since they are not valid names",
            built.skipped.join(", ")
        );
        context.event(pod, None, Report::warning("InvalidEnvironmentVariableNames", text));
    }
    Ok(built.env)
}

impl Context {
    /// What the downward API says of this node.
    pub(crate) fn place(&self, ip: Option<IpAddr>) -> Place<'_> {
        Place { ip, host_ips: &self.host.ips, cpus: self.capacity.0, memory: self.capacity.1 }
    }

    /// Variables of the API's Service and, unless the pod declines, of the Services of its namespace.
    fn service_env(&self, pod: &core::Pod) -> Vec<(String, String)> {
        let mut env = build::api_env(&self.api.host, self.api.port);
        let links = pod.spec.as_ref().and_then(|spec| spec.enable_service_links).unwrap_or(true);
        if let (true, Some(network)) = (links, &self.network) {
            let table = network.table();
            let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
            let services = table.namespace(namespace).into_iter();
            let others = services.filter(|(name, _)| (namespace, *name) != ("default", "kubernetes"));
            env.extend(others.flat_map(|(name, entry)| build::link_env(name, entry)));
        }
        env
    }
}

fn failure(message: String) -> Failure {
    Failure { reason: "CreateContainerConfigError", message }
}
