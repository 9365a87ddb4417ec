//! Flows of datagrams that the kernel remembers (ctnetlink).
//!
//! The rules choose an endpoint for the first datagram of a flow; the rest follow. A client that keeps its socket
//! would talk to an endpoint that is gone for as long as it talks. [`Fronts`] and [`stale`] are pure and say
//! which flows have to be forgotten, [`forget_stale`] asks the kernel for all and forgets those.
//!
//! Messages: `include/uapi/linux/netfilter/nfnetlink_conntrack.h` of the kernel.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
};

use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use crate::{
    forward::HostPort,
    services::{Table, Transport},
};

/// `NFNL_SUBSYS_CTNETLINK` with `IPCTNL_MSG_CT_GET` and `…_DELETE`.
const GET: u16 = 0x101;
const DELETE: u16 = 0x102;
/// Flags of requests (`linux/netlink.h`).
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
/// Kinds of answers.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Attributes, and what marks one that has others inside.
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ID: u16 = 12;
const NESTED: u16 = 0x8000;
const HEADER: usize = 16;
const GENERAL: usize = 4;
const UDP: u8 = 17;
/// `AF_INET`.
const INET: u8 = 2;

/// Where datagrams to Services and ports of pods may go: from each address to endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fronts(BTreeMap<SocketAddrV4, BTreeSet<SocketAddrV4>>);

impl Fronts {
    /// Those of Services, and of pods' ports on a node with these addresses.
    pub fn new(table: &Table, ports: &[HostPort], node: &[Ipv4Addr]) -> Self {
        let mut fronts = Self::default();
        for forward in table.forwards().iter().filter(|one| one.port.transport == Transport::Udp) {
            let listed = forward.cluster.iter().chain(&forward.external).chain(&forward.balancer);
            let at = listed.filter_map(|ip| Some(SocketAddrV4::new(four(*ip)?, forward.port.number)));
            let of_node = forward.node_port.into_iter();
            let of_node = of_node.flat_map(|port| node.iter().map(move |ip| SocketAddrV4::new(*ip, port)));
            let endpoints: Vec<SocketAddrV4> = forward
                .backends
                .iter()
                .filter_map(|one| Some(SocketAddrV4::new(four(one.address.ip())?, one.address.port())))
                .collect();
            for front in at.chain(of_node) {
                fronts.0.entry(front).or_default().extend(&endpoints);
            }
        }
        for port in ports.iter().filter(|port| port.transport == Transport::Udp) {
            let at = port.host.map_or_else(|| node.to_vec(), |host| vec![host]);
            for ip in at {
                let target = SocketAddrV4::new(port.target.0, port.target.1);
                fronts.0.insert(SocketAddrV4::new(ip, port.port), [target].into());
            }
        }
        fronts
    }
}

fn four(ip: IpAddr) -> Option<Ipv4Addr> {
    if let IpAddr::V4(ip) = ip { Some(ip) } else { None }
}

/// A flow of datagrams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Where its first datagram was sent.
    pub target: SocketAddrV4,
    /// Who answers.
    pub answers: SocketAddrV4,
    /// What the kernel calls it: the attributes of a request to forget it.
    name: Vec<u8>,
}

/// Whether a flow goes where nothing of its front is any more. `before`: what the fronts were.
pub fn stale(flow: &Flow, before: &Fronts, now: &Fronts) -> bool {
    let rewritten = flow.answers != flow.target;
    match now.0.get(&flow.target) {
        Some(endpoints) if endpoints.contains(&flow.answers) => false,
        // One that is not rewritten is from when there was no endpoint, or goes to a program at the address.
        Some(endpoints) => rewritten || !endpoints.is_empty(),
        None => rewritten && before.0.contains_key(&flow.target),
    }
}

/// Forgets the stale flows of this thread's network namespace, and says how many there were. Blocks for as long
/// as the kernel needs to list its flows.
///
/// # Errors
/// Without CAP_NET_ADMIN, or when the kernel does not track connections.
pub fn forget_stale(before: &Fronts, now: &Fronts) -> io::Result<usize> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&message(GET, REQUEST | DUMP, &[]), 0)?;
    let mut found = Vec::new();
    'all: loop {
        let (bytes, _) = socket.recv_from_full()?;
        for (kind, body) in messages(&bytes) {
            match kind {
                DONE => break 'all,
                ERROR => {
                    status(body)?;
                    break 'all;
                }
                _ => found.extend(flow(body).filter(|flow| stale(flow, before, now))),
            }
        }
    }
    for flow in &found {
        socket.send(&message(DELETE, REQUEST | ACK, &flow.name), 0)?;
        let (bytes, _) = socket.recv_from_full()?;
        for (_, body) in messages(&bytes).filter(|(kind, _)| *kind == ERROR) {
            match status(body) {
                // It has ended by itself.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
    }
    Ok(found.len())
}

/// A request about IPv4.
fn message(kind: u16, flags: u16, attributes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + GENERAL + attributes.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(HEADER + GENERAL + attributes.len());
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([INET, 0, 0, 0]);
    bytes.extend(attributes);
    bytes
}

/// Messages of an answer: kind and body.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
        let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// What an answer to a request says.
fn status(body: &[u8]) -> io::Result<()> {
    match body.first_chunk().map(|code| i32::from_ne_bytes(*code)) {
        None | Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.wrapping_neg())),
    }
}

/// Attributes in order: kind, whole bytes with header and padding, value.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8], &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?) & !NESTED;
        let value = bytes.get(4..length)?;
        let padded = length.next_multiple_of(4).min(bytes.len());
        let whole = bytes.get(..padded)?;
        bytes = bytes.get(padded..).unwrap_or_default();
        Some((kind, whole, value))
    })
}

/// A flow of IPv4 datagrams, if that is what a message describes.
fn flow(body: &[u8]) -> Option<Flow> {
    let (mut original, mut reply, mut name) = (None, None, Vec::new());
    for (kind, whole, value) in attributes(body.get(GENERAL..)?) {
        match kind {
            ORIGINAL => original = tuple(value),
            REPLY => reply = tuple(value),
            ID => {}
            _ => continue,
        }
        if kind != REPLY {
            name.extend(whole);
        }
    }
    Some(Flow { target: original?.1, answers: reply?.0, name })
}

/// Source and target of UDP.
fn tuple(value: &[u8]) -> Option<(SocketAddrV4, SocketAddrV4)> {
    let inner = |kind: u16| {
        let found = attributes(value).find(|(own, ..)| *own == kind).map(|(.., value)| value);
        move |kind: u16| attributes(found?).find(|(own, ..)| *own == kind).map(|(.., value)| value)
    };
    let (address, transport) = (inner(1), inner(2));
    if transport(1)? != [UDP] {
        return None;
    }
    let end = |kind: u16, port: u16| {
        let ip = Ipv4Addr::from(*address(kind)?.first_chunk::<4>()?);
        Some(SocketAddrV4::new(ip, u16::from_be_bytes(*transport(port)?.first_chunk()?)))
    };
    Some((end(1, 2)?, end(2, 3)?))
}

/// Reads what a kernel would answer.
#[cfg(fuzzing)]
pub(crate) fn fuzz(bytes: &[u8]) {
    for (kind, body) in messages(bytes) {
        match kind {
            ERROR => drop(status(body)),
            _ => drop(flow(body).map(|flow| stale(&flow, &Fronts::default(), &Fronts::default()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddrV4 {
        text.parse().unwrap()
    }

    fn fronts(all: &[(&str, &[&str])]) -> Fronts {
        Fronts(all.iter().map(|(front, to)| (at(front), to.iter().map(|one| at(one)).collect())).collect())
    }

    #[test]
    fn flows_to_what_is_gone_are_stale() {
        let two = || fronts(&[("10.43.0.1:53", &["10.42.0.2:53", "10.42.0.3:53"])]);
        let one = || fronts(&[("10.43.0.1:53", &["10.42.0.3:53"])]);
        let empty = || fronts(&[("10.43.0.1:53", &[])]);
        let none = Fronts::default;
        for (before, now, answers, expected) in [
            (two(), two(), "10.42.0.2:53", false),
            (two(), one(), "10.42.0.2:53", true),
            (two(), one(), "10.42.0.3:53", false),
            // Without endpoints, or without the Service.
            (one(), empty(), "10.42.0.3:53", true),
            (one(), none(), "10.42.0.3:53", true),
            // After a restart nothing is known of before.
            (none(), one(), "10.42.0.2:53", true),
            // A flow from when there was no endpoint, and one of a program at the address.
            (empty(), one(), "10.43.0.1:53", true),
            (one(), none(), "10.43.0.1:53", false),
            (none(), none(), "10.42.0.2:53", false),
        ] {
            let flow = Flow { target: at("10.43.0.1:53"), answers: at(answers), name: Vec::new() };
            assert_eq!(stale(&flow, &before, &now), expected, "{before:?} {now:?} {answers}");
        }
    }

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn side(kind: u16, source: &str, target: &str, protocol: u8) -> Vec<u8> {
        let (source, target) = (at(source), at(target));
        let addresses = [attribute(1, &source.ip().octets()), attribute(2, &target.ip().octets())].concat();
        let ports = [
            attribute(1, &[protocol]),
            attribute(2, &source.port().to_be_bytes()),
            attribute(3, &target.port().to_be_bytes()),
        ];
        let inner = [attribute(1 | NESTED, &addresses), attribute(2 | NESTED, &ports.concat())].concat();
        attribute(kind | NESTED, &inner)
    }

    #[test]
    fn messages_are_read_and_nonsense_is_left_out() {
        let original = side(ORIGINAL, "10.42.0.9:4000", "10.43.0.1:53", UDP);
        let reply = side(REPLY, "10.42.0.2:5353", "10.42.0.9:4000", UDP);
        let id = attribute(ID, &7_u32.to_be_bytes());
        let body = [original.clone(), reply, attribute(3, &[0; 4]), id.clone()].concat();
        let bytes = message(GET, 0, &body);
        let [(GET, read)] = messages(&bytes).collect::<Vec<_>>()[..] else { panic!("one message") };
        let expected =
            Flow { target: at("10.43.0.1:53"), answers: at("10.42.0.2:5353"), name: [original, id].concat() };
        assert_eq!(flow(read), Some(expected));
        assert_eq!(flow(&side(ORIGINAL, "1.1.1.1:1", "2.2.2.2:2", 6)), None);
        for cut in 0..bytes.len() {
            messages(&bytes[..cut]).for_each(|(_, body)| drop(flow(body)));
        }
    }
}
