//! Making every address of a range local to this machine, so that sockets can bind it without an interface
//! per pod ("AnyIP").

use futures::TryStreamExt;
use rtnetlink::{
    RouteMessageBuilder,
    packet_route::route::{RouteScope, RouteType},
};

use crate::{cidr::Cidr, ipam::PodRanges};

/// Why a range could not be made local.
#[derive(Debug, thiserror::Error)]
pub enum AnyIpError {
    /// Routes cannot be changed.
    #[error(
        "cannot make {range} local to this machine: {cause}; run as root, or with CAP_NET_ADMIN, or use a pod range in 127.0.0.0/8"
    )]
    Netlink {
        /// Range.
        range: Cidr,
        /// Cause.
        cause: String,
    },
    /// Only IPv4 ranges are supported.
    #[error("{0} is not an IPv4 range")]
    Version(Cidr),
}

/// Makes `range` local: `ip route replace local RANGE dev lo`. Idempotent; ranges in 127.0.0.0/8 are local
/// already, and nothing is done for them.
///
/// # Errors
/// Without the right to change routes, and for IPv6 ranges.
pub async fn ensure(range: Cidr) -> Result<(), AnyIpError> {
    if range.base().is_loopback() {
        return Ok(());
    }
    let std::net::IpAddr::V4(base) = range.base() else { return Err(AnyIpError::Version(range)) };
    let failed = |cause: String| AnyIpError::Netlink { range, cause };
    let (connection, handle, _) = rtnetlink::new_connection().map_err(|error| failed(error.to_string()))?;
    let work = async {
        let mut links = handle.link().get().match_name("lo".to_owned()).execute();
        let link = links.try_next().await.map_err(|error| failed(error.to_string()))?;
        let link = link.ok_or_else(|| failed("there is no loopback interface".to_owned()))?;
        let route = RouteMessageBuilder::<std::net::Ipv4Addr>::new()
            .destination_prefix(base, range.prefix())
            .output_interface(link.header.index)
            .table_id(LOCAL_TABLE)
            .scope(RouteScope::Host)
            .kind(RouteType::Local)
            .build();
        handle.route().add(route).replace().execute().await.map_err(|error| failed(error.to_string()))
    };
    // The connection is driven only as long as it is needed.
    tokio::select! {
        result = work => result,
        () = connection => Err(failed("the netlink connection was closed".to_owned())),
    }
}

/// [`ensure`] for one address.
///
/// # Errors
/// As [`ensure`].
pub async fn ensure_address(address: std::net::IpAddr) -> Result<(), AnyIpError> {
    ensure(Cidr::host(address)).await
}

/// [`ensure`] for the Wasm half of a node's pod range. A route over the whole range, which an earlier version
/// made, is taken away: it would swallow what is meant for pods with a network namespace.
///
/// # Errors
/// As [`ensure`].
pub async fn ensure_wasm(ranges: PodRanges) -> Result<(), AnyIpError> {
    ensure(ranges.wasm).await?;
    if ranges.sandboxed.is_some() {
        forget(whole(ranges)).await;
    }
    Ok(())
}

/// Takes back what [`ensure_wasm`] did, and earlier versions.
pub async fn forget_wasm(ranges: PodRanges) {
    forget(ranges.wasm).await;
    if ranges.sandboxed.is_some() {
        forget(whole(ranges)).await;
    }
}

/// Takes back what [`ensure_address`] did.
pub async fn forget_address(address: std::net::IpAddr) {
    forget(Cidr::host(address)).await;
}

fn whole(ranges: PodRanges) -> Cidr {
    Cidr::new(ranges.wasm.base(), ranges.wasm.prefix() - 1)
}

/// Removes the local route of exactly `range`, if there is one.
async fn forget(range: Cidr) {
    if range.base().is_loopback() {
        return;
    }
    let std::net::IpAddr::V4(base) = range.base() else { return };
    let Ok((connection, handle, _)) = rtnetlink::new_connection() else { return };
    let route = RouteMessageBuilder::<std::net::Ipv4Addr>::new()
        .destination_prefix(base, range.prefix())
        .table_id(LOCAL_TABLE)
        .scope(RouteScope::Host)
        .kind(RouteType::Local)
        .build();
    tokio::select! {
        // Mostly there is none.
        _ = handle.route().del(route).execute() => {}
        () = connection => {}
    }
}

/// The kernel's table of local addresses (`RT_TABLE_LOCAL`).
const LOCAL_TABLE: u32 = 255;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn loopback_ranges_need_nothing() {
        ensure("127.42.0.0/16".parse().unwrap()).await.unwrap();
    }

    #[tokio::test]
    async fn only_the_wasm_half_is_local_also_after_an_older_version() {
        let range: Cidr = "10.197.77.0/24".parse().unwrap();
        if ensure(range).await.is_err() {
            println!("skipped: routes cannot be changed here");
            return;
        }
        ensure_wasm(PodRanges::of(range)).await.unwrap();
        std::net::TcpListener::bind("10.197.77.5:0").unwrap();
        std::net::TcpListener::bind("10.197.77.200:0").expect_err("it is for a pod with a namespace");
        forget(PodRanges::of(range).wasm).await;
        std::net::TcpListener::bind("10.197.77.5:0").expect_err("the test has cleaned up");
    }

    #[tokio::test]
    async fn a_range_becomes_bindable_or_the_error_says_what_to_do() {
        let range = "10.199.0.0/24".parse().unwrap();
        match ensure(range).await {
            Ok(()) => {
                ensure(range).await.unwrap();
                std::net::TcpListener::bind("10.199.0.77:0").unwrap();
            }
            Err(error) => assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}"),
        }
    }
}
