//! Names outside the cluster: the host's own resolvers, with a cache and a watch over their health.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{
        op::{Query, ResponseCode},
        rr::{Name, RecordType},
    },
};
use tokio::sync::Semaphore;

use crate::{
    message::Body,
    zone::{TTL, absolute},
};

/// Questions that may wait for the resolvers at a time; more are refused at once.
const IN_FLIGHT: usize = 1_024;
/// Answers remembered.
const REMEMBERED: u64 = 4_096;
/// Longest life of what is remembered, and of what is remembered not to be.
const LIFE: (Duration, Duration) = (Duration::from_secs(300), Duration::from_secs(30));
/// How long one resolver may take, and how long a client waits for all of them.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(5));
/// RFC 8914.
const NO_REACHABLE_AUTHORITY: u16 = 22;
const NOT_READY: u16 = 14;
const OTHER: u16 = 0;

/// The resolvers that `/etc/resolv.conf` names.
pub fn system_upstreams() -> Vec<SocketAddr> {
    let Ok((config, _)) = hickory_resolver::system_conf::read_system_conf() else { return Vec::new() };
    let mut found: Vec<SocketAddr> = Vec::new();
    for server in config.name_servers() {
        let port = server.connections.first().map_or(53, |connection| connection.port);
        let address = SocketAddr::new(server.ip, port);
        if !found.contains(&address) {
            found.push(address);
        }
    }
    found
}

/// The resolvers.
pub(crate) struct Upstream {
    resolver: Option<TokioResolver>,
    in_flight: Semaphore,
    looped: AtomicBool,
    mark: Option<Name>,
}

impl Upstream {
    /// `servers` without those that are `own`, this server's addresses.
    pub(crate) fn new(servers: &[SocketAddr], own: &[SocketAddr], mark: &str) -> Result<Self, NetError> {
        let is_own = |server: &&SocketAddr| {
            own.iter().any(|own| {
                own.port() == server.port()
                    && (own.ip() == server.ip() || (own.ip().is_unspecified() && is_local(server.ip())))
            })
        };
        let (selves, servers): (Vec<_>, Vec<_>) = servers.iter().partition(is_own);
        for server in selves {
            tracing::warn!(%server, "this DNS server is its own resolver by /etc/resolv.conf; it is left out");
        }
        let resolver = if servers.is_empty() { None } else { Some(resolver(&servers)?) };
        Ok(Self {
            resolver,
            in_flight: Semaphore::new(IN_FLIGHT),
            looped: AtomicBool::new(false),
            mark: absolute(mark),
        })
    }

    /// Asks for a name that nobody else knows. If the question comes back, the resolvers ask this server.
    pub(crate) async fn probe(self: Arc<Self>) {
        if let (Some(resolver), Some(mark)) = (&self.resolver, self.mark.clone()) {
            let _ = tokio::time::timeout(PATIENCE.1, resolver.lookup(mark, RecordType::HINFO)).await;
        }
    }

    /// Whether a question is our own, come back; notes it.
    pub(crate) fn is_loop(&self, query: &Query) -> bool {
        let own = self.mark.as_ref().is_some_and(|mark| mark == query.name());
        if own && !self.looped.swap(true, Ordering::Relaxed) {
            tracing::error!(
                "the host's DNS resolver asks this DNS server for what this server asks it; names outside the cluster fail. Give other resolvers in /etc/resolv.conf"
            );
        }
        own
    }

    /// Asks the resolvers. Always an answer; a failure says why.
    pub(crate) async fn ask(&self, name: &Name, kind: RecordType) -> Body {
        if self.looped.load(Ordering::Relaxed) {
            return Body::failure(OTHER, "the host's resolver asks this server: a loop");
        }
        let Some(resolver) = &self.resolver else {
            return Body::failure(NO_REACHABLE_AUTHORITY, "this host has no DNS resolver");
        };
        let Ok(_permit) = self.in_flight.try_acquire() else {
            return Body::failure(NOT_READY, "too many questions wait for the host's resolver");
        };
        let mut name = name.clone();
        name.set_fqdn(true);
        match tokio::time::timeout(PATIENCE.1, resolver.lookup(name.clone(), kind)).await {
            Ok(Ok(found)) => {
                let mut answers = found.answers().to_vec();
                for record in &mut answers {
                    record.ttl = record.ttl.min(u32::try_from(LIFE.0.as_secs()).unwrap_or(TTL));
                }
                Body { answers, ..Body::default() }
            }
            Ok(Err(NetError::Dns(DnsError::NoRecordsFound(none)))) => Body {
                code: none.response_code,
                authorities: none.soa.map(|soa| (*soa).into_record_of_rdata()).into_iter().collect(),
                ..Body::default()
            },
            Ok(Err(NetError::Dns(DnsError::ResponseCode(code)))) => {
                tracing::debug!(%name, %kind, %code, "the host's resolver refused");
                Body { code: passed_on(code), ..Body::default() }
            }
            Ok(Err(error)) => failed(&name, kind, &error.to_string()),
            Err(_) => failed(&name, kind, "no answer in time"),
        }
    }
}

/// Codes that mean something to the client; others mean that we cannot say.
fn passed_on(code: ResponseCode) -> ResponseCode {
    match code {
        ResponseCode::NXDomain | ResponseCode::Refused | ResponseCode::NotImp => code,
        _ => ResponseCode::ServFail,
    }
}

fn failed(name: &Name, kind: RecordType, why: &str) -> Body {
    tracing::debug!(%name, %kind, why, "the host's resolvers do not answer");
    Body::failure(NO_REACHABLE_AUTHORITY, format!("the host's resolver: {why}"))
}

fn is_local(ip: IpAddr) -> bool {
    ip.is_loopback() || std::net::UdpSocket::bind((ip, 0)).is_ok()
}

fn resolver(servers: &[&SocketAddr]) -> Result<TokioResolver, NetError> {
    let server = |address: &&SocketAddr| {
        let mut ways = [ConnectionConfig::udp(), ConnectionConfig::tcp()];
        for way in &mut ways {
            way.port = address.port();
        }
        NameServerConfig::new(address.ip(), true, ways.into())
    };
    let config = ResolverConfig::from_parts(None, Vec::new(), servers.iter().map(server).collect());
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    options(builder.options_mut());
    builder.build()
}

fn options(options: &mut ResolverOpts) {
    options.timeout = PATIENCE.0;
    options.cache_size = REMEMBERED;
    options.positive_max_ttl = Some(LIFE.0);
    options.negative_max_ttl = Some(LIFE.1);
    options.use_hosts_file = ResolveHosts::Never;
    options.max_active_requests = IN_FLIGHT;
    options.try_tcp_on_error = true;
}
