//! Which controllers there are and what each of them needs: the list that [`run_all`] starts.

use std::{sync::Arc, time::Duration};

use futures::future::{BoxFuture, join_all};
use ketch_api::{
    function::{Function, FunctionRevision},
    k8s::api::{
        apps::v1::{Deployment, ReplicaSet},
        core::v1::Pod,
    },
};
use ketch_client::{Informer, Informers, Key, Queue, Recorder, Report, Tasks};
use kube::{Client, Resource};

use crate::{
    deployment::Deployments,
    function::Functions,
    replicaset::ReplicaSets,
    runner::{self, Reconcile, Writes},
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
            node_grace: Duration::from_secs(10),
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
    let cx = Cx { recorder: Recorder::new(client.clone(), "ketch", &tasks), client, informers, tasks: &tasks, options };
    cx.replica_sets();
    cx.deployments();
    cx.functions();
    Controllers { tasks }
}

/// What wiring needs.
struct Cx<'a> {
    client: Client,
    informers: &'a Informers,
    tasks: &'a Tasks,
    recorder: Recorder,
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
    fn start<K, R>(&self, name: &'static str, primary: &Informer<K>, reconciler: R, queue: Queue<Key>, needs: Vec<Ready>)
    where
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
        let (revisions, deployments) = (self.informers.of::<FunctionRevision>(), self.informers.of::<Deployment>());
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
        let needs = vec![ready(&functions), ready(&revisions), ready(&deployments), ready(&sets), ready(&pods)];
        self.start("function", &functions, reconciler, queue, needs);
    }
}

/// Objects of one kind that are worked on at a time.
const WORKERS: usize = 8;
