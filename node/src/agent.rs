//! [`Node`]: the tasks that make up a node, and their end.

use std::{sync::Arc, time::Duration};

use ketch_net::PodRanges;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    addresses::AddressBook,
    api,
    context::Context,
    events::Recorder,
    host,
    images::PolicyImages,
    index::Index,
    machine::Host,
    options::{NodeOptions, StartError},
    pods::Pods,
    register::Registration,
    services::LocalServices,
    sources::Sources,
    streaming::Sessions,
};

/// How long tasks may take to end.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// A running node. Dropping it does not end it: call [`Node::shutdown`].
pub struct Node {
    context: Arc<Context>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Node {
    /// Starts a node: registers it, takes on its pods. Returns at once; the API may be away.
    ///
    /// # Errors
    /// When the data directory cannot be used, or there is no runtime.
    pub fn start(options: NodeOptions) -> Result<Self, StartError> {
        let root = options.root();
        if options.runtimes.is_empty() {
            return Err(StartError::NoRuntime(options.name));
        }
        for directory in ["pods", "logs", "manifests"] {
            let path = root.join(directory);
            std::fs::create_dir_all(&path).map_err(|source| StartError::DataDir { path, source })?;
        }
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let name: Arc<str> = options.name.as_str().into();
        let (events, writer) = Recorder::new(options.client.clone(), Arc::clone(&name), stop.clone());
        tasks.spawn(writer);
        let context = Arc::new(Context {
            name: Arc::clone(&name),
            client: options.client.clone(),
            index: Index::default(),
            host: Host { ips: options.addresses.iter().map(ToString::to_string).collect() },
            images: PolicyImages::new(Arc::clone(&options.images), root.join("manifests")),
            no_room: tokio::sync::Notify::new(),
            addresses: AddressBook::new(PodRanges::of(options.pod_cidr), root.join("addresses.json")),
            runtimes: options.runtimes.clone(),
            unavailable: options.unavailable.clone(),
            dns: options.dns.clone(),
            services: Arc::new(LocalServices::default()),
            api: options.api.clone(),
            sources: Sources::new(options.client.clone()),
            network: options.network.clone(),
            sessions: Sessions::new(tasks.clone(), stop.clone()),
            capacity: host::Facts::read(&root, None).totals(),
            events,
            root,
        });
        let (keeper, stopped) = (Arc::clone(&context), stop.clone());
        tasks.spawn(async move { keeper.addresses.keep(stopped).await });
        let (evict, evictions) = tokio::sync::mpsc::channel(1);
        tasks.spawn(Pods::new(Arc::clone(&context), name, evictions).run(stop.clone()));
        tasks.spawn(crate::pressure::relieve(Arc::clone(&context), evict, stop.clone()));
        tasks.spawn(crate::images::collect_garbage(Arc::clone(&context), stop.clone()));
        tasks.spawn(crate::volumes::reclaim(Arc::clone(&context), stop.clone()));
        tasks.spawn(Registration::new(options, Arc::clone(&context)).run(stop.clone()));
        tasks.close();
        Ok(Self { context, stop, tasks })
    }

    /// The node's own API, in the kubelet's shape: `/containerLogs/{namespace}/{pod}/{container}`, `/exec/…`,
    /// `/attach/…`, `/portForward/{namespace}/{pod}`, `/stats/summary`, `/healthz`. Without authentication: for connections that were authenticated.
    pub fn router(&self) -> axum::Router {
        api::router(Arc::clone(&self.context))
    }

    /// HTTP services of the containers that run here, by address.
    pub fn services(&self) -> Arc<LocalServices> {
        Arc::clone(&self.context.services)
    }

    /// Namespaces of the pods that are here, by address.
    pub fn namespaces(&self) -> ketch_dns::Namespaces {
        let context = Arc::clone(&self.context);
        Arc::new(move |address| context.index.namespace_at(address))
    }

    /// Ends the node's own tasks. Containers are left to their runtimes, and pods to their statuses.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        if tokio::time::timeout(SHUTDOWN, self.tasks.wait()).await.is_err() {
            tracing::warn!("some of the node's tasks did not end in time");
        }
    }
}
