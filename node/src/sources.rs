//! ConfigMaps, Secrets and tokens that pods use.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use ketch_api::k8s::api::{authentication::v1 as authentication, core::v1 as core};
use kube::api::{Api, PostParams};

use crate::images::Keyring;

/// What a ConfigMap or Secret holds, by key.
pub(crate) type Data = std::collections::BTreeMap<String, Vec<u8>>;

/// How long an object that was read for one pod serves refreshes of others.
const FRESH: Duration = Duration::from_secs(20);
/// Objects remembered before old ones are dropped.
const REMEMBERED: usize = 1_024;

/// Which kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    ConfigMap,
    Secret,
}

impl Kind {
    /// As messages say it.
    pub(crate) fn noun(self) -> &'static str {
        match self {
            Self::ConfigMap => "configmap",
            Self::Secret => "secret",
        }
    }
}

type Key = (Kind, String, String);

/// Reader of ConfigMaps, Secrets and tokens.
pub(crate) struct Sources {
    client: kube::Client,
    seen: Mutex<HashMap<Key, (Instant, Option<Data>)>>,
    tokens: Mutex<HashMap<TokenKey, (String, Timestamp)>>,
}

/// Pod, audience, seconds.
type TokenKey = (String, Option<String>, i64);

impl Sources {
    pub(crate) fn new(client: kube::Client) -> Self {
        Self { client, seen: Mutex::default(), tokens: Mutex::default() }
    }

    /// An object's data; `None`: there is no such object. `cached`: an answer that another pod got a short
    /// time ago will do.
    pub(crate) async fn read(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        cached: bool,
    ) -> Result<Option<Data>, String> {
        let key = (kind, namespace.to_owned(), name.to_owned());
        if cached && let Some(data) = self.recall(&key) {
            return Ok(data);
        }
        let data = match kind {
            Kind::ConfigMap => {
                let api: Api<core::ConfigMap> = Api::namespaced(self.client.clone(), namespace);
                api.get_opt(name).await.map(|found| found.map(config_map_data))
            }
            Kind::Secret => {
                let api: Api<core::Secret> = Api::namespaced(self.client.clone(), namespace);
                api.get_opt(name).await.map(|found| found.map(secret_data))
            }
        };
        let data =
            data.map_err(|error| format!("failed to fetch {} \"{namespace}/{name}\": {error}", kind.noun()))?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= REMEMBERED {
            seen.retain(|_, (at, _)| at.elapsed() < FRESH);
        }
        seen.insert(key, (Instant::now(), data.clone()));
        Ok(data)
    }

    fn recall(&self, key: &Key) -> Option<Option<Data>> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(key).filter(|(at, _)| at.elapsed() < FRESH).map(|(_, data)| data.clone())
    }

    /// What the pod's `imagePullSecrets` hold, and the names of those that are no help.
    pub(crate) async fn keyring(&self, pod: &core::Pod) -> (Arc<Keyring>, Vec<String>) {
        let (mut keyring, mut missing) = (Keyring::default(), Vec::new());
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        let secrets = pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten());
        for name in secrets.map(|secret| secret.name.clone()).filter(|name| !name.is_empty()) {
            let added = match self.read(Kind::Secret, namespace, &name, true).await {
                Ok(Some(data)) => keyring.add(&data).map_err(str::to_owned),
                Ok(None) => Err("it does not exist".to_owned()),
                Err(error) => Err(error),
            };
            if let Err(why) = added {
                tracing::debug!(namespace, secret = name, why, "a secret for images is no help");
                missing.push(name);
            }
        }
        (Arc::new(keyring), missing)
    }

    /// A token of the pod's service account, bound to the pod; renewed after four fifths of its life, or a
    /// day.
    pub(crate) async fn token(
        &self,
        pod: &core::Pod,
        audience: Option<&str>,
        seconds: i64,
    ) -> Result<String, String> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let key = (uid, audience.map(str::to_owned), seconds);
        let now = Timestamp::now();
        let held = self.tokens.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some((token, renew)) = held
            && renew > now
        {
            return Ok(token);
        }
        let status = self.request_token(pod, audience, seconds).await?;
        let life = status.expiration_timestamp.0.duration_since(now).as_secs().clamp(0, 30 * 3600);
        let renew = now.checked_add(jiff::SignedDuration::from_secs(life * 4 / 5)).unwrap_or(now);
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.insert(key, (status.token.clone(), renew));
        Ok(status.token)
    }

    /// Drops the tokens of a pod.
    pub(crate) fn forget(&self, uid: &str) {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).retain(|(owner, ..), _| owner != uid);
    }

    async fn request_token(
        &self,
        pod: &core::Pod,
        audience: Option<&str>,
        seconds: i64,
    ) -> Result<authentication::TokenRequestStatus, String> {
        let meta = &pod.metadata;
        let account =
            pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref()).unwrap_or("default");
        let namespace = meta.namespace.as_deref().unwrap_or("default");
        let request = authentication::TokenRequest {
            spec: authentication::TokenRequestSpec {
                audiences: audience.map(str::to_owned).into_iter().collect(),
                bound_object_ref: Some(authentication::BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: meta.name.clone(),
                    uid: meta.uid.clone(),
                }),
                expiration_seconds: Some(seconds),
            },
            ..authentication::TokenRequest::default()
        };
        let api: Api<core::ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let made = api.create_token_request(account, &PostParams::default(), &request).await;
        let made = made.map_err(|error| format!("failed to fetch token: {error}"))?;
        made.status.ok_or_else(|| "failed to fetch token: the API gave none".to_owned())
    }
}

fn config_map_data(map: core::ConfigMap) -> Data {
    let text = map.data.into_iter().flatten().map(|(key, value)| (key, value.into_bytes()));
    let binary = map.binary_data.into_iter().flatten().map(|(key, value)| (key, value.0));
    text.chain(binary).collect()
}

fn secret_data(secret: core::Secret) -> Data {
    secret.data.into_iter().flatten().map(|(key, value)| (key, value.0)).collect()
}
