//! The small web service again, asynchronous: one instance serves many requests at a time.
//!
//! `/` greets, `/count` says how many requests this instance has served, `/slow?ms=N` answers after N
//! milliseconds, `/big?n=N` answers N bytes, `/loop` uses the processor for ever, `/tcp?to=HOST:PORT` connects
//! there and says from which address.

use std::sync::atomic::{AtomicU64, Ordering};

use wasip3::{
    clocks::monotonic_clock,
    http::types::{ErrorCode, Fields, Request, Response},
    sockets::{
        ip_name_lookup::resolve_addresses,
        types::{IpAddress, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress, TcpSocket},
    },
    wit_bindgen, wit_future, wit_stream,
};

struct Hello;

wasip3::http::service::export!(Hello);

static SERVED: AtomicU64 = AtomicU64::new(0);

impl wasip3::exports::http::handler::Guest for Hello {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let served = SERVED.fetch_add(1, Ordering::Relaxed) + 1;
        let target = request.get_path_with_query().unwrap_or_default();
        println!("{target}");
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let n = query.split_once('=').and_then(|(_, value)| value.parse().ok()).unwrap_or(0_u64);
        Ok(match path {
            "/count" => respond(format!("{served}\n").into_bytes()),
            "/slow" => {
                monotonic_clock::wait_for(n * 1_000_000).await;
                respond(b"slow\n".to_vec())
            }
            "/big" => respond(vec![b'k'; n as usize]),
            "/loop" => loop {
                std::hint::black_box(0);
            },
            "/panic" => panic!("asked to panic"),
            "/tcp" => match tcp(query.strip_prefix("to=").unwrap_or_default()).await {
                Ok(text) | Err(text) => respond(text.into_bytes()),
            },
            _ => {
                let greeting = std::env::var("GREETING").unwrap_or_else(|_| "Hello from WASI 0.3!".into());
                respond(format!("{greeting}\n").into_bytes())
            }
        })
    }
}

async fn tcp(target: &str) -> Result<String, String> {
    let (host, port) = target.rsplit_once(':').ok_or("no port")?;
    let port = port.parse().map_err(|_| "not a port")?;
    let found = resolve_addresses(host.to_owned()).await.map_err(|error| format!("lookup: {error:?}"))?;
    let address = found.into_iter().find_map(|address| match address {
        IpAddress::Ipv4(address) => Some(IpSocketAddress::Ipv4(Ipv4SocketAddress { port, address })),
        IpAddress::Ipv6(_) => None,
    });
    let socket = TcpSocket::create(IpAddressFamily::Ipv4).map_err(|error| format!("create: {error:?}"))?;
    let address = address.ok_or("no address")?;
    socket.connect(address).await.map_err(|error| format!("connect: {error:?}"))?;
    match socket.get_local_address().map_err(|error| format!("local address: {error:?}"))? {
        IpSocketAddress::Ipv4(Ipv4SocketAddress { address: (a, b, c, d), .. }) => {
            Ok(format!("{a}.{b}.{c}.{d}"))
        }
        IpSocketAddress::Ipv6(_) => Err("not IPv4".into()),
    }
}

fn respond(body: Vec<u8>) -> Response {
    let (mut body_out, body_in) = wit_stream::new();
    let (trailers_out, trailers_in) = wit_future::new(|| Ok(None));
    let (response, _sent) = Response::new(Fields::new(), Some(body_in), trailers_in);
    drop(trailers_out);
    wit_bindgen::spawn_local(async move {
        // What is left when the client went away is nobody's.
        let _unsent = body_out.write_all(body).await;
    });
    response
}
