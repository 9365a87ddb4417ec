//! Checks and changes between authorisation and storage that are about more than one object's own rules.
//!
//! A hook has four phases. [`Admission::review`] runs before the transaction, may do IO and change what is created;
//! [`Admission::settled`] after it. [`Admission::mutate`] and [`Admission::validate`] run inside it, on the very values that are about to
//! replace each other, so a decision on the old object is never about an outdated one. Hooks run in the
//! order of the list; all mutating before any validating phase. Admission webhooks will be one more hook
//! whose `review` makes the call.

use std::sync::Arc;

use async_trait::async_trait;
use ketch_api::{Descriptor, Status};
use ketch_store::Storage;
use serde_json::Value;

use crate::auth::User;

pub mod cluster_ip;
mod namespace;
mod node_port;
mod pod;
pub(crate) mod service_account;
mod storage;

/// The hooks every server has, in order.
pub(crate) fn built_in(storage: &Arc<dyn Storage>, cidr: cluster_ip::ServiceCidr) -> Vec<Arc<dyn Admission>> {
    vec![
        Arc::new(namespace::Lifecycle::new(storage.clone())),
        Arc::new(pod::DefaultTolerations),
        Arc::new(cluster_ip::ClusterIps::new(storage.clone(), cidr)),
        Arc::new(node_port::NodePorts::new(storage.clone())),
        Arc::new(storage::Classes::new(storage.clone())),
        Arc::new(storage::InUseProtection),
    ]
}

/// What is about to happen to the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A new object.
    Create,
    /// Update or patch, of the object or of a subresource.
    Update,
    /// Delete, one or as part of a collection.
    Delete,
    /// A subresource that acts: binding, eviction, log.
    Connect,
}

/// The request, as hooks see it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Who asks.
    pub user: User,
    /// What for.
    pub operation: Operation,
    /// The kind.
    pub descriptor: Descriptor,
    /// For instance `status`; empty for the object itself.
    pub subresource: String,
    /// Namespace; empty for cluster-scoped kinds.
    pub namespace: String,
    /// Name; empty for a create whose name is generated later.
    pub name: String,
    /// Whether nothing will be stored: hooks must then have no effects.
    pub dry_run: bool,
}

impl Request {
    /// Whether the request is about `plural` of `group`, subresources included.
    pub fn is(&self, group: &str, plural: &str) -> bool {
        self.descriptor.group == group && self.descriptor.plural == plural
    }
}

/// A hook. Every method's default lets the request pass.
#[async_trait]
pub trait Admission: Send + Sync + 'static {
    /// For tracing and error texts.
    fn name(&self) -> &'static str;

    /// Before the transaction, with IO. `object` is what the client sent for a create, with defaults filled in
    /// and open to changes; `None` otherwise.
    ///
    /// # Errors
    /// The refusal.
    async fn review(&self, _request: &Request, _object: Option<&mut Value>) -> Result<(), Status> {
        Ok(())
    }

    /// Changes the new object, inside the transaction; can run more than once, so it must be idempotent.
    ///
    /// # Errors
    /// The refusal.
    fn mutate(&self, _request: &Request, _object: &mut Value, _old: Option<&Value>) -> Result<(), Status> {
        Ok(())
    }

    /// Judges the final object (`None`: it is deleted), inside the transaction; without effects.
    ///
    /// # Errors
    /// The refusal.
    fn validate(
        &self,
        _request: &Request,
        _object: Option<&Value>,
        _old: Option<&Value>,
    ) -> Result<(), Status> {
        Ok(())
    }

    /// After the transaction, when it was none of a dry run: what the object `uid` is now, as bytes of its
    /// JSON; `None` when there is no such object (the create failed, or it was deleted). `uid` is empty for
    /// updates.
    fn settled(&self, _request: &Request, _uid: &str, _stored: Option<&[u8]>) {}
}
