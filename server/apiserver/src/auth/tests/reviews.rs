//! Access reviews, token reviews, token requests.

use super::*;

async fn cluster() -> Cluster {
    let view = binding("ClusterRole", "view", json!([{"kind": "User", "name": "jane"}]));
    let pod = |uid: &str, node: &str, account: &str| json!({"metadata": {"name": "p", "namespace": "dev", "uid": uid}, "spec": {"nodeName": node, "serviceAccountName": account}});
    Cluster::new(vec![
        ("/rbac.authorization.k8s.io/rolebindings/dev/jane", view),
        ("/core/serviceaccounts/dev/robot", json!({"metadata": {"name": "robot", "uid": "sa-1"}})),
        ("/core/pods/dev/web", pod("pod-1", "n1", "robot")),
        ("/core/pods/dev/far", pod("pod-2", "n2", "robot")),
        ("/core/pods/dev/else", pod("pod-3", "n1", "other")),
        ("/core/nodes/n1", json!({"metadata": {"name": "n1", "uid": "node-1"}})),
    ])
    .await
}

async fn ask_as(
    cluster: &Cluster,
    user: &User,
    kind: &str,
    namespace: &str,
    spec: Value,
) -> Result<Value, Status> {
    let group = if kind.starts_with("Self") && kind != "SelfSubjectReview" || kind.contains("Access") {
        "authorization.k8s.io"
    } else {
        "authentication.k8s.io"
    };
    let body = json!({"spec": spec});
    cluster.auth.create(user, group, kind, namespace, "robot", body).await
}

#[tokio::test]
async fn access_reviews_answer_as_the_authorizer_does() {
    let cluster = cluster().await;
    let (jane, root) = (User::new("jane", &[]), User::new("root", &["system:masters"]));
    let pods = |namespace: &str, verb: &str| json!({"resourceAttributes": {"namespace": namespace, "verb": verb, "resource": "pods"}});
    for (user, spec, allowed) in [
        (&jane, pods("dev", "list"), true),
        (&jane, pods("dev", "delete"), false),
        (&jane, pods("prod", "list"), false),
        (&root, pods("prod", "delete"), true),
        (&jane, json!({"nonResourceAttributes": {"path": "/livez", "verb": "get"}}), true),
        (&jane, json!({"nonResourceAttributes": {"path": "/metrics", "verb": "get"}}), false),
    ] {
        let answer = ask_as(&cluster, user, "SelfSubjectAccessReview", "", spec.clone()).await.unwrap();
        assert_eq!(answer["status"]["allowed"], allowed, "{} {spec}", user.name);
        assert_eq!(answer["kind"], "SelfSubjectAccessReview");
    }
    let other = json!({"user": "jane", "resourceAttributes": {"namespace": "dev", "verb": "get", "resource": "pods"}});
    let answer = ask_as(&cluster, &root, "SubjectAccessReview", "", other.clone()).await.unwrap();
    assert_eq!(answer["status"]["allowed"], true);
    assert_eq!(
        ask_as(&cluster, &root, "LocalSubjectAccessReview", "dev", other.clone()).await.unwrap()["status"]["allowed"],
        true
    );
    assert_eq!(
        ask_as(&cluster, &root, "LocalSubjectAccessReview", "prod", other).await.unwrap_err().code,
        422
    );
    assert_eq!(
        ask_as(&cluster, &root, "SubjectAccessReview", "", pods("dev", "get")).await.unwrap_err().code,
        422
    );
    assert_eq!(
        ask_as(&cluster, &jane, "SelfSubjectAccessReview", "", json!({})).await.unwrap_err().code,
        422
    );
    assert_eq!(ask_as(&cluster, &jane, "SelfSubjectAccessReview", "", json!(1)).await.unwrap_err().code, 400);
    assert_eq!(ask_as(&cluster, &jane, "Pod", "", json!({})).await.unwrap_err().code, 404);
}

#[tokio::test]
async fn whoami_and_my_rules() {
    let cluster = cluster().await;
    let jane = User::new("jane", &["dev"]);
    let answer = ask_as(&cluster, &jane, "SelfSubjectReview", "", json!({})).await.unwrap();
    assert_eq!(
        answer["status"]["userInfo"],
        json!({"username": "jane", "groups": ["dev", "system:authenticated"]})
    );
    let rules =
        ask_as(&cluster, &jane, "SelfSubjectRulesReview", "", json!({"namespace": "dev"})).await.unwrap();
    let lists_pods = |answer: &Value| {
        answer["status"]["resourceRules"].as_array().unwrap().iter().any(|rule| {
            rule["resources"].as_array().unwrap().contains(&"pods".into())
                && rule["verbs"].as_array().unwrap().contains(&"list".into())
        })
    };
    assert!(lists_pods(&rules));
    assert!(!rules["status"]["nonResourceRules"].as_array().unwrap().is_empty());
    let rules =
        ask_as(&cluster, &jane, "SelfSubjectRulesReview", "", json!({"namespace": "prod"})).await.unwrap();
    assert!(!lists_pods(&rules));
}

#[tokio::test]
async fn a_requested_token_is_reviewed_as_its_account() {
    let cluster = cluster().await;
    let root = User::new("root", &["system:masters"]);
    let spec = json!({"expirationSeconds": 600, "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "web", "uid": "pod-1"}});
    let answer = ask_as(&cluster, &root, "TokenRequest", "dev", spec).await.unwrap();
    assert_eq!(answer["status"]["expirationTimestamp"], "2027-01-15T08:10:00Z");
    assert_eq!(answer["spec"]["audiences"], json!([ISSUER]));
    let token = answer["status"]["token"].as_str().unwrap();
    let review = ask_as(&cluster, &root, "TokenReview", "", json!({"token": token})).await.unwrap();
    assert_eq!(review["status"]["user"]["username"], "system:serviceaccount:dev:robot");
    assert_eq!(review["status"]["user"]["extra"]["authentication.kubernetes.io/node-name"], json!(["n1"]));
    assert_eq!(review["status"]["audiences"], json!([ISSUER]));
    let elsewhere = json!({"token": token, "audiences": ["vault"]});
    let review = ask_as(&cluster, &root, "TokenReview", "", elsewhere).await.unwrap();
    assert_eq!(review["status"]["authenticated"], false);
    let vault =
        ask_as(&cluster, &root, "TokenRequest", "dev", json!({"audiences": ["vault"]})).await.unwrap();
    let token = vault["status"]["token"].as_str().unwrap();
    assert_eq!(cluster.auth.authenticate_token(token).await.unwrap_err().code, 401);
    let review =
        ask_as(&cluster, &root, "TokenReview", "", json!({"token": token, "audiences": ["vault", "x"]}))
            .await
            .unwrap();
    assert_eq!(review["status"]["audiences"], json!(["vault"]));
}

#[tokio::test]
async fn token_requests_that_make_no_sense() {
    let cluster = cluster().await;
    let root = User::new("root", &["system:masters"]);
    let node = User::new("system:node:n1", &["system:nodes"]);
    let pod = |name: &str, uid: &str| json!({"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}});
    for (user, spec, code) in [
        (&root, json!({"expirationSeconds": 599}), 422),
        (&root, pod("gone", ""), 404),
        (&root, pod("web", "pod-0"), 409),
        (&root, pod("else", "pod-3"), 400),
        (&root, json!({"boundObjectRef": {"apiVersion": "v1", "kind": "ConfigMap", "name": "x"}}), 400),
        (&node, json!({}), 403),
        (&node, pod("far", "pod-2"), 403),
        (&node, json!({"boundObjectRef": {"apiVersion": "v1", "kind": "Node", "name": "n1"}}), 403),
    ] {
        let status = ask_as(&cluster, user, "TokenRequest", "dev", spec.clone()).await.unwrap_err();
        assert_eq!(status.code, code, "{spec}: {}", status.message);
    }
    assert!(ask_as(&cluster, &node, "TokenRequest", "dev", pod("web", "pod-1")).await.is_ok());
    let missing =
        cluster.auth.create(&root, "authentication.k8s.io", "TokenRequest", "dev", "gone", json!({})).await;
    assert_eq!(missing.unwrap_err().message, "serviceaccounts \"gone\" not found");
}
