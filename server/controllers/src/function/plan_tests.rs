//! Functions played step by step: uploads, failures, rollback, shares.

use ketch_api::k8s::api::core::v1::Pod;
use serde_json::json;

use super::{plan::*, *};

struct World {
    function: Function,
    revisions: Vec<Arc<FunctionRevision>>,
    deployments: BTreeMap<String, Arc<Deployment>>,
    /// Revisions whose pods crash.
    broken: Vec<String>,
    now: Timestamp,
}

impl World {
    fn new() -> Self {
        let function = json!({"metadata": {"name": "hello", "namespace": "a", "uid": "f", "generation": 1},
            "spec": {"image": "v1", "revisionHistoryLimit": 2}});
        Self {
            function: serde_json::from_value(function).unwrap(),
            revisions: Vec::new(),
            deployments: BTreeMap::new(),
            broken: Vec::new(),
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
        }
    }

    fn plan(&self) -> Plan {
        let pods = |deployment: &Deployment| -> Vec<Arc<Pod>> {
            let name = owner::name(&deployment.metadata);
            if !self.broken.iter().any(|broken| broken == name) {
                return Vec::new();
            }
            let pod = json!({"metadata": {}, "status": {"containerStatuses": [{"name": "function", "image": "", "imageID": "",
                "ready": false, "restartCount": 1, "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "unknown import"}}}]}});
            vec![Arc::new(serde_json::from_value(pod).unwrap())]
        };
        let observed = Observed {
            function: &self.function,
            revisions: self.revisions.clone(),
            deployments: self.deployments.clone(),
            pods: &pods,
            domain: "localhost:8080",
        };
        plan::plan(&observed, self.now)
    }

    /// Steps, letting Deployments follow, until nothing more is to be done now. A served revision must
    /// never lose its pods.
    fn settle(&mut self) -> Option<std::time::Duration> {
        for _ in 0..20 {
            let planned = self.plan();
            let quiet = planned.ops.is_empty() && self.function.status.as_ref() == Some(&planned.status);
            for op in planned.ops {
                self.apply(op);
            }
            self.function.status = Some(planned.status);
            self.deployments_follow();
            for target in self.traffic() {
                assert_ne!(self.replicas(&target.0), 0, "{} lost its pods while it has traffic", target.0);
            }
            if quiet {
                return planned.again;
            }
        }
        panic!("does not settle");
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::CreateRevision(mut revision) => {
                revision.metadata.uid = revision.metadata.name.clone();
                self.revisions.push(Arc::new(*revision));
            }
            Op::DeleteRevision(name) => {
                self.revisions.retain(|r| owner::name(&r.metadata) != name);
                self.deployments.remove(&name);
            }
            Op::CreateDeployment(deployment) => {
                let owner = deployment.metadata.owner_references.as_ref().unwrap()[0].clone();
                assert_eq!(owner.uid, owner.name, "owned by a revision that exists");
                self.deployments.insert(owner::name(&deployment.metadata).to_owned(), Arc::new(*deployment));
            }
            Op::Scale { deployment, to } => {
                let deployment = Arc::make_mut(self.deployments.get_mut(&deployment).unwrap());
                deployment.spec.as_mut().unwrap().replicas = Some(to);
                deployment.metadata.annotations = None;
            }
            Op::Retire { deployment, at } => {
                let deployment = Arc::make_mut(self.deployments.get_mut(&deployment).unwrap());
                deployment.metadata.annotations =
                    Some(BTreeMap::from([(RETIRED.to_owned(), at.to_string())]));
            }
        }
    }

    fn deployments_follow(&mut self) {
        for (name, deployment) in &mut self.deployments {
            let deployment = Arc::make_mut(deployment);
            let replicas = deployment.spec.as_ref().unwrap().replicas.unwrap();
            let ready = if self.broken.contains(name) { 0 } else { replicas };
            let available = if ready > 0 { "True" } else { "False" };
            deployment.status = Some(
                serde_json::from_value(json!({"readyReplicas": ready, "availableReplicas": ready,
                    "conditions": [{"type": "Available", "status": available}]}))
                .unwrap(),
            );
        }
    }

    fn upload(&mut self, image: &str) {
        self.function.spec.image = image.into();
        self.function.metadata.generation = self.function.metadata.generation.map(|g| g + 1);
    }

    fn route(&mut self, shares: &[(&str, i32)]) {
        let target = |(name, percent): &(&str, i32)| TrafficTarget {
            revision_name: (*name).into(),
            percent: *percent,
        };
        self.function.spec.traffic = shares.iter().map(target).collect();
    }

    fn traffic(&self) -> Vec<(String, i32)> {
        let traffic = self.function.status.as_ref().map(|s| s.traffic.clone()).unwrap_or_default();
        traffic.into_iter().map(|t| (t.revision_name, t.percent)).collect()
    }

    fn replicas(&self, revision: &str) -> i32 {
        self.deployments.get(revision).map_or(-1, |d| d.spec.as_ref().unwrap().replicas.unwrap())
    }

    fn ready(&self) -> (String, String, String) {
        let condition = self.function.status.as_ref().unwrap().conditions[0].clone();
        (condition.status, condition.reason, condition.message)
    }
}

fn all(name: &str) -> Vec<(String, i32)> {
    vec![(name.to_owned(), 100)]
}

#[test]
fn the_first_upload_is_served_once_it_is_available() {
    let mut world = World::new();
    let first = world.plan();
    assert!(matches!(first.ops.as_slice(), [Op::CreateRevision(_)]), "{:?}", first.ops);
    assert!(first.status.traffic.is_empty());
    assert_eq!(first.status.conditions[0].status, "Unknown");
    world.settle();
    assert_eq!(world.traffic(), all("hello-00001"));
    let status = world.function.status.clone().unwrap();
    assert_eq!(status.url.as_deref(), Some("http://hello.a.localhost:8080"));
    assert_eq!(
        (status.latest_revision, status.ready_revision),
        (Some("hello-00001".into()), Some("hello-00001".into()))
    );
    assert_eq!(world.ready(), ("True".into(), "Serving".into(), "revision hello-00001 answers".into()));
}

#[test]
fn the_old_revision_lingers_after_the_switch() {
    let mut world = World::new();
    world.settle();
    world.upload("v2");
    assert_eq!(world.settle(), Some(LINGER));
    assert_eq!(world.traffic(), all("hello-00002"));
    assert_eq!((world.replicas("hello-00001"), world.replicas("hello-00002")), (1, 1));
    world.now += std::time::Duration::from_secs(4);
    assert_eq!(world.settle(), Some(std::time::Duration::from_secs(6)));
    world.now += std::time::Duration::from_secs(6);
    assert_eq!(world.settle(), None);
    assert_eq!((world.replicas("hello-00001"), world.replicas("hello-00002")), (0, 1));
}

#[test]
fn a_broken_upload_never_takes_over_and_says_why() {
    let mut world = World::new();
    world.settle();
    world.broken.push("hello-00002".into());
    world.upload("v2");
    world.settle();
    world.now += std::time::Duration::from_secs(3600);
    world.settle();
    assert_eq!(world.traffic(), all("hello-00001"));
    assert_eq!(world.replicas("hello-00001"), 1);
    let (status, reason, message) = world.ready();
    assert_eq!((status.as_str(), reason.as_str()), ("False", "CrashLoopBackOff"));
    assert_eq!(message, "revision hello-00002: unknown import; revision hello-00001 still answers");
    let status = world.function.status.clone().unwrap();
    assert_eq!(
        (status.latest_revision, status.ready_revision),
        (Some("hello-00002".into()), Some("hello-00001".into()))
    );
    world.upload("v3");
    world.settle();
    assert_eq!(world.traffic(), all("hello-00003"));
    world.now += LINGER;
    world.settle();
    assert_eq!((world.replicas("hello-00001"), world.replicas("hello-00002")), (0, 0));
}

#[test]
fn a_rollback_scales_up_first_then_moves() {
    let mut world = World::new();
    world.settle();
    world.upload("v2");
    world.settle();
    world.now += LINGER;
    world.settle();
    world.route(&[("hello-00001", 100)]);
    let planned = world.plan();
    assert_eq!(planned.ops, [Op::Scale { deployment: "hello-00001".into(), to: 1 }]);
    assert_eq!(planned.status.traffic[0].revision_name, "hello-00002", "not moved yet");
    world.settle();
    assert_eq!(world.traffic(), all("hello-00001"));
    world.now += LINGER;
    world.settle();
    assert_eq!(world.replicas("hello-00002"), 1, "the newest stays warm");
}

#[test]
fn traffic_can_be_shared_and_a_missing_revision_is_named() {
    let mut world = World::new();
    world.settle();
    world.upload("v2");
    world.route(&[("hello-00001", 90), ("hello-00002", 10)]);
    world.settle();
    assert_eq!(world.traffic(), [("hello-00001".to_owned(), 90), ("hello-00002".to_owned(), 10)]);
    world.route(&[("hello-00009", 100)]);
    world.settle();
    assert_eq!(world.traffic().len(), 2, "kept");
    assert_eq!(world.ready().1, "RevisionMissing");
}

#[test]
fn a_crash_of_what_is_served_is_told_but_changes_nothing() {
    let mut world = World::new();
    world.settle();
    world.broken.push("hello-00001".into());
    world.deployments_follow();
    world.settle();
    assert_eq!(world.traffic(), all("hello-00001"));
    assert_eq!(
        world.ready(),
        ("False".into(), "CrashLoopBackOff".into(), "revision hello-00001: unknown import".into())
    );
}

#[test]
fn history_is_bounded_and_numbers_are_not_used_twice() {
    let mut world = World::new();
    world.settle();
    for image in ["v2", "v3", "v4", "v5"] {
        world.upload(image);
        world.settle();
        world.now += LINGER;
        world.settle();
    }
    let names = |world: &World| world.revisions.iter().map(|r| r.spec.revision).collect::<Vec<_>>();
    assert_eq!(names(&world), [3, 4, 5]);
    world.revisions.retain(|r| r.spec.revision != 5);
    world.deployments.remove("hello-00005");
    world.settle();
    assert_eq!(names(&world), [3, 4, 6]);
}

#[test]
fn more_pods_on_request() {
    let mut world = World::new();
    world.settle();
    world.function.spec.scaling = Some(ketch_api::function::Scaling { min: Some(3), ..Default::default() });
    world.settle();
    assert_eq!(world.replicas("hello-00001"), 3);
    assert_eq!(world.revisions.len(), 1, "scaling makes no revision");
}
