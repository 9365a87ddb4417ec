//! The gateway against an API that lists and watches.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use ketch_gateway::{Gateway, Routes};
use serde_json::{Value, json};
use tokio::sync::{Mutex, mpsc};
use tokio_rustls::rustls;

use super::{Answer, Caller, HOST, Local, function, options, pod};

type Watcher = mpsc::UnboundedSender<Value>;

/// An API of lists that can be changed, and of watches that tell.
#[derive(Clone, Default)]
struct Api(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Vec<Value>>,
    watchers: BTreeMap<String, Vec<Watcher>>,
    /// Lists of this plural are not answered yet.
    held: Option<(String, Arc<tokio::sync::Notify>)>,
    version: u64,
}

impl Api {
    async fn answer(&self, request: Request<kube::client::Body>) -> Response<ketch_runtime::Body> {
        let plural = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let held = self.0.lock().await.held.clone().filter(|(of, _)| *of == plural);
        if let Some((_, go)) = held {
            go.notified().await;
        }
        let mut state = self.0.lock().await;
        if request.uri().query().is_some_and(|q| q.contains("watch=true")) {
            let (sender, mut receiver) = mpsc::unbounded_channel::<Value>();
            state.watchers.entry(plural).or_default().push(sender);
            let events = futures::stream::poll_fn(move |cx| receiver.poll_recv(cx));
            let frames =
                futures::StreamExt::map(events, |event| Ok(Frame::data(format!("{event}\n").into())));
            return Response::new(BodyExt::boxed_unsync(StreamBody::new(frames)));
        }
        let items = state.objects.get(&plural).cloned().unwrap_or_default();
        let list = json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": state.version.to_string()}, "items": items});
        Response::new(super::full(list.to_string()))
    }

    fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let api = api.clone();
            async move { Ok::<_, std::convert::Infallible>(api.answer(request).await) }
        });
        kube::Client::new(service, "default")
    }

    async fn put(&self, plural: &str, mut object: Value) {
        let mut state = self.0.lock().await;
        state.version += 1;
        object["metadata"]["resourceVersion"] = state.version.to_string().into();
        state.objects.entry(plural.to_owned()).or_default().push(object.clone());
        for watcher in state.watchers.get(plural).into_iter().flatten() {
            let _ = watcher.send(json!({"type": "ADDED", "object": object}));
        }
    }
}

async fn wait_for(routes: &Routes, what: impl Fn(&Routes) -> bool) {
    let mut changes = routes.changes();
    while !what(routes) {
        tokio::time::timeout(Duration::from_secs(20), changes.changed())
            .await
            .expect("no change in time")
            .unwrap();
    }
}

#[tokio::test]
async fn routes_follow_the_cluster() {
    let (api, local) = (Api::default(), Local::default());
    local.add("10.42.0.1", Answer::Echo);
    let go = Arc::new(tokio::sync::Notify::new());
    api.0.lock().await.held = Some(("ingresses".into(), Arc::clone(&go)));
    api.put("functions", function(&[("r1", 100)])).await;
    let gateway = Gateway::start(api.client(), options(&local)).unwrap();
    let caller = Caller::new(&gateway);
    // All but one kind are listed: that is not enough.
    while api.0.lock().await.watchers.len() < 5 {
        tokio::task::yield_now().await;
    }
    assert_eq!(caller.get(HOST, "/").await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(!gateway.routes().current().is_complete());
    api.0.lock().await.held = None;
    go.notify_one();
    wait_for(gateway.routes(), |routes| routes.current().is_complete()).await;
    api.put("pods", pod("r1", "10.42.0.1")).await;
    // The request may be ahead of the watch: it is held.
    assert_eq!(caller.get(HOST, "/").await.status, StatusCode::OK);
    assert!(gateway.shutdown(Duration::from_secs(20)).await);
}

/// Trusts every certificate: the tests make their own.
#[derive(Debug)]
pub(super) struct AnyCertificate(pub(super) Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &rustls::pki_types::CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &rustls::pki_types::CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
