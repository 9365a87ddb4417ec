//! Changes of roles, impersonation, and that nobody grants what they do not have.

use ketch_api::Descriptor;

use super::{matrix::eventually, *};
use crate::admission::{Operation, Request as Write};

#[tokio::test]
async fn changes_of_roles_and_bindings_take_effect() {
    let cluster = Cluster::new(vec![]).await;
    let jane = User::new("jane", &["dev"]);
    let request = ask("list core/pods web/");
    assert!(!cluster.allows(&jane, &request));
    let binding_key = "/rbac.authorization.k8s.io/rolebindings/web/b";
    let role_key = "/rbac.authorization.k8s.io/roles/web/r";
    // A binding to a role that does not exist yet grants nothing, and starts to when it does.
    cluster.put(binding_key, binding("Role", "r", json!([{"kind": "Group", "name": "dev"}]))).await;
    let rule = json!([{"verbs": ["list"], "apiGroups": [""], "resources": ["pods"]}]);
    cluster.put(role_key, role("web", rule)).await;
    eventually(|| cluster.allows(&jane, &request)).await;
    assert!(!cluster.allows(&jane, &ask("list core/pods other/")));
    assert!(!cluster.allows(&jane, &ask("list core/pods /")));
    cluster.remove(binding_key).await;
    eventually(|| !cluster.allows(&jane, &request)).await;
}

#[tokio::test]
async fn aggregated_roles_follow_their_parts_even_in_circles() {
    let aggregate = |label: &str, own: &str| {
        json!({"metadata": {"name": "x", "labels": {own: "true"}},
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {label: "true"}}]}})
    };
    let part = json!({"metadata": {"name": "x", "labels": {"b": "true"}},
        "rules": [{"verbs": ["get"], "apiGroups": ["ketch.dev"], "resources": ["functions"]}]});
    let cluster = Cluster::new(vec![
        ("/rbac.authorization.k8s.io/clusterroles/one", aggregate("b", "a")),
        ("/rbac.authorization.k8s.io/clusterroles/two", aggregate("a", "b")),
        ("/rbac.authorization.k8s.io/clusterroles/part", part),
        (
            "/rbac.authorization.k8s.io/clusterrolebindings/x",
            binding("ClusterRole", "two", json!([{"kind": "User", "name": "jane"}])),
        ),
    ])
    .await;
    assert!(cluster.allows(&User::new("jane", &[]), &ask("get ketch.dev/functions a/b")));
}

#[tokio::test]
async fn unreadable_rules_grant_nothing() {
    let cluster = Cluster::new(vec![
        ("/rbac.authorization.k8s.io/clusterroles/bad", json!({"metadata": {}, "rules": "everything"})),
        (
            "/rbac.authorization.k8s.io/clusterrolebindings/x",
            binding("ClusterRole", "bad", json!([{"kind": "User", "name": "jane"}])),
        ),
    ])
    .await;
    assert!(!cluster.allows(&User::new("jane", &[]), &ask("get core/pods a/b")));
}

#[tokio::test]
async fn what_an_administrator_added_survives_a_restart() {
    let cluster = Cluster::new(vec![]).await;
    let key = "/rbac.authorization.k8s.io/clusterroles/system:basic-user";
    let stored = cluster.storage.get(key).await.unwrap().unwrap();
    assert!(stored.value.starts_with(b"{\"metadata\":{"));
    let mut object: Value = serde_json::from_slice(&stored.value).unwrap();
    assert!(object["metadata"]["uid"].as_str().is_some_and(|uid| uid.len() == 36));
    let own = json!({"verbs": ["get"], "nonResourceURLs": ["/own"]});
    object["rules"] = json!([own]);
    cluster.put(key, object).await;
    let again = Auth::start(Arc::clone(&cluster.storage), &cluster.key).await.unwrap();
    let rules = cluster.storage.get(key).await.unwrap().unwrap();
    let rules: Value = serde_json::from_slice(&rules.value).unwrap();
    assert_eq!(rules["rules"].as_array().unwrap().len(), 3, "{rules}");
    assert_eq!(again.authorize(&User::new("x", &[]), &ask("get /own")), Decision::Allow);
}

fn write(user: &User, plural: &'static str, namespace: &str, name: &str) -> Write {
    Write {
        user: user.clone(),
        operation: Operation::Create,
        descriptor: Descriptor::namespaced("rbac.authorization.k8s.io", "v1", "X", plural, "x"),
        subresource: String::new(),
        namespace: namespace.into(),
        name: name.into(),
        dry_run: false,
    }
}

#[tokio::test]
async fn nobody_grants_what_they_do_not_have() {
    let grant = |verbs: Value| json!([{"verbs": verbs, "apiGroups": ["rbac.authorization.k8s.io"], "resources": ["*"]}]);
    let jane = |role: &str| binding("Role", role, json!([{"kind": "User", "name": "jane"}]));
    let cluster = Cluster::new(vec![
        (
            "/rbac.authorization.k8s.io/roles/dev/pods",
            role("dev", json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}])),
        ),
        ("/rbac.authorization.k8s.io/rolebindings/dev/1", jane("pods")),
        ("/rbac.authorization.k8s.io/roles/free/binder", role("free", grant(json!(["bind", "escalate"])))),
        ("/rbac.authorization.k8s.io/rolebindings/free/2", jane("binder")),
    ])
    .await;
    let (jane, root) = (User::new("jane", &[]), User::new("root", &["system:masters"]));
    let rules = |rules: Value| json!({"metadata": {}, "rules": rules});
    let secrets = || rules(json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"]}]));
    let pods = || rules(json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]));
    let aggregating = json!({"metadata": {}, "aggregationRule": {"clusterRoleSelectors": []}});
    let bind = |kind: &str, name: &str| json!({"metadata": {}, "roleRef": {"kind": kind, "name": name}, "subjects": [{"kind": "User", "name": "jane"}]});
    #[rustfmt::skip]
    let cases = [
        ("own rights",                 write(&jane, "roles", "dev", "x"),               pods(),                          Ok(())),
        ("more rights",                write(&jane, "roles", "dev", "x"),               secrets(),                       Err("not currently held")),
        ("own rights elsewhere",       write(&jane, "roles", "other", "x"),             pods(),                          Err("not currently held")),
        ("own rights everywhere",      write(&jane, "clusterroles", "", "x"),           pods(),                          Err("not currently held")),
        ("no rights",                  write(&jane, "clusterroles", "", "x"),           rules(json!([])),                Ok(())),
        ("aggregation",                write(&jane, "clusterroles", "", "x"),           aggregating.clone(),             Err("cluster-admin privileges")),
        ("escalate",                   write(&jane, "roles", "free", "x"),              secrets(),                       Ok(())),
        ("a role with own rights",     write(&jane, "rolebindings", "dev", "x"),        bind("Role", "pods"),            Ok(())),
        ("a role with more rights",    write(&jane, "rolebindings", "dev", "x"),        bind("ClusterRole", "edit"),     Err("not currently held")),
        ("a missing role",             write(&jane, "rolebindings", "dev", "x"),        bind("Role", "later"),           Err("not found")),
        ("another namespace's role",   write(&jane, "rolebindings", "other", "x"),      bind("Role", "pods"),            Err("not found")),
        ("cluster-admin",              write(&jane, "clusterrolebindings", "", "x"),    bind("ClusterRole", "cluster-admin"), Err("not currently held")),
        ("bind",                       write(&jane, "rolebindings", "free", "x"),       bind("ClusterRole", "cluster-admin"), Ok(())),
        ("masters",                    write(&root, "clusterrolebindings", "", "x"),    bind("ClusterRole", "cluster-admin"), Ok(())),
        ("masters' aggregation",       write(&root, "clusterroles", "", "x"),           aggregating,                     Ok(())),
    ];
    let hook = super::super::rbac::EscalationCheck::new(Arc::clone(cluster.auth.rbac()));
    use crate::admission::Admission;
    for (name, request, object, expected) in cases {
        let got = hook.validate(&request, Some(&object), None);
        match expected {
            Ok(()) => assert_eq!(got, Ok(()), "{name}"),
            Err(text) => {
                let message = got.expect_err(name).message;
                assert!(message.contains(text), "{name}: {message}");
            }
        }
    }
    // An update that changes neither rules nor subjects is no grant.
    let update = Write { operation: Operation::Update, ..write(&jane, "roles", "dev", "x") };
    assert_eq!(hook.validate(&update, Some(&secrets()), Some(&secrets())), Ok(()));
    let text = hook.validate(&write(&jane, "roles", "dev", "x"), Some(&secrets()), None).unwrap_err().message;
    assert_eq!(
        text,
        "roles.rbac.authorization.k8s.io \"x\" is forbidden: user \"jane\" (groups=[\"system:authenticated\"]) is \
         attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"get\"]}"
    );
}

#[tokio::test]
async fn impersonation_needs_the_right_to_each_name() {
    let rules = json!([
        {"verbs": ["impersonate"], "apiGroups": [""], "resources": ["users"], "resourceNames": ["bob"]},
        {"verbs": ["impersonate"], "apiGroups": [""], "resources": ["groups"], "resourceNames": ["dev"]},
        {"verbs": ["impersonate"], "apiGroups": ["authentication.k8s.io"], "resources": ["userextras/reason"], "resourceNames": ["test"]},
    ]);
    let cluster = Cluster::new(vec![
        ("/rbac.authorization.k8s.io/clusterroles/i", role("", rules)),
        (
            "/rbac.authorization.k8s.io/clusterrolebindings/i",
            binding("ClusterRole", "i", json!([{"kind": "User", "name": "jane"}])),
        ),
    ])
    .await;
    let (jane, root) = (User::new("jane", &[]), User::new("root", &["system:masters"]));
    let acting = |user: &User, headers: &[(&str, &str)]| {
        let (auth, user, parts) = (Arc::clone(&cluster.auth), user.clone(), parts("GET", headers));
        async move { auth.effective(user, &parts).await }
    };
    assert_eq!(acting(&jane, &[]).await.unwrap(), jane);
    let bob = acting(
        &jane,
        &[("Impersonate-User", "bob"), ("Impersonate-Group", "dev"), ("Impersonate-Extra-Reason", "test")],
    )
    .await
    .unwrap();
    assert_eq!(
        (bob.name.as_str(), bob.groups),
        ("bob", vec!["dev".to_owned(), "system:authenticated".to_owned()])
    );
    assert_eq!(bob.extra["reason"], ["test"]);
    let robot = acting(&root, &[("Impersonate-User", "system:serviceaccount:a:b")]).await.unwrap();
    assert_eq!(robot.groups, ["system:serviceaccounts", "system:serviceaccounts:a", "system:authenticated"]);
    let anonymous = acting(&root, &[("Impersonate-User", "system:anonymous")]).await.unwrap();
    assert_eq!(anonymous.groups, ["system:unauthenticated"]);
    #[rustfmt::skip]
    let refused: [(Headers, u16, &str); 6] = [
        (&[("Impersonate-User", "root")], 403, "users \"root\" is forbidden: User \"jane\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope"),
        (&[("Impersonate-User", "bob"), ("Impersonate-Group", "system:masters")], 403, "groups \"system:masters\" is forbidden"),
        (&[("Impersonate-User", "bob"), ("Impersonate-Extra-Reason", "other")], 403, "userextras"),
        (&[("Impersonate-User", "bob"), ("Impersonate-Uid", "1")], 403, "uids"),
        (&[("Impersonate-User", "system:serviceaccount:a:b")], 403, "in the namespace \"a\""),
        (&[("Impersonate-Group", "dev")], 400, "without impersonating a user"),
    ];
    for (headers, code, text) in refused {
        let status = acting(&jane, headers).await.unwrap_err();
        assert_eq!(status.code, code, "{headers:?}");
        assert!(status.message.contains(text), "{headers:?}: {}", status.message);
    }
    assert_eq!(acting(&User::anonymous(), &[("Impersonate-User", "bob")]).await.unwrap_err().code, 403);
}
