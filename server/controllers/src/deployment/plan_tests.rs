//! Whole rollouts, played step by step against a pretend ReplicaSet controller.

use std::sync::Arc;

use ketch_api::k8s::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::{plan::*, *};

/// A Deployment with its sets, and what the API server and the ReplicaSet controller would do to them.
struct World {
    deployment: Deployment,
    sets: Vec<ReplicaSet>,
    pods: Vec<Arc<Pod>>,
    now: Timestamp,
}

impl World {
    fn new(replicas: i32, strategy: Value) -> Self {
        let deployment = json!({
            "metadata": {"name": "web", "namespace": "a", "uid": "d", "generation": 1,
                "annotations": {"kubernetes.io/change-cause": "first"}},
            "spec": {"replicas": replicas, "strategy": strategy, "progressDeadlineSeconds": 600, "revisionHistoryLimit": 2,
                "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}},
                    "spec": {"containers": [{"name": "c", "image": "v1"}]}}},
        });
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        Self {
            deployment: serde_json::from_value(deployment).unwrap(),
            sets: Vec::new(),
            pods: Vec::new(),
            now,
        }
    }

    fn change(&mut self, change: impl FnOnce(&mut ketch_api::k8s::api::apps::v1::DeploymentSpec)) {
        change(self.deployment.spec.as_mut().unwrap());
        self.deployment.metadata.generation = self.deployment.metadata.generation.map(|g| g + 1);
    }

    fn set_image(&mut self, image: &str) {
        self.change(|spec| spec.template.spec.as_mut().unwrap().containers[0].image = Some(image.into()));
    }

    fn plan(&self) -> Plan {
        let pods = |set: &ReplicaSet| {
            let uid = owner::uid(&set.metadata);
            let owned = |pod: &&Arc<Pod>| owner::controller_of(&pod.metadata).is_some_and(|o| o.uid == uid);
            self.pods.iter().filter(owned).cloned().collect()
        };
        let sets = self.sets.iter().collect();
        plan::plan(&Observed { deployment: &self.deployment, sets, pods: &pods }, self.now)
    }

    /// One step of the Deployment; returns how many operations it took.
    fn step(&mut self) -> usize {
        let Plan { ops, status, .. } = self.plan();
        let count = ops.len();
        for op in ops {
            self.apply(op);
        }
        self.deployment.status = Some(status);
        self.now += std::time::Duration::from_secs(1);
        count
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Create(mut set) => {
                set.metadata.uid = set.metadata.name.clone();
                set.metadata.generation = Some(1);
                set.metadata.creation_timestamp = Some(Time(self.now));
                self.sets.push(*set);
            }
            Op::Scale { set, to, annotations, from } => {
                let set = self.set_mut(&set);
                assert_eq!(size::asked(set), from);
                set.spec.as_mut().unwrap().replicas = Some(to);
                set.metadata.annotations = Some(annotations);
            }
            Op::Update { set, annotations, min_ready_seconds } => {
                let set = self.set_mut(&set);
                set.metadata.annotations = Some(annotations);
                set.spec.as_mut().unwrap().min_ready_seconds = min_ready_seconds;
            }
            Op::Delete(name) => self.sets.retain(|set| owner::name(&set.metadata) != name),
            Op::Revision(revision) => {
                let annotations = self.deployment.metadata.annotations.get_or_insert_default();
                annotations.insert(REVISION.into(), revision);
            }
        }
    }

    fn set_mut(&mut self, name: &str) -> &mut ReplicaSet {
        self.sets.iter_mut().find(|set| owner::name(&set.metadata) == name).unwrap()
    }

    fn image(set: &ReplicaSet) -> String {
        let spec = set.spec.as_ref().unwrap().template.as_ref().unwrap().spec.as_ref().unwrap();
        spec.containers[0].image.clone().unwrap()
    }

    /// Lets every set reach its size; pods of images in `broken` do not become ready.
    fn settle(&mut self, broken: &[&str]) {
        for set in &mut self.sets {
            let asked = size::asked(set);
            let ready = if broken.contains(&Self::image(set).as_str()) { 0 } else { asked };
            set.status = Some(
                serde_json::from_value(
                    json!({"replicas": asked, "readyReplicas": ready, "availableReplicas": ready,
                    "observedGeneration": 1}),
                )
                .unwrap(),
            );
        }
    }

    /// Runs to the end; checks availability and surge at each step.
    fn roll_out(&mut self, broken: &[&str], least: i32, most: i32) {
        for _ in 0..100 {
            let ops = self.step();
            let available: i32 = self.sets.iter().map(|set| size::asked(set).min(size::available(set))).sum();
            let asked = size::total_asked(&self.sets);
            assert!(available >= least, "{available} pods left available");
            assert!(asked <= most, "{asked} pods asked for");
            self.settle(broken);
            let quiet = ops == 0 && self.deployment.status.as_ref() == Some(&self.plan().status);
            if quiet {
                return;
            }
        }
        panic!("the rollout does not end");
    }

    fn progressing(&self) -> (String, String, String) {
        let conditions = status::conditions(&self.deployment);
        let found = status::find(&conditions, status::PROGRESSING).unwrap();
        (found.status.clone(), found.reason.clone().unwrap(), found.message.clone().unwrap())
    }

    /// Image, size and revision of each set, oldest first.
    fn summary(&self) -> Vec<(String, i32, String)> {
        let revision = |set: &ReplicaSet| set.metadata.annotations.as_ref().unwrap()[REVISION].clone();
        self.sets.iter().map(|set| (Self::image(set), size::asked(set), revision(set))).collect()
    }
}

fn rolling() -> Value {
    json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}})
}

#[test]
fn a_deployment_of_as_many_pods_as_a_number_can_tell_is_planned() {
    let largest =
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "100%", "maxUnavailable": 0}});
    let mut world = World::new(i32::MAX, largest);
    assert_eq!(world.step(), 2, "a set, and the number of its revision");
    let set = world.sets.first_mut().unwrap();
    let annotations = set.metadata.annotations.get_or_insert_default();
    annotations.insert(REVISION.into(), i64::MAX.to_string());
    let status = set.status.get_or_insert_default();
    (status.replicas, status.available_replicas) = (i32::MAX, Some(i32::MAX));
    world.set_image("v2");
    let other = world.sets[0].clone();
    world.sets.push(other);
    world.sets[1].metadata.uid = Some("other".into());
    let plan = world.plan();
    assert_eq!(plan.status.available_replicas, Some(i32::MAX));
    assert!(plan.ops.iter().any(|op| matches!(op, Op::Create(_))), "{:?}", plan.ops);
}

#[test]
fn the_first_rollout_makes_one_set() {
    let mut world = World::new(3, rolling());
    assert_eq!(world.step(), 2);
    let set = &world.sets[0];
    assert!(owner::name(&set.metadata).starts_with("web-"));
    let hash = set.metadata.labels.as_ref().unwrap()["pod-template-hash"].clone();
    assert_eq!(owner::name(&set.metadata), format!("web-{hash}"));
    let spec = set.spec.as_ref().unwrap();
    assert_eq!(spec.selector.match_labels.as_ref().unwrap()["pod-template-hash"], hash);
    assert_eq!(set.metadata.annotations.as_ref().unwrap()["kubernetes.io/change-cause"], "first");
    assert_eq!(set.metadata.annotations.as_ref().unwrap()[size::MAXIMUM], "4");
    assert_eq!(world.progressing().1, "NewReplicaSetCreated");
    world.settle(&[]);
    world.roll_out(&[], 3, 3);
    let (value, reason, message) = world.progressing();
    assert_eq!((value.as_str(), reason.as_str()), ("True", "NewReplicaSetAvailable"));
    assert_eq!(message, format!("ReplicaSet \"web-{hash}\" has successfully progressed."));
    let status = world.deployment.status.clone().unwrap();
    assert_eq!(
        (status.replicas, status.updated_replicas, status.available_replicas),
        (Some(3), Some(3), Some(3))
    );
    assert_eq!((status.unavailable_replicas, status.observed_generation), (None, Some(1)));
}

#[test]
fn a_rolling_update_keeps_enough_pods_and_remembers_revisions() {
    let mut world = World::new(10, rolling());
    world.step();
    world.settle(&[]);
    world.roll_out(&[], 10, 10);
    world.set_image("v2");
    world.roll_out(&[], 8, 13);
    assert_eq!(world.summary(), [("v1".into(), 0, "1".into()), ("v2".into(), 10, "2".into())]);
    assert_eq!(world.deployment.metadata.annotations.as_ref().unwrap()[REVISION], "2");
}

#[test]
fn undo_makes_the_old_set_the_newest_revision() {
    let mut world = World::new(2, rolling());
    world.step();
    world.settle(&[]);
    world.roll_out(&[], 2, 2);
    world.set_image("v2");
    world.roll_out(&[], 2, 3);
    world.set_image("v1");
    world.roll_out(&[], 2, 3);
    assert_eq!(world.summary(), [("v1".into(), 2, "3".into()), ("v2".into(), 0, "2".into())]);
    let history =
        world.sets[0].metadata.annotations.as_ref().unwrap()["deployment.kubernetes.io/revision-history"]
            .clone();
    assert_eq!(history, "1");
}

#[test]
fn a_broken_version_never_takes_over_and_times_out() {
    let mut world = World::new(4, rolling());
    world.step();
    world.settle(&[]);
    world.roll_out(&[], 4, 4);
    world.set_image("bad");
    world.roll_out(&["bad"], 3, 5);
    assert_eq!(world.summary(), [("v1".into(), 3, "1".into()), ("bad".into(), 2, "2".into())]);
    let again = world.plan().again.expect("the deadline is watched");
    assert!(again.as_secs() > 500 && again.as_secs() <= 601, "{again:?}");
    world.now += again;
    world.step();
    let (value, reason, message) = world.progressing();
    assert_eq!((value.as_str(), reason.as_str()), ("False", "ProgressDeadlineExceeded"));
    assert!(message.ends_with("has timed out progressing."), "{message}");
    assert_eq!(world.plan().again, None, "nothing more to wait for");
    world.set_image("v3");
    world.roll_out(&["bad"], 3, 5);
    assert_eq!(world.progressing().1, "NewReplicaSetAvailable");
    assert_eq!(world.summary().last().unwrap(), &("v3".into(), 4, "3".into()));
}

#[test]
fn recreate_waits_for_the_last_old_pod() {
    let mut world = World::new(2, json!({"type": "Recreate"}));
    world.step();
    world.settle(&[]);
    world.roll_out(&[], 2, 2);
    world.set_image("v2");
    let owner = owner::reference(&world.sets[0]);
    let pod = json!({"metadata": {"name": "p", "ownerReferences": [owner]}, "status": {"phase": "Running"}});
    world.pods = vec![Arc::new(serde_json::from_value(pod).unwrap())];
    assert_eq!(world.step(), 1, "scales down");
    world.settle(&[]);
    assert_eq!(world.step(), 0, "waits");
    assert_eq!(world.sets.len(), 1);
    world.pods.clear();
    world.roll_out(&[], 0, 2);
    assert_eq!(world.summary(), [("v1".into(), 0, "1".into()), ("v2".into(), 2, "2".into())]);
}

#[test]
fn paused_scales_but_does_not_roll() {
    let mut world = World::new(2, rolling());
    world.step();
    world.settle(&[]);
    world.roll_out(&[], 2, 2);
    world.change(|spec| spec.paused = Some(true));
    world.set_image("v2");
    world.change(|spec| spec.replicas = Some(5));
    world.roll_out(&[], 2, 5);
    assert_eq!(world.summary(), [("v1".into(), 5, "1".into())]);
    assert_eq!(world.progressing().1, "DeploymentPaused");
    world.change(|spec| spec.paused = Some(false));
    world.roll_out(&[], 4, 7);
    assert_eq!(world.summary(), [("v1".into(), 0, "1".into()), ("v2".into(), 5, "2".into())]);
}

#[test]
fn history_is_cut_to_its_limit() {
    let mut world = World::new(1, rolling());
    world.step();
    world.settle(&[]);
    world.roll_out(&[], 1, 1);
    for image in ["v2", "v3", "v4", "v5"] {
        world.set_image(image);
        world.roll_out(&[], 1, 2);
    }
    let images: Vec<_> = world.summary().into_iter().map(|(image, ..)| image).collect();
    assert_eq!(images, ["v3", "v4", "v5"]);
}

#[test]
fn scaling_in_the_middle_of_a_rollout_keeps_proportions() {
    let mut world = World::new(
        10,
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 3, "maxUnavailable": 2}}),
    );
    world.step();
    world.settle(&[]);
    world.roll_out(&[], 10, 10);
    world.set_image("bad");
    world.roll_out(&["bad"], 8, 13);
    assert_eq!(world.summary().iter().map(|s| s.1).collect::<Vec<_>>(), [8, 5]);
    world.change(|spec| spec.replicas = Some(30));
    world.step();
    assert_eq!(world.summary().iter().map(|s| s.1).collect::<Vec<_>>(), [20, 13]);
}
