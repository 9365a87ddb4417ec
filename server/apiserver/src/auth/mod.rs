//! Who asks, and whether they may: the traits the request pipeline calls.
//!
//! The pipeline knows these traits only; what stands behind them (tokens, RBAC, the node authorizer) is
//! in the modules below, put together as [`Auth`]. Nothing here may depend on the pipeline.

pub mod console;
mod facade;
mod follow;
mod impersonation;
pub mod node;
pub(crate) mod objects;
pub mod rbac;
mod reviews;
pub mod token;

pub use facade::{Auth, ISSUER};

use std::collections::BTreeMap;

use async_trait::async_trait;
use http::request::Parts;
use ketch_api::Status;
use serde_json::Value;

/// Group of every request that proved who it is from.
pub const AUTHENTICATED_GROUP: &str = "system:authenticated";
/// Group of every request that did not.
pub const UNAUTHENTICATED_GROUP: &str = "system:unauthenticated";
/// User name of a request without credentials.
pub const ANONYMOUS_USER: &str = "system:anonymous";

/// Who a request is from.
///
/// A request whose `http::Extensions` hold a `User` is already authenticated by its transport (a TLS
/// client certificate, the in-process client): credentials in its headers are not looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// For instance `system:node:n1`.
    pub name: String,
    /// Stable identifier; empty when there is none.
    pub uid: String,
    /// Groups, [`AUTHENTICATED_GROUP`] among them for every real user.
    pub groups: Vec<String>,
    /// Anything else the authenticator knows.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// A user with a name and groups; [`AUTHENTICATED_GROUP`] is added.
    pub fn new(name: impl Into<String>, groups: &[&str]) -> Self {
        let mut groups = groups.iter().map(|group| (*group).to_owned()).collect::<Vec<_>>();
        if !groups.iter().any(|group| group == AUTHENTICATED_GROUP) {
            groups.push(AUTHENTICATED_GROUP.to_owned());
        }
        Self { name: name.into(), groups, ..Self::default() }
    }

    /// The user of a request without credentials.
    pub fn anonymous() -> Self {
        Self {
            name: ANONYMOUS_USER.to_owned(),
            groups: vec![UNAUTHENTICATED_GROUP.to_owned()],
            ..Self::default()
        }
    }

    /// Whether this is [`User::anonymous`].
    pub fn is_anonymous(&self) -> bool {
        self.name == ANONYMOUS_USER
    }

    /// Whether the user is in `group`.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|own| own == group)
    }
}

/// What a request wants, for the authorizer. Empty strings stand for "none".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, or the lower-case
    /// HTTP method when this is not a resource request.
    pub verb: String,
    /// API group; empty for core.
    pub group: String,
    /// API version.
    pub version: String,
    /// Plural.
    pub resource: String,
    /// For instance `status`.
    pub subresource: String,
    /// Namespace; empty for cluster-scoped resources and for lists across namespaces.
    pub namespace: String,
    /// Object name; empty for collections.
    pub name: String,
    /// The `fieldSelector` parameter of a list, watch or collection delete, as sent.
    pub field_selector: String,
    /// URL path.
    pub path: String,
    /// Whether the path names a resource; otherwise only `verb` and `path` count.
    pub is_resource: bool,
}

/// What the authorizer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Go on.
    Allow,
    /// Refuse; the text is appended to upstream's "User … cannot …" message when it is not empty.
    Deny(String),
}

/// Finds out who a request is from.
#[async_trait]
pub trait Authenticator: Send + Sync + 'static {
    /// The user that the request's credentials (Authorization header, cookie) prove; `None` when it has none.
    /// Not called for a request that its transport has authenticated.
    ///
    /// # Errors
    /// 401 for credentials that are not valid, 403 for a request that credentials of this sort may not make.
    async fn authenticate(&self, parts: &Parts) -> Result<Option<User>, Status>;

    /// The user to act as: `user` itself, or who the `Impersonate-…` headers name if `user` may impersonate
    /// them. Called for every request, however it was authenticated.
    ///
    /// # Errors
    /// 403 when the impersonation is not allowed.
    async fn effective(&self, user: User, _parts: &Parts) -> Result<User, Status> {
        Ok(user)
    }
}

/// Decides what a user may do. Synchronous: it reads a snapshot of the rules.
pub trait Authorizer: Send + Sync + 'static {
    /// Whether `user` may do what `attributes` says.
    fn authorize(&self, user: &User, attributes: &Attributes) -> Decision;
}

/// Kinds that are questions, not objects: access and token reviews, token requests.
#[async_trait]
pub trait Reviews: Send + Sync + 'static {
    /// Answers `body`, an object of `kind` (for instance `SelfSubjectAccessReview` or `TokenRequest`), with
    /// its status filled in. `name` is the service account's for a `TokenRequest` and empty otherwise.
    ///
    /// # Errors
    /// 404 for a kind that is none of these; 400 and 422 for a body that makes no sense.
    async fn create(
        &self,
        user: &User,
        group: &str,
        kind: &str,
        namespace: &str,
        name: &str,
        body: Value,
    ) -> Result<Value, Status>;
}

#[cfg(test)]
mod tests;
