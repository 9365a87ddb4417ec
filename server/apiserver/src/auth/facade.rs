//! [`Auth`]: authentication and authorisation as one value.

use std::sync::Arc;

use axum::{body::Body, response::Response};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, header, request::Parts};
use jiff::Timestamp;
use ketch_api::{Status, names::ADMIN_GROUP};
use ketch_store::{Revision, Storage};
use serde_json::json;

use super::{
    Attributes, Authenticator, Authorizer, Decision, User,
    console::Console,
    follow::{follow, sync},
    impersonation,
    node::{self, NodeRestriction, Nodes},
    rbac::{self, EscalationCheck, Rbac},
    token::{Identity, ServiceAccountTokens, TokenError, bootstrap},
};
use crate::{
    admission::{Admission, service_account::ServiceAccount},
    paths::PathHandler,
    pki::Clock,
};

/// Issuer of service-account tokens, and their audience when none is asked for.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
const WEBSOCKET_TOKEN: &str = "base64url.bearer.authorization.k8s.io.";

/// Who asks, and whether they may: tokens, console sessions, RBAC, the node authorizer, access reviews.
///
/// [`Auth::start`] reads the rules; [`Auth::run`] keeps them up to date and must run for as long as
/// requests are served.
pub struct Auth {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) rbac: Arc<Rbac>,
    pub(super) nodes: Nodes,
    pub(super) tokens: ServiceAccountTokens,
    pub(super) clock: Clock,
    console: Console,
    /// Where [`Auth::start`] has read up to: RBAC, pods.
    from: (Revision, Revision),
}

// === impl Auth ===

impl Auth {
    /// Creates the default roles where they are missing and reads all rules. `service_account_key` is
    /// [`crate::pki::Pki::service_account_key`].
    ///
    /// # Errors
    /// When the key cannot be used or the store fails.
    pub async fn start(
        storage: Arc<dyn Storage>,
        service_account_key: &str,
    ) -> Result<Arc<Self>, TokenError> {
        Self::start_with_clock(storage, service_account_key, Arc::new(Timestamp::now)).await
    }

    /// [`Auth::start`] with another clock.
    ///
    /// # Errors
    /// See [`Auth::start`].
    pub async fn start_with_clock(
        storage: Arc<dyn Storage>,
        service_account_key: &str,
        clock: Clock,
    ) -> Result<Arc<Self>, TokenError> {
        let tokens = ServiceAccountTokens::new(service_account_key, ISSUER)?;
        rbac::ensure_defaults(storage.as_ref(), clock()).await.map_err(TokenError::Store)?;
        let (rbac, nodes) = (Arc::new(Rbac::default()), Nodes::default());
        let failed = |error: ketch_store::Error| TokenError::Store(Status::internal(error));
        let roles = sync(storage.as_ref(), rbac::PREFIX, rbac.as_ref()).await.map_err(failed)?;
        let pods = sync(storage.as_ref(), node::PREFIX, &nodes).await.map_err(failed)?;
        let console = Console::new(Arc::clone(&storage), Arc::clone(&clock));
        Ok(Arc::new(Self { storage, rbac, nodes, tokens, clock, console, from: (roles, pods) }))
    }

    /// Keeps the rules up to date. Ends when the store is closed; drop it to stop.
    pub async fn run(self: Arc<Self>) {
        let storage = self.storage.as_ref();
        tokio::join!(
            follow(storage, rbac::PREFIX, self.from.0, self.rbac.as_ref()),
            follow(storage, node::PREFIX, self.from.1, &self.nodes),
        );
    }

    /// Hooks for the pipeline: who pods are, what nodes may write, and that nobody grants more than they have.
    pub fn admission(&self) -> Vec<Arc<dyn Admission>> {
        vec![
            Arc::new(ServiceAccount::new(Arc::clone(&self.storage))),
            Arc::new(NodeRestriction),
            Arc::new(EscalationCheck::new(Arc::clone(&self.rbac))),
        ]
    }

    /// Login tokens and sessions of the console.
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// Service-account tokens.
    pub fn tokens(&self) -> &ServiceAccountTokens {
        &self.tokens
    }

    /// The rules.
    pub fn rbac(&self) -> &Arc<Rbac> {
        &self.rbac
    }

    /// The user whose bearer token this is. For other protocols than HTTP bearer authentication, such as
    /// a registry login, where the token arrives as a password.
    ///
    /// # Errors
    /// 401 when the token is not valid.
    pub async fn authenticate_token(&self, token: &str) -> Result<User, Status> {
        self.identify(token, &self.audiences()).await.map(|identity| identity.user)
    }

    /// Uses up the bootstrap token that `user` came with, so that it works once. Of two requests with the
    /// same token one succeeds, whatever their timing.
    ///
    /// # Errors
    /// 403 for a user that came otherwise, 401 when the token has been used, or what the store fails with.
    pub async fn use_up_token(&self, user: &User) -> Result<(), Status> {
        let Some(id) = user.name.strip_prefix(bootstrap::USER_PREFIX) else {
            return Err(Status::new(403, "Forbidden", "this takes a join token; see `ketch token create`"));
        };
        match bootstrap::take(self.storage.as_ref(), id).await? {
            true => Ok(()),
            false => Err(Status::new(401, "Unauthorized", "this join token has been used")),
        }
    }

    pub(super) fn audiences(&self) -> Vec<String> {
        vec![self.tokens.issuer().to_owned()]
    }

    pub(super) async fn identify(&self, token: &str, audiences: &[String]) -> Result<Identity, Status> {
        let (storage, now) = (self.storage.as_ref(), (self.clock)());
        if let Some((id, secret)) = bootstrap::parse(token) {
            let user = bootstrap::identify(storage, id, secret, now).await?;
            let accepted = audiences.iter().any(|audience| audience == self.tokens.issuer());
            return match user.filter(|_| accepted) {
                Some(user) => Ok(Identity { user, audiences: self.audiences() }),
                None => Err(Status::unauthorized()),
            };
        }
        match self.tokens.identify(storage, token, now, audiences).await {
            Ok(identity) => Ok(identity),
            Err(TokenError::Store(status)) => Err(status),
            Err(error) => {
                tracing::debug!(%error, "refused a bearer token");
                Err(Status::unauthorized())
            }
        }
    }
}

/// The bearer token of a request: from its header or, for WebSockets of browsers, from the subprotocol.
fn bearer(headers: &HeaderMap) -> Result<Option<String>, Status> {
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    match (all.next(), all.next()) {
        (None, _) => Ok(websocket_bearer(headers)),
        (Some(value), None) => {
            let text = value.to_str().map_err(|_| Status::unauthorized())?;
            let (scheme, token) = text.split_once(' ').unwrap_or((text, ""));
            match scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty() {
                true => Ok(Some(token.trim().to_owned())),
                false => Err(Status::unauthorized()),
            }
        }
        // Which of two counts must not depend on who reads the request.
        (Some(_), Some(_)) => Err(Status::unauthorized()),
    }
}

fn websocket_bearer(headers: &HeaderMap) -> Option<String> {
    let encoded = headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .find_map(|protocol| protocol.trim().strip_prefix(WEBSOCKET_TOKEN))?;
    String::from_utf8(URL_SAFE_NO_PAD.decode(encoded).ok()?).ok()
}

#[async_trait::async_trait]
impl Authenticator for Auth {
    async fn authenticate(&self, parts: &Parts) -> Result<Option<User>, Status> {
        match bearer(&parts.headers)? {
            Some(token) => self.authenticate_token(&token).await.map(Some),
            None => self.console.authenticate(parts).await,
        }
    }

    async fn effective(&self, user: User, parts: &Parts) -> Result<User, Status> {
        impersonation::effective(user, &parts.headers, self)
    }
}

impl Authorizer for Auth {
    fn authorize(&self, user: &User, attributes: &Attributes) -> Decision {
        if user.in_group(ADMIN_GROUP) {
            return Decision::Allow;
        }
        let mut reason = String::new();
        if let Some(node) = node::node_name(user) {
            match self.nodes.authorize(node, attributes) {
                Ok(()) => return Decision::Allow,
                Err(why) => reason = why,
            }
        }
        match self.rbac.snapshot().allows(user, attributes) {
            true => Decision::Allow,
            false => Decision::Deny(reason),
        }
    }
}

impl PathHandler for Auth {
    fn handle(&self, parts: &Parts) -> Option<Response<Body>> {
        let (body, media_type) = match parts.uri.path() {
            "/.well-known/openid-configuration" => (discovery(), "application/json"),
            "/openid/v1/jwks" => (self.tokens.key_set().clone(), "application/jwk-set+json"),
            _ => return None,
        };
        let response = Response::builder()
            .header(header::CONTENT_TYPE, media_type)
            .header(header::CACHE_CONTROL, "public, max-age=3600");
        response.body(Body::from(body.to_string())).ok()
    }

    fn paths(&self) -> Vec<String> {
        vec!["/.well-known/openid-configuration".to_owned(), "/openid/v1/jwks".to_owned()]
    }
}

fn discovery() -> serde_json::Value {
    json!({
        "issuer": ISSUER,
        "jwks_uri": format!("{ISSUER}/openid/v1/jwks"),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    })
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auth").finish_non_exhaustive()
    }
}
