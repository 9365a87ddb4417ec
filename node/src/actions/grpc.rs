//! gRPC probes: one call of `grpc.health.v1.Health/Check`. Its messages have one field each, so they are written
//! and read here.

use std::net::SocketAddr;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};

/// Largest answer read.
const ANSWER: usize = 4096;
/// `SERVING`.
const SERVING: u64 = 1;
/// gRPC's code for a method that there is not.
const UNIMPLEMENTED: &str = "12";

/// Asks the server at `target` how `service` is; the empty one is the server itself. The caller bounds the time.
///
/// # Errors
/// When the answer is anything but `SERVING`.
pub(super) async fn check(target: SocketAddr, service: &str) -> Result<(), String> {
    let stream = tokio::net::TcpStream::connect(target).await;
    let stream = stream.map_err(|error| format!("failed to connect service \"{target}\": {error}"))?;
    exchange(stream, request(target, service)?).await
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |error: hyper::Error| format!("health rpc failed: {error}");
    let executor = TokioExecutor::new();
    let handshake = hyper::client::conn::http2::handshake(executor, TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(failed)?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(failed)?;
        if !response.status().is_success() {
            return Err(format!("health rpc failed: HTTP status {}", response.status()));
        }
        let (head, body) = response.into_parts();
        let body = Limited::new(body, ANSWER).collect().await;
        let body = body.map_err(|error| format!("health rpc failed: {error}"))?;
        // An answer without a message has its status in the header.
        judge(body.trailers().unwrap_or(&head.headers))?;
        status(&body.to_bytes())
    };
    tokio::pin!(answer);
    let mut connection = Box::pin(connection);
    tokio::select! {
        answered = &mut answer => answered,
        end = &mut connection => {
            // A server that closes after its answer: the answer is here, or it will never be.
            drop(connection);
            let answered = answer.await;
            match end {
                Ok(()) => answered,
                Err(error) => answered.map_err(|_| failed(error)),
            }
        }
    }
}

fn request(target: SocketAddr, service: &str) -> Result<Request<Full<Bytes>>, String> {
    Request::post(format!("http://{target}/grpc.health.v1.Health/Check"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, "kube-probe/1.35")
        .body(Full::new(message(service)))
        .map_err(|error| error.to_string())
}

/// `HealthCheckRequest { string service = 1; }`, uncompressed, with its length before it.
fn message(service: &str) -> Bytes {
    let mut field = BytesMut::new();
    if !service.is_empty() {
        field.put_u8(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            field.put_u8(u8::try_from(length & 0x7f).unwrap_or_default() | 0x80);
            length >>= 7;
        }
        field.put_u8(u8::try_from(length).unwrap_or_default());
        field.put_slice(service.as_bytes());
    }
    let mut message = BytesMut::with_capacity(field.len() + 5);
    message.put_u8(0);
    message.put_u32(u32::try_from(field.len()).unwrap_or(u32::MAX));
    message.put_slice(&field);
    message.freeze()
}

/// The call's own status.
pub(super) fn judge(trailers: &HeaderMap) -> Result<(), String> {
    let text = |name: &str| trailers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match text("grpc-status") {
        "0" => Ok(()),
        UNIMPLEMENTED => {
            Err("this server does not implement the grpc health protocol (grpc.health.v1.Health)".to_owned())
        }
        "" => Err("health rpc failed: the server sent no grpc-status".to_owned()),
        code => Err(format!("health rpc failed: code {code}: {}", text("grpc-message"))),
    }
}

/// `HealthCheckResponse { ServingStatus status = 1; }`.
pub(super) fn status(answer: &[u8]) -> Result<(), String> {
    let field = match answer.get(5..) {
        Some([0x08, value, ..]) => u64::from(*value),
        // The default is not written.
        Some([]) => 0,
        _ => return Err("health rpc failed: the answer cannot be read".to_owned()),
    };
    let name = match field {
        SERVING => return Ok(()),
        2 => "NOT_SERVING",
        3 => "SERVICE_UNKNOWN",
        _ => "UNKNOWN",
    };
    Err(format!("service unhealthy (responded with \"{name}\")"))
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::atomic::{AtomicBool, Ordering::Relaxed},
    };

    use http::Response;
    use hyper::service::service_fn;

    use super::*;

    #[test]
    fn messages_have_protobufs_form() {
        assert_eq!(&message("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&message("db")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'd', b'b']);
        let long = message(&"s".repeat(300));
        assert_eq!(&long[..8], [0, 0, 0, 1, 0x2f, 0x0a, 0xac, 0x02]);
        assert_eq!(status(&[0, 0, 0, 0, 2, 8, 1]), Ok(()));
        for (answer, word) in [
            (&[0, 0, 0, 0, 2, 8, 2][..], "NOT_SERVING"),
            (&[0, 0, 0, 0, 0], "UNKNOWN"),
            (&[0, 0], "cannot be read"),
        ] {
            assert!(status(answer).unwrap_err().contains(word), "{answer:?}");
        }
    }

    /// A health service over real HTTP/2: `good` serves, `bad` does not, others are not known.
    async fn answer(
        request: Request<hyper::body::Incoming>,
    ) -> Result<Response<http_body_util::combinators::BoxBody<Bytes, Infallible>>, Infallible> {
        assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
        let asked = request.into_body().collect().await.unwrap().to_bytes();
        let (code, state) = match &asked[..] {
            [.., b'g', b'o', b'o', b'd'] => ("0", 1),
            [.., b'b', b'a', b'd'] => ("0", 2),
            _ => ("5", 0),
        };
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", code.parse().unwrap());
        let body = Full::new(Bytes::from(vec![0, 0, 0, 0, 2, 8, state]));
        Ok(Response::new(body.with_trailers(std::future::ready(Some(Ok(trailers)))).boxed()))
    }

    #[tokio::test]
    async fn a_server_that_closes_with_its_answer_has_answered() {
        // Who is asked first, the answer or the connection, is chance.
        for _ in 0..64 {
            let (near, far) = tokio::io::duplex(4096);
            let asked = AtomicBool::new(false);
            let service = service_fn(|request| {
                asked.store(true, Relaxed);
                answer(request)
            });
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let connection = builder.serve_connection(TokioIo::new(far), service);
            let server = async {
                tokio::pin!(connection);
                std::future::poll_fn(|context| {
                    let polled = connection.as_mut().poll(context);
                    if asked.load(Relaxed) {
                        connection.as_mut().graceful_shutdown();
                    }
                    polled
                })
                .await
            };
            let request = request("127.0.0.1:1".parse().unwrap(), "good").unwrap();
            let (answered, _) = tokio::join!(exchange(near, request), server);
            assert_eq!(answered, Ok(()));
        }
    }

    #[tokio::test]
    async fn a_server_is_asked_over_http2() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        let server = async {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let service = service_fn(answer);
                let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            }
        };
        let client = async {
            assert_eq!(check(target, "good").await, Ok(()));
            assert_eq!(
                check(target, "bad").await.unwrap_err(),
                "service unhealthy (responded with \"NOT_SERVING\")"
            );
            assert!(check(target, "other").await.unwrap_err().starts_with("health rpc failed: code 5"));
        };
        tokio::select! {
            () = server => {}
            () = client => {}
        }
        drop(listener);
        assert!(check(target, "").await.unwrap_err().starts_with("failed to connect service"));
    }
}
