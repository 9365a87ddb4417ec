//! Certificates that end while packets are on their way.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use ketch_overlay::Reach;

use crate::rig::{LONG, Node, Pair, able, ping, pod, until};

/// Of a certificate. Renewed at two thirds, as nodes do it.
const LIFE: Duration = Duration::from_secs(6);

/// What a packet may wait for at most while connections replace each other.
const GAP: Duration = Duration::from_millis(500);

fn renew(pair: &Pair, alpha: &Node, beta: &Node) {
    alpha.becomes(pair.authority.brief("alpha", LIFE));
    beta.becomes(pair.authority.brief("beta", LIFE));
}

#[test]
fn connections_go_on_over_renewals_and_end_without() {
    if !able() {
        return;
    }
    let pair = Pair::new(1500);
    let alpha = pair.alpha(pair.authority.brief("alpha", LIFE));
    let beta = pair.beta(pair.authority.brief("beta", LIFE));
    let (a, b) = (pair.a.udp("10.90.1.1:0"), pair.b.udp("10.90.2.1:0"));
    ping(&a, &b, LONG);
    let mut echo = Echo::open(&pair);
    let (start, mut renewed, mut worst) = (Instant::now(), Instant::now(), Duration::ZERO);
    // For the lives of three certificates one after the other.
    while start.elapsed() < LIFE * 3 {
        if renewed.elapsed() > LIFE * 2 / 3 {
            renew(&pair, &alpha, &beta);
            renewed = Instant::now();
        }
        worst = worst.max(echo.round_trip());
        std::thread::park_timeout(Duration::from_millis(5));
    }
    println!("longest round trip over renewals: {worst:?}");
    assert!(worst < GAP, "{worst:?}");
    // Nobody renews any more: what has ended opens nothing and keeps nothing open.
    for (node, other) in [(&alpha, "beta"), (&beta, "alpha")] {
        until("the end", LIFE * 2, || node.status(other).filter(|s| s.reach == Reach::Nothing));
    }
    renew(&pair, &alpha, &beta);
    alpha.connected("beta");
    beta.connected("alpha");
    echo.round_trip();
}

/// A TCP connection between pods whose far end sends back what it gets.
struct Echo(TcpStream);

impl Echo {
    fn open(pair: &Pair) -> Self {
        let address = SocketAddr::new(pod(2).into(), 0);
        let listener = pair.b.within(move || TcpListener::bind(address).unwrap());
        let target = listener.local_addr().unwrap();
        let near = pair.a.within(move || TcpStream::connect_timeout(&target, LONG).unwrap());
        let (mut far, _) = listener.accept().unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok(count @ 1..) = far.read(&mut buffer) {
                far.write_all(&buffer[..count]).unwrap();
            }
        });
        near.set_nodelay(true).unwrap();
        near.set_read_timeout(Some(LONG)).unwrap();
        Self(near)
    }

    fn round_trip(&mut self) -> Duration {
        let start = Instant::now();
        self.0.write_all(b"still there?").unwrap();
        self.0.read_exact(&mut [0; 12]).unwrap();
        start.elapsed()
    }
}
