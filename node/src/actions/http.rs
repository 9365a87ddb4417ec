//! HTTP requests of probes and hooks: in process where the target is served in this process.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use ketch_api::k8s::{api::core::v1 as core, apimachinery::pkg::util::intstr::IntOrString};
use ketch_runtime::Body;
use tokio::io::{AsyncRead, AsyncWrite};

use super::tls;
use crate::context::Context;

/// Sends the request an action describes; the status code of the answer. Redirects are not followed. The
/// caller bounds the time.
pub(super) async fn get(
    context: &Context,
    container: &core::Container,
    action: &core::HTTPGetAction,
    ip: IpAddr,
) -> Result<u16, String> {
    let port = port_number(container, &action.port)?;
    let tls = action.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"));
    let host = action.host.as_deref().filter(|host| !host.is_empty());
    let authority = match host {
        Some(host) => format!("{host}:{port}"),
        None => SocketAddr::new(ip, port).to_string(),
    };
    let scheme = if tls { "https" } else { "http" };
    let request = request(action, scheme, &authority)?;
    let address = SocketAddr::new(ip, port);
    let own = host.is_none_or(|host| host.parse() == Ok(ip));
    if own
        && !tls
        && let Some(service) = context.services.by_address(address)
    {
        let response =
            service.call(request).await.map_err(|error| format!("Get \"http://{authority}\": {error}"))?;
        return Ok(response.status().as_u16());
    }
    let host = host.map_or_else(|| ip.to_string(), str::to_owned);
    let answered = over_socket(&host, port, tls, request).await;
    answered.map_err(|error| format!("Get \"{scheme}://{authority}\": {error}"))
}

fn request(action: &core::HTTPGetAction, scheme: &str, authority: &str) -> Result<Request<Body>, String> {
    let path = action.path.as_deref().unwrap_or("/");
    let slash = if path.starts_with('/') { "" } else { "/" };
    let mut request = Request::builder()
        .uri(format!("{scheme}://{authority}{slash}{path}"))
        .header(header::USER_AGENT, "kube-probe/1.35")
        .header(header::ACCEPT, "*/*");
    let headers = action.http_headers.as_deref().unwrap_or_default();
    if !headers.iter().any(|one| one.name.eq_ignore_ascii_case("host")) {
        request = request.header(header::HOST, authority);
    }
    for one in headers {
        request = request.header(&one.name, &one.value);
    }
    let body = Empty::<Bytes>::new().map_err(|never| match never {}).boxed_unsync();
    request.body(body).map_err(|error| error.to_string())
}

type Problem = Box<dyn std::error::Error + Send + Sync>;

async fn over_socket(host: &str, port: u16, tls: bool, mut request: Request<Body>) -> Result<u16, Problem> {
    let path = request.uri().path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string);
    *request.uri_mut() = path.parse()?;
    let stream = tokio::net::TcpStream::connect((host, port)).await?;
    if tls {
        exchange(tls::connect(stream, host).await?, request).await
    } else {
        exchange(stream, request).await
    }
}

async fn exchange<S>(stream: S, request: Request<Body>) -> Result<u16, Problem>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // The connection is driven here, and ends here.
    let response = sender.send_request(request);
    tokio::pin!(connection, response);
    let answered = tokio::select! {
        answered = &mut response => answered,
        end = &mut connection => {
            end?;
            // A server that closes after its answer: the answer is here, or it will never be.
            response.await
        }
    };
    Ok(answered?.status().as_u16())
}

/// A port by number, or by its name in the container.
pub(super) fn port_number(container: &core::Container, port: &IntOrString) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => {
            let named = |port: &&core::ContainerPort| port.name.as_deref() == Some(name);
            let found = container.ports.iter().flatten().find(named).map(|port| port.container_port);
            found.or_else(|| name.parse().ok())
        }
    };
    let text = || match port {
        IntOrString::Int(number) => number.to_string(),
        IntOrString::String(name) => name.clone(),
    };
    number
        .and_then(|n| u16::try_from(n).ok())
        .filter(|n| *n > 0)
        .ok_or_else(|| format!("invalid port: {}", text()))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_server_that_closes_with_its_answer_has_answered() {
        let (near, mut far) = tokio::io::duplex(4096);
        let server = async {
            assert!(far.read(&mut [0; 4096]).await.unwrap() > 0);
            far.write_all(b"HTTP/1.0 503 Busy\r\n\r\n").await.unwrap();
            drop(far);
        };
        let request = Request::get("/").body(Empty::new().map_err(|never| match never {}).boxed_unsync());
        let (answered, ()) = tokio::join!(exchange(near, request.unwrap()), server);
        assert_eq!(answered.unwrap(), 503);
    }
}
