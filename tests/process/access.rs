//! Pods and the API: credentials, the Service `kubernetes`, and what becomes of both.

use std::process::{Command, Output};

use ketch_tests::{Ketch, failed, until};

/// A pod of the guest `job` that prints its token and stays.
const TOKEN: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: NAME}
spec:
  runtimeClassName: ketch-wasm
  containers:
  - name: main
    image: ketch.local/default/job:latest
    args: [cat, /var/run/secrets/kubernetes.io/serviceaccount/token, print, "",
      cat, /var/run/secrets/kubernetes.io/serviceaccount/namespace, print, "", sleep, "0"]
"#;

/// What the pod printed.
fn printed(ketch: &Ketch, pod: &str) -> (String, String) {
    until(&format!("the token of {pod}"), || {
        let out = ketch.kubectl(&["logs", pod]);
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        match lines.as_slice() {
            [.., token, namespace] if token.split('.').count() == 3 => {
                Ok(((*token).to_owned(), (*namespace).to_owned()))
            }
            _ => Err(format!("{text}{}", String::from_utf8_lossy(&out.stderr))),
        }
    })
}

/// `kubectl` with a token and nothing else.
fn as_token(ketch: &Ketch, token: &str, arguments: &[&str]) -> Output {
    let text = ketch.kubectl_ok(&["config", "view", "--raw", "-o", "json"]);
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    config["users"][0]["user"] = serde_json::json!({"token": token});
    let path = ketch.dir.join("token.kubeconfig");
    std::fs::write(&path, config.to_string()).unwrap();
    let mut command = Command::new(ketch_tests::kubectl());
    command.args(arguments).env("KUBECONFIG", path).env("HOME", &ketch.dir).output().unwrap()
}

#[test]
fn a_wasm_pod_acts_as_its_service_account_until_it_is_deleted() {
    let ketch = Ketch::start();
    ketch.deploy("job", &[]);
    ketch.apply(&TOKEN.replace("NAME", "one"));
    let (token, namespace) = printed(&ketch, "one");
    assert_eq!(namespace, "default");
    let pods = ["get", "pods", "-o", "name"];
    let refused = failed("get pods", as_token(&ketch, &token, &pods));
    assert!(
        refused.contains("\"system:serviceaccount:default:default\" cannot list resource \"pods\""),
        "{refused}"
    );
    ketch.kubectl_ok(&[
        "create",
        "rolebinding",
        "look",
        "--clusterrole=view",
        "--serviceaccount=default:default",
    ]);
    until("the right", || {
        let out = as_token(&ketch, &token, &pods);
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        if text.contains("pod/one") { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
    });
    ketch.kubectl_ok(&["delete", "pod", "one", "--grace-period=0", "--force"]);
    until("the pod's end", || match ketch.kubectl_ok(&["get", "pods", "-o", "name"]) {
        names if names.contains("pod/one\n") => Err(names),
        _ => Ok(()),
    });
    let gone = failed("get pods", as_token(&ketch, &token, &pods));
    assert!(gone.contains("Unauthorized") || gone.contains("logged in"), "{gone}");
}

#[test]
fn pods_name_accounts_that_exist_and_may_decline_a_token() {
    let ketch = Ketch::start();
    let pod = |name: &str, spec: &str| {
        format!(
            r#"{{"apiVersion": "v1", "kind": "Pod", "metadata": {{"name": "{name}"}}, "spec": {{{spec}
                "containers": [{{"name": "main", "image": "ketch.local/default/none"}}]}}}}"#
        )
    };
    let create = |text: &str| ketch.kubectl_with(&["create", "-f", "-"], text);
    let error = failed("create", create(&pod("lost", r#""serviceAccountName": "robot","#)));
    assert!(
        error.contains(
            "pods \"lost\" is forbidden: error looking up service account default/robot: serviceaccount \"robot\" not found"
        ),
        "{error}"
    );
    ketch.apply(&pod("with", ""));
    ketch.apply(&pod("without", r#""automountServiceAccountToken": false,"#));
    let volumes =
        |name: &str| ketch.kubectl_ok(&["get", "pod", name, "-o", "jsonpath={.spec.volumes[*].name}"]);
    assert!(volumes("with").starts_with("kube-api-access-"));
    assert_eq!(volumes("without"), "");
    // A namespace has all that its first pod needs.
    ketch.kubectl_ok(&["create", "namespace", "fresh"]);
    ketch.kubectl_ok(&["run", "first", "-n", "fresh", "--image=ketch.local/default/none"]);
}

#[test]
fn the_service_kubernetes_leads_to_the_server_and_comes_back() {
    let ketch = Ketch::start();
    let port = ketch.address("api-addr").rsplit(':').next().unwrap().to_owned();
    let field = |kind: &str, path: &str| {
        let out = ketch.kubectl(&["get", kind, "kubernetes", "-o", &format!("jsonpath={{{path}}}")]);
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    let whole = || {
        until("the Service and its endpoints", || {
            let seen = [
                field("service", ".spec.ports[0].targetPort"),
                field("endpointslice", ".ports[0].port"),
                field("endpoints", ".subsets[0].ports[0].port"),
            ];
            if seen.iter().all(|one| *one == port) {
                Ok(())
            } else {
                Err(format!("{seen:?} instead of {port}"))
            }
        });
    };
    whole();
    let address = field("endpointslice", ".endpoints[0].addresses[0]");
    assert_eq!(field("endpoints", ".subsets[0].addresses[0].ip"), address);
    assert_ne!(address, "127.0.0.1");
    let before = field("service", ".spec.clusterIP");
    ketch.kubectl_ok(&["delete", "services,endpoints,endpointslices", "--all"]);
    whole();
    assert_eq!(field("service", ".spec.clusterIP"), before);
}

#[test]
fn kubectl_top_shows_what_is_used() {
    let ketch = Ketch::start();
    ketch.deploy("job", &[]);
    ketch.apply(
        r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "busy", "labels": {"app": "busy"}}, "spec": {
            "runtimeClassName": "ketch-wasm", "containers": [{"name": "main", "args": ["spin"],
                "image": "ketch.local/default/job:latest", "resources": {"limits": {"cpu": "100m"}}}]}}"#,
    );
    // Name, millicores, memory.
    let line = until("two answers of the node", || {
        let out = ketch.kubectl(&["top", "pods", "-l", "app=busy", "--no-headers"]);
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        match words.as_slice() {
            [name, cpu, _] if name == "busy" && cpu != "0m" => Ok(words),
            _ => Err(format!("{text}{}", String::from_utf8_lossy(&out.stderr))),
        }
    });
    let cores: u32 = line[1].trim_end_matches('m').parse().unwrap();
    assert!(cores <= 200, "its limit is 100m: {line:?}");
    let nodes = ketch.kubectl_ok(&["top", "nodes", "--no-headers"]);
    assert!(nodes.starts_with("test-node") && nodes.contains('%'), "{nodes}");
    let all = ketch.kubectl_ok(&["top", "pods", "-A", "--containers"]);
    assert!(all.lines().any(|line| line.contains("busy") && line.contains("main")), "{all}");
    let none = failed("top", ketch.kubectl(&["top", "pod", "none"]));
    assert!(none.contains("podmetrics") || none.contains("not found"), "{none}");
}
