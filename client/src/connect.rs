//! Clients: in process, and from a kubeconfig file.

use std::path::Path;

use http::{Extensions, Request};
use kube::{
    Client, Config,
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
};
use tower::ServiceExt;

use crate::kubeconfig::Error;

/// A client whose requests are answered by `router` in this process, without sockets or TLS.
///
/// `identify` marks each request with who makes it, as the TLS listener does for requests from outside;
/// the router authorises them alike. Needs a tokio runtime.
pub fn in_process(
    router: axum::Router,
    identify: impl Fn(&mut Extensions) + Clone + Send + Sync + 'static,
) -> Client {
    let service = tower::service_fn(move |request: Request<Body>| {
        let (mut parts, body) = request.into_parts();
        identify(&mut parts.extensions);
        router.clone().oneshot(Request::from_parts(parts, axum::body::Body::new(body)))
    });
    Client::new(service, "default")
}

/// A client for a context of a kubeconfig file; the file's current context when `context` is `None`.
///
/// # Errors
/// The file cannot be read or understood, it has no such context, or its credentials cannot be used.
pub async fn from_kubeconfig(path: &Path, context: Option<&str>) -> Result<Client, Error> {
    let config = config_of(path, context).await?;
    let unusable = |why: String| Error::Unusable { path: path.to_owned(), why };
    Client::try_from(config).map_err(|e| unusable(crate::status_text(&e)))
}

/// What a context of a kubeconfig file says: where the server is, and which authority to believe.
///
/// # Errors
/// The file cannot be read or understood, or it has no such context.
pub async fn config_of(path: &Path, context: Option<&str>) -> Result<Config, Error> {
    let unusable = |why: String| Error::Unusable { path: path.to_owned(), why };
    let file = Kubeconfig::read_from(path).map_err(|e| unusable(e.to_string()))?;
    let options = KubeConfigOptions { context: context.map(str::to_owned), ..KubeConfigOptions::default() };
    Config::from_custom_kubeconfig(file, &options).await.map_err(|e| unusable(e.to_string()))
}

#[cfg(test)]
mod tests {
    use axum::{Extension, Json, extract::Path, routing::get};
    use ketch_api::k8s::api::core::v1::ConfigMap;
    use kube::Api;
    use serde_json::json;

    use super::*;

    #[derive(Clone)]
    struct Who(&'static str);

    #[tokio::test]
    async fn requests_carry_the_identity_and_reach_the_router() {
        let answer = |Path((namespace, name)): Path<(String, String)>, Extension(who): Extension<Who>| async move {
            Json(
                json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace},
                "data": {"who": who.0}}),
            )
        };
        let router =
            axum::Router::new().route("/api/v1/namespaces/{namespace}/configmaps/{name}", get(answer));
        let client = in_process(router, |extensions| {
            extensions.insert(Who("controller"));
        });
        let found = Api::<ConfigMap>::namespaced(client.clone(), "shop").get("c").await.unwrap();
        assert_eq!(found.metadata.namespace.as_deref(), Some("shop"));
        assert_eq!(found.data.unwrap()["who"], "controller");
        let missing = Api::<ConfigMap>::namespaced(client, "shop").list(&Default::default()).await;
        assert!(crate::is_not_found(&missing.unwrap_err()));
    }

    #[tokio::test]
    async fn a_missing_context_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        std::fs::write(&path, "apiVersion: v1\nkind: Config\nclusters: []\nusers: []\ncontexts: []\n")
            .unwrap();
        let Err(error) = from_kubeconfig(&path, Some("nowhere")).await else { panic!("no such context") };
        assert!(error.to_string().contains("nowhere"), "{error}");
    }
}
