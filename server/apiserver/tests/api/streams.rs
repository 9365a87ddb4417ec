//! exec, attach and port-forward: who may, and bytes to a node that is elsewhere.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use axum::{Router, body::Body, extract, routing::any};
use http::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use ketch_api::Status;
use ketch_apiserver::{
    NodeConnector,
    auth::{Attributes, Authorizer, Decision, User},
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::harness::{Harness, PODS};

/// Reaches a node over HTTP/1.1 connections.
struct Elsewhere(SocketAddr, Mutex<JoinSet<()>>);

#[async_trait]
impl NodeConnector for Elsewhere {
    async fn request(&self, _node: &str, mut request: Request<Body>) -> Result<Response<Body>, Status> {
        // What another process cannot take.
        request.extensions_mut().clear();
        let io = TokioIo::new(TcpStream::connect(self.0).await.map_err(Status::internal)?);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(io).await.map_err(Status::internal)?;
        self.1.lock().unwrap().spawn(async move { connection.with_upgrades().await.unwrap() });
        let response = sender.send_request(request).await.map_err(Status::internal)?;
        Ok(response.map(Body::new))
    }
}

/// A node whose programs say how they were called, then all that they are told.
async fn node(tasks: &mut JoinSet<()>) -> SocketAddr {
    let sessions = Arc::new(Mutex::new(JoinSet::new()));
    let echo = any(async move |mut request: extract::Request| {
        let said = format!(
            "{} {} {}|",
            request.method(),
            request.uri(),
            request.headers()[header::SEC_WEBSOCKET_PROTOCOL].to_str().unwrap()
        );
        assert!(!request.headers().contains_key(header::AUTHORIZATION));
        let upgrade = hyper::upgrade::on(&mut request);
        sessions.lock().unwrap().spawn(async move {
            let (mut reader, mut writer) = tokio::io::split(TokioIo::new(upgrade.await.unwrap()));
            writer.write_all(said.as_bytes()).await.unwrap();
            tokio::io::copy(&mut reader, &mut writer).await.unwrap();
            writer.shutdown().await.unwrap();
        });
        let response = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
        response.header("connection", "Upgrade").header("upgrade", "websocket").body(Body::empty()).unwrap()
    });
    serve(tasks, Router::new().fallback(echo)).await
}

async fn serve(tasks: &mut JoinSet<()>, router: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
    address
}

/// A pod `p` on a node, unless that is not wanted.
async fn pod(harness: &Harness, bound: bool) {
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    harness.post(PODS, &pod).await.expect(201);
    if bound {
        let binding = json!({"target": {"kind": "Node", "name": "n1"}});
        harness.post(&format!("{PODS}/p/binding"), &binding).await.expect(201);
    }
}

#[tokio::test]
async fn bytes_reach_a_node_that_is_elsewhere() {
    let mut tasks = JoinSet::new();
    let node = node(&mut tasks).await;
    let harness =
        Harness::with(|config| config.nodes = Some(Arc::new(Elsewhere(node, Mutex::default())))).await;
    pod(&harness, true).await;
    let mut client = TcpStream::connect(serve(&mut tasks, harness.server.router()).await).await.unwrap();
    let head = format!(
        "GET {PODS}/p/exec?command=a&command=b HTTP/1.1\r\nhost: x\r\nauthorization: Bearer admin\r\n\
         connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: eA==\r\n\
         sec-websocket-protocol: v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.c2VjcmV0\r\n\r\n"
    );
    client.write_all(head.as_bytes()).await.unwrap();
    client.write_all(b"all that").await.unwrap();
    client.shutdown().await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    assert_eq!(body, "GET /exec/default/p/c?command=a&command=b v5.channel.k8s.io|all that");
}

#[tokio::test]
async fn what_cannot_be_is_refused_in_upstreams_words() {
    let harness = Harness::with(|config| {
        config.nodes = Some(Arc::new(Elsewhere(SocketAddr::from(([127, 0, 0, 1], 1)), Mutex::default())));
    })
    .await;
    let exec = format!("{PODS}/p/exec?command=x");
    harness.get(&exec).await.refused(404, "NotFound", "pods \"p\" not found");
    pod(&harness, false).await;
    for path in ["exec?command=x", "attach?a=b", "portforward"] {
        let unbound = harness.get(&format!("{PODS}/p/{path}")).await;
        unbound.refused(400, "BadRequest", "pod p does not have a host assigned");
    }
    let binding = json!({"target": {"kind": "Node", "name": "n1"}});
    harness.post(&format!("{PODS}/p/binding"), &binding).await.expect(201);
    harness.get(&exec).await.refused(400, "BadRequest", "Upgrade request required");
    harness.post(&exec, &json!({})).await.refused(400, "BadRequest", "Upgrade request required");
    let wrong = harness.get(&format!("{exec}&container=z")).await;
    wrong.refused(400, "BadRequest", "container z is not valid for pod p");
    let nothing = harness.get(&format!("{PODS}/p/exec")).await;
    nothing.refused(400, "BadRequest", "at least one command");
    harness.delete(&exec).await.refused(405, "MethodNotAllowed", "");
}

/// Everybody may read everything.
struct ReadOnly;

impl Authorizer for ReadOnly {
    fn authorize(&self, _: &User, attributes: &Attributes) -> Decision {
        match attributes.verb == "create" && attributes.subresource == "exec" {
            true => Decision::Deny(String::new()),
            false => Decision::Allow,
        }
    }
}

#[tokio::test]
async fn a_reader_runs_no_programs() {
    let harness = Harness::with(|config| config.authorizer = Arc::new(ReadOnly)).await;
    pod(&harness, true).await;
    let refused = harness.get(&format!("{PODS}/p/exec?command=x")).await;
    refused.refused(403, "Forbidden", "cannot create resource \"pods/exec\"");
}
