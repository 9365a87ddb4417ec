//! The device's link and the routes of peers' ranges, through netlink. Routes are the device's: they
//! vanish with it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use futures::TryStreamExt;
use ketch_net::Cidr;
use rtnetlink::{
    Handle, LinkMessageBuilder, LinkUnspec, RouteMessageBuilder,
    packet_route::route::{RouteAttribute, RouteMessage, RouteMetric, RouteProtocol, RouteScope},
};

/// Marks our routes (`ip route show proto 75`): a number outside those that Linux and the routing daemons
/// have taken (rtnetlink.h, iproute2's rt_protos).
const PROTOCOL: RouteProtocol = RouteProtocol::Other(75);

/// Routes could not be changed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action}: {cause}; the overlay needs root, or CAP_NET_ADMIN")]
pub struct RouteError {
    action: String,
    cause: String,
}

/// The routes into one device.
pub(crate) struct Routes {
    handle: Handle,
    index: u32,
    source: Option<IpAddr>,
    installed: BTreeMap<String, (Cidr, u32)>,
}

// === impl Routes ===

impl Routes {
    /// Brings the device `name` up with the node's own `address`, and removes routes into it that are not
    /// ours to keep.
    pub(crate) async fn open(
        handle: Handle,
        name: &str,
        address: Option<IpAddr>,
    ) -> Result<Self, RouteError> {
        let mut links = handle.link().get().match_name(name.to_owned()).execute();
        let link = links.try_next().await.map_err(failed(format!("find the device {name}")))?;
        let index = link.map(|link| link.header.index).unwrap_or_default();
        let up = LinkMessageBuilder::<LinkUnspec>::new().index(index).up().build();
        handle.link().change(up).execute().await.map_err(failed(format!("bring {name} up")))?;
        if let Some(address) = address {
            let prefix = if address.is_ipv4() { 32 } else { 128 };
            let add = handle.address().add(index, address, prefix).replace().execute();
            add.await.map_err(failed(format!("give {name} the address {address}")))?;
        }
        Ok(Self { handle, index, source: address, installed: BTreeMap::new() })
    }

    /// Makes the routes be exactly `wanted`, each with the largest packet it takes.
    pub(crate) async fn apply(&mut self, wanted: &[(Cidr, u32)]) -> Result<(), RouteError> {
        let wanted: BTreeMap<String, (Cidr, u32)> =
            wanted.iter().map(|(range, mtu)| (range.to_string(), (*range, *mtu))).collect();
        let gone: Vec<(String, (Cidr, u32))> = self
            .installed
            .iter()
            .filter(|(text, _)| !wanted.contains_key(*text))
            .map(|(text, route)| (text.clone(), *route))
            .collect();
        for (text, (range, mtu)) in gone {
            let remove = self.handle.route().del(self.message(range, mtu)).execute();
            remove.await.map_err(failed(format!("remove the route of {text}")))?;
            self.installed.remove(&text);
        }
        for (text, (range, mtu)) in wanted {
            if self.installed.get(&text) == Some(&(range, mtu)) {
                continue;
            }
            let add = self.handle.route().add(self.message(range, mtu)).replace().execute();
            add.await.map_err(failed(format!("add a route for {text}")))?;
            self.installed.insert(text, (range, mtu));
        }
        Ok(())
    }

    fn message(&self, range: Cidr, mtu: u32) -> RouteMessage {
        let source = self.source.filter(|source| source.is_ipv4() == range.base().is_ipv4());
        let mut message = match range.base() {
            IpAddr::V4(base) => {
                let builder = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(base, range.prefix());
                let builder = match source {
                    Some(IpAddr::V4(source)) => builder.pref_source(source),
                    _ => builder,
                };
                builder.output_interface(self.index).scope(RouteScope::Link).protocol(PROTOCOL).build()
            }
            IpAddr::V6(base) => {
                let builder = RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(base, range.prefix());
                let builder = match source {
                    Some(IpAddr::V6(source)) => builder.pref_source(source),
                    _ => builder,
                };
                builder.output_interface(self.index).protocol(PROTOCOL).build()
            }
        };
        message.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
        message
    }
}

fn failed(action: String) -> impl FnOnce(rtnetlink::Error) -> RouteError {
    move |error| RouteError { action, cause: error.to_string() }
}
