//! A pod's life without IO: a simulated node that carries out steps at once, on a clock of its own.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use ketch_runtime::{ContainerState, Image};
use serde_json::{Value, json};

use super::*;

/// What a container does when it is started.
#[derive(Clone, Copy)]
enum Act {
    Run,
    Exit(i32),
}

struct Sim {
    desired: Desired,
    observed: Observed,
    now: Timestamp,
    act: fn(&str) -> Act,
    /// Steps taken, as text.
    log: Vec<String>,
    probes: fn(&str, ProbeKind) -> bool,
    pull: Result<(), Failure>,
}

fn pod(spec: Value) -> Desired {
    let mut pod =
        json!({"metadata": {"name": "web", "namespace": "shop", "uid": "u", "generation": 3}, "spec": spec});
    if pod["spec"].get("containers").is_none() {
        pod["spec"]["containers"] = json!([{"name": "main", "image": "i"}]);
    }
    Desired::new(Arc::new(serde_json::from_value(pod).unwrap()))
}

fn sim(spec: Value, act: fn(&str) -> Act) -> Sim {
    let desired = pod(spec);
    let now = "2026-01-01T00:00:00Z".parse().unwrap();
    let observed = Observed::recover(&desired.pod, now);
    Sim { desired, observed, now, act, log: Vec::new(), probes: |_, _| true, pull: Ok(()) }
}

impl Sim {
    /// Carries out steps until there is a wait; when that ends.
    fn run(&mut self) -> Option<Timestamp> {
        for _ in 0..1_000 {
            let step = next(&self.desired, &self.observed, self.now);
            if let Step::Wait(until) = step {
                return until;
            }
            if step == Step::Finish {
                self.log.push("finish".into());
                return None;
            }
            self.observed.begin(&step, self.now);
            self.act(step);
        }
        panic!("no end: {:?}", self.log);
    }

    fn act(&mut self, step: Step) {
        let attempt = |sim: &Self, name: &str| sim.observed.unit(name).attempt;
        let image = Image { digest: "d".into(), id: "i@d".into(), size: 1 };
        let outcomes = match step {
            Step::Prepare => {
                self.log.push("prepare".into());
                vec![Outcome::Prepared(Ok("10.42.0.2".parse().unwrap()))]
            }
            Step::Pull(name) => vec![Outcome::Pulled(name, self.pull.clone().map(|()| image))],
            Step::Start(name) => {
                self.log.push(format!("start {name}"));
                let n = attempt(self, &name);
                let mut all = vec![Outcome::Started(name.clone(), n, Ok(id(&name, n)))];
                if let Act::Exit(code) = (self.act)(&name) {
                    all.push(Outcome::State(name.clone(), n, id(&name, n), exited(self.now, code)));
                }
                all
            }
            Step::Restart(name) => {
                self.log.push(format!("restart {name}"));
                vec![]
            }
            Step::Stop { name, .. } => {
                self.log.push(format!("stop {name}"));
                let n = attempt(self, &name);
                let report = Outcome::State(name.clone(), n, id(&name, n), exited(self.now, 143));
                vec![report, Outcome::Stopped(name, n)]
            }
            Step::Probe(name, kind) => {
                let passed = (self.probes)(&name, kind);
                vec![Outcome::Probed(name.clone(), attempt(self, &name), kind, passed)]
            }
            Step::Fail(reason, _) => {
                self.log.push(format!("fail {reason}"));
                vec![]
            }
            Step::Cleanup => {
                self.log.push("cleanup".into());
                vec![Outcome::Cleaned(Ok(()))]
            }
            Step::Delete => {
                self.log.push("delete".into());
                vec![Outcome::Deleted(Ok(()))]
            }
            Step::Finish | Step::Wait(_) => vec![],
        };
        for outcome in outcomes {
            self.observed.finish(&self.desired, outcome, self.now);
        }
    }

    /// Lets `seconds` pass, carrying out what becomes due on the way.
    fn pass(&mut self, seconds: i64) {
        let end = self.now + jiff::SignedDuration::from_secs(seconds);
        loop {
            let due = self.run();
            match due {
                Some(due) if due <= end => self.now = due,
                _ => break,
            }
        }
        self.now = end;
        self.run();
    }

    fn exit(&mut self, name: &str, code: i32) {
        let attempt = self.observed.unit(name).attempt;
        self.report(name, attempt, exited(self.now, code));
    }

    fn report(&mut self, name: &str, attempt: u32, state: ContainerState) {
        let outcome = Outcome::State(name.into(), attempt, id(name, attempt), state);
        self.observed.finish(&self.desired, outcome, self.now);
    }

    fn status(&self) -> Value {
        let host = Host { ips: vec!["192.0.2.1".into()] };
        serde_json::to_value(render(&self.desired, &self.observed, &host, &Default::default(), self.now))
            .unwrap()
    }

    fn ready(&self) -> String {
        let status = self.status();
        let conditions = status["conditions"].as_array().unwrap();
        conditions.iter().find(|c| c["type"] == "Ready").unwrap()["status"].as_str().unwrap().to_owned()
    }

    fn delete(&mut self, grace: u64) {
        self.desired.deleting = Some(Duration::from_secs(grace));
    }
}

/// What the runtime calls an instance.
fn id(name: &str, attempt: u32) -> Arc<str> {
    format!("containerd://{name}-{attempt}").into()
}

fn exited(now: Timestamp, code: i32) -> ContainerState {
    let reason = if code == 0 { "Completed" } else { "Error" }.to_owned();
    ContainerState::Exited { started: now, finished: now, code, reason, message: String::new() }
}

#[test]
fn restart_policies_decide_what_becomes_of_an_exit() {
    for (policy, code, phase, restarts) in [
        ("Always", 0, "Running", true),
        ("Always", 1, "Running", true),
        ("OnFailure", 0, "Succeeded", false),
        ("OnFailure", 1, "Running", true),
        ("Never", 0, "Succeeded", false),
        ("Never", 1, "Failed", false),
    ] {
        let mut sim = sim(json!({"restartPolicy": policy}), |_| Act::Run);
        sim.run();
        sim.exit("main", code);
        sim.run();
        assert_eq!(sim.status()["phase"], phase, "{policy} {code}");
        assert_eq!(sim.observed.unit("main").attempt > 0, restarts, "{policy} {code}");
        assert_eq!(sim.log.contains(&"cleanup".to_owned()), !restarts, "{policy} {code}");
    }
}

#[test]
fn crashes_are_restarted_after_10_20_40_seconds_up_to_5_minutes() {
    let mut sim = sim(json!({}), |_| Act::Exit(1));
    let mut delays = Vec::new();
    for _ in 0..9 {
        let until = sim.run().unwrap();
        delays.push(until.duration_since(sim.now).as_secs());
        sim.now = until;
    }
    assert_eq!(delays, [10, 20, 40, 80, 160, 300, 300, 300, 300]);
}

#[test]
fn a_container_that_ran_for_ten_minutes_starts_from_scratch() {
    let mut sim = sim(json!({}), |_| Act::Run);
    sim.run();
    for _ in 0..3 {
        sim.exit("main", 1);
        sim.pass(60);
    }
    assert_eq!(sim.observed.unit("main").crash.delay().as_secs(), 40);
    sim.now += jiff::SignedDuration::from_secs(601);
    sim.exit("main", 1);
    assert_eq!(sim.run(), None, "it is restarted at once");
    assert_eq!(sim.observed.unit("main").crash.delay().as_secs(), 10);
}

#[test]
fn init_containers_and_sidecars_come_up_in_order_and_go_down_in_reverse() {
    let spec = json!({
        "initContainers": [
            {"name": "a", "image": "i"},
            {"name": "side1", "image": "i", "restartPolicy": "Always"},
            {"name": "side2", "image": "i", "restartPolicy": "Always"},
            {"name": "b", "image": "i"}],
        "containers": [{"name": "x", "image": "i"}, {"name": "y", "image": "i"}]});
    let mut sim = sim(spec, |name| if matches!(name, "a" | "b") { Act::Exit(0) } else { Act::Run });
    sim.run();
    assert_eq!(
        sim.log,
        ["prepare", "start a", "start side1", "start side2", "start b", "start x", "start y"]
    );
    assert_eq!(sim.ready(), "True");
    sim.log.clear();
    sim.delete(30);
    sim.run();
    assert_eq!(sim.log, ["stop x", "stop y", "stop side2", "stop side1", "cleanup", "delete", "finish"]);
}

#[test]
fn sidecars_end_when_a_job_is_done() {
    let spec = json!({"restartPolicy": "Never",
        "initContainers": [{"name": "side", "image": "i", "restartPolicy": "Always"}]});
    let mut sim = sim(spec, |name| if name == "main" { Act::Exit(0) } else { Act::Run });
    sim.run();
    assert_eq!(sim.log, ["prepare", "start side", "start main", "stop side", "cleanup"]);
    assert_eq!(sim.status()["phase"], "Succeeded");
}

#[test]
fn a_failed_init_container_fails_a_pod_that_never_restarts() {
    let spec =
        |policy: &str| json!({"restartPolicy": policy, "initContainers": [{"name": "a", "image": "i"}]});
    let mut never = sim(spec("Never"), |_| Act::Exit(1));
    never.run();
    assert_eq!(never.status()["phase"], "Failed");
    assert_eq!(never.log, ["prepare", "start a", "cleanup"]);
    let mut always = sim(spec("Always"), |_| Act::Exit(1));
    always.run();
    let status = always.status();
    assert_eq!(status["phase"], "Pending");
    assert_eq!(status["initContainerStatuses"][0]["state"]["waiting"]["reason"], "CrashLoopBackOff");
    assert_eq!(status["containerStatuses"][0]["state"]["waiting"]["reason"], "PodInitializing");
    let initialized =
        status["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "Initialized").unwrap();
    assert_eq!(initialized["message"], "containers with incomplete status: [a]");
}

#[test]
fn readiness_follows_thresholds() {
    let spec = json!({"containers": [{"name": "main", "image": "i", "readinessProbe":
        {"httpGet": {"port": 80}, "initialDelaySeconds": 5, "periodSeconds": 2, "successThreshold": 2, "failureThreshold": 3}}]});
    let mut sim = sim(spec, |_| Act::Run);
    sim.run();
    assert_eq!(sim.ready(), "False");
    sim.pass(6);
    assert_eq!(sim.ready(), "False", "one success is not two");
    sim.pass(2);
    assert_eq!(sim.ready(), "True");
    sim.probes = |_, _| false;
    sim.pass(4);
    assert_eq!(sim.ready(), "True", "two failures are not three");
    sim.pass(2);
    assert_eq!(sim.ready(), "False");
}

#[test]
fn a_startup_probe_holds_the_others_back() {
    let spec = json!({"containers": [{"name": "main", "image": "i",
        "startupProbe": {"httpGet": {"port": 80}, "periodSeconds": 1, "failureThreshold": 30},
        "livenessProbe": {"httpGet": {"port": 80}, "periodSeconds": 1, "failureThreshold": 1}}]});
    let mut sim = sim(spec, |_| Act::Run);
    sim.probes = |_, kind| kind != ProbeKind::Startup;
    sim.pass(20);
    assert_eq!(sim.log, ["prepare", "start main"], "the liveness probe waits");
    assert_eq!(sim.status()["containerStatuses"][0]["started"], false);
    assert_eq!(sim.ready(), "False");
    sim.probes = |_, kind| kind == ProbeKind::Startup;
    sim.pass(3);
    assert_eq!(sim.log.get(..4).unwrap(), ["prepare", "start main", "stop main", "restart main"]);
}

#[test]
fn a_pull_that_fails_backs_off_and_says_so() {
    let mut sim = sim(json!({}), |_| Act::Run);
    sim.pull = Err(Failure { reason: "ErrImagePull", message: "nope".into() });
    sim.run();
    let reason = |sim: &Sim| sim.status()["containerStatuses"][0]["state"]["waiting"]["reason"].clone();
    assert_eq!(reason(&sim), "ErrImagePull");
    sim.pass(3);
    assert_eq!(reason(&sim), "ImagePullBackOff");
    sim.pull = Ok(());
    sim.pass(5);
    assert_eq!(reason(&sim), "ImagePullBackOff");
    sim.pass(5);
    assert_eq!(sim.ready(), "True");
}

#[test]
fn a_deadline_ends_the_pod_for_good() {
    let mut sim = sim(json!({"activeDeadlineSeconds": 60}), |_| Act::Run);
    sim.pass(59);
    assert_eq!(sim.ready(), "True");
    sim.pass(2);
    assert_eq!(sim.log, ["prepare", "start main", "fail DeadlineExceeded", "stop main", "cleanup"]);
    let status = sim.status();
    assert_eq!((&status["phase"], &status["reason"]), (&json!("Failed"), &json!("DeadlineExceeded")));
    assert_eq!(status["message"], "Pod was active on the node longer than the specified deadline");
}

#[test]
fn an_evicted_pod_ends_at_once() {
    let mut sim = sim(json!({"terminationGracePeriodSeconds": 600}), |_| Act::Run);
    sim.run();
    sim.observed.finish(&sim.desired, Outcome::Evicted("the disk is full".into()), sim.now);
    let step = next(&sim.desired, &sim.observed, sim.now);
    assert!(matches!(step, Step::Stop { grace, .. } if grace == Duration::from_secs(1)), "{step:?}");
    sim.run();
    assert_eq!(sim.log, ["prepare", "start main", "stop main", "cleanup"]);
    assert_eq!(sim.status()["reason"], "Evicted");
}

#[test]
fn a_pod_can_go_at_any_time() {
    // Before anything began, while it waits for its image, and when the object is simply gone.
    let mut fresh = sim(json!({}), |_| Act::Run);
    fresh.delete(30);
    fresh.run();
    assert_eq!(fresh.log, ["cleanup", "delete", "finish"]);
    let mut stuck = sim(json!({}), |_| Act::Run);
    stuck.pull = Err(Failure { reason: "ErrImagePull", message: "nope".into() });
    stuck.run();
    stuck.delete(30);
    stuck.run();
    assert_eq!(stuck.log, ["prepare", "cleanup", "delete", "finish"]);
    let mut gone = sim(json!({}), |_| Act::Run);
    gone.run();
    gone.desired.gone = true;
    gone.run();
    assert_eq!(gone.log, ["prepare", "start main", "stop main", "cleanup", "finish"]);
}

#[test]
fn recovery_keeps_counts_and_does_not_run_ended_containers_again() {
    let mut done = sim(json!({"restartPolicy": "Never"}), |_| Act::Exit(0));
    done.run();
    let mut object = (*done.desired.pod).clone();
    object.status = serde_json::from_value(done.status()).unwrap();
    done.observed = Observed::recover(&object, done.now);
    done.log.clear();
    done.run();
    assert_eq!(done.log, ["cleanup"]);
    assert_eq!(done.status()["phase"], "Succeeded");

    let mut web = sim(json!({}), |_| Act::Run);
    web.run();
    web.exit("main", 1);
    web.run();
    let mut object = (*web.desired.pod).clone();
    object.status = serde_json::from_value(web.status()).unwrap();
    web.observed = Observed::recover(&object, web.now);
    // The runtime still has it.
    let still = ContainerState::Running { started: web.now };
    web.report("main", 1, still);
    web.log.clear();
    web.run();
    assert_eq!(web.log, ["prepare"]);
    assert_eq!(web.status()["containerStatuses"][0]["restartCount"], 1);
    assert_eq!(web.ready(), "True");
}

/// Ids of the current and of the last instance of `main`, as the status has them.
fn shown(sim: &Sim) -> (Value, Value) {
    let status = &sim.status()["containerStatuses"][0];
    if let Some(current) = status["state"].get("terminated") {
        assert_eq!(current["containerID"], status["containerID"], "one instance, one id");
    }
    (status["containerID"].clone(), status["lastState"]["terminated"]["containerID"].clone())
}

#[test]
fn an_id_is_that_of_its_instance() {
    let (first, second) = (json!("containerd://main-0"), json!("containerd://main-1"));
    let mut sim = sim(json!({}), |_| Act::Run);
    assert_eq!(shown(&sim), (Value::Null, Value::Null), "nothing has been started");
    sim.observed.begin(&Step::Start("main".into()), sim.now);
    assert_eq!(shown(&sim), (Value::Null, Value::Null), "no instance is known yet");
    sim.observed = Observed::recover(&sim.desired.pod, sim.now);
    sim.run();
    assert_eq!(shown(&sim), (first.clone(), Value::Null));
    sim.exit("main", 1);
    assert_eq!(shown(&sim), (first.clone(), Value::Null), "it has ended");
    sim.observed.begin(&Step::Restart("main".into()), sim.now);
    sim.observed.begin(&Step::Start("main".into()), sim.now);
    assert_eq!(shown(&sim), (first.clone(), first.clone()), "the next one is not known yet");
    sim.report("main", 1, ContainerState::Running { started: sim.now });
    assert_eq!(shown(&sim), (second.clone(), first), "it runs, and its hook");
    sim.exit("main", 1);
    assert_eq!(sim.status()["containerStatuses"][0]["state"]["waiting"]["reason"], "CrashLoopBackOff");
    assert_eq!(shown(&sim), (second.clone(), second));
}

#[test]
fn ids_outlive_the_agent_and_those_of_its_previous_version_are_replaced() {
    let native = |attempt: u32| json!(&*id("main", attempt));
    let ours = |attempt: u32| json!(format!("containerd://u.main.{attempt}"));
    let running =
        |id: &Value| json!({"containerID": id, "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}});
    let end = |id: &Value| json!({"terminated": {"containerID": id, "exitCode": 1, "finishedAt": "2026-01-01T00:00:00Z"}});
    let ended = |id: &Value| json!({"containerID": id, "state": end(id)});
    let looping = |id: &Value| json!({"containerID": id, "lastState": end(id), "state": {"waiting": {"reason": "CrashLoopBackOff"}}});
    let nothing = Value::Null;
    // What the status said, what the runtime still has, and what the status says then.
    for (what, status, known, current, last) in [
        ("it runs on", running(&native(0)), &[(0, true)][..], native(0), &nothing),
        ("it runs on, under its old id", running(&ours(0)), &[(0, true)], native(0), &nothing),
        ("it is lost", running(&native(0)), &[], native(0), &nothing),
        ("it is lost, with its old id", running(&ours(0)), &[], ours(0), &nothing),
        ("it is lost, and nobody knew its id", running(&nothing), &[], nothing.clone(), &nothing),
        ("it ended", ended(&native(0)), &[], native(0), &nothing),
        ("it ended, with its old id", ended(&ours(0)), &[], ours(0), &nothing),
        ("it ended, with its old id, and is there", ended(&ours(0)), &[(0, false)], native(0), &nothing),
        ("it waits", looping(&native(0)), &[], native(0), &native(0)),
        ("it waits, with its old id", looping(&ours(0)), &[], ours(0), &ours(0)),
        ("it waits, with its old id, and is there", looping(&ours(0)), &[(0, false)], native(0), &native(0)),
    ] {
        let mut sim = sim(json!({"restartPolicy": "Always"}), |_| Act::Run);
        let mut object = (*sim.desired.pod).clone();
        let mut one = json!({"name": "main", "image": "i", "imageID": "", "ready": false, "restartCount": 0});
        one.as_object_mut().unwrap().extend(status.as_object().unwrap().clone());
        object.status = serde_json::from_value(json!({"containerStatuses": [one]})).unwrap();
        sim.observed = Observed::recover(&object, sim.now);
        for (attempt, runs) in known {
            let state = match runs {
                true => ContainerState::Running { started: sim.now },
                false => exited(sim.now, 1),
            };
            sim.report("main", *attempt, state);
        }
        if last.is_null() {
            assert_eq!(shown(&sim), (current, nothing.clone()), "{what}");
        } else {
            // What waits is the next one: the last state is this one.
            sim.observed.begin(&Step::Restart("main".into()), sim.now);
            assert_eq!(shown(&sim), (current, last.clone()), "{what}");
        }
    }
}

#[test]
fn the_last_instance_gets_its_id_from_the_runtime_too() {
    let mut sim = sim(json!({}), |_| Act::Run);
    let mut object = (*sim.desired.pod).clone();
    object.status = serde_json::from_value(json!({"containerStatuses": [{
        "name": "main", "image": "i", "imageID": "", "ready": true, "restartCount": 1,
        "containerID": "containerd://u.main.1", "state": {"running": {}},
        "lastState": {"terminated": {"exitCode": 1, "containerID": "containerd://u.main.0"}}}]}))
    .unwrap();
    sim.observed = Observed::recover(&object, sim.now);
    sim.report("main", 0, exited(sim.now, 1));
    sim.report("main", 1, ContainerState::Running { started: sim.now });
    assert_eq!(shown(&sim), (json!("containerd://main-1"), json!("containerd://main-0")));
}

#[test]
fn a_restart_that_waited_is_counted_after_recovery_too() {
    let mut sim = sim(json!({}), |_| Act::Exit(1));
    sim.run();
    assert_eq!(sim.status()["containerStatuses"][0]["state"]["waiting"]["reason"], "CrashLoopBackOff");
    let mut object = (*sim.desired.pod).clone();
    object.status = serde_json::from_value(sim.status()).unwrap();
    sim.observed = Observed::recover(&object, sim.now);
    sim.run();
    let status = &sim.status()["containerStatuses"][0];
    assert_eq!(
        (&status["restartCount"], &status["lastState"]["terminated"]["exitCode"]),
        (&json!(2), &json!(1))
    );
}

#[test]
fn condition_times_change_only_with_the_condition() {
    let mut sim = sim(json!({}), |_| Act::Run);
    sim.run();
    let host = Host::default();
    let first = render(&sim.desired, &sim.observed, &host, &Default::default(), sim.now);
    sim.now += jiff::SignedDuration::from_secs(60);
    let second = render(&sim.desired, &sim.observed, &host, &first, sim.now);
    assert_eq!(first, second);
}

#[test]
fn conditions_of_others_stay() {
    let mut sim = sim(json!({"readinessGates": [{"conditionType": "example.com/ok"}]}), |_| Act::Run);
    sim.run();
    assert_eq!(sim.ready(), "False");
    let before = serde_json::from_value(json!({"conditions": [
        {"type": "example.com/ok", "status": "True"}, {"type": "PodScheduled", "status": "True", "message": "kept"}]}))
    .unwrap();
    let status = render(&sim.desired, &sim.observed, &Host::default(), &before, sim.now);
    let conditions = status.conditions.unwrap();
    let find = |name: &str| conditions.iter().find(|c| c.type_ == name).unwrap();
    assert_eq!(find("Ready").status, "True");
    assert_eq!(find("PodScheduled").message.as_deref(), Some("kept"));
    assert_eq!(find("example.com/ok").status, "True");
}

#[test]
fn quality_of_service_is_upstreams() {
    for (resources, class) in [
        (json!({}), "BestEffort"),
        (json!({"limits": {"cpu": "1", "memory": "1Gi"}}), "Guaranteed"),
        (
            json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Gi"}}),
            "Guaranteed",
        ),
        (json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}), "Burstable"),
        (json!({"requests": {"cpu": "1"}}), "Burstable"),
    ] {
        let desired = pod(json!({"containers": [{"name": "main", "image": "i", "resources": resources}]}));
        assert_eq!(super::status::qos_class(&desired.pod), class, "{resources}");
    }
}

#[test]
fn a_pod_that_is_not_taken_has_failed() {
    let mut sim = sim(json!({}), |_| Act::Run);
    let step = next(&sim.desired, &sim.observed, sim.now);
    assert_eq!(step, Step::Prepare);
    sim.observed.begin(&step, sim.now);
    let failure = Failure { reason: "NodePorts", message: "host port 80 is taken".into() };
    sim.observed.finish(&sim.desired, Outcome::Rejected(failure), sim.now);
    sim.run();
    assert_eq!(sim.log, ["cleanup"]);
    let status = sim.status();
    assert_eq!((&status["phase"], &status["reason"]), (&json!("Failed"), &json!("NodePorts")));
    assert_eq!(status["message"], "Pod was rejected: host port 80 is taken");
}
