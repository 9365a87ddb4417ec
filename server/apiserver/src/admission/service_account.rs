//! ServiceAccount: every pod runs as an account, and its containers find the account's token where programs
//! look for it.
//!
//! The rules and texts of `plugin/pkg/admission/serviceaccount`. It works in the phase before the
//! transaction, because it looks at another object.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use ketch_api::{Status, names};
use ketch_store::Storage;
use serde_json::{Value, json};

use super::{Admission, Operation, Request};
use crate::{
    auth::objects::core_key,
    rest::{meta, transaction::failure},
};

/// Where clients in a pod look for credentials.
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Names of the volumes that hold them begin so.
const VOLUME_PREFIX: &str = "kube-api-access-";
const DEFAULT_ACCOUNT: &str = "default";
/// Seconds: an hour, and seven more by which upstream tells such tokens from those that were asked for.
const TOKEN_SECONDS: i64 = 3607;
/// How often and at which intervals the account `default` of a new namespace is waited for.
const TRIES: u32 = 10;
const INTERVAL: Duration = Duration::from_millis(100);
const MIRROR: &str = "kubernetes.io/config.mirror";

/// The hook.
pub(crate) struct ServiceAccount {
    storage: Arc<dyn Storage>,
}

// === impl ServiceAccount ===

impl ServiceAccount {
    pub(crate) fn new(storage: Arc<dyn Storage>) -> Self {
        Self { storage }
    }

    /// The account; that of a namespace which has just been made is waited for.
    async fn account(&self, namespace: &str, name: &str) -> Result<Option<Value>, Status> {
        let key = core_key("serviceaccounts", namespace, name);
        let tries = if name == DEFAULT_ACCOUNT { TRIES } else { 1 };
        for last in (0..tries).rev() {
            match self.storage.get(&key).await.map_err(failure)? {
                Some(found) => return crate::wire::stored::decode(&found).map(Some),
                None if last > 0 => tokio::time::sleep(INTERVAL).await,
                None => {}
            }
        }
        Ok(None)
    }
}

#[async_trait]
impl Admission for ServiceAccount {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    async fn review(&self, request: &Request, object: Option<&mut Value>) -> Result<(), Status> {
        let creates = request.operation == Operation::Create && request.is("", "pods");
        let Some(pod) = object.filter(|_| creates && request.subresource.is_empty()) else { return Ok(()) };
        let forbidden =
            |why: &str| Status::forbidden(request.descriptor.group_resource(), &request.name, why);
        if pod.pointer("/metadata/annotations").and_then(|all| all.get(MIRROR)).is_some() {
            return match account_name(pod).is_empty() {
                true => Ok(()),
                false => Err(forbidden("a mirror pod may not reference service accounts")),
            };
        }
        let name = match account_name(pod) {
            name if name.is_empty() => DEFAULT_ACCOUNT.to_owned(),
            name => name,
        };
        let account = self.account(&request.namespace, &name).await?.ok_or_else(|| {
            let namespace = &request.namespace;
            forbidden(&format!(
                "error looking up service account {namespace}/{name}: serviceaccount \"{name}\" not found"
            ))
        })?;
        let volume = meta::generate_name(VOLUME_PREFIX)?;
        if let Some(spec) = pod.get_mut("spec") {
            admit(spec, &name, &account, &volume);
        }
        Ok(())
    }
}

/// The account the pod names; empty: none.
fn account_name(pod: &Value) -> String {
    let text = |field: &str| pod.pointer(field).and_then(Value::as_str).filter(|name| !name.is_empty());
    text("/spec/serviceAccountName").or_else(|| text("/spec/serviceAccount")).unwrap_or_default().to_owned()
}

/// Gives a pod's spec the account `name`, the account's secrets for images unless it has its own, and, unless
/// the pod or else the account declines, a token. `volume` is a name nobody has.
fn admit(spec: &mut Value, name: &str, account: &Value, volume: &str) {
    let Some(fields) = spec.as_object_mut() else { return };
    fields.insert("serviceAccountName".into(), name.into());
    // The deprecated alias that older clients read.
    fields.insert("serviceAccount".into(), name.into());
    if is_empty(fields.get("imagePullSecrets"))
        && let Some(secrets) = account.get("imagePullSecrets").filter(|secrets| !is_empty(Some(secrets)))
    {
        fields.insert("imagePullSecrets".into(), secrets.clone());
    }
    let says = |value: Option<&Value>| value.and_then(Value::as_bool);
    let automount = says(fields.get("automountServiceAccountToken"))
        .or_else(|| says(account.get("automountServiceAccountToken")))
        .unwrap_or(true);
    if automount {
        mount(spec, volume);
    }
}

fn is_empty(list: Option<&Value>) -> bool {
    list.and_then(Value::as_array).is_none_or(Vec::is_empty)
}

/// Mounts the token in every container that has nothing at its place, from the pod's volume for it or from a
/// new one called `name`.
fn mount(spec: &mut Value, name: &str) {
    let volumes = spec.get("volumes").and_then(Value::as_array).into_iter().flatten();
    let mut names = volumes.filter_map(|volume| volume.get("name")?.as_str());
    let existing = names.find(|name| name.starts_with(VOLUME_PREFIX)).map(str::to_owned);
    let name = existing.as_deref().unwrap_or(name);
    let mut mounted = false;
    for list in ["initContainers", "containers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(mounts) = list_mut(container, "volumeMounts") else { continue };
            let taken = |mount: &Value| mount.get("mountPath").and_then(Value::as_str) == Some(MOUNT_PATH);
            if !mounts.iter().any(taken) {
                mounts.push(json!({"name": name, "readOnly": true, "mountPath": MOUNT_PATH}));
                mounted = true;
            }
        }
    }
    if mounted
        && existing.is_none()
        && let Some(volumes) = list_mut(spec, "volumes")
    {
        volumes.push(volume(name));
    }
}

/// The list in a field, made when there is none.
fn list_mut<'v>(object: &'v mut Value, field: &str) -> Option<&'v mut Vec<Value>> {
    let list = object.as_object_mut()?.entry(field).or_insert_with(|| json!([]));
    if list.is_null() {
        *list = json!([]);
    }
    list.as_array_mut()
}

/// Token, authority and namespace, as upstream's `TokenVolumeSource`, with defaults filled in.
fn volume(name: &str) -> Value {
    json!({"name": name, "projected": {"defaultMode": 0o644, "sources": [
        {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
        {"configMap": {"name": names::ROOT_CA_CONFIG_MAP, "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [
            {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ]}})
}

#[cfg(test)]
mod tests {
    use ketch_api::Descriptor;
    use ketch_store::{MemoryStore, Update, Versioned};

    use super::*;

    fn creation() -> Request {
        Request {
            user: crate::auth::User::default(),
            operation: Operation::Create,
            descriptor: Descriptor::namespaced("", "v1", "Pod", "pods", "pod"),
            subresource: String::new(),
            namespace: "dev".into(),
            name: "p".into(),
            dry_run: false,
        }
    }

    #[tokio::test]
    async fn the_account_has_to_be_there_and_default_comes_soon() {
        let storage: Arc<dyn Storage> = Arc::new(MemoryStore::default());
        let hook = ServiceAccount::new(Arc::clone(&storage));
        let review = async |pod: &mut Value| hook.review(&creation(), Some(pod)).await;
        let mut pod = json!({"spec": {"serviceAccountName": "robot", "containers": [{"name": "c"}]}});
        let refused = review(&mut pod).await.unwrap_err();
        assert_eq!((refused.code, refused.reason.as_str()), (403, "Forbidden"));
        let text = "pods \"p\" is forbidden: error looking up service account dev/robot: serviceaccount \"robot\" not found";
        assert_eq!(refused.message, text);
        let put = async {
            let account = bytes::Bytes::from(json!({"metadata": {"name": "default"}}).to_string());
            let update = Box::new(move |_: Option<&Versioned>| Ok(Update::Put(account.clone())));
            storage.update("/core/serviceaccounts/dev/default", update).await.unwrap();
        };
        let mut pod = json!({"spec": {"containers": [{"name": "c"}]}});
        let (reviewed, ()) = tokio::join!(review(&mut pod), put);
        reviewed.unwrap();
        assert_eq!(pod["spec"]["serviceAccountName"], "default");
        assert!(pod["spec"]["volumes"][0]["name"].as_str().unwrap().starts_with(VOLUME_PREFIX));
    }

    #[tokio::test]
    async fn a_mirror_pod_has_no_account() {
        let hook = ServiceAccount::new(Arc::new(MemoryStore::default()));
        let mut pod =
            json!({"metadata": {"annotations": {MIRROR: "x"}}, "spec": {"containers": [{"name": "c"}]}});
        let before = pod.clone();
        hook.review(&creation(), Some(&mut pod)).await.unwrap();
        assert_eq!(pod, before);
        pod["spec"]["serviceAccountName"] = "robot".into();
        assert_eq!(hook.review(&creation(), Some(&mut pod)).await.unwrap_err().code, 403);
    }

    fn admitted(pod: Value, account: Value) -> Value {
        let mut spec = pod;
        admit(&mut spec, "robot", &account, "kube-api-access-abcde");
        spec
    }

    fn mounts(spec: &Value, container: &str) -> Vec<String> {
        let list = spec.pointer(container).and_then(|one| one["volumeMounts"].as_array()).cloned();
        list.unwrap_or_default().iter().map(|mount| mount["name"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn every_container_finds_a_token() {
        let spec = admitted(
            json!({"containers": [{"name": "a"}, {"name": "b", "volumeMounts": [{"name": "own", "mountPath": MOUNT_PATH}]}],
                "initContainers": [{"name": "c", "volumeMounts": null}], "volumes": [{"name": "own", "emptyDir": {}}]}),
            json!({}),
        );
        assert_eq!(
            (&spec["serviceAccountName"], &spec["serviceAccount"]),
            (&json!("robot"), &json!("robot"))
        );
        assert_eq!(mounts(&spec, "/containers/0"), ["kube-api-access-abcde"]);
        assert_eq!(mounts(&spec, "/containers/1"), ["own"], "a container's own mount stays");
        assert_eq!(mounts(&spec, "/initContainers/0"), ["kube-api-access-abcde"]);
        assert_eq!(spec["containers"][0]["volumeMounts"][0]["readOnly"], true);
        let volumes = spec["volumes"].as_array().unwrap();
        assert_eq!(volumes.len(), 2);
        let source = &volumes[1]["projected"]["sources"];
        assert_eq!(source[0]["serviceAccountToken"]["expirationSeconds"], 3607);
        assert_eq!(source[1]["configMap"]["name"], "kube-root-ca.crt");
    }

    #[test]
    fn a_volume_for_it_is_used_and_one_nobody_mounts_is_not_made() {
        let given = json!({"containers": [{"name": "a"}], "volumes": [{"name": "kube-api-access-given"}]});
        let spec = admitted(given, json!({}));
        assert_eq!(mounts(&spec, "/containers/0"), ["kube-api-access-given"]);
        assert_eq!(spec["volumes"].as_array().unwrap().len(), 1);
        let own =
            json!({"containers": [{"name": "a", "volumeMounts": [{"name": "x", "mountPath": MOUNT_PATH}]}]});
        assert!(admitted(own, json!({})).get("volumes").is_none());
    }

    #[test]
    fn the_pod_declines_before_the_account_does() {
        for (pod, account, mounted) in [
            (json!(null), json!(null), true),
            (json!(null), json!(false), false),
            (json!(true), json!(false), true),
            (json!(false), json!(true), false),
        ] {
            let spec = json!({"containers": [{"name": "a"}], "automountServiceAccountToken": pod});
            let spec = admitted(spec, json!({"automountServiceAccountToken": account}));
            assert_eq!(!mounts(&spec, "/containers/0").is_empty(), mounted, "{pod} {account}");
        }
    }

    #[test]
    fn secrets_for_images_come_from_the_account_unless_the_pod_has_some() {
        let account = json!({"imagePullSecrets": [{"name": "shared"}]});
        assert_eq!(admitted(json!({}), account.clone())["imagePullSecrets"][0]["name"], "shared");
        let own = json!({"imagePullSecrets": [{"name": "own"}]});
        assert_eq!(admitted(own, account)["imagePullSecrets"][0]["name"], "own");
    }
}
