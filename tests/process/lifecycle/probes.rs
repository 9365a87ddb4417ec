//! Probes and hooks.

use serde_json::{Value, json};

use super::rig::{Do::*, Kind, Pod, with};

/// A volume `www`, and what mounts it where servers look.
fn www() -> (Value, Value) {
    (
        json!([{"name": "www", "emptyDir": {}}]),
        json!({"volumeMounts": [{"name": "www", "mountPath": "/www"}]}),
    )
}

/// A probe every second for the file `name`, with one failure allowed less than `failures`.
fn get(pod: &Pod, name: &str, failures: u32) -> Value {
    json!({"httpGet": {"port": 8080, "path": pod.kind.file(name)}, "periodSeconds": 1, "timeoutSeconds": 5,
        "failureThreshold": failures})
}

pub(super) async fn readiness_comes_and_goes(pod: Pod) {
    let (volumes, mount) = www();
    let web = with(with(pod.server("web"), mount.clone()), json!({"readinessProbe": get(&pod, "ready", 1)}));
    let acts = [Sleep(2000), Write("/www/ready", "yes"), Sleep(4000), Remove("/www/ready"), Forever];
    pod.create(json!({"volumes": volumes, "containers": [web, with(pod.container("writer", &acts), mount)]}))
        .await;
    pod.passes(&[
        "phase=Running",
        "web=running",
        "web.started=true",
        "web.ready=false",
        "Ready=False ContainersNotReady",
    ])
    .await;
    pod.passes(&["web.ready=true", "ContainersReady=True", "Ready=True"]).await;
    pod.becomes(&["web=running", "web.ready=false", "web.restartCount=0", "Ready=False ContainersNotReady"])
        .await;
    pod.event("Warning Unhealthy Readiness probe failed: HTTP probe failed with statuscode: 404").await;
}

pub(super) async fn liveness_restarts(pod: Pod) {
    let (volumes, mount) = www();
    let web = with(with(pod.server("web"), mount.clone()), json!({"livenessProbe": get(&pod, "alive", 2)}));
    let init = with(pod.container("init", &[Write("/www/alive", "yes")]), mount.clone());
    let writer = with(pod.container("writer", &[Sleep(3000), Remove("/www/alive"), Forever]), mount);
    pod.create(json!({"restartPolicy": "Always", "volumes": volumes, "initContainers": [init], "containers": [web, writer]}))
        .await;
    pod.passes(&["web=running", "web.ready=true", "web.restartCount=0", "Ready=True"]).await;
    pod.passes(&["web=running", "web.restartCount=1", "writer=running", "writer.restartCount=0"]).await;
    pod.event("Warning Unhealthy Liveness probe failed: HTTP probe failed with statuscode: 404").await;
    pod.event("Normal Killing Container web failed liveness probe, will be restarted").await;
}

pub(super) async fn a_startup_probe_that_never_passes_restarts(pod: Pod) {
    let probes = json!({"startupProbe": get(&pod, "none", 2), "livenessProbe": get(&pod, "none", 1)});
    pod.create(json!({"restartPolicy": "Always", "containers": [with(pod.server("web"), probes)]})).await;
    pod.passes(&["web=running", "web.started=false", "web.ready=false", "web.restartCount=0"]).await;
    pod.passes(&["web.started=false", "web.restartCount=1"]).await;
    pod.event("Normal Killing Container web failed startup probe, will be restarted").await;
}

pub(super) async fn a_tcp_probe_connects(pod: Pod) {
    let probe = json!({"tcpSocket": {"port": 8080}, "periodSeconds": 1});
    let web = with(pod.server("web"), json!({"startupProbe": probe, "readinessProbe": probe}));
    let closed =
        json!({"readinessProbe": {"tcpSocket": {"port": 9}, "periodSeconds": 1, "failureThreshold": 1}});
    let shut = with(pod.container("shut", &[OnTerm(143), Forever]), closed);
    pod.create(json!({"containers": [web, shut]})).await;
    pod.becomes(&[
        "web.started=true",
        "web.ready=true",
        "shut.ready=false",
        "Ready=False ContainersNotReady",
    ])
    .await;
    pod.event("Warning Unhealthy Readiness probe failed: dial tcp").await;
}

/// gRPC's own health service, asked for the server and for a service that nobody knows.
pub(super) async fn grpc_probes_call(pod: Pod) {
    let (server, port) = pod.grpc_server("web");
    let probe = |service: &str, failures: u32| json!({"grpc": {"port": port, "service": service}, "periodSeconds": 1, "timeoutSeconds": 5, "failureThreshold": failures});
    let probes =
        json!({"startupProbe": probe("", 60), "livenessProbe": probe("", 3), "readinessProbe": probe("", 1)});
    pod.create(json!({"containers": [with(server.clone(), probes)]})).await;
    let restarted = pod.named("unknown");
    let probes = json!({"startupProbe": probe("", 60), "livenessProbe": probe("nobody", 3), "readinessProbe": probe("nobody", 1)});
    // It lives long enough to be seen: liveness has to fail three times.
    restarted.create(json!({"restartPolicy": "Always", "containers": [with(server, probes)]})).await;
    pod.becomes(&["web.started=true", "web.ready=true", "web.restartCount=0", "Ready=True"]).await;
    restarted.passes(&["web.started=true", "web.ready=false", "Ready=False ContainersNotReady"]).await;
    restarted.event("Warning Unhealthy Readiness probe failed: health rpc failed: code 5").await;
    restarted.event("Normal Killing Container web failed liveness probe, will be restarted").await;
    restarted.passes(&["web.restartCount=1"]).await;
    // A server that speaks HTTP and not gRPC.
    let other = pod.named("other");
    let probe =
        json!({"readinessProbe": {"grpc": {"port": 8080}, "periodSeconds": 1, "failureThreshold": 1}});
    let web = match pod.kind {
        Kind::Wasm => with(pod.server("web"), json!({"image": "ketch.local/default/hello-p3:latest"})),
        Kind::Container => pod.server("web"),
    };
    other.create(json!({"containers": [with(web, probe)]})).await;
    other.event("Warning Unhealthy Readiness probe failed: health rpc failed:").await;
    other.becomes(&["web=running", "web.ready=false"]).await;
}

/// Programs as probes; a component that serves has none to run, which an event says.
pub(super) async fn programs_probe(pod: Pod) {
    let (volumes, mount) = www();
    let probe = json!({"exec": {"command": pod.command(&[Cat("/www/ready")])}, "periodSeconds": 1, "timeoutSeconds": 5,
        "failureThreshold": 1});
    let main = pod.container("main", &[OnTerm(143), Sleep(3000), Write("/www/ready", "yes"), Forever]);
    let main = with(with(main, mount), json!({"readinessProbe": probe}));
    pod.create(json!({"volumes": volumes, "containers": [main]})).await;
    pod.passes(&["main=running", "main.ready=false"]).await;
    pod.event("Warning Unhealthy Readiness probe failed:").await;
    pod.becomes(&["main.ready=true", "Ready=True"]).await;
    let slow = pod.named("slow");
    let probes =
        json!({"startupProbe": with(probe.clone(), json!({"failureThreshold": 60})), "livenessProbe": probe});
    let main = pod.container("main", &[OnTerm(143), Sleep(2000), Write("/www/ready", "yes"), Forever]);
    let main = with(with(main, www().1), probes);
    slow.create(json!({"volumes": www().0, "containers": [main]})).await;
    slow.passes(&["main=running", "main.started=false", "main.ready=false"]).await;
    slow.becomes(&["main.started=true", "main.ready=true", "main.restartCount=0"]).await;
    if pod.kind == Kind::Wasm {
        let pod = pod.named("server");
        let web = with(pod.server("web"), json!({"readinessProbe": probe, "livenessProbe": probe}));
        pod.create(json!({"containers": [web]})).await;
        pod.event("Warning Unsupported Readiness probe: exec probes are not supported in Wasm containers")
            .await;
        pod.becomes(&["web=running", "web.ready=false", "web.restartCount=0"]).await;
    }
}

pub(super) async fn hooks_run_before_and_after(pod: Pod) {
    let (volumes, mount) = www();
    let hook = |acts: &[super::rig::Do<'_>]| json!({"exec": {"command": pod.command(acts)}});
    let hooks = json!({"postStart": hook(&[Write("/www/begun", "yes")]),
        "preStop": hook(&[Write("/www/over", "yes"), Sleep(1000)])});
    let acts =
        [Await("/www/begun", "yes"), Print("begun"), Await("/www/over", "yes"), Print("over"), Exit(0)];
    let main = with(with(pod.container("main", &acts), mount), json!({"lifecycle": hooks}));
    pod.create(json!({"volumes": volumes, "terminationGracePeriodSeconds": 20, "containers": [main]})).await;
    pod.becomes(&["phase=Running", "main=running"]).await;
    pod.says("main", "begun").await;
    pod.delete().await;
    pod.gone().await;
    // The hook ran first: a program that is ended at once would not have completed.
    pod.passes(&["main=terminated Completed 0"]).await;
}

/// To a server of the pod, and to one of another pod that is there when this one is gone. What they answer does not
/// matter: they have been told.
pub(super) async fn hooks_are_requests_too(pod: Pod) {
    let tcp = json!({"tcpSocket": {"port": 8080}, "periodSeconds": 1, "failureThreshold": 60});
    let web = |pod: &Pod| with(pod.server("web"), json!({"readinessProbe": tcp}));
    let other = pod.named("other");
    other.create(json!({"containers": [web(&other)]})).await;
    other.becomes(&["Ready=True"]).await;
    let address = other.object()["status"]["podIP"].clone();
    let over = json!({"port": 8080, "path": pod.kind.file("over"), "host": address});
    let begun = json!({"port": 8080, "path": pod.kind.file("begun")});
    let hooks = json!({"lifecycle": {"postStart": {"httpGet": begun}, "preStop": {"httpGet": over}}});
    let first = with(pod.server("web"), json!({"restartPolicy": "Always", "startupProbe": tcp}));
    let main = with(pod.container("main", &[OnTerm(143), Forever]), hooks);
    pod.create(json!({"terminationGracePeriodSeconds": 20, "initContainers": [first], "containers": [main]}))
        .await;
    pod.becomes(&["phase=Running", "main=running"]).await;
    pod.says("web", "begun").await;
    assert!(!other.logs("web", false).await.contains("over"));
    pod.delete().await;
    pod.gone().await;
    other.says("web", "over").await;
}

pub(super) async fn a_failed_hook_ends_the_container(pod: Pod) {
    let hook = json!({"lifecycle": {"postStart": {"exec": {"command": pod.command(&[Exit(4)])}}}});
    let main = with(pod.container("main", &[OnTerm(143), Forever]), hook);
    pod.create(json!({"containers": [main]})).await;
    let unheard = pod.named("unheard");
    let hook = json!({"lifecycle": {"postStart": {"httpGet": {"port": 9}}}});
    let main = with(pod.container("main", &[OnTerm(143), Forever]), hook);
    unheard.create(json!({"containers": [main]})).await;
    for pod in [pod, unheard] {
        // With whatever code: it may not have got to where it can be asked to end.
        pod.becomes(&["phase=Failed", "main~terminated Error"]).await;
        pod.event("Warning FailedPostStartHook PostStartHook failed").await;
    }
}
