//! A service that does what services must not: what the limits are tested with.
//!
//! | path | does |
//! | --- | --- |
//! | `/ok` | nothing wrong |
//! | `/loop` | uses the processor for ever |
//! | `/burn?ms=N` | uses the processor for N milliseconds |
//! | `/alloc` | takes memory without end |
//! | `/panic` | panics |
//! | `/silent` | returns without an answer |
//! | `/flood?n=N` | writes N log lines of 100 bytes |
//! | `/sockets?n=N` | opens N sockets, says how many it got |
//! | `/random?n=N` | asks for N random bytes at once |
//! | `/headers?n=N` | answers with N header fields of 1 KiB |

use std::time::{Duration, Instant};

use wasip2::{
    http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam},
    random::random::get_random_bytes,
    sockets::{network::IpAddressFamily, tcp_create_socket::create_tcp_socket},
};

struct Misbehave;

wasip2::http::proxy::export!(Misbehave);

impl wasip2::exports::http::incoming_handler::Guest for Misbehave {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = request.path_with_query().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let n = query.split_once('=').and_then(|(_, value)| value.parse().ok()).unwrap_or(0_usize);
        match path {
            "/loop" => loop {
                std::hint::black_box(0);
            },
            "/burn" => {
                let start = Instant::now();
                while start.elapsed() < Duration::from_millis(n as u64) {
                    std::hint::black_box((0..10_000_u64).fold(0, |a, b| a ^ std::hint::black_box(b)));
                }
                respond(out, "burnt\n");
            }
            "/alloc" => {
                let mut held = Vec::new();
                loop {
                    held.push(std::hint::black_box(vec![1_u8; 1 << 20]));
                }
            }
            "/panic" => panic!("asked to panic"),
            "/silent" => {}
            "/flood" => {
                for line in 0..n {
                    println!("{line:010} {}", "f".repeat(88));
                }
                respond(out, "flooded\n");
            }
            "/sockets" => {
                let open: Vec<_> =
                    (0..n).map_while(|_| create_tcp_socket(IpAddressFamily::Ipv4).ok()).collect();
                respond(out, &format!("{}\n", open.len()));
            }
            "/random" => respond(out, &format!("{}\n", get_random_bytes(n as u64).len())),
            "/headers" => headers(out, n),
            _ => respond(out, "ok\n"),
        }
    }
}

fn headers(out: ResponseOutparam, n: usize) {
    let fields = Fields::new();
    let taken = (0..n).take_while(|i| fields.append(&format!("x-{i}"), &[b'h'; 1024]).is_ok()).count();
    respond(out, &format!("{taken}\n"));
}

fn respond(out: ResponseOutparam, body: &str) {
    let response = OutgoingResponse::new(Fields::new());
    let outgoing = response.body().expect("the first body");
    ResponseOutparam::set(out, Ok(response));
    {
        let stream = outgoing.write().expect("the first stream");
        if stream.blocking_write_and_flush(body.as_bytes()).is_err() {
            return;
        }
    }
    OutgoingBody::finish(outgoing, None).expect("all was written");
}
