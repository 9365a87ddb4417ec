//! ConfigMaps, Secrets and tokens that pods use.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};
use ketch_api::{
    k8s::api::{authentication::v1 as authentication, core::v1 as core},
    names::ROOT_CA_CONFIG_MAP,
};
use kube::api::{Api, PostParams};

use crate::images::Keyring;

/// What a ConfigMap or Secret holds, by key.
pub(crate) type Data = BTreeMap<String, Vec<u8>>;

/// How long an object that was read for one pod serves refreshes of others.
const FRESH: Duration = Duration::from_secs(20);
/// Objects remembered before old ones are dropped.
const REMEMBERED: usize = 1_024;

/// In seconds.
const DAY: i64 = 86_400;

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
    tokens: Mutex<BTreeMap<TokenKey, Held>>,
}

/// Pod, audience, seconds.
type TokenKey = (String, Option<String>, i64);

/// A token and its times.
#[derive(Clone)]
struct Held {
    token: String,
    renew: Timestamp,
    expires: Timestamp,
}

impl Sources {
    pub(crate) fn new(client: kube::Client) -> Self {
        Self { client, seen: Mutex::default(), tokens: Mutex::default() }
    }

    /// An object's data; `None`: there is no such object. `cached`: an answer that another pod got a short
    /// time ago will do. It always does for the cluster's authority, which every pod asks for.
    pub(crate) async fn read(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        cached: bool,
    ) -> Result<Option<Data>, String> {
        let key = (kind, namespace.to_owned(), name.to_owned());
        match self.recall(&key) {
            Some(data) if cached => return Ok(data),
            Some(Some(data)) if name == ROOT_CA_CONFIG_MAP => return Ok(Some(data)),
            _ => {}
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

    /// A token of the pod's service account, bound to the pod; a new one when the one there was is due at
    /// `now`. When there can be no new one, the old one does as long as it is valid.
    pub(crate) async fn token(
        &self,
        pod: &core::Pod,
        audience: Option<&str>,
        seconds: i64,
        now: Timestamp,
    ) -> Result<String, String> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let key = (uid, audience.map(str::to_owned), seconds);
        let held = self.tokens.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some(held) = held.as_ref().filter(|held| held.renew > now) {
            return Ok(held.token.clone());
        }
        match (self.request_token(pod, audience, seconds).await, held) {
            (Ok(status), _) => {
                let expires = status.expiration_timestamp.0;
                let next = Held { token: status.token.clone(), renew: renew_at(now, expires), expires };
                self.tokens.lock().unwrap_or_else(PoisonError::into_inner).insert(key, next);
                Ok(status.token)
            }
            (Err(error), Some(held)) if held.expires > now => {
                tracing::warn!(
                    pod = key.0,
                    error,
                    "a token could not be renewed; the old one is still valid"
                );
                Ok(held.token)
            }
            (Err(error), _) => Err(error),
        }
    }

    /// Whether one of the pod's tokens is to be replaced.
    pub(crate) fn is_due(&self, uid: &str, now: Timestamp) -> bool {
        let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let mut own =
            tokens.range((uid.to_owned(), None, i64::MIN)..).take_while(|((owner, ..), _)| owner == uid);
        own.any(|(_, held)| held.renew <= now)
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

/// When a token is replaced: after four fifths of its life, or a day (the kubelet's token manager).
fn renew_at(issued: Timestamp, expires: Timestamp) -> Timestamp {
    let life = expires.duration_since(issued).as_secs().clamp(0, DAY * 5 / 4);
    issued.checked_add(SignedDuration::from_secs(life * 4 / 5)).unwrap_or(issued)
}

fn config_map_data(map: core::ConfigMap) -> Data {
    let text = map.data.into_iter().flatten().map(|(key, value)| (key, value.into_bytes()));
    let binary = map.binary_data.into_iter().flatten().map(|(key, value)| (key, value.0));
    text.chain(binary).collect()
}

fn secret_data(secret: core::Secret) -> Data {
    secret.data.into_iter().flatten().map(|(key, value)| (key, value.0)).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    };

    use kube::client::Body;
    use serde_json::json;

    use super::*;

    const START: i64 = 1_800_000_000;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(START + seconds).unwrap()
    }

    /// An API that gives tokens of 600 seconds, numbered, as long as it is up.
    fn sources(up: Arc<AtomicBool>, now: Arc<AtomicUsize>) -> Sources {
        let count = Arc::new(AtomicUsize::new(0));
        let service = tower::service_fn(move |_: http::Request<Body>| {
            let issued = at(i64::try_from(now.load(Ordering::SeqCst)).unwrap());
            let number = count.fetch_add(1, Ordering::SeqCst);
            let (code, body) = match up.load(Ordering::SeqCst) {
                true => (
                    201,
                    json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": []},
                    "status": {"token": format!("t{number}"), "expirationTimestamp": issued + SignedDuration::from_secs(600)}}),
                ),
                false => (
                    503,
                    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 503, "message": "away", "reason": "ServiceUnavailable"}),
                ),
            };
            let response =
                http::Response::builder().status(code).body(Body::from(body.to_string().into_bytes()));
            async move { response }
        });
        Sources::new(kube::Client::new(service, "default"))
    }

    #[tokio::test]
    async fn a_token_is_replaced_after_four_fifths_of_its_life() {
        let (up, now) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
        let sources = sources(Arc::clone(&up), Arc::clone(&now));
        let pod: core::Pod = serde_json::from_value(json!({"metadata": {"name": "p", "uid": "u"}})).unwrap();
        let ask = async |seconds: i64| {
            now.store(usize::try_from(seconds).unwrap(), Ordering::SeqCst);
            sources.token(&pod, None, 600, at(seconds)).await
        };
        assert_eq!(ask(0).await.unwrap(), "t0");
        assert_eq!(ask(479).await.unwrap(), "t0");
        assert!(
            !sources.is_due("u", at(479)) && sources.is_due("u", at(480)) && !sources.is_due("v", at(480))
        );
        assert_eq!(ask(480).await.unwrap(), "t1");
        up.store(false, Ordering::SeqCst);
        assert_eq!(ask(480 + 500).await.unwrap(), "t1", "still valid");
        assert!(ask(480 + 601).await.unwrap_err().contains("failed to fetch token"));
        up.store(true, Ordering::SeqCst);
        assert_ne!(ask(480 + 602).await.unwrap(), "t1");
        sources.forget("u");
        assert!(!sources.is_due("u", at(5_000)));
    }

    #[test]
    fn a_long_lived_token_is_replaced_every_day() {
        assert_eq!(renew_at(at(0), at(3607)), at(2885));
        assert_eq!(renew_at(at(0), at(30 * DAY)), at(DAY));
        assert_eq!(renew_at(at(0), at(-5)), at(0));
    }
}
