//! Guests of pods that have a network namespace, in real ones.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
};

use http_body_util::{BodyExt, Empty};
use ketch_net::netns;
use ketch_runtime::{Port, Protocol, Runtime};

use crate::rig::{Pod, run};

/// A namespace with its loopback up, for one test.
struct Namespace(String);

impl Namespace {
    fn new(name: &str) -> Option<Self> {
        let name = format!("ketch-wasm-{}-{name}", std::process::id());
        let ip = |arguments: &[&str]| {
            Command::new("ip").args(arguments).status().is_ok_and(|status| status.success())
        };
        if !nix::unistd::Uid::effective().is_root() || !ip(&["netns", "add", &name]) {
            println!("skipped: network namespaces need root and iproute2");
            return None;
        }
        let namespace = Self(name);
        assert!(ip(&["-n", &namespace.0, "link", "set", "lo", "up"]));
        Some(namespace)
    }

    fn path(&self) -> PathBuf {
        Path::new("/var/run/netns").join(&self.0)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn localhost(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

/// Body of an answer, asked for inside.
async fn get(namespace: &Path, target: SocketAddr, path: &str) -> String {
    let stream = netns::connect(namespace, target).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    let request = http::Request::get(path).header("host", "test").body(Empty::<bytes::Bytes>::new()).unwrap();
    let exchange = async move {
        let response = sender.send_request(request).await.unwrap();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(body.to_vec()).unwrap()
    };
    tokio::join!(exchange, connection).0
}

#[test]
fn an_http_server_is_found_at_localhost_of_its_namespace_only() {
    run(async {
        let Some(namespace) = Namespace::new("http") else { return };
        let pod = Pod::of("hello").await.inside(&namespace.path()).await.start().await;
        for target in [localhost(18080), SocketAddr::new(pod.ip, 18080)] {
            assert_eq!(get(&namespace.path(), target, "/").await, "Hello from WebAssembly!\n", "{target}");
            assert!(tokio::net::TcpStream::connect(target).await.is_err(), "{target} on the host");
        }
        // In process it is served as any other, and its own requests are made inside.
        let answer = pod.get(&format!("/fetch?url=http://{}:18080/", pod.ip)).await.unwrap();
        assert_eq!(answer, (200, "Hello from WebAssembly!\n".into()));
        let client = Pod::of("hello-p3").await.with(|spec| spec.ports[0].number = 18081);
        let client = client.inside(&namespace.path()).await.start().await;
        let answer = client.get("/tcp?to=127.0.0.1:18080").await.unwrap();
        assert_eq!(answer, (200, "127.0.0.1".into()), "0.3 clients are inside too");
        client.remove().await;
        pod.remove().await;
    });
}

#[test]
fn sockets_are_made_inside() {
    run(async {
        let Some(namespace) = Namespace::new("tcp") else { return };
        let ports = vec![Port { number: 7000, protocol: Protocol::Tcp }];
        let server =
            Pod::of("tcp-echo").await.with(|spec| spec.ports = ports).inside(&namespace.path()).await;
        let server = server.start().await;
        server.logged("listening on 0.0.0.0:7000").await;
        let client = Pod::of("tcp-echo").await.with(|spec| spec.args = words("connect 127.0.0.1 7000 ahoy"));
        let client = client.inside(&namespace.path()).await.start().await;
        assert_eq!(client.end().await.0, 0, "{:?}", client.log());
        assert_eq!(client.log()[1], "stdout F ahoy");
        server.logged("connection from 127.0.0.1:").await;
        // Stands for a container of the pod, which is not Wasm.
        netns::connect(&namespace.path(), localhost(7000)).await.unwrap();
        assert!(tokio::net::TcpStream::connect(localhost(7000)).await.is_err());
        client.remove().await;
        server.remove().await;
    });
}

#[test]
fn datagrams_are_sent_inside() {
    run(async {
        let Some(namespace) = Namespace::new("udp") else { return };
        let socket = netns::bind_udp(&namespace.path(), localhost(0)).unwrap();
        let port = socket.local_addr().unwrap().port();
        let client = Pod::of("tcp-echo").await.with(|spec| {
            spec.args = words(&format!("datagram 127.0.0.1 {port} ahoy"));
        });
        let client = client.inside(&namespace.path()).await.start().await;
        let echo = async {
            let mut buffer = [0; 64];
            let (length, peer) = socket.recv_from(&mut buffer).await.unwrap();
            socket.send_to(&buffer[..length], peer).await.unwrap();
        };
        let ((), end) = tokio::join!(echo, client.end());
        assert_eq!(end.0, 0, "{:?}", client.log());
        assert_eq!(client.log(), [format!("stdout F ahoy from 127.0.0.1:{port}")]);
        client.remove().await;
    });
}

#[test]
fn a_namespace_that_is_gone_is_named() {
    run(async {
        let pod = Pod::of("hello").await.inside(Path::new("/var/run/netns/ketch-none")).await;
        let error = pod.runtime.start(&pod.id, pod.spec.clone()).await.unwrap_err().to_string();
        assert!(error.contains("network namespace /var/run/netns/ketch-none"), "{error}");
        pod.remove().await;
    });
}
