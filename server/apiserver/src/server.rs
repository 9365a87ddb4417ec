//! [`ApiServer`]: what the parts of the pipeline share.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use jiff::Timestamp;
use ketch_api::DynStrategy;
use ketch_store::Storage;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    admission::{self, Admission, cluster_ip::ServiceCidr},
    auth::{Authenticator, Authorizer, Reviews},
    metrics::Metrics,
    node::NodeConnector,
    openapi::OpenApi,
    paths::PathHandler,
    registry::Registry,
    route::{self, limits::Limiter},
};

/// Bounds on what clients can occupy.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Reads in flight, watches and log streams excepted.
    pub reads: usize,
    /// Writes in flight.
    pub writes: usize,
    /// How long a request waits for its turn before it is answered 429.
    pub queue: Duration,
    /// Time for everything but watches and streams; 504 after it.
    pub timeout: Duration,
}

impl Default for Limits {
    /// kube-apiserver's `--max-requests-inflight`, `--max-mutating-requests-inflight` and
    /// `--request-timeout`.
    fn default() -> Self {
        Self { reads: 400, writes: 200, queue: Duration::from_secs(5), timeout: Duration::from_secs(60) }
    }
}

/// What an [`ApiServer`] is made of.
pub struct Config {
    /// The kinds to serve.
    pub strategies: Vec<Box<dyn DynStrategy>>,
    /// Proves who asks.
    pub authenticator: Arc<dyn Authenticator>,
    /// Decides whether they may.
    pub authorizer: Arc<dyn Authorizer>,
    /// Answers access reviews and token requests; without it these kinds are not served.
    pub reviews: Option<Arc<dyn Reviews>>,
    /// Admission hooks after the built-in ones.
    pub admission: Vec<Arc<dyn Admission>>,
    /// The way to the nodes, for logs, exec, attach and port-forward; without it they are answered 503.
    pub nodes: Option<Arc<dyn NodeConnector>>,
    /// What nodes and pods use; without it `metrics.k8s.io` is not served.
    pub metrics: Option<Arc<dyn Metrics>>,
    /// Further paths: OIDC discovery.
    pub paths: Vec<Arc<dyn PathHandler>>,
    /// Addresses of Services.
    pub service_cidr: ServiceCidr,
    /// Bounds on what clients can occupy.
    pub limits: Limits,
    /// The time.
    pub clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
}

impl Config {
    /// All kinds, nothing optional, the system clock.
    pub fn new(authenticator: Arc<dyn Authenticator>, authorizer: Arc<dyn Authorizer>) -> Self {
        Self {
            strategies: ketch_api::kinds::all(),
            authenticator,
            authorizer,
            reviews: None,
            admission: Vec::new(),
            nodes: None,
            metrics: None,
            paths: Vec::new(),
            service_cidr: ServiceCidr::default(),
            limits: Limits::default(),
            clock: Arc::new(Timestamp::now),
        }
    }
}

/// The Kubernetes API over one [`Storage`].
pub struct ApiServer {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) registry: Registry,
    pub(crate) authenticator: Arc<dyn Authenticator>,
    pub(crate) authorizer: Arc<dyn Authorizer>,
    pub(crate) reviews: Option<Arc<dyn Reviews>>,
    pub(crate) admission: Arc<[Arc<dyn Admission>]>,
    pub(crate) nodes: Option<Arc<dyn NodeConnector>>,
    pub(crate) metrics: Option<Arc<dyn Metrics>>,
    pub(crate) paths: Vec<Arc<dyn PathHandler>>,
    pub(crate) service_cidr: ServiceCidr,
    pub(crate) limiter: Limiter,
    pub(crate) clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    pub(crate) stopping: CancellationToken,
    /// Upgraded connections whose bytes are copied to nodes; they end with `stopping`.
    pub(crate) upgraded: TaskTracker,
}

impl ApiServer {
    /// A server that is ready to route; [`ApiServer::bootstrap`] makes it complete.
    pub fn new(storage: Arc<dyn Storage>, config: Config) -> Arc<Self> {
        let mut hooks = admission::built_in(&storage, config.service_cidr);
        hooks.extend(config.admission);
        let registry = Registry::new(config.strategies);
        let mut paths = config.paths;
        let kinds = registry.iter().map(|resource| resource.descriptor().clone()).collect();
        paths.push(Arc::new(OpenApi::new(kinds)));
        Arc::new(Self {
            storage,
            registry,
            authenticator: config.authenticator,
            authorizer: config.authorizer,
            reviews: config.reviews,
            admission: hooks.into(),
            nodes: config.nodes,
            metrics: config.metrics,
            paths,
            service_cidr: config.service_cidr,
            limiter: Limiter::new(config.limits),
            clock: config.clock,
            stopping: CancellationToken::new(),
            upgraded: TaskTracker::new(),
        })
    }

    /// Everything under `/api`, `/apis`, `/openapi`, `/version`, `/livez`, `/readyz`, `/healthz`, with
    /// authentication, authorisation and limits. Unknown paths are answered here too.
    pub fn router(self: &Arc<Self>) -> Router {
        let server = self.clone();
        Router::new().fallback(move |request: axum::extract::Request| route::serve(server.clone(), request))
    }

    /// The served kinds.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The store behind it.
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// Ends watches, log streams and upgraded connections, so that connections can drain, and turns `/readyz` to 503. Other
    /// requests are served on.
    pub fn stop(&self) {
        self.stopping.cancel();
    }

    pub(crate) fn now(&self) -> Timestamp {
        (self.clock)()
    }
}
