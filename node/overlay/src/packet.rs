//! What the overlay needs to know of an inner packet: where it comes from, where it goes, whether it may be
//! cut. Pure; every byte is a tenant's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Smallest packet that every IPv6 link must carry (RFC 8200, section 5).
pub(crate) const IPV6_MIN_MTU: usize = 1280;

/// How much of an offending packet goes into an ICMP error: the IP header with options and some of what
/// follows, enough for the sender to find its socket.
const QUOTED: usize = 128;

/// Addresses of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// IPv4 without "don't fragment": the sender does not listen to ICMP.
    pub(crate) fragmentable: bool,
}

/// Reads the addresses; `None` for what is no IP packet or shorter than its header.
pub(crate) fn classify(packet: &[u8]) -> Option<Header> {
    match packet.first()? >> 4 {
        4 => {
            let header: &[u8; 20] = packet.first_chunk()?;
            let [_, _, _, _, _, _, flags, _, _, _, _, _, s0, s1, s2, s3, d0, d1, d2, d3] = *header;
            Some(Header {
                source: Ipv4Addr::new(s0, s1, s2, s3).into(),
                destination: Ipv4Addr::new(d0, d1, d2, d3).into(),
                fragmentable: flags & 0x40 == 0,
            })
        }
        6 => {
            let source: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
            let destination: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
            Some(Header {
                source: Ipv6Addr::from(source).into(),
                destination: Ipv6Addr::from(destination).into(),
                fragmentable: false,
            })
        }
        _ => None,
    }
}

/// The ICMP or ICMPv6 error that tells the sender of `packet` to send at most `mtu` bytes; `None` when
/// errors must not be answered (RFC 1122, section 3.2.2), or `packet` is none.
///
/// It comes from the packet's destination: the overlay has no address of its own that the sender's
/// reverse path filter would accept from the device.
pub(crate) fn too_big(packet: &[u8], mtu: usize) -> Option<Vec<u8>> {
    let header = classify(packet)?;
    let quoted = packet.get(..packet.len().min(QUOTED))?;
    match (header.destination, header.source) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            // An error about an ICMP error, or about a fragment that is not the first.
            let (protocol, fragment) =
                (*packet.get(9)?, u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]));
            let icmp_type = packet.get(usize::from(packet.first()? & 0xf) * 4);
            if fragment & 0x1fff != 0 || (protocol == 1 && icmp_type.is_none_or(|t| !matches!(t, 0 | 8))) {
                return None;
            }
            Some(too_big_v4(quoted, from, to, u16::try_from(mtu).ok()?))
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            // ICMPv6 errors have types below 128.
            if *packet.get(6)? == 58 && packet.get(40).is_none_or(|t| *t < 128) {
                return None;
            }
            Some(too_big_v6(quoted, from, to, u32::try_from(mtu.max(IPV6_MIN_MTU)).ok()?))
        }
        _ => None,
    }
}

fn too_big_v4(quoted: &[u8], from: Ipv4Addr, to: Ipv4Addr, mtu: u16) -> Vec<u8> {
    // Destination unreachable (3), fragmentation needed (4), RFC 1191.
    let mut icmp = vec![3, 4, 0, 0, 0, 0];
    icmp.extend_from_slice(&mtu.to_be_bytes());
    icmp.extend_from_slice(quoted);
    let sum = checksum(&[&icmp]);
    put(&mut icmp, 2, sum);
    let total = u16::try_from(20 + icmp.len()).unwrap_or(u16::MAX).to_be_bytes();
    let mut packet = vec![0x45, 0xc0, total[0], total[1], 0, 0, 0, 0, 64, 1, 0, 0];
    packet.extend_from_slice(&from.octets());
    packet.extend_from_slice(&to.octets());
    let sum = checksum(&[&packet]);
    put(&mut packet, 10, sum);
    packet.extend_from_slice(&icmp);
    packet
}

fn too_big_v6(quoted: &[u8], from: Ipv6Addr, to: Ipv6Addr, mtu: u32) -> Vec<u8> {
    let mut icmp = vec![2, 0, 0, 0];
    icmp.extend_from_slice(&mtu.to_be_bytes());
    icmp.extend_from_slice(quoted);
    let length = u16::try_from(icmp.len()).unwrap_or(u16::MAX);
    let pseudo = u32::from(length).to_be_bytes();
    let sum = checksum(&[&from.octets(), &to.octets(), &pseudo, &[0, 0, 0, 58], &icmp]);
    put(&mut icmp, 2, sum);
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend_from_slice(&length.to_be_bytes());
    packet.extend_from_slice(&[58, 64]);
    packet.extend_from_slice(&from.octets());
    packet.extend_from_slice(&to.octets());
    packet.extend_from_slice(&icmp);
    packet
}

fn put(packet: &mut [u8], at: usize, value: u16) {
    if let Some(field) = packet.get_mut(at..at + 2) {
        field.copy_from_slice(&value.to_be_bytes());
    }
}

/// The internet checksum (RFC 1071) of `parts` laid end to end; all but the last have even lengths.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u64;
    for part in parts {
        for pair in part.chunks(2) {
            let high = pair.first().copied().unwrap_or_default();
            let low = pair.get(1).copied().unwrap_or_default();
            sum += u64::from(u16::from_be_bytes([high, low]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn udp_v4(flags: u8, length: usize) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, flags, 0, 64, 17, 0, 0, 10, 42, 1, 5, 10, 42, 2, 9];
        packet.resize(length, 0xaa);
        packet
    }

    #[test]
    fn addresses_are_read() {
        let header = classify(&udp_v4(0x40, 60)).unwrap();
        assert_eq!(header.source.to_string(), "10.42.1.5");
        assert_eq!(header.destination.to_string(), "10.42.2.9");
        assert!(!header.fragmentable);
        assert!(classify(&udp_v4(0, 60)).unwrap().fragmentable);
        assert_eq!(classify(&udp_v4(0, 19)), None);
        let mut v6 = vec![0x60; 40];
        v6[8..24].copy_from_slice(&"fd00::1".parse::<Ipv6Addr>().unwrap().octets());
        v6[24..40].copy_from_slice(&"fd00::2".parse::<Ipv6Addr>().unwrap().octets());
        let header = classify(&v6).unwrap();
        assert_eq!(
            (header.source, header.destination),
            ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap())
        );
        assert_eq!(classify(&v6[..39]), None);
        assert_eq!(classify(&[0x01, 0x02]), None);
    }

    #[test]
    fn too_big_goes_back_with_good_checksums() {
        let answer = too_big(&udp_v4(0x40, 1400), 1214).unwrap();
        let header = classify(&answer).unwrap();
        assert_eq!(header.destination.to_string(), "10.42.1.5");
        assert_eq!(checksum(&[&answer[..20]]), 0);
        assert_eq!(checksum(&[&answer[20..]]), 0);
        assert_eq!(answer[20..22], [3, 4]);
        assert_eq!(u16::from_be_bytes([answer[26], answer[27]]), 1214);
    }

    #[test]
    fn errors_are_not_answered() {
        let mut icmp = udp_v4(0x40, 1400);
        icmp[9] = 1;
        icmp[20] = 3;
        assert_eq!(too_big(&icmp, 1200), None);
        icmp[20] = 8;
        assert!(too_big(&icmp, 1200).is_some());
        assert_eq!(too_big(&udp_v4(0x41, 1400), 1200), None, "a later fragment");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(packet in proptest::collection::vec(any::<u8>(), 0..200), mtu in 0_usize..70_000) {
            let header = classify(&packet);
            if let Some(answer) = too_big(&packet, mtu) {
                let back = classify(&answer).unwrap();
                prop_assert_eq!(back.destination, header.unwrap().source);
                prop_assert!(answer.len() <= 40 + 8 + QUOTED);
            }
        }

        #[test]
        fn headers_with_a_version_never_panic(
            version in prop_oneof![Just(0x45_u8), Just(0x4f), Just(0x60)],
            mut packet in proptest::collection::vec(any::<u8>(), 1..100),
        ) {
            packet[0] = version;
            let _ = classify(&packet);
            let _ = too_big(&packet, 1280);
        }
    }
}
