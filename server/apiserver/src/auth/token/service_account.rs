//! Service-account tokens: JSON Web Tokens signed with the cluster's ECDSA P-256 key.
//!
//! A token names the account and, when it is bound, the pod or node it was made for; it is good only
//! while these exist with the same uid. Only ES256 is ever accepted: what the token says of its algorithm
//! is compared, never followed.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use ketch_api::{Status, names::SERVICE_ACCOUNT_USER_PREFIX};
use ketch_store::Storage;
use rcgen::{KeyPair, PublicKeyData};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

use crate::auth::{User, objects};

/// Tolerated difference between clocks, in seconds.
const LEEWAY: i64 = 60;
/// A bound object that is being deleted invalidates its tokens after this.
const DELETION_LEEWAY: SignedDuration = SignedDuration::from_secs(60);
/// Longest token looked at.
const MAX_LENGTH: usize = 16 * 1024;

/// Contents of a token.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Claims {
    /// Who issued it.
    pub iss: String,
    /// `system:serviceaccount:NAMESPACE:NAME`.
    pub sub: String,
    /// Whom it may be shown to.
    #[serde(deserialize_with = "one_or_many")]
    pub aud: Vec<String>,
    /// Seconds since 1970 from which it is no longer valid.
    pub exp: i64,
    /// Seconds since 1970 when it was made.
    pub iat: i64,
    /// Seconds since 1970 before which it is not valid.
    pub nbf: i64,
    /// Unique identifier.
    pub jti: String,
    /// Account and bound objects.
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: Bound,
}

/// What a token is bound to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bound {
    /// Of the account, the pod and the secret.
    pub namespace: String,
    /// The account.
    pub serviceaccount: Reference,
    /// Pod it was made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    /// Node it was made for, or the pod's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
    /// Secret it was made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Reference>,
}

/// One object, not another one of the same name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reference {
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
}

/// Why a token is not accepted. For the log; a client learns only that it is not.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Malformed, of another algorithm, or signed by another key.
    #[error("not a token of this cluster: {0}")]
    Signature(#[from] jsonwebtoken::errors::Error),
    /// By its contents.
    #[error("{0}")]
    Claims(&'static str),
    /// The account or what the token is bound to does not exist any more.
    #[error("{kind} \"{name}\" of the token does not exist any more")]
    Gone {
        /// Kind.
        kind: &'static str,
        /// Name.
        name: String,
    },
    /// The check could not be made.
    #[error(transparent)]
    Store(Status),
    /// The signing key cannot be read.
    #[error("the service-account key cannot be read")]
    Key(#[from] rcgen::Error),
}

/// A verified token's user, and what of the token's audiences was asked for.
pub(crate) struct Identity {
    pub(crate) user: User,
    pub(crate) audiences: Vec<String>,
}

/// Makes and verifies tokens.
pub struct ServiceAccountTokens {
    issuer: String,
    encoding: EncodingKey,
    decoding: DecodingKey,
    key_id: String,
    key_set: Value,
}

// === impl ServiceAccountTokens ===

impl ServiceAccountTokens {
    /// With the private key `pem` (PKCS #8, ECDSA P-256).
    ///
    /// # Errors
    /// When the key is of another sort.
    pub fn new(pem: &str, issuer: &str) -> Result<Self, TokenError> {
        let pair = KeyPair::from_pem(pem)?;
        // An uncompressed point: 0x04, then both coordinates.
        let point = pair.public_key_raw();
        let (Some(4), 65) = (point.first(), point.len()) else {
            return Err(TokenError::Claims("the service-account key is not an ECDSA P-256 key"));
        };
        let coordinate = |from, to| URL_SAFE_NO_PAD.encode(point.get(from..to).unwrap_or_default());
        let (x, y) = (coordinate(1, 33), coordinate(33, 65));
        let key_id = {
            use sha2::Digest;
            URL_SAFE_NO_PAD.encode(sha2::Sha256::digest(pair.subject_public_key_info()))
        };
        let key =
            json!({"use": "sig", "kty": "EC", "kid": key_id, "crv": "P-256", "alg": "ES256", "x": x, "y": y});
        Ok(Self {
            issuer: issuer.to_owned(),
            encoding: EncodingKey::from_ec_pem(pem.as_bytes())?,
            decoding: DecodingKey::from_ec_components(&x, &y)?,
            key_id,
            key_set: json!({"keys": [key]}),
        })
    }

    /// The issuer, which is also the audience of tokens for the API server.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The public keys as a JSON Web Key Set.
    pub fn key_set(&self) -> &Value {
        &self.key_set
    }

    /// A token for the account, valid from `now` for `seconds`.
    ///
    /// # Errors
    /// When no random number or no signature can be made.
    pub fn issue(
        &self,
        bound: Bound,
        audiences: Vec<String>,
        now: Timestamp,
        seconds: i64,
    ) -> Result<String, Status> {
        let now = now.as_second();
        let claims = Claims {
            iss: self.issuer.clone(),
            sub: format!("{SERVICE_ACCOUNT_USER_PREFIX}{}:{}", bound.namespace, bound.serviceaccount.name),
            aud: audiences,
            exp: now.saturating_add(seconds),
            iat: now,
            nbf: now,
            jti: objects::new_uid()?,
            kubernetes: bound,
        };
        self.sign(&claims)
    }

    pub(crate) fn sign(&self, claims: &Claims) -> Result<String, Status> {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.key_id.clone());
        jsonwebtoken::encode(&header, claims, &self.encoding)
            .map_err(|error| Status::internal(format!("cannot sign a token: {error}")))
    }

    /// Checks everything that can be checked without looking at objects. `audiences`: one of them must be
    /// the token's.
    ///
    /// # Errors
    /// When the token is not valid.
    pub fn verify(&self, token: &str, now: Timestamp, audiences: &[String]) -> Result<Claims, TokenError> {
        if token.len() > MAX_LENGTH {
            return Err(TokenError::Claims("the token is too long"));
        }
        // Times and audiences are compared here, with our clock and our leeway.
        let mut validation = Validation::new(Algorithm::ES256);
        validation.validate_exp = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        let claims = jsonwebtoken::decode::<Claims>(token, &self.decoding, &validation)?.claims;
        let now = now.as_second();
        let subject = format!(
            "{SERVICE_ACCOUNT_USER_PREFIX}{}:{}",
            claims.kubernetes.namespace, claims.kubernetes.serviceaccount.name
        );
        let faults = [
            (claims.iss != self.issuer, "the token is of another issuer"),
            (claims.exp <= now, "the token has expired"),
            (claims.nbf > now.saturating_add(LEEWAY), "the token is not valid yet"),
            (!claims.aud.iter().any(|aud| audiences.contains(aud)), "the token is for another audience"),
            (claims.sub != subject, "the token's subject is not its service account"),
        ];
        match faults.into_iter().find_map(|(fault, text)| fault.then_some(text)) {
            Some(text) => Err(TokenError::Claims(text)),
            None => Ok(claims),
        }
    }

    /// [`ServiceAccountTokens::verify`], and that the account and the bound objects are still there.
    pub(crate) async fn identify(
        &self,
        storage: &dyn Storage,
        token: &str,
        now: Timestamp,
        audiences: &[String],
    ) -> Result<Identity, TokenError> {
        let claims = self.verify(token, now, audiences)?;
        let Bound { namespace, serviceaccount, pod, node, secret } = &claims.kubernetes;
        let key = |plural: &str, name: &str| objects::core_key(plural, namespace, name);
        exists(
            storage,
            "service account",
            &key("serviceaccounts", &serviceaccount.name),
            serviceaccount,
            now,
        )
        .await?;
        if let Some(pod) = pod {
            exists(storage, "pod", &key("pods", &pod.name), pod, now).await?;
        } else if let Some(node) = node {
            exists(storage, "node", &format!("/core/nodes/{}", node.name), node, now).await?;
        }
        if let Some(secret) = secret {
            exists(storage, "secret", &key("secrets", &secret.name), secret, now).await?;
        }
        let audiences = audiences.iter().filter(|wanted| claims.aud.contains(wanted)).cloned().collect();
        Ok(Identity { user: user(&claims), audiences })
    }
}

async fn exists(
    storage: &dyn Storage,
    kind: &'static str,
    key: &str,
    wanted: &Reference,
    now: Timestamp,
) -> Result<(), TokenError> {
    let found: Option<objects::Object> = objects::read(storage, key).await.map_err(TokenError::Store)?;
    let alive = found.is_some_and(|object| {
        let deleted = object.metadata.deletion_timestamp;
        object.metadata.uid == wanted.uid && deleted.is_none_or(|at| now.duration_since(at) < DELETION_LEEWAY)
    });
    match alive {
        true => Ok(()),
        false => Err(TokenError::Gone { kind, name: wanted.name.clone() }),
    }
}

fn user(claims: &Claims) -> User {
    let Bound { namespace, serviceaccount, pod, node, .. } = &claims.kubernetes;
    let groups = service_account_groups(namespace);
    let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
    let mut user = User::new(claims.sub.clone(), &groups);
    user.uid.clone_from(&serviceaccount.uid);
    let mut extra = BTreeMap::new();
    let mut put = |key: &str, value: &str| {
        extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
    };
    put("credential-id", &format!("JTI={}", claims.jti));
    for (what, reference) in [("pod", pod), ("node", node)] {
        if let Some(reference) = reference {
            put(&format!("{what}-name"), &reference.name);
            put(&format!("{what}-uid"), &reference.uid);
        }
    }
    user.extra = extra;
    user
}

/// Groups every service account of `namespace` is in.
pub(crate) fn service_account_groups(namespace: &str) -> Vec<String> {
    vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")]
}

fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(one) => vec![one],
        OneOrMany::Many(many) => many,
    })
}

impl std::fmt::Debug for ServiceAccountTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServiceAccountTokens")
            .field("issuer", &self.issuer)
            .field("key_id", &self.key_id)
            .finish_non_exhaustive()
    }
}
