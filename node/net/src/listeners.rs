//! Who answers at an address of this machine, from the kernel's socket tables. Pure.
//!
//! Every pod address is local to the machine, so a port that no pod has bound is answered by any program
//! of the host that listens on all addresses. [`Listeners::is_hosts`] tells such targets.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// States of sockets that wait for peers: TCP's LISTEN, and UDP's only one.
const LISTEN: [&str; 2] = ["0A", "07"];

/// Sockets that wait for peers, of one transport.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listeners {
    everywhere: HashSet<u16>,
    bound: HashSet<SocketAddr>,
}

impl Listeners {
    /// Reads the text of `/proc/net/tcp`, `tcp6`, `udp` or `udp6`; lines it cannot read are left out.
    pub fn add(&mut self, table: &str) {
        for line in table.lines() {
            let mut fields = line.split_whitespace().skip(1);
            let (local, state) = (fields.next(), fields.nth(1));
            if !state.is_some_and(|state| LISTEN.contains(&state)) {
                continue;
            }
            let Some(address) = local.and_then(parse) else { continue };
            if address.ip().is_unspecified() {
                self.everywhere.insert(address.port());
            } else {
                self.bound.insert(SocketAddr::new(crate::policy::canonical(address.ip()), address.port()));
            }
        }
    }

    /// Whether a connection to `target`, a local address, would be answered by a program that listens on
    /// all addresses rather than by one that bound the target.
    pub fn is_hosts(&self, target: SocketAddr) -> bool {
        self.everywhere.contains(&target.port()) && !self.bound.contains(&target)
    }
}

/// `0100007F:1F90`: 32-bit words in the machine's byte order, then the port.
fn parse(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |index: usize| {
        let digits = address.get(index * 8..index * 8 + 8)?;
        u32::from_str_radix(digits, 16).ok().map(u32::to_ne_bytes)
    };
    let ip = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?];
            IpAddr::V6(Ipv6Addr::from_bits(
                words.concat().iter().fold(0, |bits, byte| bits << 8 | u128::from(*byte)),
            ))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here() -> Listeners {
        let mut listeners = Listeners::default();
        for table in ["tcp", "tcp6"] {
            listeners.add(&std::fs::read_to_string(format!("/proc/self/net/{table}")).unwrap_or_default());
        }
        listeners
    }

    #[test]
    fn programs_that_listen_everywhere_are_told_from_pods() {
        let host = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let port = host.local_addr().unwrap().port();
        let target: SocketAddr = format!("127.42.77.1:{port}").parse().unwrap();
        assert!(std::net::TcpStream::connect(target).is_ok(), "the kernel lets the host's program answer");
        assert!(here().is_hosts(target));
        // A pod's own socket at the address takes over.
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        drop(host);
        socket.bind(&target.into()).unwrap();
        socket.listen(1).unwrap();
        assert!(!here().is_hosts(target));
    }

    #[test]
    fn six_is_read_too() {
        let host = std::net::TcpListener::bind("[::]:0").unwrap();
        let port = host.local_addr().unwrap().port();
        assert!(here().is_hosts(format!("127.42.77.1:{port}").parse().unwrap()));
        assert!(!here().is_hosts("127.42.77.1:1".parse().unwrap()));
    }

    #[test]
    fn lines_are_parsed() {
        let mut listeners = Listeners::default();
        listeners.add(
            "  sl  local_address rem_address   st\n   0: 00000000:0016 00000000:0000 0A x\n   \
             1: 0100007F:1F90 00000000:0000 0A x\n   2: 0200007F:1F91 00000000:0000 01 x\nrubbish\n",
        );
        assert!(listeners.is_hosts("127.42.0.2:22".parse().unwrap()));
        assert!(!listeners.is_hosts("127.42.0.2:8080".parse().unwrap()));
        assert_eq!(listeners.bound.len(), 1);
    }
}
