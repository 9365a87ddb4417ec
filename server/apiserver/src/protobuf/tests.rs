//! Bodies of real clients, bodies made here, and random bytes.

use proptest::prelude::*;

use super::*;

/// Bodies as kubectl 1.32 sends them, each with the JSON of the same object.
macro_rules! captured {
    ($($name:literal: $json:tt,)*) => {
        [$(($name, &include_bytes!(concat!("../../testdata/protobuf/", $name, ".bin"))[..], json!($json)),)*]
    };
}

#[test]
fn what_kubectl_sends() {
    let cases = captured! {
        "configmap": {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"a": "b"}},
        "secret": {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"bin.dat": "AP8=", "k": "dg=="}},
        "namespace": {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}, "spec": {}, "status": {}},
        "serviceaccount": {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot"}},
        "tokenrequest": {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "metadata": {},
            "spec": {"expirationSeconds": 600}, "status": {"token": ""}},
        "selfsubjectaccessreview": {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "metadata": {},
            "spec": {"nonResourceAttributes": {"path": "/livez", "verb": "get"}}, "status": {"allowed": false}},
        "service": {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "labels": {"app": "web"}},
            "spec": {"type": "NodePort", "selector": {"app": "web"},
                "ports": [{"name": "80-http", "protocol": "TCP", "port": 80, "targetPort": "http"}]},
            "status": {"loadBalancer": {}}},
        "deployment": {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "labels": {"app": "web"}},
            "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "web"}}, "strategy": {},
                "template": {"metadata": {"labels": {"app": "web"}},
                    "spec": {"containers": [{"name": "nginx", "image": "nginx:1.27", "ports": [{"containerPort": 80}], "resources": {}}]}}},
            "status": {}},
        "cronjob": {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "nightly"},
            "spec": {"schedule": "0 3 * * *", "jobTemplate": {"metadata": {"name": "nightly"}, "spec": {"template": {"metadata": {},
                "spec": {"restartPolicy": "OnFailure", "containers": [
                    {"name": "nightly", "image": "busybox", "command": ["echo", "hi"], "resources": {}}]}}}}},
            "status": {}},
        "ingress": {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": "web"},
            "spec": {"rules": [{"host": "example.com", "http": {"paths": [
                {"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "web", "port": {"number": 80}}}}]}}]},
            "status": {"loadBalancer": {}}},
        "clusterrole": {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "health"},
            "rules": [{"verbs": ["get"], "nonResourceURLs": ["/livez"]}]},
        "rolebinding": {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "r"},
            "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "jane"},
                {"kind": "ServiceAccount", "name": "robot", "namespace": "dev"}],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"}},
        "resourcequota": {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"},
            "spec": {"hard": {"cpu": "1", "pods": "2"}}, "status": {}},
        "poddisruptionbudget": {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "p"},
            "spec": {"minAvailable": "50%", "selector": {"matchLabels": {"a": "b"}}},
            "status": {"disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0}},
        "priorityclass": {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "high"},
            "value": 1000, "preemptionPolicy": "PreemptLowerPriority"},
    };
    for (name, body, wanted) in cases {
        assert_eq!(decode(body).unwrap(), wanted, "{name}");
    }
}

// === bodies made here ===

fn field(tag: u32, bytes: &[u8]) -> Vec<u8> {
    let mut out = varint(u64::from(tag << 3 | 2));
    out.extend(varint(bytes.len() as u64));
    out.extend(bytes);
    out
}

fn number(tag: u32, value: i64) -> Vec<u8> {
    [varint(u64::from(tag << 3)), varint(value as u64)].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

fn body(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let type_meta = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
    [MAGIC.to_vec(), field(1, &type_meta), field(2, raw)].concat()
}

#[test]
fn values_with_a_form_of_their_own() {
    let time = [number(1, 1_700_000_000), number(2, 123_456_789)].concat();
    let event = [field(1, &[field(1, b"e"), field(8, &time)].concat()), field(2, &time), field(5, b"Pulled")]
        .concat();
    let decoded = decode(&body("events.k8s.io/v1", "Event", &event)).unwrap();
    assert_eq!(decoded["eventTime"], "2023-11-14T22:13:20.123456Z");
    assert_eq!(decoded["metadata"]["creationTimestamp"], "2023-11-14T22:13:20Z");

    let probe = field(1, &field(2, &[field(1, b"/z"), field(2, &number(2, 8080))].concat()));
    let container = [field(1, b"c"), field(10, &[probe, number(2, 5)].concat())].concat();
    let volume = [field(1, b"v"), field(2, &field(6, &field(1, b"s")))].concat();
    let spec = [
        field(1, &volume),
        field(2, &container),
        number(4, 0),
        field(32, &[field(1, b"cpu"), field(2, &field(1, b"250m"))].concat()),
    ]
    .concat();
    let decoded = decode(&body("v1", "Pod", &field(2, &spec))).unwrap();
    let probe = json!({"httpGet": {"path": "/z", "port": 8080}, "initialDelaySeconds": 5});
    assert_eq!(decoded["spec"]["containers"][0]["livenessProbe"], probe);
    assert_eq!(decoded["spec"]["terminationGracePeriodSeconds"], 0);
    assert_eq!(decoded["spec"]["overhead"], json!({"cpu": "250m"}));
    assert_eq!(decoded["spec"]["volumes"], json!([{"name": "v", "secret": {"secretName": "s"}}]));

    let review = field(
        2,
        &[
            field(4, b"dev"),
            field(5, &[field(1, b"k"), field(2, &[field(1, b"a"), field(1, b"b")].concat())].concat()),
        ]
        .concat(),
    );
    let decoded = decode(&body("authorization.k8s.io/v1", "SubjectAccessReview", &review)).unwrap();
    assert_eq!(decoded["spec"]["groups"], json!(["dev"]));
    assert_eq!(decoded["spec"]["extra"], json!({"k": ["a", "b"]}));

    let revision = [field(2, &field(1, br#"{"x":[1]}"#)), number(3, -7)].concat();
    let decoded = decode(&body("apps/v1", "ControllerRevision", &revision)).unwrap();
    assert_eq!((&decoded["data"], &decoded["revision"]), (&json!({"x": [1]}), &json!(-7)));
}

#[test]
fn delete_options_of_any_group() {
    let options = [number(1, 0), field(4, b"Foreground"), field(5, b"All")].concat();
    for api_version in ["v1", "apps/v1", "policy/v1", "ketch.dev/v1"] {
        let decoded = decode(&body(api_version, "DeleteOptions", &options)).unwrap();
        assert_eq!(decoded["gracePeriodSeconds"], 0, "{api_version}");
        assert_eq!(decoded["propagationPolicy"], "Foreground");
        assert_eq!(decoded["dryRun"], json!(["All"]));
    }
}

#[test]
fn json_may_come_in_the_envelope() {
    let mut bytes = body("v1", "ConfigMap", br#"{"apiVersion":"v1","kind":"ConfigMap"}"#);
    bytes.extend(field(4, b"application/json"));
    assert_eq!(decode(&bytes).unwrap(), json!({"apiVersion": "v1", "kind": "ConfigMap"}));
}

#[test]
fn what_cannot_be_read_is_the_clients_fault() {
    let nested = (0..100).fold(Vec::new(), |inner, _| {
        // JSONSchemaProps-like recursion is not served; RawExtension in an envelope recurses as well.
        field(2, &field(1, &body("apps/v1", "ControllerRevision", &inner)))
    });
    let long = vec![0u8; MAX_SIZE + 1];
    #[rustfmt::skip]
    let cases = [
        ("not the magic", b"{}".to_vec(), 400, "k8s"),
        ("truncated", b"k8s\0\x0a\x7f".to_vec(), 400, "middle of a field"),
        ("a custom kind", body("ketch.dev/v1", "Function", b""), 415, "application/json"),
        ("an unknown kind", body("v1", "Nonsense", b""), 415, "application/json"),
        ("no type", body("", "", b""), 415, "application/json"),
        ("not UTF-8", body("v1", "ConfigMap", &field(1, &field(1, b"\xff"))), 400, "\"name\" is not UTF-8"),
        ("another type", body("apps/v1", "Deployment", &field(2, &field(1, b"x"))), 400, "\"replicas\""),
        ("a number for a message", body("v1", "Pod", &number(2, 1)), 400, "\"spec\""),
        ("broken JSON", body("apps/v1", "ControllerRevision", &field(2, &field(1, b"{"))), 400, "not JSON"),
        ("a time out of range", body("v1", "Pod", &field(1, &field(8, &number(1, i64::MAX)))), 400, "out of range"),
        ("too deep", body("apps/v1", "ControllerRevision", &nested), 400, "levels deep"),
        ("compressed", [body("v1", "Pod", b""), field(3, b"gzip")].concat(), 400, "encoding"),
        ("too long", long, 413, "too large"),
    ];
    for (name, bytes, code, text) in cases {
        let status = decode(&bytes).unwrap_err();
        assert_eq!(status.code, code, "{name}: {}", status.message);
        assert!(status.message.contains(text), "{name}: {}", status.message);
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(raw in proptest::collection::vec(any::<u8>(), 0..512)) {
        let _ = decode(&raw);
        for (api_version, kind) in [("v1", "Pod"), ("apps/v1", "Deployment"), ("v1", "Event"), ("v1", "DeleteOptions")] {
            let _ = decode(&body(api_version, kind, &raw));
        }
    }

    #[test]
    fn damaged_objects_never_panic(at in 0usize..223, to in any::<u8>()) {
        let mut bytes = include_bytes!("../../testdata/protobuf/deployment.bin").to_vec();
        bytes[at] = to;
        let _ = decode(&bytes);
    }
}
