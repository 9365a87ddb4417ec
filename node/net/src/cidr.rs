//! Ranges of addresses.

use std::{fmt, net::IpAddr, str::FromStr};

/// A range of addresses, as `10.42.0.0/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cidr {
    base: IpAddr,
    prefix: u8,
}

/// A text that is no range of addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an address range such as 10.42.0.0/16")]
pub struct ParseCidrError(String);

impl Cidr {
    /// The range of `prefix` leading bits that `address` is in; longer prefixes than the address are cut.
    pub fn new(address: IpAddr, prefix: u8) -> Self {
        let (bits, width) = bits(address);
        let prefix = prefix.min(width);
        Self { base: address_of(bits & mask(prefix, width), width), prefix }
    }

    /// The one address.
    pub fn host(address: IpAddr) -> Self {
        Self::new(address, 128)
    }

    /// First address.
    pub fn base(&self) -> IpAddr {
        self.base
    }

    /// Leading bits that are fixed.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Number of addresses; the largest number for ranges that have more.
    pub fn size(&self) -> u128 {
        let (_, width) = bits(self.base);
        1_u128.checked_shl(u32::from(width - self.prefix)).unwrap_or(u128::MAX)
    }

    /// Whether `address` is in the range. An IPv4 address is never in an IPv6 range.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.base.is_ipv4() == address.is_ipv4() && Self::new(address, self.prefix).base == self.base
    }

    /// Whether all of `other` is in the range.
    pub fn covers(&self, other: &Cidr) -> bool {
        other.prefix >= self.prefix && self.contains(other.base)
    }

    /// The address at `offset` from the first; `None` past the end.
    pub fn nth(&self, offset: u128) -> Option<IpAddr> {
        let (start, width) = bits(self.base);
        (offset < self.size()).then(|| address_of(start + offset, width))
    }

    /// How far `address` is from the first; `None` outside.
    pub fn offset(&self, address: IpAddr) -> Option<u128> {
        self.contains(address).then(|| bits(address).0 - bits(self.base).0)
    }
}

fn bits(address: IpAddr) -> (u128, u8) {
    match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()), 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    }
}

fn address_of(bits: u128, width: u8) -> IpAddr {
    match u32::try_from(bits) {
        Ok(low) if width == 32 => IpAddr::V4(low.into()),
        _ => IpAddr::V6(bits.into()),
    }
}

fn mask(prefix: u8, width: u8) -> u128 {
    let free = u32::from(width - prefix);
    u128::MAX.checked_shl(free).unwrap_or(0)
}

impl FromStr for Cidr {
    type Err = ParseCidrError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseCidrError(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(error)?;
        let address: IpAddr = address.parse().map_err(|_| error())?;
        let prefix: u8 = prefix.parse().map_err(|_| error())?;
        if prefix > bits(address).1 { Err(error()) } else { Ok(Self::new(address, prefix)) }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_what_they_say() {
        let range: Cidr = "10.42.7.9/16".parse().unwrap();
        assert_eq!(range.to_string(), "10.42.0.0/16");
        assert!(range.contains("10.42.255.255".parse().unwrap()));
        assert!(!range.contains("10.43.0.0".parse().unwrap()));
        assert!(!range.contains("::ffff:10.42.0.1".parse().unwrap()));
        assert_eq!(range.size(), 65_536);
        assert_eq!(range.nth(257), Some("10.42.1.1".parse().unwrap()));
        assert_eq!(range.nth(65_536), None);
        assert_eq!(range.offset("10.42.1.1".parse().unwrap()), Some(257));
        assert!("0.0.0.0/0".parse::<Cidr>().unwrap().covers(&range));
        assert!("fd00::/8".parse::<Cidr>().unwrap().contains("fd00:ec2::254".parse().unwrap()));
        assert!("::/0".parse::<Cidr>().unwrap().contains("::1".parse().unwrap()));
        for bad in ["10.42.0.0", "10.42.0.0/33", "x/8", "10.0.0/8", "/8", "10.0.0.0/"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }
}
