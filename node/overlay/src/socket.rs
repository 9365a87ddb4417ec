//! The UDP socket: batches in and out, segmentation and coalescing by the kernel.

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
};

use bytes::BytesMut;
use nix::{
    libc::sock_fprog,
    sys::socket::{setsockopt, sockopt},
};
use quinn_proto::{EcnCodepoint, Transmit};
use quinn_udp::{RecvMeta, UdpSocketState};

use crate::lane;

/// Kernel buffers in each direction: 208 KiB, the usual default, loses a third of the throughput at 4
/// Gbit/s (WireGuard/wireguard-go, commit f26efb6).
const BUFFER: usize = 8 << 20;

/// Messages of one receive call; each may be a train of 64 segments.
const MESSAGES: usize = 8;

/// Largest UDP payload.
const MESSAGE: usize = 65_535;

/// A socket that keeps the one message that did not fit its buffer.
pub(crate) struct Socket {
    socket: UdpSocket,
    state: UdpSocketState,
    ipv6: bool,
    blocked: Option<(Transmit, Vec<u8>)>,
    buffers: Vec<Vec<u8>>,
}

/// Where a received packet comes from.
#[derive(Clone, Copy)]
pub(crate) struct Origin {
    pub(crate) remote: SocketAddr,
    pub(crate) local: Option<IpAddr>,
    pub(crate) ecn: Option<EcnCodepoint>,
}

// === impl Socket ===

impl Socket {
    /// Sockets for as many lanes at `address`; each gets the packets of its lane. Fewer than asked for, but one, where
    /// the system cannot tell them apart.
    ///
    /// # Errors
    /// When the address cannot be used. Another program's sockets are not joined.
    pub(crate) fn group(address: SocketAddr, lanes: usize) -> io::Result<Vec<Self>> {
        // The first one is bound alone: the port of another Ketch, which shares it as well, is not to be had.
        let first = Self::open(address)?;
        if lanes < 2 {
            return Ok(vec![first]);
        }
        setsockopt(&first.socket, sockopt::ReusePort, &true)?;
        let address = first.local_addr()?;
        let more: Vec<Self> = (1..lanes).map(|_| Self::bind(address, true)).collect::<io::Result<_>>()?;
        let mut filter = lane::steering();
        let program = sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        if let Err(error) = setsockopt(&first.socket, sockopt::AttachReusePortCbpf, &program) {
            tracing::info!(%error, "no filter for the overlay's port: all its packets take one lane");
            return Ok(vec![first]);
        }
        Ok(std::iter::once(first).chain(more).collect())
    }

    /// A socket that has `address` to itself.
    pub(crate) fn open(address: SocketAddr) -> io::Result<Self> {
        Self::bind(address, false)
    }

    fn bind(address: SocketAddr, shared: bool) -> io::Result<Self> {
        let domain = if address.is_ipv6() { socket2::Domain::IPV6 } else { socket2::Domain::IPV4 };
        let socket = socket2::Socket::new(domain, socket2::Type::DGRAM, Some(socket2::Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.set_reuse_port(shared)?;
        socket.bind(&address.into())?;
        // Past the system's limit as root, else as far as it goes.
        if setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).is_err() {
            socket.set_recv_buffer_size(BUFFER)?;
        }
        if setsockopt(&socket, sockopt::SndBufForce, &BUFFER).is_err() {
            socket.set_send_buffer_size(BUFFER)?;
        }
        let socket = UdpSocket::from(socket);
        let state = UdpSocketState::new((&socket).into())?;
        // Each by itself: copies of the first one would be memory in use, zeroed pages are none.
        let buffers = std::iter::repeat_with(|| vec![0; MESSAGE]).take(MESSAGES).collect();
        Ok(Self { socket, state, ipv6: address.is_ipv6(), blocked: None, buffers })
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Whether packets might be cut on the way, so that sizes cannot be probed.
    pub(crate) fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }

    /// `address` as this socket takes it; `None` when it cannot.
    pub(crate) fn reach(&self, address: SocketAddr) -> Option<SocketAddr> {
        match (self.ipv6, address) {
            (true, SocketAddr::V4(v4)) => Some((v4.ip().to_ipv6_mapped(), v4.port()).into()),
            (false, SocketAddr::V6(_)) => None,
            _ => Some(address),
        }
    }

    /// Segments that one message to a path of `mtu` bytes may have.
    pub(crate) fn segments(&self, mtu: u16) -> usize {
        self.state.max_gso_segments().min(65_000 / usize::from(mtu.max(1))).max(1)
    }

    /// Whether a message waits for [`Socket::resume`]; nothing may be sent then.
    pub(crate) fn is_blocked(&self) -> bool {
        self.blocked.is_some()
    }

    /// Sends, or keeps the message until the socket is writable. A message that the system refuses is
    /// lost, as it may be on the network.
    pub(crate) fn send(&mut self, transmit: Transmit, data: &[u8]) {
        if !self.try_send(&transmit, data) {
            self.blocked = Some((transmit, data.to_vec()));
        }
    }

    /// Sends what was kept.
    pub(crate) fn resume(&mut self) {
        if let Some((transmit, data)) = self.blocked.take()
            && !self.try_send(&transmit, &data)
        {
            self.blocked = Some((transmit, data));
        }
    }

    fn try_send(&self, transmit: &Transmit, data: &[u8]) -> bool {
        let message = quinn_udp::Transmit {
            destination: transmit.destination,
            ecn: transmit.ecn.and_then(|ecn| quinn_udp::EcnCodepoint::from_bits(ecn as u8)),
            contents: data,
            segment_size: transmit.segment_size,
            src_ip: transmit.src_ip,
        };
        match self.state.try_send((&self.socket).into(), &message) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            Err(error) => {
                tracing::trace!(%error, destination = %transmit.destination, "message not sent");
                true
            }
        }
    }

    /// Receives one batch and hands each packet to `each`; `false` when there was none.
    pub(crate) fn receive(&mut self, mut each: impl FnMut(Origin, BytesMut)) -> bool {
        let mut metas = [RecvMeta::default(); MESSAGES];
        let mut slices: Vec<IoSliceMut<'_>> = self.buffers.iter_mut().map(|b| IoSliceMut::new(b)).collect();
        let Ok(count) = self.state.recv((&self.socket).into(), &mut slices, &mut metas) else { return false };
        for (meta, buffer) in metas.iter().zip(&self.buffers).take(count) {
            let origin = Origin {
                remote: meta.addr,
                local: meta.dst_ip,
                ecn: meta.ecn.and_then(|ecn| EcnCodepoint::from_bits(ecn as u8)),
            };
            let mut train = BytesMut::from(buffer.get(..meta.len).unwrap_or_default());
            while !train.is_empty() && !is_virtual(origin.remote) {
                let packet = train.split_to(meta.stride.clamp(1, train.len()));
                each(origin, packet);
            }
        }
        count > 0
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Addresses that stand for a node behind a relay: `100::/64` (RFC 6666, discard-only, so never a real
/// remote) and the node's id.
pub(crate) fn virtual_address(id: u64) -> SocketAddr {
    let bits = (0x0100_u128 << 112) | u128::from(id);
    SocketAddr::new(Ipv6Addr::from_bits(bits).into(), 1)
}

/// The id in a [`virtual_address`].
pub(crate) fn virtual_id(address: SocketAddr) -> Option<u64> {
    let IpAddr::V6(v6) = address.ip() else { return None };
    let bits = v6.to_bits();
    (bits >> 64 == 0x0100_u128 << 48).then_some(bits as u64)
}

fn is_virtual(address: SocketAddr) -> bool {
    virtual_id(address).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_addresses_carry_ids() {
        for id in [0, 1, u64::MAX, 0x1234_5678_9abc_def0] {
            assert_eq!(virtual_id(virtual_address(id)), Some(id));
        }
        for real in ["10.0.0.1:1", "[fd00::1]:1", "[100:0:0:1::1]:1", "[::ffff:10.0.0.1]:1"] {
            assert_eq!(virtual_id(real.parse().unwrap()), None);
        }
    }

    #[test]
    fn packets_arrive_with_their_boundaries() {
        let mut a = Socket::open("127.0.0.1:0".parse().unwrap()).unwrap();
        let b = Socket::open("[::]:0".parse().unwrap()).unwrap();
        let to = a.local_addr().unwrap();
        let destination = b.reach(to).unwrap();
        let data: Vec<u8> = (0..3000_u32).map(|n| n as u8).collect();
        let transmit =
            Transmit { destination, ecn: None, size: 3000, segment_size: Some(1400), src_ip: None };
        assert!(b.try_send(&transmit, &data));
        let mut got = Vec::new();
        while got.len() < 3 {
            a.receive(|_, packet| got.push(packet.len()));
        }
        assert_eq!(got, [1400, 1400, 200]);
        assert_eq!(a.reach("[::1]:1".parse().unwrap()), None);
    }
}
