//! What all pod workers of a node share.

use std::{path::PathBuf, sync::Arc};

use ketch_api::{
    k8s::api::{core::v1 as core, node::v1::RuntimeClass},
    names,
};
use ketch_runtime::{ContainerId, HttpService, Runtime};
use kube::api::Api;

use crate::{
    addresses::AddressBook,
    events::{Note, Recorder},
    images::PolicyImages,
    index::Index,
    machine::{Failure, Host, container_id},
    network::ClusterNetwork,
    options::{ApiAddress, RuntimeEntry, Unavailable},
    services::LocalServices,
    sources::Sources,
    streaming::Sessions,
};

/// Places of the runtimes in the list: WebAssembly first.
pub(crate) const WASM: usize = 0;
const CONTAINERS: usize = 1;

/// Prefix of the ids of Wasm containers.
const WASM_SCHEME: &str = "wasm";

/// What all pod workers of a node share.
pub(crate) struct Context {
    /// Name of the node.
    pub(crate) name: Arc<str>,
    pub(crate) client: kube::Client,
    pub(crate) index: Index,
    pub(crate) host: Host,
    pub(crate) root: PathBuf,
    pub(crate) runtimes: Vec<RuntimeEntry>,
    /// Runtimes that are missing.
    pub(crate) unavailable: Vec<Unavailable>,
    /// Addresses of the cluster's DNS.
    pub(crate) dns: Option<Vec<std::net::IpAddr>>,
    pub(crate) images: PolicyImages,
    /// Wakes whoever removes images that nobody uses: there was no room for another one.
    pub(crate) no_room: tokio::sync::Notify,
    pub(crate) addresses: AddressBook,
    pub(crate) events: Recorder,
    pub(crate) services: Arc<LocalServices>,
    pub(crate) api: ApiAddress,
    pub(crate) sources: Sources,
    /// Where Services for environments are looked up.
    pub(crate) network: Option<Arc<ClusterNetwork>>,
    /// exec, attach and port-forward connections.
    pub(crate) sessions: Sessions,
    /// CPUs and bytes of memory of the node.
    pub(crate) capacity: (i64, i64),
}

impl Context {
    /// A runtime by its place in the list.
    pub(crate) fn runtime(&self, index: usize) -> Option<&Arc<dyn Runtime>> {
        self.runtimes.get(index).map(|entry| &entry.runtime)
    }

    /// What the status calls an instance of a container: `wasm`, or the name in the runtime's version, then the
    /// runtime's handle, or our own id where it has none.
    pub(crate) fn shown_id(
        &self,
        index: usize,
        uid: &str,
        name: &str,
        attempt: u32,
        handle: Option<&str>,
    ) -> Arc<str> {
        let version = match index {
            WASM => WASM_SCHEME.to_owned(),
            _ => self.runtime(index).map(|runtime| runtime.capabilities().version).unwrap_or_default(),
        };
        let scheme = version.split_once("://").map_or(version.as_str(), |(name, _)| name);
        let own = || container_id(uid, name, attempt);
        format!("{scheme}://{}", handle.map_or_else(own, str::to_owned)).into()
    }

    /// The runtime for containers, by its place in the list.
    pub(crate) fn containers(&self) -> Option<usize> {
        (self.runtimes.len() > 1).then_some(CONTAINERS)
    }

    /// Where images of containers are, when that may be another file system than the node's own.
    pub(crate) fn image_root(&self) -> Option<PathBuf> {
        self.runtimes.iter().find_map(|entry| entry.runtime.image_root())
    }

    /// Why a pod that needs containers cannot run here, and what to do.
    pub(crate) fn no_containers(&self) -> String {
        let texts: Vec<&str> = self.unavailable.iter().map(|one| one.text.as_str()).collect();
        let fix = match texts.is_empty() {
            true => "the node runs WebAssembly only; build the workload for wasm32-wasip2, or join a node with containerd".to_owned(),
            false => texts.join("; "),
        };
        format!("containers are not available on this node: {fix}")
    }

    /// The runtime that a pod's runtime class names; `None`: the image decides. A class is a handler of this
    /// node, which needs no object, or a RuntimeClass that names one.
    pub(crate) async fn forced_runtime(&self, pod: &core::Pod) -> Result<Option<usize>, Failure> {
        let Some(class) = pod.spec.as_ref().and_then(|spec| spec.runtime_class_name.as_deref()) else {
            return Ok(None);
        };
        if let Some(index) = self.handled(class)? {
            return Ok(Some(index));
        }
        let classes: Api<RuntimeClass> = Api::all(self.client.clone());
        let found = classes.get_opt(class).await.map_err(|error| Failure {
            reason: "FailedCreatePodSandBox",
            message: format!("RuntimeClass {class:?} cannot be read: {error}"),
        })?;
        if let Some(object) = &found
            && let Some(index) = self.handled(&object.handler)?
        {
            return Ok(Some(index));
        }
        let known: Vec<&str> =
            self.runtimes.iter().flat_map(|entry| &entry.handlers).map(String::as_str).collect();
        let what = match found {
            Some(object) => format!("its handler {:?} is not available", object.handler),
            None => "not found, and no handler has that name".to_owned(),
        };
        let message = format!("RuntimeClass {class:?}: {what} on this node; it offers {}", known.join(", "));
        Err(Failure { reason: "FailedCreatePodSandBox", message })
    }

    /// The runtime of a handler. `Err`: the node could have it and has not.
    fn handled(&self, handler: &str) -> Result<Option<usize>, Failure> {
        let has = |handlers: &[String]| handlers.iter().any(|one| one == handler);
        if let Some(index) = self.runtimes.iter().position(|entry| has(&entry.handlers)) {
            return Ok(Some(index));
        }
        if handler == names::WASM_RUNTIME_CLASS || names::WASM_RUNTIME_CLASS_ALIASES.contains(&handler) {
            return Ok(Some(WASM));
        }
        if self.unavailable.iter().any(|one| has(&one.handlers)) {
            let message = format!("RuntimeClass {handler:?}: {}", self.no_containers());
            return Err(Failure { reason: "FailedCreatePodSandBox", message });
        }
        Ok(None)
    }

    /// The HTTP service of an instance of a container.
    pub(crate) fn http(&self, runtime: usize, id: &ContainerId) -> Option<Arc<dyn HttpService>> {
        self.runtime(runtime)?.http(id)
    }

    /// Directory of a pod's volumes and files.
    pub(crate) fn pod_dir(&self, uid: &str) -> PathBuf {
        self.root.join("pods").join(uid)
    }

    /// The node, for events about it.
    pub(crate) fn node_reference(&self) -> core::ObjectReference {
        core::ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(self.name.to_string()),
            // As upstream: a node's events are in the default namespace and go by its name.
            uid: Some(self.name.to_string()),
            ..core::ObjectReference::default()
        }
    }

    /// Leaves an event about a pod, or about one of its containers.
    pub(crate) fn event(&self, pod: &core::Pod, container: Option<(&str, bool)>, note: Report) {
        let field = container.map(|(name, init)| {
            format!("spec.{}{{{name}}}", if init { "initContainers" } else { "containers" })
        });
        let object = core::ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: pod.metadata.name.clone(),
            namespace: pod.metadata.namespace.clone(),
            uid: pod.metadata.uid.clone(),
            resource_version: pod.metadata.resource_version.clone(),
            field_path: field,
        };
        self.events.record(Note {
            object,
            warning: note.warning,
            reason: note.reason,
            message: note.message,
        });
    }
}

/// An event without its object.
pub(crate) struct Report {
    warning: bool,
    reason: &'static str,
    message: String,
}

impl Report {
    /// A `Normal` event.
    pub(crate) fn normal(reason: &'static str, message: impl Into<String>) -> Self {
        Self { warning: false, reason, message: message.into() }
    }

    /// A `Warning` event.
    pub(crate) fn warning(reason: &'static str, message: impl Into<String>) -> Self {
        Self { warning: true, reason, message: message.into() }
    }
}
