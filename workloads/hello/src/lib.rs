//! A small web service: the first thing to deploy.
//!
//! | path | answer |
//! | --- | --- |
//! | `/` | `$GREETING`, or a default |
//! | `/env` | the environment, one `NAME=value` a line |
//! | `/echo` | the request's body |
//! | `/big?n=N` | N bytes |
//! | `/slow?ms=N` | after N milliseconds |
//! | `/file?path=FILE` | the file, or 404 |
//! | `/fetch?url=URL` | status and body of URL, fetched by this component |
//! | `/api?url=URL` | the same, as the pod's service account: with its token |
//! | `/grpc.health.v1.Health/Check` | gRPC's: the server is well, a service by name is not known |
//!
//! Writes one line per request to its log.

use wasip2::{
    clocks::monotonic_clock,
    http::{
        outgoing_handler,
        types::{
            Fields, IncomingBody, IncomingRequest, OutgoingBody, OutgoingRequest, OutgoingResponse,
            ResponseOutparam, Scheme,
        },
    },
    io::streams::StreamError,
};

struct Hello;

wasip2::http::proxy::export!(Hello);

impl wasip2::exports::http::incoming_handler::Guest for Hello {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = request.path_with_query().unwrap_or_default();
        println!("{} {target}", method(&request));
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        match path {
            "/env" => {
                let env: Vec<_> = std::env::vars().map(|(name, value)| format!("{name}={value}\n")).collect();
                respond(out, 200, env.concat().as_bytes());
            }
            "/echo" => echo(request, out),
            "/big" => respond(out, 200, &vec![b'k'; parameter(query, "n").unwrap_or(1 << 20)]),
            "/slow" => {
                let wait = parameter(query, "ms").unwrap_or(100) as u64;
                monotonic_clock::subscribe_duration(wait * 1_000_000).block();
                respond(out, 200, b"slow\n");
            }
            "/file" => match std::fs::read(query.strip_prefix("path=").unwrap_or_default()) {
                Ok(bytes) => respond(out, 200, &bytes),
                Err(error) => respond(out, 404, format!("{error}\n").as_bytes()),
            },
            "/grpc.health.v1.Health/Check" => health(request, out),
            "/fetch" | "/api" => {
                let url = query.strip_prefix("url=").unwrap_or_default();
                let fields = if path == "/api" { authorization() } else { Ok(Fields::new()) };
                match fields.and_then(|fields| fetch(url, fields)) {
                    Ok((status, body)) => respond(out, status, &body),
                    Err(error) => respond(out, 502, format!("{error}\n").as_bytes()),
                }
            }
            _ => {
                let greeting = std::env::var("GREETING").unwrap_or_else(|_| "Hello from WebAssembly!".into());
                respond(out, 200, format!("{greeting}\n").as_bytes());
            }
        }
    }
}

fn method(request: &IncomingRequest) -> String {
    use wasip2::http::types::Method;
    match request.method() {
        Method::Get => "GET".into(),
        Method::Head => "HEAD".into(),
        Method::Post => "POST".into(),
        Method::Put => "PUT".into(),
        Method::Delete => "DELETE".into(),
        Method::Options => "OPTIONS".into(),
        Method::Patch => "PATCH".into(),
        Method::Connect => "CONNECT".into(),
        Method::Trace => "TRACE".into(),
        Method::Other(name) => name,
    }
}

fn parameter(query: &str, name: &str) -> Option<usize> {
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
}

fn respond(out: ResponseOutparam, status: u16, body: &[u8]) {
    let response = OutgoingResponse::new(Fields::new());
    response.set_status_code(status).expect("a valid status");
    let outgoing = response.body().expect("the first body");
    ResponseOutparam::set(out, Ok(response));
    write(&outgoing, body);
    OutgoingBody::finish(outgoing, None).expect("all was written");
}

/// Writes what the host takes at a time; a client that went away is no error of ours.
fn write(outgoing: &OutgoingBody, body: &[u8]) {
    let stream = outgoing.write().expect("the first stream");
    for chunk in body.chunks(4096) {
        if stream.blocking_write_and_flush(chunk).is_err() {
            return;
        }
    }
}

fn echo(request: IncomingRequest, out: ResponseOutparam) {
    let body = request.consume().map(read).unwrap_or_default();
    respond(out, 200, &body);
}

/// A call without a name is a message of no bytes, with five before it.
fn health(request: IncomingRequest, out: ResponseOutparam) {
    let asked = request.consume().map(read).unwrap_or_default();
    let known = asked == [0; 5];
    let fields =
        |name: &str, value: &str| Fields::from_list(&[(name.into(), value.into())]).expect("a valid header");
    let response = OutgoingResponse::new(fields("content-type", "application/grpc"));
    let outgoing = response.body().expect("the first body");
    ResponseOutparam::set(out, Ok(response));
    if known {
        // `SERVING`
        write(&outgoing, &[0, 0, 0, 0, 2, 8, 1]);
    }
    let status = fields("grpc-status", if known { "0" } else { "5" });
    OutgoingBody::finish(outgoing, Some(status)).expect("all was written");
}

fn read(body: IncomingBody) -> Vec<u8> {
    let mut bytes = Vec::new();
    let stream = body.stream().expect("the first stream");
    loop {
        match stream.blocking_read(64 * 1024) {
            Ok(chunk) => bytes.extend_from_slice(&chunk),
            Err(StreamError::Closed) => break,
            Err(error) => {
                eprintln!("reading the body: {error}");
                break;
            }
        }
    }
    bytes
}

/// The pod's token as a header.
fn authorization() -> Result<Fields, String> {
    let token = std::fs::read_to_string("/var/run/secrets/kubernetes.io/serviceaccount/token");
    let bearer = format!("Bearer {}", token.map_err(|error| format!("the token: {error}"))?.trim());
    Fields::from_list(&[("authorization".into(), bearer.into())]).map_err(|error| format!("{error:?}"))
}

fn fetch(url: &str, fields: Fields) -> Result<(u16, Vec<u8>), String> {
    let (scheme, rest) = url.split_once("://").ok_or("not a URL")?;
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let request = OutgoingRequest::new(fields);
    let scheme = if scheme == "https" { Scheme::Https } else { Scheme::Http };
    request.set_scheme(Some(&scheme)).map_err(|()| "bad scheme")?;
    request.set_authority(Some(authority)).map_err(|()| "bad host")?;
    let path = if path.is_empty() { "/" } else { path };
    request.set_path_with_query(Some(path)).map_err(|()| "bad path")?;
    let future = outgoing_handler::handle(request, None).map_err(|error| format!("{error:?}"))?;
    future.subscribe().block();
    let response = future
        .get()
        .ok_or("no response")?
        .map_err(|()| "the response was taken")?
        .map_err(|error| format!("{error:?}"))?;
    let status = response.status();
    let body = response.consume().map(read).map_err(|()| "no body")?;
    Ok((status, body))
}
