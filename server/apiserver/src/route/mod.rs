//! From an HTTP request to its handler: identity, permission, limits, and errors in one shape.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::{body::Body, extract::Request, response::Response};
use futures::FutureExt;
use http::{Method, header::UPGRADE, request::Parts};
use ketch_api::{
    Status,
    request::{self, RequestInfo},
};

use crate::{
    auth::{Attributes, Decision, User},
    discovery, health, respond,
    rest::{self, Call},
    server::ApiServer,
};

mod audit;
pub(crate) mod limits;
pub(crate) mod query;

use query::Query;

/// Answers one request, whatever happens.
pub(crate) async fn serve(server: Arc<ApiServer>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let (method, path) = (parts.method.clone(), parts.uri.path().to_owned());
    let answer = AssertUnwindSafe(answer(server, parts, body)).catch_unwind().await;
    let mut response = match answer {
        Ok(Ok(response)) => response,
        Ok(Err(status)) => respond::failure(&status),
        Err(_) => {
            tracing::error!(%method, path, "a request handler panicked");
            respond::failure(&Status::internal(
                "the request could not be served because of a fault in the server",
            ))
        }
    };
    respond::finish(&mut response, method == Method::HEAD);
    response
}

async fn answer(server: Arc<ApiServer>, mut parts: Parts, body: Body) -> Result<Response, Status> {
    let info = RequestInfo::parse(parts.method.as_str(), parts.uri.path(), parts.uri.query())?;
    if info.verb.is_empty() {
        let message = format!("the server does not allow the method {} here", parts.method);
        return Err(Status::new(405, "MethodNotAllowed", message));
    }
    let user = identify(&server, &parts).await?;
    let entry = audit::Entry::new(&user, &info);
    parts.extensions.insert(user.clone());
    let result = permitted(server, parts, body, info, user).await;
    match &result {
        Ok(response) => entry.end(response.status().as_u16(), ""),
        Err(status) => entry.end(status.code, &status.reason),
    }
    result
}

async fn permitted(
    server: Arc<ApiServer>,
    parts: Parts,
    body: Body,
    info: RequestInfo,
    user: User,
) -> Result<Response, Status> {
    permit(&server, &user, &info, parts.uri.query())?;
    if streams(&parts, &info) {
        return dispatch(server, parts, body, info, user).await;
    }
    let write = info.is_resource && !matches!(info.verb.as_str(), "get" | "list" | "watch");
    // Health must be answered by a busy server too.
    let _turn = if info.is_resource { Some(server.limiter.turn(write).await?) } else { None };
    let timeout = server.limiter.timeout();
    match tokio::time::timeout(timeout, dispatch(server.clone(), parts, body, info, user)).await {
        Ok(result) => result,
        Err(_) => Err(Status::new(
            504,
            "Timeout",
            format!("Timeout: request did not complete within {} seconds", timeout.as_secs()),
        )),
    }
}

/// Whether the request lasts as long as its client wants.
fn streams(parts: &Parts, info: &RequestInfo) -> bool {
    info.verb == "watch"
        || (info.is_resource
            && matches!(info.subresource.as_str(), "log" | "exec" | "attach" | "portforward" | "proxy"))
        || parts.headers.contains_key(UPGRADE)
}

async fn identify(server: &ApiServer, parts: &Parts) -> Result<User, Status> {
    let user = match parts.extensions.get::<User>() {
        Some(user) => Some(user.clone()),
        None => server.authenticator.authenticate(parts).await?,
    };
    server.authenticator.effective(user.unwrap_or_else(User::anonymous), parts).await
}

/// Whether `user` may do what `info` says, as an error if not.
pub(crate) fn permit(
    server: &ApiServer,
    user: &User,
    info: &RequestInfo,
    query: Option<&str>,
) -> Result<(), Status> {
    let field_selector =
        query.and_then(|query| request::value_of(query, "fieldSelector")).unwrap_or_default();
    let attributes = Attributes {
        verb: info.verb.clone(),
        group: info.group.clone(),
        version: info.version.clone(),
        resource: info.resource.clone(),
        subresource: info.subresource.clone(),
        namespace: info.namespace.clone(),
        name: info.name.clone(),
        field_selector,
        path: info.path.clone(),
        is_resource: info.is_resource,
    };
    match server.authorizer.authorize(user, &attributes) {
        Decision::Allow => Ok(()),
        // Nobody without credentials learns more than that they are needed.
        Decision::Deny(_) if user.is_anonymous() => Err(Status::unauthorized()),
        Decision::Deny(reason) => Err(refusal(user, &attributes, &reason)),
    }
}

/// Upstream's words for a refusal (`pkg/endpoints/handlers/responsewriters/errors.go`).
fn refusal(user: &User, a: &Attributes, reason: &str) -> Status {
    let name = &user.name;
    let tail = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    if !a.is_resource {
        let gr = ketch_api::status::GroupResource { group: "", resource: "" };
        return Status::forbidden(
            gr,
            "",
            format!("User \"{name}\" cannot {} path \"{}\"{tail}", a.verb, a.path),
        );
    }
    let resource = match a.subresource.as_str() {
        "" => a.resource.clone(),
        sub => format!("{}/{sub}", a.resource),
    };
    let scope = match a.namespace.as_str() {
        "" => "at the cluster scope".to_owned(),
        namespace => format!("in the namespace \"{namespace}\""),
    };
    let why = format!(
        "User \"{name}\" cannot {} resource \"{resource}\" in API group \"{}\" {scope}{tail}",
        a.verb, a.group
    );
    let gr = ketch_api::status::GroupResource { group: &a.group, resource: &a.resource };
    Status::forbidden(gr, &a.name, why)
}

async fn dispatch(
    server: Arc<ApiServer>,
    parts: Parts,
    body: Body,
    info: RequestInfo,
    user: User,
) -> Result<Response, Status> {
    if !info.is_resource {
        return Ok(path(&server, &parts, &info).await);
    }
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    let now = server.now();
    rest::handle(Call { server, info, user, query, parts, now }, body).await
}

/// Paths that are about no resource.
async fn path(server: &ApiServer, parts: &Parts, info: &RequestInfo) -> Response {
    if !matches!(parts.method, Method::GET | Method::HEAD) {
        return respond::failure(&Status::new(405, "MethodNotAllowed", "only GET is allowed on this path"));
    }
    if let Some(response) = health::handle(server, parts, &info.path).await {
        return response;
    }
    if let Some(response) = discovery::handle(server, parts, &info.path) {
        return response;
    }
    let other = server.paths.iter().find_map(|handler| handler.handle(parts));
    other.unwrap_or_else(|| respond::text(404, "404 page not found\n"))
}
