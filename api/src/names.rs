//! Names that users, tests and other programs rely on: labels, annotations, finalizers, constants.
//! Changing one is a breaking change.

/// Domain of Ketch's own labels and annotations.
pub const DOMAIN: &str = "ketch.dev";
/// Version of Kubernetes whose API is served.
pub const KUBERNETES_VERSION: &str = "v1.35.0";
/// Suffix of every cluster name.
pub const CLUSTER_DOMAIN: &str = "cluster.local";
/// The Service in the namespace `default` by which pods reach the API.
pub const API_SERVICE: &str = "kubernetes";
/// Namespace of the cluster's own workloads.
pub const SYSTEM_NAMESPACE: &str = "kube-system";
/// The Service in it that cluster DNS is known by; programs look it up by this name.
pub const DNS_SERVICE: &str = "kube-dns";
/// ConfigMap of every namespace with the certificate of the cluster's authority.
pub const ROOT_CA_CONFIG_MAP: &str = "kube-root-ca.crt";
/// Registry host of the built-in registry in image references.
pub const REGISTRY_HOST: &str = "ketch.local";

/// Outbound targets a Wasm container may reach beyond its cluster: comma-separated `host:port` patterns.
pub const OUTBOUND_ANNOTATION: &str = "ketch.dev/outbound";
/// On nodes that forward packets to Services; load balancers get the addresses of these.
pub const FORWARDS_LABEL: &str = "ketch.dev/forwards-services";
/// Name of the Function an object belongs to.
pub const FUNCTION_LABEL: &str = "ketch.dev/function";
/// Name of the FunctionRevision an object belongs to.
pub const REVISION_LABEL: &str = "ketch.dev/revision";

/// Runtime class that forces the Wasm runtime.
pub const WASM_RUNTIME_CLASS: &str = "ketch-wasm";
/// Other names the Wasm runtime answers to.
pub const WASM_RUNTIME_CLASS_ALIASES: &[&str] = &["wasm", "wasmtime", "wasmtime-spin-v2"];
/// Port of a component that exports `wasi:http` and declares none.
pub const DEFAULT_HTTP_PORT: u16 = 8080;

/// Group of every cluster administrator.
pub const ADMIN_GROUP: &str = "system:masters";
/// Group of nodes.
pub const NODES_GROUP: &str = "system:nodes";
/// Group of gateways: they read what routes are made of, in every namespace.
pub const GATEWAY_GROUP: &str = "system:ketch-gateways";
/// Prefix of the user name of a node's gateway.
pub const GATEWAY_USER_PREFIX: &str = "system:ketch-gateway:";
/// Prefix of a node's user name.
pub const NODE_USER_PREFIX: &str = "system:node:";
/// Prefix of a service account's user name.
pub const SERVICE_ACCOUNT_USER_PREFIX: &str = "system:serviceaccount:";

/// Annotation of a Node: where its end of the overlay listens (`IP:PORT`, UDP).
pub const OVERLAY_ANNOTATION: &str = "ketch.dev/overlay-address";
