//! What the console needs besides the Kubernetes API: its files, its session, one socket for all its
//! watches, and a way to call Functions.
//!
//! | | |
//! | --- | --- |
//! | `POST /console/login` `{"token"}` | exchanges a one-time token for a session cookie |
//! | `POST /console/logout` | ends the session |
//! | `GET /console/session` | who is logged in, or 401 |
//! | `POST /console/tokens` | a new login link, for whoever asks |
//! | any `/console/invoke/{namespace}/{name}/{path}` | calls a Function through the gateway |
//! | `GET /console/watch` | WebSocket: see [`watch`] |

pub(crate) mod assets;
mod invoke;
mod watch;

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{ConnectInfo, FromRequestParts, WebSocketUpgrade},
};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use ketch_api::Status;
use ketch_apiserver::auth::{
    Attributes, Auth, Authenticator, Authorizer, Decision, User, console as sessions,
};
use serde::Deserialize;
use serde_json::{Value, json};

/// How long a login link works.
pub const LINK_LIFE: Duration = Duration::from_secs(24 * 3600);
/// Longest body of a login.
const MAX_BODY: usize = 16 * 1024;

/// The console's own endpoints.
#[derive(Clone)]
pub(crate) struct Console {
    pub(crate) api: Router,
    pub(crate) auth: Arc<Auth>,
    pub(crate) invoker: invoke::Invoker,
    /// Where the gateway listens, once there is one.
    pub(crate) gateway: Arc<OnceLock<SocketAddr>>,
    /// Address of the plain listener, for login links.
    pub(crate) ui: SocketAddr,
}

#[derive(Deserialize)]
struct Login {
    token: String,
}

impl Console {
    pub(crate) fn invoker() -> invoke::Invoker {
        invoke::Invoker::new()
    }

    /// Answers a request under `/console/`.
    pub(crate) async fn serve(self, request: Request<Body>) -> Response<Body> {
        match self.route(request).await {
            Ok(response) => response,
            Err(status) => answer(status.code, &status.to_json()),
        }
    }

    async fn route(&self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let path = request.uri().path().trim_start_matches("/console/").to_owned();
        match (request.method(), path.as_str()) {
            (&Method::POST, "login") => self.login(request).await,
            (&Method::POST, "logout") => self.logout(request).await,
            (&Method::GET, "session") => self.session(request).await,
            (&Method::POST, "tokens") => self.token(request).await,
            (&Method::GET, "watch") => self.watch(request).await,
            (_, path) if path.starts_with("invoke/") => self.invoke(path, request).await,
            _ => Err(Status::no_resource()),
        }
    }

    async fn login(&self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let from = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip());
        let secure = request.extensions().get::<crate::front::Tls>().is_some();
        if !request.headers().contains_key(sessions::HEADER) {
            return Err(Status::bad_request(format!("the header {} is missing", sessions::HEADER)));
        }
        let body = axum::body::to_bytes(request.into_body(), MAX_BODY).await;
        let body = body.map_err(|_| Status::too_large(MAX_BODY))?;
        let login: Login = serde_json::from_slice(&body)
            .map_err(|_| Status::bad_request("the body must be {\"token\": \"…\"}"))?;
        let session = self.auth.console().login(&login.token, from).await?;
        Ok(with_cookie(&session.set_cookie(secure)))
    }

    async fn logout(&self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let secure = request.extensions().get::<crate::front::Tls>().is_some();
        self.auth.console().logout(request.headers()).await?;
        Ok(with_cookie(&sessions::clear_cookie(secure)))
    }

    async fn session(&self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let (user, _) = self.identify(request).await?;
        let gateway = self.gateway.get().map(|address| match address.port() {
            80 => "localhost".to_owned(),
            port => format!("localhost:{port}"),
        });
        let session = json!({ "user": user.name, "version": env!("CARGO_PKG_VERSION"), "gateway": gateway });
        Ok(answer(200, &session))
    }

    /// A link for the same user: nobody gets more than they have.
    async fn token(&self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let (user, _) = self.identify(request).await?;
        let groups: Vec<&str> = user.groups.iter().map(String::as_str).collect();
        let token = self.auth.console().create_token(&user.name, &groups, LINK_LIFE).await?;
        Ok(answer(201, &json!({ "token": token, "link": link(self.ui, &token) })))
    }

    async fn watch(&self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let (user, mut parts) = self.identify(request).await?;
        let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &())
            .await
            .map_err(|rejection| Status::bad_request(rejection.to_string()))?;
        let mut identity = http::Extensions::new();
        identity.insert(user);
        let api = self.api.clone();
        let upgrade = upgrade.max_message_size(watch::MAX_COMMAND).max_frame_size(watch::MAX_COMMAND);
        Ok(upgrade.on_upgrade(move |socket| watch::serve(socket, api, identity)))
    }

    async fn invoke(&self, path: &str, request: Request<Body>) -> Result<Response<Body>, Status> {
        let mut segments = path.trim_start_matches("invoke/").splitn(3, '/');
        let (Some(namespace), Some(name)) = (segments.next(), segments.next()) else {
            return Err(Status::no_resource());
        };
        let rest = segments.next().unwrap_or_default();
        // A page of a function must never be opened with the console's origin and cookie.
        if !request.headers().contains_key(sessions::HEADER) {
            return Err(Status::bad_request(format!("the header {} is missing", sessions::HEADER)));
        }
        let (parts, body) = request.into_parts();
        let (user, parts) = self.identify(Request::from_parts(parts, Body::empty())).await?;
        self.may_invoke(&user, namespace, name)?;
        let gateway = self.gateway.get().ok_or_else(|| Status::unavailable("this server has no gateway"))?;
        self.invoker.call(*gateway, (namespace, name, rest), Request::from_parts(parts, body)).await
    }

    fn may_invoke(&self, user: &User, namespace: &str, name: &str) -> Result<(), Status> {
        let wanted = Attributes {
            verb: "create".into(),
            group: ketch_api::names::DOMAIN.into(),
            version: "v1".into(),
            resource: "functions".into(),
            subresource: "invoke".into(),
            namespace: namespace.into(),
            name: name.into(),
            is_resource: true,
            ..Attributes::default()
        };
        match self.auth.authorize(user, &wanted) {
            Decision::Allow => Ok(()),
            Decision::Deny(_) => Err(Status::new(
                403,
                "Forbidden",
                format!("User \"{}\" cannot invoke functions in namespace \"{namespace}\"", user.name),
            )),
        }
    }

    async fn identify(&self, request: Request<Body>) -> Result<(User, http::request::Parts), Status> {
        let (parts, _) = request.into_parts();
        let user = match parts.extensions.get::<User>() {
            Some(user) => user.clone(),
            None => self.auth.authenticate(&parts).await?.ok_or_else(Status::unauthorized)?,
        };
        Ok((user, parts))
    }
}

/// The link that logs in with `token`.
pub fn link(ui: SocketAddr, token: &str) -> String {
    format!("http://{ui}/login?token={token}")
}

fn answer(code: u16, body: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn with_cookie(cookie: &str) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    if let Ok(value) = HeaderValue::from_str(cookie) {
        response.headers_mut().insert(header::SET_COOKIE, value);
    }
    response
}
