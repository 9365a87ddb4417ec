//! The Service `default/kubernetes` by which pods reach this server. What is missing of it, or was changed, is
//! made again, as kube-apiserver's own controller does.

use std::{net::SocketAddr, sync::Arc};

use ketch_api::{
    k8s::api::{
        core::v1::{Endpoints, Service},
        discovery::v1::EndpointSlice,
    },
    names::API_SERVICE,
};
use ketch_apiserver::ApiServer;
use ketch_client::{TaskError, is_not_found};
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams, PostParams},
    core::NamespaceResourceScope,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

const NAMESPACE: &str = "default";
/// Name of the port.
const PORT: &str = "https";

/// Makes the Service lead to `endpoint`, and the rest of what every cluster has.
pub(crate) async fn keep(
    api: &Arc<ApiServer>,
    client: &Client,
    endpoint: SocketAddr,
) -> Result<(), TaskError> {
    api.bootstrap(endpoint.port()).await.map_err(|status| TaskError::new(status.message))?;
    let ports = json!([{"name": PORT, "port": 443, "protocol": "TCP", "targetPort": endpoint.port()}]);
    let results = [
        write::<Service>(client, json!({"spec": {"ports": ports}})).await,
        write::<EndpointSlice>(client, slice(endpoint)).await,
        write::<Endpoints>(client, endpoints(endpoint)).await,
    ];
    results.into_iter().collect::<Result<_, _>>().map_err(TaskError::new)
}

/// Brings the object of this name to have the fields of `wanted`. One that has them already is left alone.
async fn write<K>(client: &Client, wanted: Value) -> Result<(), kube::Error>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    K: Clone + std::fmt::Debug + Serialize + DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(client.clone(), NAMESPACE);
    match api.patch(API_SERVICE, &PatchParams::default(), &Patch::Merge(&wanted)).await {
        Err(error) if is_not_found(&error) => {}
        other => return other.map(drop),
    }
    let mut object: K = serde_json::from_value(wanted).map_err(kube::Error::SerdeError)?;
    object.meta_mut().name = Some(API_SERVICE.to_owned());
    api.create(&PostParams::default(), &object).await.map(drop)
}

fn endpoints(endpoint: SocketAddr) -> Value {
    json!({
        "metadata": {"labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{
            "addresses": [{"ip": endpoint.ip().to_string()}],
            "ports": [{"name": PORT, "port": endpoint.port(), "protocol": "TCP"}],
        }],
    })
}

fn slice(endpoint: SocketAddr) -> Value {
    json!({
        "metadata": {"labels": {"kubernetes.io/service-name": API_SERVICE}},
        "addressType": if endpoint.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{"addresses": [endpoint.ip().to_string()], "conditions": {"ready": true}}],
        "ports": [{"name": PORT, "port": endpoint.port(), "protocol": "TCP"}],
    })
}
