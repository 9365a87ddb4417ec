//! API server, controllers and scheduler in this process, over a store in memory, with pretend nodes.

mod endpoints;
mod functions;
mod lifecycle;
mod workloads;

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use ketch_api::{
    Status,
    k8s::api::core::v1::{Node, Pod},
};
use ketch_apiserver::{
    ApiServer, Config,
    auth::{Attributes, Authenticator, Authorizer, Decision, User},
};
use ketch_client::{
    Change, Informers, Queue, State, Tasks, in_process,
    kube::{
        Api, Client, Resource,
        api::{DeleteParams, Patch, PatchParams, PostParams},
        core::NamespaceResourceScope,
    },
};
use ketch_controllers::{Controllers, Options, run_all};
use ketch_scheduler::Scheduler;
use ketch_store::MemoryStore;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

/// Longest any condition is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// A whole control plane.
pub(crate) struct Cluster {
    pub(crate) client: Client,
    pub(crate) controllers: Controllers,
    pub(crate) scheduler: Scheduler,
    pub(crate) tasks: Tasks,
    /// Images whose pods crash.
    pub(crate) broken: Arc<Mutex<HashSet<String>>>,
}

struct AllowAll;

#[async_trait]
impl Authenticator for AllowAll {
    async fn authenticate(&self, _parts: &http::request::Parts) -> Result<Option<User>, Status> {
        Ok(None)
    }
}

impl Authorizer for AllowAll {
    fn authorize(&self, _user: &User, _attributes: &Attributes) -> Decision {
        Decision::Allow
    }
}

impl Cluster {
    /// A cluster with these nodes.
    pub(crate) async fn start(nodes: &[&str]) -> Self {
        Self::with(nodes, Options::default()).await
    }

    /// A cluster with these nodes and controllers told so.
    pub(crate) async fn with(nodes: &[&str], options: Options) -> Self {
        let config = Config::new(Arc::new(AllowAll), Arc::new(AllowAll));
        let server = ApiServer::new(Arc::new(MemoryStore::default()), config);
        server.bootstrap(6443).await.unwrap();
        let client = in_process(server.router(), |extensions| {
            extensions.insert(User::new("system:admin", &["system:masters"]));
        });
        let tasks = Tasks::new();
        let informers = Informers::new(client.clone(), &tasks);
        let controllers = run_all(client.clone(), &informers, options);
        let scheduler = Scheduler::start(client.clone(), &informers);
        let cluster = Self { client, controllers, scheduler, tasks, broken: Arc::default() };
        for node in nodes {
            cluster.add_node(node).await;
        }
        cluster.play_nodes(&informers);
        cluster
    }

    pub(crate) async fn add_node(&self, name: &str) {
        let node: Node = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
        let nodes = Api::<Node>::all(self.client.clone());
        nodes.create(&PostParams::default(), &node).await.unwrap();
        let status = json!({"status": {"allocatable": {"cpu": "8", "memory": "16Gi", "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": ""}]}});
        nodes.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    }

    /// What nodes do: bound pods run, deleted ones end.
    fn play_nodes(&self, informers: &Informers) {
        let (pods, queue) = (informers.of::<Pod>(), Queue::new());
        let to = queue.clone();
        pods.on_change(move |change: &Change<Pod>| to.add(change.key.clone()));
        let (client, broken) = (self.client.clone(), Arc::clone(&self.broken));
        self.tasks.spawn("nodes", move || {
            let (client, broken, queue, pods) =
                (client.clone(), Arc::clone(&broken), queue.clone(), pods.clone());
            async move {
                loop {
                    let key = queue.next().await;
                    if let Some(pod) = pods.get(&key) {
                        play(&client, &pod, &broken).await;
                    }
                    queue.done(&key);
                }
            }
        });
    }

    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), "default")
    }

    pub(crate) async fn create<K>(&self, object: Value) -> K
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + Serialize
            + DeserializeOwned,
    {
        let object: K = serde_json::from_value(object).unwrap();
        self.api::<K>().create(&PostParams::default(), &object).await.unwrap()
    }

    pub(crate) async fn patch<K>(&self, name: &str, patch: Value) -> K
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned,
    {
        self.api::<K>().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap()
    }

    /// Waits until an object satisfies `condition`, which says what is still wrong.
    pub(crate) async fn until<K, T>(&self, name: &str, condition: impl Fn(&K) -> Result<T, String>) -> T
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned,
    {
        let api = self.api::<K>();
        eventually(async || match api.get_opt(name).await.unwrap() {
            Some(object) => condition(&object).map_err(|why| format!("{why}: {object:#?}")),
            None => Err(format!("{name} does not exist")),
        })
        .await
    }

    /// Waits until the list of a kind satisfies `condition`.
    pub(crate) async fn until_all<K, T>(&self, condition: impl Fn(&[K]) -> Result<T, String>) -> T
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned,
    {
        let api = self.api::<K>();
        eventually(async || condition(&api.list(&Default::default()).await.unwrap().items)).await
    }

    /// Ends everything, and sees to it that it has ended.
    pub(crate) async fn shutdown(self) {
        tokio::join!(self.controllers.shutdown(), self.scheduler.shutdown());
        self.tasks.shutdown().await;
        let reports = self
            .controllers
            .reports()
            .into_iter()
            .chain(self.scheduler.reports())
            .chain(self.tasks.reports());
        for task in reports {
            assert_eq!(task.state, State::Finished, "{task:?}");
        }
    }
}

/// Asks again and again until the answer is yes.
pub(crate) async fn eventually<T>(mut ask: impl AsyncFnMut() -> Result<T, String>) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match ask().await {
            Ok(value) => return value,
            Err(seen) if tokio::time::Instant::now() > deadline => {
                panic!("not within {PATIENCE:?}; last seen: {seen}")
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// `Ok` when `condition` holds.
pub(crate) fn check(condition: bool, otherwise: &str) -> Result<(), String> {
    if condition { Ok(()) } else { Err(otherwise.to_owned()) }
}

async fn play(client: &Client, pod: &Pod, broken: &Mutex<HashSet<String>>) {
    let meta = &pod.metadata;
    let (name, uid) = (meta.name.clone().unwrap(), meta.uid.clone().unwrap());
    let api = Api::<Pod>::namespaced(client.clone(), meta.namespace.as_deref().unwrap());
    let spec = pod.spec.as_ref().unwrap();
    if spec.node_name.is_none() {
        return;
    }
    if meta.deletion_timestamp.is_some() {
        let _ = api.delete(&name, &DeleteParams::default().grace_period(0)).await;
        return;
    }
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    if phase == Some("Running") {
        return;
    }
    let image = spec.containers[0].image.clone().unwrap_or_default();
    let crashes = broken.lock().unwrap().contains(&image);
    let ready = if crashes { "False" } else { "True" };
    let state = if crashes {
        json!({"waiting": {"reason": "CrashLoopBackOff", "message": "it panics at once"}})
    } else {
        json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}})
    };
    let octets: Vec<u32> = uid.bytes().map(u32::from).collect();
    let ip = format!("10.42.{}.{}", octets[0] + octets[1], octets.iter().sum::<u32>() % 250 + 1);
    let now = "2026-01-01T00:00:00Z";
    let status = json!({"metadata": {"uid": uid}, "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
        "conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": now}, {"type": "Ready", "status": ready, "lastTransitionTime": now}],
        "containerStatuses": [{"name": spec.containers[0].name, "image": image, "imageID": "", "ready": !crashes, "restartCount": 0, "state": state}]}});
    let _ = api.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await;
}
