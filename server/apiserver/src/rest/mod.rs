//! Handlers: one per verb, the same for every kind.
//!
//! [`handle`] picks the handler. Writes go through [`write`], whose synchronous part runs inside the store's
//! transaction; reads serve stored bytes.

use std::sync::Arc;

use axum::{body::Body, response::Response};
use http::request::Parts;
use jiff::Timestamp;
use ketch_api::{Status, request::RequestInfo};

use crate::{
    admission::{Operation, Request},
    auth::User,
    registry::Resource,
    route::query::Query,
    server::ApiServer,
    wire::negotiate::{self, Accepted},
};

pub(crate) mod answer;
pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod filter;
pub(crate) mod list;
pub(crate) mod meta;
pub(crate) mod metrics;
pub(crate) mod page_token;
pub(crate) mod patch;
pub(crate) mod sub;
pub(crate) mod transaction;
pub(crate) mod update;
pub(crate) mod watch;
pub(crate) mod write;

use write::{Part, Write};

/// A request about a resource, with everything its handler needs but the body.
pub(crate) struct Call {
    pub(crate) server: Arc<ApiServer>,
    pub(crate) info: RequestInfo,
    pub(crate) user: User,
    pub(crate) query: Query,
    pub(crate) parts: Parts,
    pub(crate) now: Timestamp,
}

impl Call {
    /// What the client wants back; 406 when that is impossible.
    pub(crate) fn accepted(&self) -> Result<Accepted, Status> {
        negotiate::negotiate(&self.parts.headers, true)
    }

    /// The write this request asks for.
    pub(crate) fn write(&self, resource: &Arc<Resource>, operation: Operation) -> Result<Write, Status> {
        let namespaced = resource.descriptor().namespaced;
        let request = Request {
            user: self.user.clone(),
            operation,
            descriptor: resource.descriptor().clone(),
            subresource: self.info.subresource.clone(),
            namespace: if namespaced { self.info.namespace.clone() } else { String::new() },
            name: self.info.name.clone(),
            dry_run: self.query.dry_run()?,
        };
        Ok(Write::new(&self.server, resource.clone(), request, self.now))
    }
}

/// Finds the resource and runs the verb.
pub(crate) async fn handle(mut call: Call, body: Body) -> Result<Response, Status> {
    if let Some(kind) = sub::review::kind_of(&call.info) {
        return sub::review::create(&call, kind, body).await;
    }
    if let Some(kind) = metrics::kind_of(&call.info) {
        return metrics::handle(&call, kind).await;
    }
    if sub::binding::is_collection(&call.info) {
        return sub::binding::create_by_body(&call, body).await;
    }
    let RequestInfo { group, version, resource, .. } = &call.info;
    let resource =
        call.server.registry.get(group, version, resource).cloned().ok_or_else(Status::no_resource)?;
    check_scope(&call.info, &resource)?;
    if !call.info.subresource.is_empty() && call.info.verb != "watch" {
        return sub::handle(&call, &resource, body).await;
    }
    match call.info.verb.as_str() {
        "get" => list::get(&call, &resource).await,
        "list" => list::list(&call, &resource).await,
        "watch" => watch::watch(&mut call, &resource).await,
        "create" => create::create(&call, &resource, body).await,
        "update" => update::update(&call, &resource, Part::Main, body).await,
        "patch" => patch::patch(&call, &resource, Part::Main, body).await,
        "delete" => delete::delete(&call, &resource, body).await,
        "deletecollection" => delete::delete_collection(&call, &resource, body).await,
        other => Err(Status::method_not_allowed(resource.group_resource(), other)),
    }
}

/// A namespaced object needs a namespace in its path, and others must not have one.
fn check_scope(info: &RequestInfo, resource: &Resource) -> Result<(), Status> {
    let descriptor = resource.descriptor();
    let is_namespace = descriptor.group.is_empty() && descriptor.kind == "Namespace";
    let across = matches!(info.verb.as_str(), "list" | "watch");
    match (descriptor.namespaced, info.namespace.is_empty()) {
        (true, true) if info.name.is_empty() && !across => {
            let action = format!("{} across namespaces", info.verb);
            Err(Status::method_not_allowed(resource.group_resource(), &action))
        }
        (true, true) if !across => Err(Status::no_resource()),
        (false, false) if !is_namespace => Err(Status::no_resource()),
        _ => Ok(()),
    }
}
