//! Every class of user against every class of request.

use super::*;

async fn cluster() -> Cluster {
    let user = |name: &str| json!([{"kind": "User", "name": name}]);
    Cluster::new(vec![
        ("/rbac.authorization.k8s.io/rolebindings/dev/viewer", binding("ClusterRole", "view", user("viewer"))),
        ("/rbac.authorization.k8s.io/rolebindings/dev/editor", binding("ClusterRole", "edit", user("editor"))),
        ("/rbac.authorization.k8s.io/rolebindings/dev/owner", binding("ClusterRole", "admin", user("owner"))),
        ("/rbac.authorization.k8s.io/clusterrolebindings/all", binding("ClusterRole", "view", user("auditor"))),
        (
            "/rbac.authorization.k8s.io/roles/dev/one",
            role("dev", json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["web"]}])),
        ),
        (
            "/rbac.authorization.k8s.io/rolebindings/dev/robot",
            binding("Role", "one", json!([{"kind": "ServiceAccount", "name": "robot"}])),
        ),
        (
            "/core/pods/dev/web",
            json!({"metadata": {"name": "web", "namespace": "dev"}, "spec": {
                "nodeName": "n1", "serviceAccountName": "robot", "imagePullSecrets": [{"name": "pull"}],
                "volumes": [
                    {"name": "a", "secret": {"secretName": "vol"}},
                    {"name": "b", "configMap": {"name": "web"}},
                    {"name": "d", "persistentVolumeClaim": {"claimName": "data"}},
                    {"name": "c", "projected": {"sources": [{"secret": {"name": "projected"}}]}},
                ],
                "initContainers": [{"name": "i", "envFrom": [{"secretRef": {"name": "init"}}]}],
                "containers": [{"name": "c", "env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "env", "key": "k"}}}]}],
            }}),
        ),
        (
            "/core/pods/dev/other",
            json!({"metadata": {"name": "other", "namespace": "dev"}, "spec": {
                "nodeName": "n2", "serviceAccountName": "other", "volumes": [{"name": "a", "secret": {"secretName": "others"}}],
            }}),
        ),
    ])
    .await
}

#[tokio::test]
async fn users_by_requests() {
    let cluster = cluster().await;
    let node = |name: &str| User::new(format!("system:node:{name}"), &["system:nodes"]);
    let users = [
        ("anonymous", User::anonymous()),
        ("somebody", User::new("somebody", &[])),
        ("master", User::new("root", &["system:masters"])),
        ("auditor", User::new("auditor", &[])),
        ("viewer", User::new("viewer", &[])),
        ("editor", User::new("editor", &[])),
        ("owner", User::new("owner", &[])),
        ("robot", User::new("system:serviceaccount:dev:robot", &[])),
        ("gateway", User::new("system:node:n9", &["system:ketch-gateways"])),
        (
            "joiner",
            User::new(
                "system:bootstrap:abcdef",
                &["system:bootstrappers", "system:bootstrappers:ketch-nodes"],
            ),
        ),
        // A token that was made for something else.
        ("bootstrapper", User::new("system:bootstrap:fedcba", &["system:bootstrappers"])),
        ("node", node("n1")),
        // The name without the group is nobody.
        ("pretender", User::new("system:node:n1", &[])),
    ];
    #[rustfmt::skip]
    let cases = [
        // request                                                  who may
        ("get /livez",                                              "all"),
        ("get /version",                                            "all"),
        ("get /api",                                                "all but anonymous"),
        ("get /openapi/v3",                                         "all but anonymous"),
        ("get /openid/v1/jwks",                                     "all but anonymous"),
        ("get /metrics",                                            "master"),
        ("get /debug",                                              "master"),
        ("post /livez",                                             "master"),
        ("post /ketch/v1/join",                                     "master joiner"),
        ("get /ketch/v1/join",                                      "master"),
        ("post /ketch/v1/renew",                                    "master node"),
        ("get /ketch/v1/cluster",                                   "master node"),
        ("post /ketch/v1/cluster",                                  "master"),
        ("create authorization.k8s.io/selfsubjectaccessreviews",    "all but anonymous"),
        ("create authentication.k8s.io/tokenreviews",               "master node"),
        ("list core/pods dev/",                                     "master auditor viewer editor owner gateway"),
        ("list core/pods prod/",                                    "master auditor gateway"),
        ("list core/pods /",                                        "master auditor gateway"),
        ("list core/pods / spec.nodeName=n1",                       "master auditor gateway node"),
        ("watch core/pods / spec.nodeName=n1,status.phase=Running", "master auditor gateway node"),
        ("list core/pods / spec.nodeName=n2",                       "master auditor gateway"),
        ("list core/pods / spec.nodeName!=n1",                      "master auditor gateway"),
        ("get ketch.dev/images dev/hello",                          "master auditor viewer editor owner node"),
        ("create ketch.dev/functions/invoke dev/hello",             "master editor owner"),
        ("create ketch.dev/images dev/hello",                       "master editor owner"),
        ("get core/pods dev/web",                                   "master auditor viewer editor owner gateway node"),
        ("get core/pods dev/other",                                 "master auditor viewer editor owner gateway"),
        ("get core/pods/log dev/web",                               "master auditor viewer editor owner"),
        ("create core/pods dev/",                                   "master editor owner node"),
        ("create core/pods/exec dev/web",                           "master editor owner"),
        ("create core/pods/exec prod/web",                          "master"),
        ("get core/pods/exec dev/web",                              "master editor owner"),
        ("create core/pods/attach dev/web",                         "master editor owner"),
        ("get core/pods/attach dev/web",                            "master editor owner"),
        ("create core/pods/portforward dev/web",                    "master editor owner"),
        ("get core/pods/portforward dev/web",                       "master editor owner"),
        ("update core/pods dev/web",                                "master editor owner"),
        ("patch core/pods/status dev/web",                          "master node"),
        ("delete core/pods dev/web",                                "master editor owner node"),
        ("deletecollection core/pods dev/",                         "master editor owner"),
        ("get core/configmaps dev/web",                             "master auditor viewer editor owner robot node"),
        ("get core/configmaps dev/other",                           "master auditor viewer editor owner"),
        ("list core/configmaps dev/",                               "master auditor viewer editor owner"),
        ("get core/secrets dev/vol",                                "master editor owner node"),
        ("get core/secrets dev/projected",                          "master editor owner node"),
        ("get core/secrets dev/init",                               "master editor owner node"),
        ("get core/secrets dev/env",                                "master editor owner node"),
        ("watch core/secrets dev/pull",                             "master editor owner node"),
        ("get core/secrets dev/others",                             "master editor owner"),
        ("get core/secrets prod/vol",                               "master"),
        ("list core/secrets dev/",                                  "master editor owner"),
        ("update core/secrets dev/vol",                             "master editor owner"),
        ("create core/serviceaccounts/token dev/robot",             "master editor owner node"),
        ("create core/serviceaccounts/token dev/other",             "master editor owner"),
        ("update apps/deployments/scale dev/web",                   "master editor owner"),
        ("update apps/deployments/status dev/web",                  "master"),
        ("create ketch.dev/functions dev/",                         "master editor owner"),
        ("list ketch.dev/functions prod/",                          "master auditor gateway"),
        ("list metrics.k8s.io/pods dev/",                           "master auditor viewer editor owner"),
        ("get metrics.k8s.io/pods prod/web",                        "master auditor"),
        ("list metrics.k8s.io/nodes",                               "master auditor"),
        ("list rbac.authorization.k8s.io/roles dev/",               "master owner"),
        ("create rbac.authorization.k8s.io/rolebindings dev/",      "master owner"),
        ("create rbac.authorization.k8s.io/rolebindings prod/",     "master"),
        ("create rbac.authorization.k8s.io/clusterroles",           "master"),
        ("escalate rbac.authorization.k8s.io/roles dev/one",        "master"),
        ("get core/nodes n1",                                       "master gateway node"),
        ("patch core/nodes/status n1",                              "master node"),
        ("patch core/nodes/status n2",                              "master"),
        ("delete core/nodes n1",                                    "master"),
        ("create core/persistentvolumeclaims dev/",                 "master editor owner"),
        ("list core/persistentvolumeclaims dev/",                   "master auditor viewer editor owner"),
        ("get core/persistentvolumeclaims dev/data",                "master auditor viewer editor owner node"),
        ("get core/persistentvolumeclaims dev/others",              "master auditor viewer editor owner"),
        ("update core/persistentvolumeclaims/status dev/data",      "master"),
        ("get core/persistentvolumes pv",                           "master node"),
        ("patch core/persistentvolumes pv",                         "master node"),
        ("patch core/persistentvolumes/status pv",                  "master"),
        ("create core/persistentvolumes",                           "master"),
        ("delete core/persistentvolumes pv",                        "master"),
        ("list core/persistentvolumes",                             "master"),
        ("create storage.k8s.io/storageclasses",                    "master"),
        ("update coordination.k8s.io/leases kube-node-lease/n1",    "master node"),
        ("update coordination.k8s.io/leases kube-node-lease/n2",    "master"),
        ("list coordination.k8s.io/leases kube-node-lease/",        "master"),
        ("get coordination.k8s.io/leases dev/n1",                   "master editor owner"),
        ("impersonate core/users root",                             "master"),
        ("impersonate core/serviceaccounts dev/robot",              "master editor owner"),
    ];
    for (request, allowed) in cases {
        let attributes = ask(request);
        for (class, user) in &users {
            let expected = match allowed {
                "all" => true,
                "all but anonymous" => *class != "anonymous",
                list => list.split(' ').any(|name| name == *class),
            };
            assert_eq!(cluster.allows(user, &attributes), expected, "{class}: {request}");
        }
    }
}

#[tokio::test]
async fn a_refused_node_learns_why() {
    let cluster = cluster().await;
    let node = User::new("system:node:n1", &["system:nodes"]);
    let Decision::Deny(why) = cluster.auth.authorize(&node, &ask("get core/secrets dev/others")) else {
        panic!()
    };
    assert_eq!(why, "no relationship found between node 'n1' and this object");
}

#[tokio::test]
async fn a_moved_pod_takes_its_secrets_along() {
    let cluster = cluster().await;
    let [n1, n2] = ["n1", "n2"].map(|name| User::new(format!("system:node:{name}"), &["system:nodes"]));
    let secret = ask("get core/secrets dev/others");
    assert!(!cluster.allows(&n1, &secret) && cluster.allows(&n2, &secret));
    let pod = json!({"metadata": {"name": "other", "namespace": "dev"}, "spec": {
        "nodeName": "n1", "volumes": [{"name": "a", "secret": {"secretName": "others"}}]}});
    cluster.put("/core/pods/dev/other", pod).await;
    eventually(|| cluster.allows(&n1, &secret) && !cluster.allows(&n2, &secret)).await;
    cluster.remove("/core/pods/dev/other").await;
    eventually(|| !cluster.allows(&n1, &secret)).await;
}

/// Waits for what the watch brings about.
pub(super) async fn eventually(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("the condition comes true");
}
