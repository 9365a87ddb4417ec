//! Which controllers there are and what each of them needs: the list that [`run_all`] starts.

use std::{sync::Arc, time::Duration};

use futures::future::{BoxFuture, join_all};
use ketch_api::{
    function::{Function, FunctionRevision},
    k8s::api::{
        apps::v1::{Deployment, ReplicaSet},
        coordination::v1::Lease,
        core::v1::{
            ConfigMap, Endpoints, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, Service,
            ServiceAccount,
        },
        discovery::v1::EndpointSlice,
        storage::v1::StorageClass,
    },
};
use ketch_client::{Informer, Informers, Key, Queue, Recorder, Report, Tasks};
use kube::{Client, Resource, core::ApiResource};

use crate::{
    balancer::LoadBalancers,
    defaults::Defaults,
    deployment::Deployments,
    endpoints::ServiceEndpoints,
    function::Functions,
    gc::Collector,
    housekeeping,
    namespace::Namespaces,
    node::{Evictions, Nodes},
    replicaset::ReplicaSets,
    resources::Resources,
    runner::{self, Reconcile, Writes},
    volume::{Claims, Volumes},
};

/// What the controllers have to be told.
#[derive(Clone, Debug)]
pub struct Options {
    /// What follows `NAME.NAMESPACE.` in the URL of a Function, port included: `localhost:8080`.
    pub function_domain: String,
    /// Certificate of the cluster's authority, PEM, for the `kube-root-ca.crt` ConfigMaps. Empty: none are made.
    pub ca: String,
    /// How long a node may be silent before it counts as lost.
    pub node_grace: Duration,
    /// How long events are kept.
    pub event_ttl: Duration,
    /// Ended pods that are kept, for people to look at.
    pub ended_pods: usize,
}

/// The running controllers; dropping it does not stop them, [`Controllers::shutdown`] does.
pub struct Controllers {
    tasks: Tasks,
}

// === impl Options ===

impl Default for Options {
    fn default() -> Self {
        Self {
            function_domain: "localhost:8080".to_owned(),
            ca: String::new(),
            node_grace: Duration::from_secs(8),
            event_ttl: Duration::from_secs(3600),
            ended_pods: 1000,
        }
    }
}

// === impl Controllers ===

impl Controllers {
    /// What each controller's tasks are doing.
    pub fn reports(&self) -> Vec<Report> {
        self.tasks.reports()
    }

    /// Ends all controllers and returns when they have ended. The informers go on.
    pub async fn shutdown(&self) {
        self.tasks.shutdown().await;
    }
}

/// Starts every controller. They act through `client` and look at `informers`, which they share with each
/// other and with the scheduler.
pub fn run_all(client: Client, informers: &Informers, options: Options) -> Controllers {
    let tasks = Tasks::new();
    let recorder = Recorder::new(client.clone(), "ketch", &tasks);
    let resources = Resources::new(client.clone());
    let cx = Cx { client, informers, tasks: &tasks, recorder, resources, options };
    cx.replica_sets();
    cx.deployments();
    cx.functions();
    cx.endpoints();
    cx.load_balancers();
    cx.defaults();
    cx.claims();
    cx.volumes();
    cx.nodes();
    cx.evictions();
    cx.namespaces();
    cx.garbage_collection();
    cx.housekeeping();
    Controllers { tasks }
}

/// What wiring needs.
struct Cx<'a> {
    client: Client,
    informers: &'a Informers,
    tasks: &'a Tasks,
    recorder: Recorder,
    resources: Resources,
    options: Options,
}

/// Resolves when an informer has its first list.
type Ready = Box<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;

fn ready<K: Resource + Send + Sync + 'static>(informer: &Informer<K>) -> Ready {
    let informer = informer.clone();
    Box::new(move || {
        let informer = informer.clone();
        Box::pin(async move { informer.ready().await })
    })
}

impl Cx<'_> {
    /// Starts a reconciler of `K`s. It runs once everything in `needs` is complete: what it cannot see yet
    /// would seem to be missing.
    fn start<K, R>(
        &self,
        name: &'static str,
        primary: &Informer<K>,
        reconciler: R,
        queue: Queue<Key>,
        needs: Vec<Ready>,
    ) where
        K: Resource + Send + Sync + 'static,
        R: Reconcile,
    {
        let (reconciler, needs) = (Arc::new(reconciler), Arc::new(needs));
        let again = (primary.clone(), queue.clone());
        self.tasks.spawn(format!("resync {name}"), move || runner::resync(again.0.clone(), again.1.clone()));
        self.tasks.spawn(name, move || {
            let (reconciler, needs, queue) = (Arc::clone(&reconciler), Arc::clone(&needs), queue.clone());
            async move {
                join_all(needs.iter().map(|ready| ready())).await;
                runner::run(name, reconciler, queue, WORKERS).await
            }
        });
    }

    fn replica_sets(&self) {
        let (sets, pods) = (self.informers.of::<ReplicaSet>(), self.informers.of::<Pod>());
        let reconciler = ReplicaSets {
            client: self.client.clone(),
            sets: sets.clone(),
            pods: pods.clone(),
            recorder: self.recorder.named("replicaset-controller"),
            writes: Writes::default(),
            deleted: Default::default(),
        };
        let queue = Queue::new();
        reconciler.listen(&queue);
        self.start("replicaset", &sets, reconciler, queue, vec![ready(&sets), ready(&pods)]);
    }

    fn deployments(&self) {
        let deployments = self.informers.of::<Deployment>();
        let (sets, pods) = (self.informers.of::<ReplicaSet>(), self.informers.of::<Pod>());
        let reconciler = Deployments {
            client: self.client.clone(),
            deployments: deployments.clone(),
            sets: sets.clone(),
            pods: pods.clone(),
            recorder: self.recorder.named("deployment-controller"),
            set_writes: Writes::default(),
            own_writes: Writes::default(),
        };
        let queue = Queue::new();
        reconciler.listen(&queue);
        let needs = vec![ready(&deployments), ready(&sets), ready(&pods)];
        self.start("deployment", &deployments, reconciler, queue, needs);
    }

    fn functions(&self) {
        let functions = self.informers.of::<Function>();
        let (revisions, deployments) =
            (self.informers.of::<FunctionRevision>(), self.informers.of::<Deployment>());
        let (sets, pods) = (self.informers.of::<ReplicaSet>(), self.informers.of::<Pod>());
        let reconciler = Functions {
            client: self.client.clone(),
            functions: functions.clone(),
            revisions: revisions.clone(),
            deployments: deployments.clone(),
            sets: sets.clone(),
            pods: pods.clone(),
            recorder: self.recorder.named("function-controller"),
            function_writes: Writes::default(),
            revision_writes: Writes::default(),
            deployment_writes: Writes::default(),
            domain: self.options.function_domain.clone(),
        };
        let queue = Queue::new();
        reconciler.listen(&queue);
        let needs =
            vec![ready(&functions), ready(&revisions), ready(&deployments), ready(&sets), ready(&pods)];
        self.start("function", &functions, reconciler, queue, needs);
    }

    fn endpoints(&self) {
        let (services, pods, nodes) =
            (self.informers.of::<Service>(), self.informers.of::<Pod>(), self.informers.of::<Node>());
        let (slices, endpoints) = (self.informers.of::<EndpointSlice>(), self.informers.of::<Endpoints>());
        let reconciler = ServiceEndpoints {
            client: self.client.clone(),
            services: services.clone(),
            pods: pods.clone(),
            nodes: nodes.clone(),
            slices: slices.clone(),
            endpoints: endpoints.clone(),
            slice_writes: Writes::default(),
            endpoints_writes: Writes::default(),
        };
        let queue = Queue::new();
        reconciler.listen(&queue);
        let needs = vec![ready(&services), ready(&pods), ready(&nodes), ready(&slices), ready(&endpoints)];
        self.start("endpoints", &services, reconciler, queue, needs);
    }

    fn load_balancers(&self) {
        let (services, nodes, slices) = (
            self.informers.of::<Service>(),
            self.informers.of::<Node>(),
            self.informers.of::<EndpointSlice>(),
        );
        let reconciler = LoadBalancers {
            client: self.client.clone(),
            services: services.clone(),
            nodes: nodes.clone(),
            slices: slices.clone(),
            recorder: self.recorder.named("service-controller"),
            writes: Writes::default(),
        };
        let queue = Queue::new();
        reconciler.listen(&queue);
        self.start(
            "load-balancer",
            &services,
            reconciler,
            queue,
            vec![ready(&services), ready(&nodes), ready(&slices)],
        );
    }

    fn defaults(&self) {
        let (namespaces, accounts) =
            (self.informers.of::<Namespace>(), self.informers.of::<ServiceAccount>());
        let config_maps = self.informers.metadata_of(&ApiResource::erase::<ConfigMap>(&()));
        let reconciler = Defaults {
            client: self.client.clone(),
            namespaces: namespaces.clone(),
            accounts: accounts.clone(),
            config_maps: config_maps.clone(),
            ca: self.options.ca.clone(),
        };
        let queue = Queue::new();
        reconciler.listen(&queue);
        let needs = vec![ready(&namespaces), ready(&accounts), ready(&config_maps)];
        self.start("namespace-defaults", &namespaces, reconciler, queue, needs);
    }

    fn claims(&self) {
        let (claims, volumes) =
            (self.informers.of::<PersistentVolumeClaim>(), self.informers.of::<PersistentVolume>());
        let (classes, pods, nodes) =
            (self.informers.of::<StorageClass>(), self.informers.of::<Pod>(), self.informers.of::<Node>());
        let reconciler = Claims {
            client: self.client.clone(),
            claims: claims.clone(),
            volumes: volumes.clone(),
            classes: classes.clone(),
            pods: pods.clone(),
            nodes: nodes.clone(),
            recorder: self.recorder.named("persistentvolume-controller"),
            writes: Writes::default(),
        };
        let queue = Queue::new();
        reconciler.listen(&queue);
        let needs = vec![ready(&claims), ready(&volumes), ready(&classes), ready(&pods), ready(&nodes)];
        self.start("persistent-volume-claim", &claims, reconciler, queue, needs);
    }

    fn volumes(&self) {
        let (claims, volumes, nodes) = (
            self.informers.of::<PersistentVolumeClaim>(),
            self.informers.of::<PersistentVolume>(),
            self.informers.of::<Node>(),
        );
        let reconciler = Volumes {
            client: self.client.clone(),
            claims: claims.clone(),
            volumes: volumes.clone(),
            nodes: nodes.clone(),
            recorder: self.recorder.named("persistentvolume-controller"),
            writes: Writes::default(),
        };
        let queue = Queue::new();
        reconciler.listen(&queue);
        let needs = vec![ready(&claims), ready(&volumes), ready(&nodes)];
        self.start("persistent-volume", &volumes, reconciler, queue, needs);
    }

    fn nodes(&self) {
        let (nodes, leases, pods) =
            (self.informers.of::<Node>(), self.informers.of::<Lease>(), self.informers.of::<Pod>());
        let reconciler = Nodes {
            client: self.client.clone(),
            nodes: nodes.clone(),
            leases: leases.clone(),
            pods: pods.clone(),
            recorder: self.recorder.named("node-controller"),
            writes: Writes::default(),
            grace: self.options.node_grace,
            heard: Arc::default(),
        };
        let queue = Queue::new();
        reconciler.listen(&queue);
        self.start("node", &nodes, reconciler, queue, vec![ready(&nodes), ready(&leases), ready(&pods)]);
    }

    fn evictions(&self) {
        let (nodes, pods) = (self.informers.of::<Node>(), self.informers.of::<Pod>());
        let reconciler = Evictions {
            client: self.client.clone(),
            nodes: nodes.clone(),
            pods: pods.clone(),
            recorder: self.recorder.named("taint-eviction-controller"),
        };
        let queue = Queue::new();
        reconciler.listen(&queue);
        self.start("eviction", &pods, reconciler, queue, vec![ready(&nodes), ready(&pods)]);
    }

    fn namespaces(&self) {
        let (namespaces, pods) = (self.informers.of::<Namespace>(), self.informers.of::<Pod>());
        let reconciler = Namespaces {
            client: self.client.clone(),
            namespaces: namespaces.clone(),
            pods: pods.clone(),
            resources: self.resources.clone(),
        };
        let queue = Queue::new();
        reconciler.listen(&queue);
        self.start("namespace", &namespaces, reconciler, queue, vec![ready(&namespaces), ready(&pods)]);
    }

    fn garbage_collection(&self) {
        let queue = Queue::new();
        let resources = self.resources.clone();
        self.tasks.periodic("discovery", DISCOVERY_PERIOD, move || {
            let resources = resources.clone();
            async move { resources.look().await }
        });
        let collector = Arc::new(Collector::new(
            self.client.clone(),
            self.informers,
            self.resources.clone(),
            queue.clone(),
        ));
        let followed = Arc::clone(&collector);
        self.tasks.spawn("garbage-collector watches", move || {
            let followed = Arc::clone(&followed);
            async move { followed.follow().await }
        });
        self.tasks.spawn("garbage-collector", move || {
            runner::run("garbage-collector", Arc::clone(&collector), queue.clone(), WORKERS)
        });
    }

    fn housekeeping(&self) {
        let (pods, nodes, leases) =
            (self.informers.of::<Pod>(), self.informers.of::<Node>(), self.informers.of::<Lease>());
        let sweeper = housekeeping::Pods {
            client: self.client.clone(),
            pods,
            nodes: nodes.clone(),
            limit: self.options.ended_pods,
            missing: Arc::default(),
        };
        self.tasks.periodic("pod sweep", POD_PERIOD, move || {
            let sweeper = sweeper.clone();
            async move { sweeper.sweep().await }
        });
        let (client, ttl) = (self.client.clone(), self.options.event_ttl);
        self.tasks.periodic("event sweep", Duration::ZERO, move || {
            let client = client.clone();
            async move {
                let due = housekeeping::sweep_events(&client, ttl).await?;
                tokio::time::sleep(due.max(EVENT_PERIOD)).await;
                Ok(())
            }
        });
        let client = self.client.clone();
        self.tasks.periodic("lease sweep", SLOW_PERIOD, move || {
            let (client, leases, nodes) = (client.clone(), leases.clone(), nodes.clone());
            async move { housekeeping::sweep_leases(&client, &leases, &nodes).await }
        });
        let client = self.client.clone();
        self.tasks.periodic("token sweep", SLOW_PERIOD, move || {
            let client = client.clone();
            async move { housekeeping::sweep_tokens(&client).await }
        });
    }
}

/// Objects of one kind that are worked on at a time.
const WORKERS: usize = 8;
/// Pods that no node will end are looked for this often; upstream does every 20 s.
const POD_PERIOD: Duration = Duration::from_secs(20);
/// Events are looked through no more often than this.
const EVENT_PERIOD: Duration = Duration::from_secs(60);
/// For what is in no hurry.
const SLOW_PERIOD: Duration = Duration::from_secs(600);
/// New kinds are looked for this often.
const DISCOVERY_PERIOD: Duration = Duration::from_secs(300);
