//! The node's end of the overlay: who the other nodes are, from their Node objects, and the packets between
//! their pods and ours, by `ketch-overlay`.

use std::{
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use futures::{Stream, StreamExt, future, stream};
use ketch_api::{join::Cluster, k8s::api::core::v1 as core, names::OVERLAY_ANNOTATION};
use ketch_net::Cidr;
use ketch_overlay::{DeviceConfig, Identity, Overlay, OverlayConfig, OverlayError, Peer};
use kube::{
    Api,
    runtime::{WatchStreamExt, reflector, watcher},
};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Longest time between looks at the node's certificate.
const RENEWAL: Duration = Duration::from_secs(60);

/// Between look-ups of the relay's host: its name may lead elsewhere one day.
const LOOK_UP: Duration = Duration::from_secs(60);

/// Where a node's certificate, key and authority are now.
pub type IdentitySource = Arc<dyn Fn() -> Option<Identity> + Send + Sync>;

/// What the overlay of a node is started with.
#[derive(Clone)]
pub struct OverlayOptions {
    /// Name of the node, as in its certificate.
    pub name: String,
    /// May watch Nodes.
    pub client: kube::Client,
    /// Who this node is.
    pub identity: IdentitySource,
    /// UDP address; port 0 picks one.
    pub bind: SocketAddr,
    /// Addresses of this node's pods; `None`: it has none, and needs no rights then.
    pub range: Option<Cidr>,
    /// Whether other nodes that cannot reach each other may use this one.
    pub forward: bool,
    /// Where this node meets others that it cannot reach, as far as it is known now.
    pub relay: watch::Receiver<Option<RelayHost>>,
}

/// A relay as a node finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayHost {
    /// Name in its certificate.
    pub name: String,
    /// Name or address of its machine.
    pub host: String,
    /// UDP port.
    pub port: u16,
}

/// A running overlay that follows the cluster's nodes.
pub struct NodeOverlay {
    overlay: Arc<Overlay>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl RelayHost {
    /// The relay of a cluster whose server is at `host`.
    pub(crate) fn of(cluster: &Cluster, host: &str) -> Option<Self> {
        let relay = cluster.relay.as_ref()?;
        Some(Self { name: relay.name.clone(), host: host.to_owned(), port: relay.port })
    }
}

// === impl NodeOverlay ===

impl NodeOverlay {
    /// Starts it. Peers come and go with their Node objects.
    ///
    /// # Errors
    /// See [`OverlayError`]. Without an identity there is nothing to start.
    pub async fn start(options: OverlayOptions) -> Result<Option<Self>, OverlayError> {
        let Some(identity) = (options.identity)() else { return Ok(None) };
        let mut config = match options.range {
            Some(range) => {
                let device = DeviceConfig { name: device(&range), address: range.nth(1) };
                OverlayConfig::new(identity.clone(), options.bind, device, vec![range])
            }
            None => OverlayConfig::relay(identity.clone(), options.bind),
        };
        config.forward = options.forward;
        let (told, peers) = watch::channel(Vec::new());
        let overlay = Arc::new(Overlay::start(config, peers).await?);
        if let Some(range) = &options.range {
            forward(&self::device(range));
        }
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let renewal = renew(Arc::clone(&overlay), Arc::clone(&options.identity), identity);
        tasks.spawn(stop.clone().run_until_cancelled_owned(renewal));
        tasks.spawn(stop.clone().run_until_cancelled_owned(follow(options, told)));
        tasks.close();
        Ok(Some(Self { overlay, stop, tasks }))
    }

    /// UDP port in use.
    pub fn port(&self) -> u16 {
        self.overlay.local_addr().port()
    }

    /// What tells the other nodes about this one, which is reached at `address`: an annotation of its Node.
    pub fn annotation(&self, address: IpAddr) -> (String, String) {
        (OVERLAY_ANNOTATION.to_owned(), SocketAddr::new(address, self.port()).to_string())
    }

    /// Ends it: device and routes are gone afterwards.
    pub async fn shutdown(self) {
        self.stop.cancel();
        self.tasks.wait().await;
        if let Some(overlay) = Arc::into_inner(self.overlay) {
            overlay.shutdown().await;
        }
    }
}

/// Name of the network device: one per pod range, so that several nodes on one machine have their own.
fn device(range: &Cidr) -> String {
    match range.base() {
        IpAddr::V4(base) => format!("ketch-{:08x}", u32::from(base)),
        IpAddr::V6(_) => "ketch-v6".to_owned(),
    }
}

/// Lets the kernel forward packets of pods with a network namespace from and to the device.
fn forward(device: &str) {
    let path = format!("/proc/sys/net/ipv4/conf/{device}/forwarding");
    if let Err(error) = std::fs::write(&path, "1") {
        tracing::warn!(path, %error, "containers cannot reach pods of other nodes");
    }
}

async fn follow(options: OverlayOptions, told: watch::Sender<Vec<Peer>>) {
    let events = watcher(Api::<core::Node>::all(options.client), watcher::Config::default());
    let mut lists = pin!(lists(events.default_backoff()));
    let mut nodes = Vec::new();
    let mut relays = pin!(relays(options.relay));
    let mut relay = None;
    loop {
        tokio::select! {
            list = lists.next() => match list {
                Some(list) => nodes = list,
                None => return,
            },
            Some(found) = relays.next() => relay = found,
        }
        let wanted = peers(nodes.iter().map(Arc::as_ref), &options.name, relay.as_ref());
        told.send_if_modified(|known| {
            let changed = *known != wanted;
            *known = wanted;
            changed
        });
    }
}

/// All nodes, after each change. A list that is being read is complete at its end only.
fn lists(
    events: impl Stream<Item = watcher::Result<watcher::Event<core::Node>>>,
) -> impl Stream<Item = Vec<Arc<core::Node>>> {
    let (store, writer) = reflector::store();
    reflector(writer, events).filter_map(move |event| {
        let list = match event {
            Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => None,
            Ok(_) => Some(store.state()),
            Err(error) => {
                tracing::debug!(%error, "the list of nodes is being read again");
                None
            }
        };
        future::ready(list)
    })
}

/// A relay's name and addresses.
type Found = (String, Vec<SocketAddr>);

/// The relay: each one without addresses first, then each time it has been looked up.
fn relays(mut told: watch::Receiver<Option<RelayHost>>) -> impl Stream<Item = Option<Found>> {
    told.mark_changed();
    stream::unfold((told, None::<RelayHost>, LOOK_UP), |(mut told, known, wait)| async move {
        let look_up = async {
            let Some(relay) = &known else { return future::pending().await };
            let mut wait = wait;
            loop {
                tokio::time::sleep(wait).await;
                match tokio::net::lookup_host((relay.host.as_str(), relay.port)).await {
                    Ok(found) => return (relay.name.clone(), found.collect()),
                    Err(error) => tracing::warn!(host = relay.host, %error, "relay not found"),
                }
                wait = LOOK_UP;
            }
        };
        tokio::select! {
            found = look_up => Some((Some(found), (told, known, LOOK_UP))),
            Ok(()) = told.changed() => {
                let known = told.borrow_and_update().clone();
                let found = known.as_ref().map(|relay| (relay.name.clone(), Vec::new()));
                Some((found, (told, known, Duration::ZERO)))
            }
        }
    })
}

async fn renew(overlay: Arc<Overlay>, source: IdentitySource, mut used: Identity) {
    loop {
        // Soon enough when certificates live for seconds.
        let left = used.left().unwrap_or_default();
        tokio::time::sleep((left / 20).clamp(Duration::from_secs(1), RENEWAL)).await;
        let Some(now) = source().filter(|now| now.certificate != used.certificate) else { continue };
        match overlay.set_identity(&now) {
            Ok(()) => used = now,
            Err(error) => tracing::warn!(%error, "the overlay keeps its old certificate"),
        }
    }
}

/// The other nodes that have said where their overlay is, and the relay, by name and where it is found.
fn peers<'a>(nodes: impl Iterator<Item = &'a core::Node>, own: &str, relay: Option<&Found>) -> Vec<Peer> {
    let others = nodes.filter(|node| node.metadata.name.as_deref() != Some(own));
    let mut all: Vec<Peer> = others.filter_map(peer).collect();
    if let Some((name, addresses)) = relay {
        for peer in all.iter_mut().filter(|peer| peer.name != *name) {
            peer.relay = Some(name.clone());
        }
        let addresses = addresses.clone();
        match all.iter_mut().find(|peer| peer.name == *name) {
            // What this node uses for the API leads there; what the relay takes for its address may not.
            Some(peer) if !addresses.is_empty() => peer.addresses = addresses,
            Some(_) => {}
            None => all.push(Peer { name: name.clone(), addresses, ranges: Vec::new(), relay: None }),
        }
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

fn peer(node: &core::Node) -> Option<Peer> {
    let address = node.metadata.annotations.as_ref()?.get(OVERLAY_ANNOTATION)?.parse().ok()?;
    let ranges = node.spec.as_ref()?.pod_cidrs.iter().flatten();
    Some(Peer {
        name: node.metadata.name.clone()?,
        addresses: vec![address],
        ranges: ranges.filter_map(|range| range.parse().ok()).collect(),
        relay: None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(name: &str, range: &str, annotations: serde_json::Value) -> core::Node {
        let node = json!({
            "metadata": {"name": name, "annotations": annotations},
            "spec": {"podCIDR": range, "podCIDRs": [range]},
        });
        serde_json::from_value(node).unwrap()
    }

    fn nodes() -> Vec<core::Node> {
        let at = |address: &str| json!({ OVERLAY_ANNOTATION: address });
        vec![
            node("first", "10.42.0.0/19", at("192.0.2.1:6445")),
            node("b", "10.42.33.0/24", at("192.0.2.3:6444")),
            node("a", "10.42.32.0/24", at("192.0.2.2:6444")),
            node("silent", "10.42.34.0/24", json!({})),
            node("odd", "10.42.35.0/24", at("nowhere")),
        ]
    }

    /// Name, first address and relay of each peer.
    fn seen(own: &str, relay: Option<&Found>) -> Vec<(String, String, Option<String>)> {
        let peers = peers(nodes().iter(), own, relay);
        let address = |peer: &Peer| peer.addresses.first().map(ToString::to_string).unwrap_or_default();
        peers.into_iter().map(|peer| (peer.name.clone(), address(&peer), peer.relay)).collect()
    }

    fn expect(of: &[(&str, &str, Option<&str>)]) -> Vec<(String, String, Option<String>)> {
        of.iter()
            .map(|(name, at, relay)| (name.to_string(), at.to_string(), relay.map(str::to_owned)))
            .collect()
    }

    #[test]
    fn peers_are_the_other_nodes_that_say_where_they_are() {
        let (a, b) = ("192.0.2.2:6444", "192.0.2.3:6444");
        let outside = vec!["203.0.113.9:6445".parse().unwrap()];
        let through = ("first".to_owned(), outside.clone());
        let first = Some("first");
        assert_eq!(
            seen("a", Some(&through)),
            expect(&[("b", b, first), ("first", "203.0.113.9:6445", None)]),
            "the relay is where the API is"
        );
        assert_eq!(
            seen("a", Some(&("first".to_owned(), Vec::new()))),
            expect(&[("b", b, first), ("first", "192.0.2.1:6445", None)]),
            "or where it says, when that is not known"
        );
        let server = ("server_relay".to_owned(), outside);
        let through = Some("server_relay");
        assert_eq!(
            seen("b", Some(&server)),
            expect(&[
                ("a", a, through),
                ("first", "192.0.2.1:6445", through),
                ("server_relay", "203.0.113.9:6445", None)
            ]),
            "a relay without pods is a peer too"
        );
        assert_eq!(seen("first", None), expect(&[("a", a, None), ("b", b, None)]));
        let ranges = &peers(nodes().iter(), "b", None)[0].ranges;
        assert_eq!(ranges[0].to_string(), "10.42.32.0/24");
    }

    #[tokio::test]
    async fn nodes_that_were_there_before_are_known_at_the_end_of_the_list() {
        use watcher::Event;
        let [first, second, third, ..] = <[core::Node; 5]>::try_from(nodes()).unwrap();
        let events = [
            Event::Init,
            Event::InitApply(first.clone()),
            Event::InitApply(second),
            Event::InitDone,
            Event::Apply(third),
            // Read again: nobody is gone before the end.
            Event::Init,
            Event::InitApply(first),
            Event::InitDone,
        ];
        let found = lists(stream::iter(events.map(Ok))).map(|list| list.len());
        assert_eq!(found.collect::<Vec<_>>().await, [2, 3, 1]);
    }

    #[tokio::test]
    async fn a_relay_that_moves_is_followed() {
        let host = |name: &str, port| RelayHost { name: name.into(), host: "192.0.2.9".into(), port };
        let at = |port: u16| vec![SocketAddr::from(([192, 0, 2, 9], port))];
        let told = watch::Sender::new(Some(host("first", 6445)));
        let mut found = pin!(relays(told.subscribe()));
        assert_eq!(found.next().await, Some(Some(("first".into(), vec![]))));
        assert_eq!(found.next().await, Some(Some(("first".into(), at(6445)))));
        // At once, however long the next look-up is away.
        told.send_replace(Some(host("server_relay", 7445)));
        assert_eq!(found.next().await, Some(Some(("server_relay".into(), vec![]))));
        assert_eq!(found.next().await, Some(Some(("server_relay".into(), at(7445)))));
        told.send_replace(None);
        assert_eq!(found.next().await, Some(None));
        told.send_replace(Some(host("first", 6445)));
        assert_eq!(found.next().await, Some(Some(("first".into(), vec![]))));
        drop(told);
        assert_eq!(found.next().await, Some(Some(("first".into(), at(6445)))), "nobody will say more");
    }

    #[test]
    fn devices_of_several_nodes_have_names_of_their_own() {
        let name = |range: &str| device(&range.parse().unwrap());
        assert_ne!(name("10.42.3.0/24"), name("10.42.4.0/24"));
        assert!(name("10.42.3.0/24").len() <= 15);
    }
}
