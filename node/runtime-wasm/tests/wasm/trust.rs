//! Whose certificates guests trust.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use async_trait::async_trait;
use hyper_util::rt::TokioIo;
use ketch_runtime::{Error, Network, PodSandbox, Protocol};
use ketch_runtime_wasm::{InProcessCompiler, Options, WasmRuntime};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::{ServerConfig, pki_types::PrivateKeyDer};
use tokio::{net::TcpListener, task::JoinSet};

use crate::rig::{Guests, Pod, run};

/// A name of the API, and one of somebody else.
const API: &str = "kubernetes.default.svc";
const OTHER: &str = "web.example";

/// Every name leads to one server.
struct Hosts(SocketAddr);

#[async_trait]
impl Network for Hosts {
    async fn resolve(&self, _pod: &PodSandbox, _name: &str) -> Result<Vec<IpAddr>, Error> {
        Ok(vec![self.0.ip()])
    }

    fn route(
        &self,
        _pod: &PodSandbox,
        _target: SocketAddr,
        _protocol: Protocol,
    ) -> Result<SocketAddr, Error> {
        Ok(self.0)
    }

    async fn dial(&self, _pod: &PodSandbox, _host: &str, _port: u16) -> Result<Vec<SocketAddr>, Error> {
        Ok(vec![self.0])
    }

    fn is_api(&self, _pod: &PodSandbox, host: &str, port: u16) -> bool {
        (host == API || host == "127.42.97.1") && port == 443
    }
}

fn authority(name: &str) -> (Issuer<'static, KeyPair>, String) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    (Issuer::new(params, key), pem)
}

/// Serves HTTPS with a certificate of `issuer` for `names`, as long as the future is polled.
async fn serve(listener: TcpListener, issuer: &Issuer<'static, KeyPair>, names: &[&str]) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(names).unwrap().signed_by(&key, issuer).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let acceptor = acceptor.clone();
        connections.spawn(async move {
            // A client that does not like the certificate goes away.
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let answer =
                |_| async { Ok::<_, std::convert::Infallible>(http::Response::new("trusted".to_owned())) };
            let service = hyper::service::service_fn(answer);
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

#[test]
fn the_clusters_authority_is_trusted_for_its_api_alone() {
    run(async {
        let (cluster, pem) = authority("the cluster");
        let (stranger, _) = authority("somebody else");
        for (what, issuer, names, asked) in [
            ("the API by a name", &cluster, &[API][..], &[(API, true)][..]),
            ("the API by its address", &cluster, &["127.42.97.1"], &[("127.42.97.1", true)]),
            (
                "a server of the cluster's authority under another name",
                &cluster,
                &["node.example"],
                &[(API, false)],
            ),
            ("another authority", &stranger, &[API], &[(API, false)]),
            // No connection that was made to the API serves another name.
            ("another host", &cluster, &[API, OTHER], &[(OTHER, false), (API, true), (OTHER, false)]),
            ("another port", &cluster, &[API], &[("kubernetes.default.svc:8443", false)]),
        ] {
            let listener = TcpListener::bind("127.42.97.1:0").await.unwrap();
            let network = Arc::new(Hosts(listener.local_addr().unwrap()));
            let dir = tempfile::tempdir().unwrap();
            let options = Options {
                authority: Some(pem.clone()),
                ..Options::new(dir.path().to_owned(), network, Arc::new(InProcessCompiler))
            };
            let runtime = Arc::new(WasmRuntime::new(options).unwrap());
            let client = async {
                let pod = Pod::on(runtime, "test.local/hello:1", Arc::new(Guests::default())).await;
                let pod = pod.start().await;
                for (host, expected) in asked {
                    let (status, text) = pod.get(&format!("/fetch?url=https://{host}/")).await.unwrap();
                    let refused = status == 502 && text.contains("Tls");
                    assert_eq!(
                        (text == "trusted", refused),
                        (*expected, !expected),
                        "{what}: {status} {text}"
                    );
                }
                pod.remove().await;
            };
            tokio::select! {
                () = client => {}
                () = serve(listener, issuer, names) => {}
            }
        }
    });
}

#[test]
fn an_authority_that_cannot_be_read_is_said() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let network = Arc::new(Hosts(([127, 0, 0, 1], 1).into()));
        let options = Options {
            authority: Some("nothing".into()),
            ..Options::new(dir.path().to_owned(), network, Arc::new(InProcessCompiler))
        };
        let Err(error) = WasmRuntime::new(options) else { panic!("it has been taken") };
        assert!(error.to_string().contains("the certificate of the cluster's authority"), "{error}");
    });
}
