//! Real `kubectl`, command by command.

use ketch_tests::{Ketch, failed, succeeded, until};

const WEB: &str = r"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      runtimeClassName: ketch-wasm
      containers:
      - name: web
        image: ketch.local/default/hello:latest
        ports: [{containerPort: 8080, name: http}]
        env: [{name: GREETING, value: one}]
";

fn with_web() -> Ketch {
    let ketch = Ketch::start();
    // Brings the image into the registry.
    ketch.deploy("hello", &[]);
    ketch.apply(WEB);
    succeeded("rollout", ketch.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]));
    ketch
}

#[test]
fn objects_are_shown_in_every_form() {
    let ketch = with_web();
    for form in [
        "wide",
        "json",
        "yaml",
        "name",
        "jsonpath={.items[*].metadata.name}",
        "custom-columns=N:.metadata.name",
        "go-template={{len .items}}",
    ] {
        let out = ketch.kubectl_ok(&["get", "pods", "-o", form]);
        assert!(!out.trim().is_empty(), "{form}");
    }
    let table = ketch.kubectl_ok(&["get", "deployments,replicasets,pods,nodes,functions"]);
    for word in [
        "deployment.apps/web",
        "2/2",
        "replicaset.apps/web-",
        "node/test-node",
        "Ready",
        "function.ketch.dev/hello",
    ] {
        assert!(table.contains(word), "{word} in\n{table}");
    }
    assert!(ketch.kubectl_ok(&["get", "all"]).contains("deployment.apps/web"));
    assert!(ketch.kubectl_ok(&["get", "pods", "-A"]).contains("default"));
    assert!(ketch.kubectl_ok(&["api-resources"]).contains("functionrevisions"));
    let sorted = ketch.kubectl_ok(&["get", "pods", "--sort-by=.metadata.name", "--show-labels"]);
    assert!(sorted.contains("app=web"), "{sorted}");
    let described = ketch.kubectl_ok(&["describe", "deployment/web"]);
    assert!(described.contains("ScalingReplicaSet") && described.contains("Available"), "{described}");
    let pod = ketch.kubectl_ok(&["describe", "pods", "-l", "app=web"]);
    assert!(pod.contains("Scheduled") && pod.contains("Started"), "{pod}");
    assert!(ketch.kubectl_ok(&["describe", "node", "test-node"]).contains("wasmtime://"));
    assert!(ketch.kubectl_ok(&["get", "events"]).contains("Scheduled"));
    assert!(failed("get", ketch.kubectl(&["get", "pod", "nobody"])).contains("pods \"nobody\" not found"));
}

#[test]
fn objects_are_changed_in_every_way() {
    let ketch = with_web();
    assert!(ketch.apply(WEB).contains("unchanged"));
    assert!(ketch.apply(&WEB.replace("value: one", "value: two")).contains("configured"));
    let env = ["get", "deployment", "web", "-o", "jsonpath={.spec.template.spec.containers[0].env[0].value}"];
    assert_eq!(ketch.kubectl_ok(&env), "two");
    let patch = r#"{"spec":{"template":{"spec":{"containers":[{"name":"web","env":[{"name":"MORE","value":"x"}]}]}}}}"#;
    ketch.kubectl_ok(&["patch", "deployment", "web", "-p", patch]);
    let names = ketch.kubectl_ok(&[
        "get",
        "deployment",
        "web",
        "-o",
        "jsonpath={.spec.template.spec.containers[0].env[*].name}",
    ]);
    assert!(names.contains("GREETING") && names.contains("MORE"), "strategic merge keeps both: {names}");
    ketch.kubectl_ok(&[
        "patch",
        "deployment",
        "web",
        "--type=json",
        "-p",
        r#"[{"op":"add","path":"/metadata/labels","value":{"tier":"front"}}]"#,
    ]);
    ketch.kubectl_ok(&["label", "deployment", "web", "team=a"]);
    ketch.kubectl_ok(&["annotate", "deployment", "web", "note=b"]);
    assert!(
        ketch.kubectl_ok(&["get", "deployments", "-l", "team=a,tier=front", "-o", "name"]).contains("web")
    );
    let mut edit = std::process::Command::new(ketch_tests::kubectl());
    edit.args(["edit", "deployment", "web"])
        .env("KUBECONFIG", ketch.kubeconfig())
        .env("KUBE_EDITOR", "sed -i s/team:.a/team:\\ edited/");
    succeeded("kubectl edit", edit.output().unwrap());
    assert!(ketch.kubectl_ok(&["get", "deployments", "-l", "team=edited", "-o", "name"]).contains("web"));
    ketch.kubectl_ok(&["scale", "deployment", "web", "--replicas=3"]);
    succeeded("rollout", ketch.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]));
    assert_eq!(
        ketch.kubectl_ok(&["get", "deployment", "web", "-o", "jsonpath={.status.readyReplicas}"]),
        "3"
    );
    ketch.kubectl_ok(&["delete", "deployment", "web"]);
    until("its pods to go", || {
        let pods = ketch.kubectl_ok(&["get", "pods", "-l", "app=web", "-o", "name"]);
        if pods.trim().is_empty() { Ok(()) } else { Err(pods) }
    });
}

#[test]
fn rollouts_go_forward_and_back() {
    let ketch = with_web();
    ketch.apply(&WEB.replace("value: one", "value: two"));
    succeeded("rollout", ketch.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]));
    let history = ketch.kubectl_ok(&["rollout", "history", "deployment/web"]);
    assert!(history.contains('1') && history.contains('2'), "{history}");
    ketch.kubectl_ok(&["rollout", "undo", "deployment/web"]);
    succeeded("rollout", ketch.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]));
    assert_eq!(
        ketch.kubectl_ok(&[
            "get",
            "deployment",
            "web",
            "-o",
            "jsonpath={.spec.template.spec.containers[0].env[0].value}"
        ]),
        "one"
    );
    ketch.kubectl_ok(&["rollout", "restart", "deployment/web"]);
    succeeded("rollout", ketch.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]));
    ketch.kubectl_ok(&["rollout", "pause", "deployment/web"]);
    ketch.kubectl_ok(&["rollout", "resume", "deployment/web"]);
}

#[test]
fn objects_are_created_and_asked_about() {
    let ketch = with_web();
    ketch.kubectl_ok(&["create", "configmap", "settings", "--from-literal=a=b"]);
    ketch.kubectl_ok(&["create", "secret", "generic", "hidden", "--from-literal=a=b"]);
    ketch.kubectl_ok(&["create", "namespace", "other"]);
    ketch.kubectl_ok(&["create", "serviceaccount", "robot"]);
    ketch.kubectl_ok(&["create", "role", "reader", "--verb=get,list", "--resource=pods"]);
    ketch.kubectl_ok(&[
        "create",
        "rolebinding",
        "robot-reads",
        "--role=reader",
        "--serviceaccount=default:robot",
    ]);
    let robot = "system:serviceaccount:default:robot";
    assert_eq!(ketch.kubectl_ok(&["auth", "can-i", "list", "pods", "--as", robot]).trim(), "yes");
    let denied = ketch.kubectl(&["auth", "can-i", "delete", "pods", "--as", robot]);
    assert_eq!(String::from_utf8_lossy(&denied.stdout).trim(), "no");
    // The command is younger than the oldest kubectl that has to work.
    if ketch_tests::kubectl_minor() >= 24 {
        tokens_act_for_their_account(&ketch, robot);
    }

    ketch.kubectl_ok(&["expose", "deployment", "web", "--port=80", "--target-port=8080"]);
    assert!(ketch.kubectl_ok(&["get", "service", "web"]).contains("ClusterIP"));
    until("endpoints", || {
        let slices = ketch.kubectl_ok(&[
            "get",
            "endpointslices",
            "-l",
            "kubernetes.io/service-name=web",
            "-o",
            "jsonpath={.items[*].endpoints[*].addresses[0]}",
        ]);
        if slices.split_whitespace().count() == 2 { Ok(()) } else { Err(slices) }
    });
    ketch.kubectl_ok(&["run", "single", "--image=ketch.local/default/hello:latest", "--restart=Never"]);
    ketch.kubectl_ok(&["wait", "--for=condition=Ready", "pod/single", "--timeout=60s"]);
    let explained = ketch.kubectl_ok(&["explain", "deployment.spec.strategy"]);
    assert!(explained.contains("rollingUpdate"), "{explained}");
    assert!(ketch.kubectl_ok(&["explain", "function.spec"]).contains("image"));
    ketch.kubectl_ok(&["delete", "namespace", "other", "--timeout=60s"]);
}

#[test]
fn logs_are_followed() {
    let ketch = Ketch::start();
    ketch.deploy("hello", &[]);
    let mut follow = std::process::Command::new(ketch_tests::kubectl());
    follow.args(["logs", "-f", "deployment/hello-00001"]).env("KUBECONFIG", ketch.kubeconfig());
    let mut follow = follow.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(follow.stdout.take().unwrap()));
    ketch.call("hello", "/needle-in-the-log").unwrap();
    let found = lines.by_ref().map_while(Result::ok).any(|line| line.contains("needle-in-the-log"));
    follow.kill().unwrap();
    follow.wait().unwrap();
    assert!(found, "the request's line is followed");
    let tail = ketch.kubectl_ok(&["logs", "deployment/hello-00001", "--tail=1", "--timestamps"]);
    assert_eq!(tail.lines().count(), 1, "{tail}");
}

#[test]
fn changes_are_watched() {
    let ketch = Ketch::start();
    let mut watch = std::process::Command::new(ketch_tests::kubectl());
    watch.args(["get", "configmaps", "--watch", "-o", "name"]).env("KUBECONFIG", ketch.kubeconfig());
    let mut watch = watch.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(watch.stdout.take().unwrap()));
    ketch.kubectl_ok(&["create", "configmap", "seen", "--from-literal=a=b"]);
    let found = lines.by_ref().map_while(Result::ok).any(|line| line.contains("configmap/seen"));
    watch.kill().unwrap();
    watch.wait().unwrap();
    assert!(found);
}

fn tokens_act_for_their_account(ketch: &Ketch, robot: &str) {
    let token = ketch.kubectl_ok(&["create", "token", "robot"]);
    let server = format!("https://{}", ketch.address("api-addr"));
    let as_robot = |arguments: &[&str]| {
        let base = [
            "--kubeconfig=/dev/null",
            "--insecure-skip-tls-verify",
            "--server",
            &server,
            "--token",
            token.trim(),
        ];
        ketch.kubectl(&[&base, arguments].concat())
    };
    succeeded("list as robot", as_robot(&["get", "pods"]));
    let refused = failed("delete as robot", as_robot(&["delete", "pods", "--all"]));
    assert!(refused.contains("forbidden") && refused.contains(robot), "{refused}");
}
