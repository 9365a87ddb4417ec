//! The node's end of the overlay: who the other nodes are, from their Node objects, and the packets between
//! their pods and ours, by `ketch-overlay`.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use ketch_api::{
    k8s::api::core::v1 as core,
    names::{OVERLAY_ANNOTATION, OVERLAY_RELAY_ANNOTATION},
};
use ketch_net::Cidr;
use ketch_overlay::{DeviceConfig, Identity, Overlay, OverlayConfig, OverlayError, Peer};
use kube::{
    Api,
    runtime::{WatchStreamExt, reflector, watcher},
};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Between looks at the node's certificate, which is renewed long before it ends.
const RENEWAL: Duration = Duration::from_secs(60);

/// Where a node's certificate, key and authority are now.
pub type IdentitySource = Arc<dyn Fn() -> Option<Identity> + Send + Sync>;

/// What the overlay of a node is started with.
#[derive(Clone)]
pub struct OverlayOptions {
    /// Name of the node.
    pub name: String,
    /// May watch Nodes.
    pub client: kube::Client,
    /// Who this node is.
    pub identity: IdentitySource,
    /// UDP address; port 0 picks one.
    pub bind: SocketAddr,
    /// Where other nodes reach this one.
    pub address: IpAddr,
    /// Addresses of this node's pods.
    pub range: Cidr,
    /// Whether other nodes that cannot reach each other may use this one.
    pub relay: bool,
}

/// A running overlay that follows the cluster's nodes.
pub struct NodeOverlay {
    overlay: Arc<Overlay>,
    annotations: Vec<(String, String)>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

// === impl NodeOverlay ===

impl NodeOverlay {
    /// Starts it. Peers come and go with their Node objects.
    ///
    /// # Errors
    /// See [`OverlayError`]. Without an identity there is nothing to start.
    pub async fn start(options: OverlayOptions) -> Result<Option<Self>, OverlayError> {
        let Some(identity) = (options.identity)() else { return Ok(None) };
        let device = DeviceConfig { name: device(&options.range), address: options.range.nth(1) };
        let mut config = OverlayConfig::new(identity.clone(), options.bind, device, vec![options.range]);
        config.forward = options.relay;
        let (told, peers) = watch::channel(Vec::new());
        let overlay = Arc::new(Overlay::start(config, peers).await?);
        forward(&self::device(&options.range));
        let reached = SocketAddr::new(options.address, overlay.local_addr().port());
        let relay = options.relay.then(|| (OVERLAY_RELAY_ANNOTATION.to_owned(), "true".to_owned()));
        let own = (OVERLAY_ANNOTATION.to_owned(), reached.to_string());
        let annotations = std::iter::once(own).chain(relay).collect();
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        tasks.spawn(stop.clone().run_until_cancelled_owned(follow(options.clone(), told)));
        let renewal = renew(Arc::clone(&overlay), options.identity, identity);
        tasks.spawn(stop.clone().run_until_cancelled_owned(renewal));
        tasks.close();
        Ok(Some(Self { overlay, annotations, stop, tasks }))
    }

    /// What tells the other nodes about this one: annotations of its Node object.
    pub fn annotations(&self) -> &[(String, String)] {
        &self.annotations
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
    let (store, writer) = reflector::store();
    let events = watcher(Api::<core::Node>::all(options.client), watcher::Config::default());
    let mut changes = std::pin::pin!(reflector(writer, events.default_backoff()).touched_objects());
    while let Some(change) = changes.next().await {
        if let Err(error) = change {
            tracing::debug!(%error, "the list of nodes is being read again");
            continue;
        }
        let wanted = peers(store.state().iter().map(Arc::as_ref), &options.name);
        told.send_if_modified(|known| {
            let changed = *known != wanted;
            *known = wanted;
            changed
        });
    }
}

async fn renew(overlay: Arc<Overlay>, source: IdentitySource, mut used: Identity) {
    loop {
        tokio::time::sleep(RENEWAL).await;
        let Some(now) = source().filter(|now| now.certificate != used.certificate) else { continue };
        match overlay.set_identity(&now) {
            Ok(()) => used = now,
            Err(error) => tracing::warn!(%error, "the overlay keeps its old certificate"),
        }
    }
}

/// The other nodes that have said where their overlay is.
fn peers<'a>(nodes: impl Iterator<Item = &'a core::Node> + Clone, own: &str) -> Vec<Peer> {
    let name = |node: &'a core::Node| node.metadata.name.as_deref().unwrap_or_default();
    let relay = nodes.clone().filter(|node| annotation(node, OVERLAY_RELAY_ANNOTATION) == Some("true"));
    let relay = relay.map(name).min();
    let mut all: Vec<Peer> = nodes
        .filter(|node| name(node) != own)
        .filter_map(|node| {
            let address = annotation(node, OVERLAY_ANNOTATION)?.parse().ok()?;
            let ranges = node.spec.as_ref()?.pod_cidrs.iter().flatten();
            let through = relay.filter(|relay| *relay != own && *relay != name(node));
            Some(Peer {
                name: name(node).to_owned(),
                addresses: vec![address],
                ranges: ranges.filter_map(|range| range.parse().ok()).collect(),
                relay: through.map(str::to_owned),
            })
        })
        .collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

fn annotation<'a>(node: &'a core::Node, key: &str) -> Option<&'a str> {
    node.metadata.annotations.as_ref()?.get(key).map(String::as_str)
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

    #[test]
    fn peers_are_the_other_nodes_that_say_where_they_are() {
        let at = |address: &str| json!({ OVERLAY_ANNOTATION: address });
        let nodes = [
            node(
                "server",
                "10.42.0.0/19",
                json!({ OVERLAY_ANNOTATION: "192.0.2.1:6445", OVERLAY_RELAY_ANNOTATION: "true" }),
            ),
            node("b", "10.42.33.0/24", at("192.0.2.3:6444")),
            node("a", "10.42.32.0/24", at("192.0.2.2:6444")),
            node("silent", "10.42.34.0/24", json!({})),
            node("odd", "10.42.35.0/24", at("nowhere")),
        ];
        let of = |own: &str| {
            let peers = peers(nodes.iter(), own);
            peers.into_iter().map(|peer| (peer.name, peer.relay)).collect::<Vec<_>>()
        };
        let through = Some("server".to_owned());
        assert_eq!(of("a"), [("b".to_owned(), through.clone()), ("server".to_owned(), None)]);
        assert_eq!(of("server"), [("a".to_owned(), None), ("b".to_owned(), None)]);
        let ranges = &peers(nodes.iter(), "b")[0].ranges;
        assert_eq!(ranges[0].to_string(), "10.42.32.0/24");
    }

    #[test]
    fn devices_of_several_nodes_have_names_of_their_own() {
        let name = |range: &str| device(&range.parse().unwrap());
        assert_ne!(name("10.42.3.0/24"), name("10.42.4.0/24"));
        assert!(name("10.42.3.0/24").len() <= 15);
    }
}
