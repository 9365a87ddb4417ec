//! What a Wasm container may connect to outside its cluster. Pure.
//!
//! Everything is denied but what the pod's patterns allow. Addresses of the machine, its neighbours on the
//! link, cloud metadata services and the control plane are *protected*: a wildcard never reaches them, only
//! a pattern that names the very address (or, for the loopback, `localhost`). A name never does, because
//! whoever answers for a name chooses its addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::cidr::Cidr;

/// One allowed target, parsed from `host`, `host:port`, `*`, `*.example.com:443`, `192.0.2.0/24:*`,
/// `[2001:db8::1]:80`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    host: HostPattern,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum HostPattern {
    Any,
    Suffix(String),
    Name(String),
    Range(Cidr),
}

/// A pattern that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no outbound pattern; write host:port, *.domain:port, address/prefix:port or *")]
pub struct ParsePatternError(String);

impl std::str::FromStr for Pattern {
    type Err = ParsePatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParsePatternError(text.to_owned());
        let (host, port) = split(text.trim()).ok_or_else(error)?;
        let port = match port {
            None | Some("*") => None,
            Some(port) => Some(port.parse().map_err(|_| error())?),
        };
        Ok(Self { host: HostPattern::parse(host).ok_or_else(error)?, port })
    }
}

/// Host and port. Addresses of version 6 need brackets when a port follows.
fn split(text: &str) -> Option<(&str, Option<&str>)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        return if rest.is_empty() {
            Some((host, None))
        } else {
            Some((host, Some(rest.strip_prefix(':')?)))
        };
    }
    if text.matches(':').count() > 1 {
        return Some((text, None));
    }
    Some(text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))))
}

impl HostPattern {
    fn parse(host: &str) -> Option<Self> {
        if host == "*" {
            return Some(Self::Any);
        }
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        if let Ok(address) = host.parse() {
            return Some(Self::Range(Cidr::host(canonical(address))));
        }
        if host.contains('/') {
            return host.parse().ok().map(Self::Range);
        }
        let plain = |name: &str| {
            !name.is_empty()
                && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'))
        };
        match host.strip_prefix("*.") {
            Some(suffix) => plain(suffix).then(|| Self::Suffix(format!(".{suffix}"))),
            None => plain(&host).then_some(Self::Name(host)),
        }
    }
}

/// Whether and why a connection is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// No pattern allows it.
    #[error(
        "{target} is outside the cluster and not allowed; add {suggestion:?} to the annotation ketch.dev/outbound"
    )]
    NotAllowed {
        /// Where to.
        target: String,
        /// A pattern that would allow it.
        suggestion: String,
    },
    /// It is protected.
    #[error(
        "{target} is {what}, which wildcards and names do not reach; if it is meant, add {suggestion:?} to the annotation ketch.dev/outbound"
    )]
    Protected {
        /// Where to.
        target: String,
        /// What it is.
        what: &'static str,
        /// A pattern that would allow it.
        suggestion: String,
    },
    /// Nothing can be there.
    #[error("{0} is not an address that can be connected to")]
    Invalid(IpAddr),
}

/// What the cluster and the node are, for telling what is inside and what is protected.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Pod and Service ranges.
    pub cluster: Vec<Cidr>,
    /// Addresses of this node.
    pub node: Vec<IpAddr>,
    /// Addresses and ports of the control plane.
    pub control_plane: Vec<SocketAddr>,
}

impl Policy {
    /// Whether a pod with these patterns may connect to `target`, which it reached by the names in `names`
    /// (none when it dialled the address).
    ///
    /// # Errors
    /// Why not, and what would allow it.
    pub fn check(&self, patterns: &[Pattern], target: SocketAddr, names: &[&str]) -> Result<(), Denied> {
        let address = canonical(target.ip());
        if address.is_multicast() || is_broadcast(address) {
            return Err(Denied::Invalid(target.ip()));
        }
        let named = patterns.iter().any(|pattern| pattern.names(address, target.port(), names));
        if let Some(what) = self.protected(SocketAddr::new(address, target.port())) {
            let suggestion = SocketAddr::new(address, target.port()).to_string();
            return if named {
                Ok(())
            } else {
                Err(Denied::Protected { target: target.to_string(), what, suggestion })
            };
        }
        if self.cluster.iter().any(|range| range.contains(address)) {
            return Ok(());
        }
        if named || patterns.iter().any(|pattern| pattern.allows(address, target.port(), names)) {
            return Ok(());
        }
        let host = names.first().map_or_else(|| bracketed(address), |name| (*name).to_owned());
        let suggestion = format!("{host}:{}", target.port());
        Err(Denied::NotAllowed { target: suggestion.clone(), suggestion })
    }

    /// Whether a pod with these patterns may connect through a Service to `endpoint`. A Service of the
    /// cluster whose endpoint is a pod is open; one that leads elsewhere, or to the control plane, has to be
    /// named, by its address or its name.
    ///
    /// # Errors
    /// Why not, and what would allow it.
    pub fn check_service(
        &self,
        patterns: &[Pattern],
        (namespace, name): (&str, &str),
        frontend: SocketAddr,
        endpoint: SocketAddr,
    ) -> Result<(), Denied> {
        let names = [
            format!("{name}.{namespace}"),
            format!("{name}.{namespace}.svc"),
            format!("{name}.{namespace}.svc.{}", ketch_api::names::CLUSTER_DOMAIN),
        ];
        let (address, port) = (canonical(frontend.ip()), frontend.port());
        let named = patterns.iter().any(|one| {
            let by_name = matches!(&one.host, HostPattern::Name(host) if names.contains(host));
            one.names(address, port, &[]) || (by_name && one.port.is_none_or(|allowed| allowed == port))
        });
        if named {
            return Ok(());
        }
        let control_plane = (namespace, name) == ("default", "kubernetes");
        if control_plane || self.protected(frontend).is_some() {
            let suggestion = format!("{name}.{namespace}.svc:{port}");
            let what = "the cluster's control plane";
            return Err(Denied::Protected {
                target: format!("Service {namespace}/{name}"),
                what,
                suggestion,
            });
        }
        self.check(patterns, endpoint, &[])
    }

    /// What makes an address protected, if anything.
    fn protected(&self, target: SocketAddr) -> Option<&'static str> {
        let address = target.ip();
        if self.control_plane.iter().any(|one| canonical(one.ip()) == address && one.port() == target.port())
        {
            return Some("the cluster's control plane");
        }
        // In an unprivileged cluster pods have loopback addresses.
        let inside = self.cluster.iter().any(|range| range.contains(address));
        if !inside && (address.is_loopback() || is_this_host(address)) {
            return Some("the node's loopback");
        }
        if self.node.iter().any(|one| canonical(*one) == address) {
            return Some("an address of the node");
        }
        if is_metadata(address) {
            return Some("a cloud metadata service");
        }
        is_link_local(address).then_some("a link-local address")
    }
}

impl Pattern {
    /// The same port for another name.
    #[must_use]
    pub fn with_name(&self, name: &str) -> Self {
        Self { host: HostPattern::Name(name.to_owned()), port: self.port }
    }

    /// Whether some address of `name` could be allowed, so that looking it up makes sense.
    pub fn may_mean(&self, name: &str) -> bool {
        let name = normal(name);
        match &self.host {
            HostPattern::Any | HostPattern::Range(_) => true,
            HostPattern::Name(host) => name == *host,
            HostPattern::Suffix(suffix) => name.ends_with(suffix.as_str()),
        }
    }

    /// Whether the pattern allows a target that is not protected.
    fn allows(&self, address: IpAddr, port: u16, names: &[&str]) -> bool {
        let is = |test: &dyn Fn(&str) -> bool| names.iter().any(|name| test(&normal(name)));
        self.port.is_none_or(|allowed| allowed == port)
            && match &self.host {
                HostPattern::Any => true,
                HostPattern::Range(range) => range.contains(address),
                HostPattern::Name(host) => is(&|name| name == host),
                HostPattern::Suffix(suffix) => is(&|name| name.ends_with(suffix.as_str())),
            }
    }

    /// Whether the pattern names the very target: its address, a range within what makes it protected, or
    /// `localhost` for the loopback.
    pub fn names(&self, address: IpAddr, port: u16, names: &[&str]) -> bool {
        if self.port.is_some_and(|allowed| allowed != port) {
            return false;
        }
        match &self.host {
            HostPattern::Range(range) => range.contains(address) && is_narrow(range),
            HostPattern::Name(host) if host == "localhost" => {
                address.is_loopback()
                    && (names.is_empty() || names.iter().any(|name| normal(name) == "localhost"))
            }
            _ => false,
        }
    }
}

/// A single address, or a range that holds nothing but loopback or link-local addresses.
fn is_narrow(range: &Cidr) -> bool {
    let within = |text: &str| text.parse::<Cidr>().is_ok_and(|wide| wide.covers(range));
    let single = range.size() == 1;
    single || within("127.0.0.0/8") || within("169.254.0.0/16") || within("fe80::/10")
}

fn normal(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

fn bracketed(address: IpAddr) -> String {
    if address.is_ipv6() { format!("[{address}]") } else { address.to_string() }
}

/// The address that a packet ends up at: IPv4 addresses inside IPv6 ones (mapped, compatible, NAT64, 6to4)
/// are taken out.
pub fn canonical(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let v4 = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match v6.segments() {
        // ::ffff:0:0/96 mapped, and ::ffff:0:0:0/96 translated (SIIT).
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0, 0, 0, 0, 0xffff, 0, high, low] => v4(high, low),
        // ::/96 compatible, but :: and ::1 are themselves.
        [0, 0, 0, 0, 0, 0, high, low] if v6 != Ipv6Addr::UNSPECIFIED && v6 != Ipv6Addr::LOCALHOST => {
            v4(high, low)
        }
        // 64:ff9b::/96 well-known and 64:ff9b:1::/48 local NAT64.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x64, 0xff9b, 1, _, _, _, high, low] => v4(high, low),
        // 2002::/16 6to4.
        [0x2002, high, low, ..] => v4(high, low),
        _ => address,
    }
}

fn is_broadcast(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(v4) if v4.is_broadcast())
}

/// 0.0.0.0/8 and ::, which the kernel takes for the local host.
fn is_this_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => matches!(v4.octets(), [0, ..]),
        IpAddr::V6(v6) => v6.is_unspecified(),
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        // fec0::/10, site-local, is long deprecated and still routed nowhere else.
        IpAddr::V6(v6) => {
            matches!(v6.segments(), [first, ..] if first & 0xffc0 == 0xfe80 || first & 0xffc0 == 0xfec0)
        }
    }
}

/// Metadata services: link-local for most clouds, others by address.
fn is_metadata(address: IpAddr) -> bool {
    const OTHERS: [IpAddr; 5] = [
        IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
        // Alibaba Cloud, Oracle Cloud (classic), Azure's platform address.
        IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
        IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
        IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
        // AWS.
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    ];
    let google = IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254));
    OTHERS.contains(&address) || address == google
}

#[cfg(test)]
mod tests;
