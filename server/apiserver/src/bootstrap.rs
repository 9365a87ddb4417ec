//! What every cluster has from the start.

use std::sync::Arc;

use ketch_api::{
    Status,
    names::{API_SERVICE, DNS_SERVICE, SYSTEM_NAMESPACE},
    volume::{DEFAULT_CLASS, IS_DEFAULT, PROVISIONER},
};
use serde_json::{Value, json};

use crate::{
    admission::{Operation, Request},
    auth::User,
    rest::{create, meta, write::Write},
    server::ApiServer,
    wire::body::FieldValidation,
};

/// Namespaces of every cluster.
const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];

/// What pods know cluster DNS by; nodes write its endpoints.
fn dns_service(address: std::net::Ipv4Addr) -> Value {
    json!({
        "metadata": {"name": DNS_SERVICE, "namespace": SYSTEM_NAMESPACE,
            "labels": {"k8s-app": DNS_SERVICE, "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "KetchDNS"}},
        "spec": {"clusterIP": address.to_string(), "type": "ClusterIP", "ports": [
            {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
            {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53},
        ]},
    })
}

/// Volumes of it are directories of the pod's node. They may grow because their size is not enforced.
fn default_class() -> Value {
    json!({
        "metadata": {"name": DEFAULT_CLASS, "annotations": {IS_DEFAULT: "true"}},
        "provisioner": PROVISIONER, "reclaimPolicy": "Delete", "volumeBindingMode": "WaitForFirstConsumer",
        "allowVolumeExpansion": true,
    })
}

impl ApiServer {
    /// Creates the system namespaces, the default storage class and the Services `kubernetes` and `kube-dns` where
    /// they are missing; `api_port` is the port this server's API is reached at. Idempotent: run it at every start,
    /// before clients come, and from time to time.
    ///
    /// # Errors
    /// Those of the store. Kinds that are not served are left out.
    pub async fn bootstrap(self: &Arc<Self>, api_port: u16) -> Result<(), Status> {
        for name in NAMESPACES {
            let labels = json!({"kubernetes.io/metadata.name": name});
            let namespace = json!({"metadata": {"name": name, "labels": labels}});
            self.ensure("", "v1", "namespaces", namespace).await?;
        }
        self.ensure("storage.k8s.io", "v1", "storageclasses", default_class()).await?;
        let service = json!({
            "metadata": {"name": API_SERVICE, "namespace": "default",
                "labels": {"component": "apiserver", "provider": "kubernetes"}},
            "spec": {"clusterIP": self.service_cidr.first().to_string(), "type": "ClusterIP",
                "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": api_port}]},
        });
        self.ensure("", "v1", "services", service).await?;
        let Some(dns) = self.service_cidr.tenth() else { return Ok(()) };
        if let Err(status) = self.ensure("", "v1", "services", dns_service(dns)).await {
            // In a cluster that is older than the Service, another one may have the address.
            tracing::warn!(message = %status.message, "the Service kube-dns cannot be created");
        }
        Ok(())
    }

    /// Creates an object on behalf of the server itself, through defaulting, admission and validation.
    /// One of the same name that exists already is left as it is.
    ///
    /// # Errors
    /// Whatever a create can fail with, except that the object exists.
    pub async fn ensure(
        &self,
        group: &str,
        version: &str,
        plural: &str,
        object: Value,
    ) -> Result<(), Status> {
        let Some(resource) = self.registry.get(group, version, plural).cloned() else { return Ok(()) };
        let request = Request {
            user: User::new("system:apiserver", &[ketch_api::names::ADMIN_GROUP]),
            operation: Operation::Create,
            descriptor: resource.descriptor().clone(),
            subresource: String::new(),
            namespace: meta::text(&object, "namespace").to_owned(),
            name: String::new(),
            dry_run: false,
        };
        let key = resource.key(&request.namespace, meta::text(&object, "name"));
        // A create would be refused for what the existing object already holds, such as its cluster IP.
        if self.storage.get(&key).await.map_err(Status::internal)?.is_some() {
            return Ok(());
        }
        let mut write = Write::new(self, resource, request, self.now());
        let incoming = write.decode(object, &[], FieldValidation::Strict)?;
        match create::store(self, &mut write, incoming).await {
            Err(status) if status.reason != "AlreadyExists" => Err(status),
            _ => Ok(()),
        }
    }
}
