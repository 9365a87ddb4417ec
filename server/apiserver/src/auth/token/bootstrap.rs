//! Bootstrap tokens: Secrets in `kube-system` that let a node join, as kubeadm makes them.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use ketch_api::Status;
use ketch_store::{Storage, Update};
use serde::Deserialize;

use crate::auth::{User, objects};

/// Group of everything that authenticates this way.
const GROUP: &str = "system:bootstrappers";
/// What precedes the token's identifier in the user's name.
pub(crate) const USER_PREFIX: &str = "system:bootstrap:";
const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";

#[derive(Debug, Deserialize)]
struct Secret {
    metadata: objects::Metadata,
    #[serde(default)]
    r#type: String,
    #[serde(default)]
    data: BTreeMap<String, String>,
}

/// Identifier and secret of a token of the form `[a-z0-9]{6}.[a-z0-9]{16}`.
pub(crate) fn parse(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    (id.len() == 6 && secret.len() == 16 && plain(id) && plain(secret)).then_some((id, secret))
}

/// The user of the token; `None` when there is no such token, it has expired or is not for this.
pub(crate) async fn identify(
    storage: &dyn Storage,
    id: &str,
    secret: &str,
    now: Timestamp,
) -> Result<Option<User>, Status> {
    let key = objects::core_key("secrets", "kube-system", &format!("bootstrap-token-{id}"));
    let Some(stored) = objects::read::<Secret>(storage, &key).await? else { return Ok(None) };
    Ok(judge(&stored, id, secret, now))
}

/// Uses the token up. `true`: it was there, and is gone now; of two who try, one is told so.
pub(crate) async fn take(storage: &dyn Storage, id: &str) -> Result<bool, Status> {
    let key = objects::core_key("secrets", "kube-system", &format!("bootstrap-token-{id}"));
    let written = storage.update(&key, Box::new(|_| Ok(Update::Delete))).await.map_err(Status::internal)?;
    Ok(written.previous.is_some())
}

fn judge(stored: &Secret, id: &str, secret: &str, now: Timestamp) -> Option<User> {
    let field = |name: &str| {
        let bytes = STANDARD.decode(stored.data.get(name)?).ok()?;
        String::from_utf8(bytes).ok()
    };
    // The digests are compared, so that the time it takes says nothing of the secret.
    let right = objects::digest(&field("token-secret")?) == objects::digest(secret);
    let usable = field("usage-bootstrap-authentication").as_deref() == Some("true");
    if !right
        || !usable
        || stored.r#type != SECRET_TYPE
        || stored.metadata.deletion_timestamp.is_some()
        || field("token-id").as_deref() != Some(id)
    {
        return None;
    }
    if let Some(expiration) = field("expiration") {
        let at: Timestamp = expiration.parse().ok()?;
        if at <= now {
            return None;
        }
    }
    let extra = field("auth-extra-groups").unwrap_or_default();
    let mut groups = vec![GROUP];
    // A token cannot give groups with other rights.
    groups.extend(extra.split(',').filter(|group| group.starts_with("system:bootstrappers:")));
    Some(User::new(format!("{USER_PREFIX}{id}"), &groups))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn secret(change: impl FnOnce(&mut serde_json::Value)) -> Secret {
        let encode = |text: &str| STANDARD.encode(text);
        let mut object = json!({
            "metadata": {"name": "bootstrap-token-abcdef"},
            "type": SECRET_TYPE,
            "data": {
                "token-id": encode("abcdef"), "token-secret": encode("0123456789abcdef"),
                "usage-bootstrap-authentication": encode("true"), "expiration": encode("2030-01-01T00:00:00Z"),
                "auth-extra-groups": encode("system:bootstrappers:nodes,system:masters"),
            }
        });
        change(&mut object);
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn a_good_token_is_a_bootstrapper_and_nothing_more() {
        let now = "2029-12-31T23:59:59Z".parse().unwrap();
        let user = judge(&secret(|_| {}), "abcdef", "0123456789abcdef", now).unwrap();
        assert_eq!(user.name, "system:bootstrap:abcdef");
        assert_eq!(
            user.groups,
            ["system:bootstrappers", "system:bootstrappers:nodes", "system:authenticated"]
        );
    }

    #[test]
    fn other_tokens_are_refused() {
        let now = "2029-12-31T23:59:59Z".parse().unwrap();
        let good = "0123456789abcdef";
        let no = STANDARD.encode("false");
        for (name, stored, secret, at) in [
            ("wrong secret", secret(|_| {}), "0123456789abcdee", now),
            ("expired", secret(|_| {}), good, "2030-01-01T00:00:00Z".parse().unwrap()),
            (
                "bad expiration",
                secret(|s| s["data"]["expiration"] = STANDARD.encode("soon").into()),
                good,
                now,
            ),
            (
                "not for authentication",
                secret(|s| s["data"]["usage-bootstrap-authentication"] = no.into()),
                good,
                now,
            ),
            ("another type", secret(|s| s["type"] = "Opaque".into()), good, now),
            ("another id", secret(|s| s["data"]["token-id"] = STANDARD.encode("aaaaaa").into()), good, now),
            (
                "no secret",
                secret(|s| {
                    s["data"].as_object_mut().unwrap().remove("token-secret");
                }),
                "",
                now,
            ),
            (
                "being deleted",
                secret(|s| s["metadata"]["deletionTimestamp"] = "2029-01-01T00:00:00Z".into()),
                good,
                now,
            ),
        ] {
            assert_eq!(judge(&stored, "abcdef", secret, at), None, "{name}");
        }
    }

    #[test]
    fn the_form_is_exact() {
        assert_eq!(parse("abcdef.0123456789abcdef"), Some(("abcdef", "0123456789abcdef")));
        for token in [
            "",
            "abcdef",
            "abcdef.0123456789abcde",
            "ABCDEF.0123456789abcdef",
            "abcde/.0123456789abcdef",
            "a.b.c",
        ] {
            assert_eq!(parse(token), None, "{token}");
        }
    }
}
