//! A visitor counter in front of Redis: a component that talks to a container over TCP. Each request adds one
//! to the key `visits` of the server at `$REDIS` (`HOST:PORT`, by default `redis:6379`) and says the result.

use std::{
    io::{BufRead, BufReader, Error, Write},
    net::TcpStream,
};

use wasip2::http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};

struct Visits;

wasip2::http::proxy::export!(Visits);

impl wasip2::exports::http::incoming_handler::Guest for Visits {
    fn handle(_request: IncomingRequest, out: ResponseOutparam) {
        match count() {
            Ok(visits) => respond(out, 200, &format!("visit {visits}\n")),
            Err(error) => respond(out, 502, &format!("{error}\n")),
        }
    }
}

/// One `INCR` in Redis's protocol.
fn count() -> Result<String, Error> {
    let server = std::env::var("REDIS").unwrap_or_else(|_| "redis:6379".into());
    let mut stream = TcpStream::connect(&server)
        .map_err(|error| Error::new(error.kind(), format!("cannot reach Redis at {server}: {error}")))?;
    stream.write_all(b"INCR visits\r\n")?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    match answer.trim_end().strip_prefix(':') {
        Some(number) => Ok(number.to_owned()),
        None => Err(Error::other(format!("Redis at {server} answered {answer:?}"))),
    }
}

fn respond(out: ResponseOutparam, status: u16, text: &str) {
    let response = OutgoingResponse::new(Fields::new());
    response.set_status_code(status).expect("a valid status");
    let body = response.body().expect("the first body");
    ResponseOutparam::set(out, Ok(response));
    let stream = body.write().expect("the first stream");
    // A client that went away needs no answer.
    let _ = stream.blocking_write_and_flush(text.as_bytes());
    drop(stream);
    let _ = OutgoingBody::finish(body, None);
}
