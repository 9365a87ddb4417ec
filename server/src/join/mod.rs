//! Letting nodes in: a token buys a certificate and a range of pod addresses, once.
//!
//! The endpoints and their bodies are [`ketch_api::join`]'s. The order of a join matters: everything that can
//! be wrong with a request is looked at before the token is used up, and the range is written into the Node
//! object before anybody else is let in.

mod ranges;

use std::{sync::Arc, time::Duration};

use axum::body::Body;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use ipnet::Ipv4Net;
use jiff::Timestamp;
use ketch_api::{
    Status, join,
    k8s::{
        api::core::v1::{Node, NodeSpec, Taint},
        apimachinery::pkg::apis::meta::v1::ObjectMeta,
    },
};
use ketch_apiserver::{
    auth::{Attributes, Auth, Authenticator, Authorizer, Decision, User, node::node_name},
    pki::Pki,
};
use kube::{Api, api::PostParams};
use serde::Serialize;
use tokio::sync::Mutex;

/// Longest body of a request: a signing request is below 1 KiB.
const MAX_BODY: usize = 32 * 1024;

/// The door for nodes.
pub(crate) struct Joins {
    pub(crate) auth: Arc<Auth>,
    pub(crate) pki: Arc<Pki>,
    /// With the server's own rights.
    pub(crate) client: kube::Client,
    /// But for the relay, which is known when it is open.
    pub(crate) cluster: join::Cluster,
    pub(crate) pods: Ipv4Net,
    /// Life of a node's certificates.
    pub(crate) life: Duration,
    /// One at a time; `None`: what is beside the server in this process is not known yet.
    pub(crate) open: Mutex<Option<Open>>,
}

/// What nodes on other machines have to know of what is beside the server in its process.
pub(crate) struct Open {
    /// Pod addresses of its node.
    pub(crate) reserved: Vec<Ipv4Net>,
    /// Where nodes meet.
    pub(crate) relay: Option<join::Relay>,
}

// === impl Joins ===

impl Joins {
    /// Lets nodes in from now on; their ranges overlap none of the reserved ones.
    pub(crate) async fn open(&self, open: Open) {
        *self.open.lock().await = Some(open);
    }

    /// Answers a request under `/ketch/v1/`.
    pub(crate) async fn serve(&self, request: Request<Body>) -> Response<Body> {
        match self.route(request).await {
            Ok(response) => response,
            Err(status) => answer(status.code, &status),
        }
    }

    async fn route(&self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let (parts, body) = request.into_parts();
        let user = match parts.extensions.get::<User>() {
            Some(user) => user.clone(),
            None => self.auth.authenticate(&parts).await?.ok_or_else(Status::unauthorized)?,
        };
        let path = parts.uri.path();
        self.permit(&user, &parts.method, path)?;
        match (&parts.method, path) {
            (&Method::POST, join::JOIN_PATH) => Ok(answer(201, &self.join(&user, read(body).await?).await?)),
            (&Method::POST, join::RENEW_PATH) => {
                Ok(answer(201, &self.renew(&user, read(body).await?).await?))
            }
            (&Method::GET, join::CLUSTER_PATH) => {
                let open = self.open.lock().await;
                Ok(answer(200, &self.cluster(open.as_ref().ok_or_else(starting)?)))
            }
            _ => Err(Status::no_resource()),
        }
    }

    fn permit(&self, user: &User, method: &Method, path: &str) -> Result<(), Status> {
        let verb = method.as_str().to_ascii_lowercase();
        let wanted = Attributes { verb, path: path.to_owned(), ..Attributes::default() };
        match self.auth.authorize(user, &wanted) {
            Decision::Allow => Ok(()),
            Decision::Deny(_) => {
                let text = format!("User \"{}\" cannot {} path \"{path}\"", user.name, wanted.verb);
                Err(Status::new(403, "Forbidden", text))
            }
        }
    }

    async fn join(&self, user: &User, request: join::Request) -> Result<join::Membership, Status> {
        let name = &request.node_name;
        check_name(name)?;
        // Until the end: two nodes must not be given the same range.
        let open = self.open.lock().await;
        let open = open.as_ref().ok_or_else(starting)?;
        let nodes = Api::<Node>::all(self.client.clone());
        let known = nodes.list(&kube::api::ListParams::default()).await.map_err(|e| failed(&e))?.items;
        let own = known.iter().find(|node| node.metadata.name.as_deref() == Some(name));
        if own.is_some_and(|node| ranges::is_live(node, Timestamp::now())) {
            return Err(taken(name));
        }
        let range = match own.and_then(|node| ranges::of(node).first().copied()) {
            Some(range) => range,
            None => {
                let taken = known.iter().flat_map(ranges::of).chain(open.reserved.iter().copied());
                ranges::free(self.pods, &taken.collect::<Vec<_>>()).ok_or_else(|| self.full())?
            }
        };
        let membership = self.membership(&request, range, open)?;
        self.auth.use_up_token(user).await?;
        if own.is_none() {
            nodes.create(&PostParams::default(), &object(name, range)).await.map_err(|e| failed(&e))?;
        }
        tracing::info!(node = name, %range, token = user.name, "a node has joined");
        Ok(membership)
    }

    async fn renew(&self, user: &User, request: join::Request) -> Result<join::Membership, Status> {
        let name = node_name(user)
            .filter(|name| *name == request.node_name)
            .ok_or_else(|| Status::new(403, "Forbidden", "a node can renew its own certificate only"))?;
        let nodes = Api::<Node>::all(self.client.clone());
        let node = nodes.get_opt(name).await.map_err(|e| failed(&e))?;
        let range = node.as_ref().and_then(|node| ranges::of(node).first().copied());
        let range = range.ok_or_else(|| {
            let text =
                format!("node \"{name}\" is not part of this cluster any more; join again with a token");
            Status::new(403, "Forbidden", text)
        })?;
        let open = self.open.lock().await;
        self.membership(&request, range, open.as_ref().ok_or_else(starting)?)
    }

    fn cluster(&self, open: &Open) -> join::Cluster {
        join::Cluster { relay: open.relay.clone(), ..self.cluster.clone() }
    }

    fn membership(
        &self,
        request: &join::Request,
        range: Ipv4Net,
        open: &Open,
    ) -> Result<join::Membership, Status> {
        let range = range.to_string();
        let (text, name) = (&request.signing_request, &request.node_name);
        let signed = self.pki.sign_node(text, name, &[&range], self.life);
        let signed = signed
            .map_err(|error| Status::bad_request(format!("the signing request cannot be used: {error}")))?;
        Ok(join::Membership {
            authority: self.pki.ca_pem().to_owned(),
            certificate: signed.node,
            gateway_certificate: signed.gateway,
            life_seconds: self.life.as_secs(),
            pod_range: range,
            cluster: self.cluster(open),
        })
    }

    fn full(&self) -> Status {
        let text = format!(
            "no pod addresses are left in {}: remove nodes that are gone (`kubectl delete node NAME`), or start \
             the server with a larger --pod-cidr",
            self.pods
        );
        Status::new(409, "Conflict", text)
    }
}

/// The Node object of a node that has not reported yet.
fn object(name: &str, range: Ipv4Net) -> Node {
    // Until its first report nothing must be scheduled to it; the node controller takes this away.
    let taint =
        Taint { key: "node.kubernetes.io/not-ready".into(), effect: "NoSchedule".into(), ..Taint::default() };
    Node {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        spec: Some(NodeSpec {
            pod_cidr: Some(range.to_string()),
            pod_cidrs: Some(vec![range.to_string()]),
            taints: Some(vec![taint]),
            ..NodeSpec::default()
        }),
        status: None,
    }
}

fn check_name(name: &str) -> Result<(), Status> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let inner = name.bytes().all(|b| plain(b) || b == b'-' || b == b'.');
    let ends = [name.bytes().next(), name.bytes().last()].iter().all(|end| end.is_some_and(plain));
    match inner && ends && name.len() <= 63 {
        true => Ok(()),
        false => Err(Status::bad_request(format!(
            "\"{name}\" is not a name for a node; choose one with --node-name"
        ))),
    }
}

fn starting() -> Status {
    Status::unavailable("the server is starting")
}

fn taken(name: &str) -> Status {
    let text = format!(
        "a node named \"{name}\" is part of this cluster and alive; choose another name with --node-name, or stop \
         that node first"
    );
    Status::new(409, "AlreadyExists", text)
}

fn failed(error: &kube::Error) -> Status {
    Status::internal(ketch_client::status_text(error))
}

async fn read(body: Body) -> Result<join::Request, Status> {
    let body = axum::body::to_bytes(body, MAX_BODY).await.map_err(|_| Status::too_large(MAX_BODY))?;
    serde_json::from_slice(&body)
        .map_err(|error| Status::bad_request(format!("the body cannot be read: {error}")))
}

fn answer<T: Serialize>(code: u16, body: &T) -> Response<Body> {
    let mut response = Response::new(Body::from(serde_json::to_vec(body).unwrap_or_default()));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
