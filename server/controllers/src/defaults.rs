//! What every namespace has: the ServiceAccount `default` and the ConfigMap with the cluster's authority.

use async_trait::async_trait;
use ketch_api::{
    k8s::{
        api::core::v1::{ConfigMap, Namespace, ServiceAccount},
        apimachinery::pkg::apis::meta::v1::ObjectMeta,
    },
    names::ROOT_CA_CONFIG_MAP as ROOT_CA,
};
use ketch_client::{
    Change, Informer, Key, Queue, is_already_exists, is_forbidden_by_termination, is_not_found,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;

use crate::{
    error::{Doing, Error},
    resources::AnyMeta,
    runner::{Next, Reconcile},
};

const ACCOUNT: &str = "default";
const CA_KEY: &str = "ca.crt";
const CA_NOTE: &str = "kubernetes.io/description";
const CA_NOTE_TEXT: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal \
    endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across \
    distributions of Kubernetes clusters.";

/// See the module. Keys are namespaces.
pub(crate) struct Defaults {
    pub(crate) client: Client,
    pub(crate) namespaces: Informer<Namespace>,
    pub(crate) accounts: Informer<ServiceAccount>,
    /// Contents are read when they are needed; they are not worth the memory.
    pub(crate) config_maps: Informer<AnyMeta>,
    /// PEM; empty: no ConfigMap is made.
    pub(crate) ca: String,
}

/// What is missing in a namespace.
#[derive(Debug, PartialEq, Eq)]
enum Op {
    CreateAccount,
    CreateCa,
    RestoreCa,
}

/// The account comes last: pods can be made once it is there, and they need the rest.
fn plan(active: bool, has_account: bool, ca: &str, config_map: Option<&ConfigMap>) -> Vec<Op> {
    if !active {
        return Vec::new();
    }
    let current =
        config_map.map(|map| map.data.as_ref().and_then(|data| data.get(CA_KEY)).map(String::as_str));
    let map = match current {
        _ if ca.is_empty() => None,
        None => Some(Op::CreateCa),
        Some(text) if text != Some(ca) => Some(Op::RestoreCa),
        Some(_) => None,
    };
    map.into_iter().chain((!has_account).then_some(Op::CreateAccount)).collect()
}

impl Defaults {
    /// Puts namespaces that a change concerns into `queue`.
    pub(crate) fn listen(&self, queue: &Queue<Key>) {
        let own = queue.clone();
        self.namespaces.on_change(move |change: &Change<Namespace>| own.add(change.key.clone()));
        let own = queue.clone();
        self.accounts.on_change(move |change: &Change<ServiceAccount>| {
            if change.key.name == ACCOUNT && change.new.is_none() {
                own.add(Key::cluster(change.key.namespace.clone()));
            }
        });
        let own = queue.clone();
        self.config_maps.on_change(move |change: &Change<AnyMeta>| {
            if change.key.name == ROOT_CA {
                own.add(Key::cluster(change.key.namespace.clone()));
            }
        });
    }

    async fn apply(&self, namespace: &str, op: Op) -> Result<(), kube::Error> {
        let meta = |name: &str| ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        };
        let config_maps = Api::<ConfigMap>::namespaced(self.client.clone(), namespace);
        match op {
            Op::CreateAccount => {
                let account = ServiceAccount { metadata: meta(ACCOUNT), ..ServiceAccount::default() };
                let accounts = Api::<ServiceAccount>::namespaced(self.client.clone(), namespace);
                accounts.create(&PostParams::default(), &account).await.map(drop)
            }
            Op::CreateCa => {
                let mut metadata = meta(ROOT_CA);
                metadata.annotations = Some([(CA_NOTE.to_owned(), CA_NOTE_TEXT.to_owned())].into());
                let data = Some([(CA_KEY.to_owned(), self.ca.clone())].into());
                let map = ConfigMap { metadata, data, ..ConfigMap::default() };
                config_maps.create(&PostParams::default(), &map).await.map(drop)
            }
            Op::RestoreCa => {
                let patch = Patch::Merge(json!({"data": {CA_KEY: self.ca}}));
                config_maps.patch(ROOT_CA, &PatchParams::default(), &patch).await.map(drop)
            }
        }
    }
}

#[async_trait]
impl Reconcile for Defaults {
    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let Some(namespace) = self.namespaces.get(key) else { return Ok(Next::OnChange) };
        let active = namespace.metadata.deletion_timestamp.is_none();
        let has_account = self.accounts.get(&Key::new(&key.name, ACCOUNT)).is_some();
        let config_map = match self.ca.as_str() {
            "" => None,
            _ => {
                let api = Api::<ConfigMap>::namespaced(self.client.clone(), &key.name);
                api.get_opt(ROOT_CA).await.doing(|| format!("reading configmap {}/{ROOT_CA}", key.name))?
            }
        };
        for op in plan(active, has_account, &self.ca, config_map.as_ref()) {
            match self.apply(&key.name, op).await {
                Err(error)
                    if is_already_exists(&error)
                        || is_not_found(&error)
                        || is_forbidden_by_termination(&error) => {}
                other => other.doing(|| format!("filling namespace {}", key.name))?,
            }
        }
        Ok(Next::OnChange)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_made_and_what_was_changed_is_restored() {
        let map = |ca: &str| ConfigMap {
            data: Some([(CA_KEY.to_owned(), ca.to_owned())].into()),
            ..ConfigMap::default()
        };
        assert_eq!(plan(true, false, "CA", None), [Op::CreateCa, Op::CreateAccount]);
        assert_eq!(plan(true, true, "CA", Some(&map("CA"))), []);
        assert_eq!(plan(true, true, "CA", Some(&map("other"))), [Op::RestoreCa]);
        assert_eq!(plan(true, true, "CA", Some(&ConfigMap::default())), [Op::RestoreCa]);
        assert_eq!(plan(true, true, "", None), []);
        assert_eq!(plan(false, false, "CA", None), []);
    }
}
