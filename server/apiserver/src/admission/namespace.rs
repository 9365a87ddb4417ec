//! NamespaceLifecycle: nothing is created where there is no namespace or where it ends, and the namespaces
//! the cluster needs stay.

use std::sync::Arc;

use async_trait::async_trait;
use ketch_api::{
    Status,
    status::{Cause, GroupResource},
};
use ketch_store::Storage;
use serde_json::Value;

use super::{Admission, Operation, Request};
use crate::rest::{meta, transaction::failure};

/// Namespaces that cannot be deleted; upstream's `immortalNamespaces`.
const IMMORTAL: &[&str] = &["default", "kube-system", "kube-public"];

/// The hook.
pub(super) struct Lifecycle {
    storage: Arc<dyn Storage>,
}

impl Lifecycle {
    pub(super) fn new(storage: Arc<dyn Storage>) -> Self {
        Self { storage }
    }
}

const NAMESPACES: GroupResource<'static> = GroupResource { group: "", resource: "namespaces" };

#[async_trait]
impl Admission for Lifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }

    async fn review(&self, request: &Request, _object: Option<&mut Value>) -> Result<(), Status> {
        let namespace = &request.namespace;
        if request.operation != Operation::Create || namespace.is_empty() {
            return Ok(());
        }
        let key = format!("/core/namespaces/{namespace}");
        let found = self.storage.get(&key).await.map_err(failure)?;
        let found = found.ok_or_else(|| Status::not_found(NAMESPACES, namespace))?;
        let object = crate::wire::stored::decode(&found)?;
        if meta::deleting(&object) {
            return Err(terminating(request));
        }
        Ok(())
    }

    fn validate(
        &self,
        request: &Request,
        _object: Option<&Value>,
        _old: Option<&Value>,
    ) -> Result<(), Status> {
        let deletes = request.operation == Operation::Delete && request.is("", "namespaces");
        if deletes && IMMORTAL.contains(&request.name.as_str()) {
            return Err(Status::forbidden(NAMESPACES, &request.name, "this namespace may not be deleted"));
        }
        Ok(())
    }
}

fn terminating(request: &Request) -> Status {
    let namespace = &request.namespace;
    let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
    let mut status = Status::forbidden(request.descriptor.group_resource(), &request.name, why);
    if let Some(details) = status.details.as_mut() {
        details.causes.push(Cause {
            reason: "NamespaceTerminating".to_owned(),
            message: format!("namespace {namespace} is being terminated"),
            field: "metadata.namespace".to_owned(),
        });
    }
    status
}
