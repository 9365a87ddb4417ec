//! [`ClusterNetwork`]: the cluster's network as guests see it that dial in process.
//!
//! Services and EndpointSlices are watched into a [`Table`] that readers swap in without a lock; names,
//! endpoints and the outbound policy are `ketch-net`'s.

mod api;

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use api::API;
use arc_swap::ArcSwap;
use async_trait::async_trait;
use futures::{Stream, StreamExt, TryStreamExt, stream::select};
use ketch_api::k8s::api::{core::v1::Service, discovery::v1::EndpointSlice};
use ketch_net::{
    Cidr, Listeners, Pattern, Policy, Table, Transport,
    isolation::Door,
    names::{self, Answer},
    policy::canonical,
    services::{Choice, EntryPort},
};
use ketch_runtime::{Error, Network, PodSandbox, Protocol};
use kube::{
    Api,
    runtime::{WatchStreamExt, watcher},
};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    host_ports::HostPorts,
    isolation::{self, Judge},
    loopback::Loopback,
};

/// How long an address that a pod looked up by an allowed name may be dialled as that name.
const GRANT: Duration = Duration::from_secs(600);
/// Grants before expired ones are looked for.
const GRANTS: usize = 8_192;
/// Changes that come within this time make one new table.
pub(crate) const GATHER: Duration = Duration::from_millis(2);

/// How long the kernel's socket tables are taken for current.
const LISTENERS_FRESH: Duration = Duration::from_secs(1);

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// What the network is told about the cluster.
#[derive(Clone, Debug, Default)]
pub struct NetworkConfig {
    /// Ranges of pod addresses in the cluster.
    pub pod_cidrs: Vec<Cidr>,
    /// Ranges of the pod addresses that are local to this machine: those of its Wasm pods.
    pub local_pods: Vec<Cidr>,
    /// Ranges of Service addresses.
    pub service_cidrs: Vec<Cidr>,
    /// Addresses of this node.
    pub node_addresses: Vec<IpAddr>,
    /// Addresses of the API server, registry, datastore, …
    pub control_plane: Vec<SocketAddr>,
    /// Where this node hands connections on to the API; `None`: pods use the endpoints of the Service.
    pub door: Option<SocketAddrV4>,
}

/// Where a connection goes.
struct Route {
    /// What is dialled.
    to: SocketAddr,
    /// What it is judged as: the door to the API counts as the API.
    as_if: SocketAddr,
}

impl Route {
    fn straight(to: SocketAddr) -> Self {
        Self { to, as_if: to }
    }
}

/// By pod and address: names it was looked up by, and until when they count.
type Grants = HashMap<(String, IpAddr), Vec<(String, Instant)>>;

/// The cluster's network, for runtimes in this process.
pub struct ClusterNetwork {
    table: ArcSwap<Table>,
    /// How many tables there were, since everything was listed.
    changes: watch::Sender<u64>,
    judge: Arc<Judge>,
    host_ports: Mutex<HostPorts>,
    loopback: Loopback,
    /// Whether rules of the kernel follow all this.
    forwards: AtomicBool,
    policy: Policy,
    config: NetworkConfig,
    turn: AtomicUsize,
    grants: Mutex<Grants>,
    listeners: [Mutex<(Option<Instant>, Listeners)>; 2],
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl ClusterNetwork {
    /// Starts to follow the cluster's Services. Returns at once: until the first list is there, names of the
    /// cluster are unknown.
    pub fn start(client: kube::Client, config: NetworkConfig) -> Arc<Self> {
        let judge = Arc::new(Judge::new(false));
        judge.behind_door(config.door.map(|at| Door { at, leads_to: BTreeSet::new() }));
        let network = Arc::new(Self { judge, ..Self::fixed(Table::default(), config) });
        network.tasks.spawn(follow(Arc::clone(&network), client.clone()));
        let judge = Arc::clone(&network.judge);
        network.tasks.spawn(isolation::follow(judge, client, network.stop.clone()));
        network.tasks.close();
        network
    }

    /// A network whose Services never change.
    pub fn fixed(table: Table, config: NetworkConfig) -> Self {
        let policy = Policy {
            cluster: config.pod_cidrs.iter().chain(&config.service_cidrs).copied().collect(),
            node: config.node_addresses.clone(),
            control_plane: config.control_plane.iter().copied().chain(config.door.map(Into::into)).collect(),
        };
        let stop = CancellationToken::new();
        Self {
            table: ArcSwap::from_pointee(table),
            changes: watch::Sender::new(0),
            judge: Arc::new(Judge::new(true)),
            host_ports: Mutex::default(),
            loopback: Loopback::new(stop.clone()),
            forwards: AtomicBool::new(false),
            policy,
            config,
            turn: AtomicUsize::new(0),
            grants: Mutex::default(),
            listeners: Default::default(),
            stop,
            tasks: TaskTracker::new(),
        }
    }

    /// The Services known now.
    pub fn table(&self) -> Arc<Table> {
        self.table.load_full()
    }

    /// Changes with the table. 0: what is known is not complete yet.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Works on the ports of the node that pods have; `work` says whether they changed.
    pub(crate) fn with_host_ports<T>(&self, work: impl FnOnce(&mut HostPorts) -> (T, bool)) -> T {
        let (result, changed) = work(&mut self.host_ports.lock().unwrap_or_else(PoisonError::into_inner));
        // Not before the Services are known: they are refused until then.
        self.changes.send_if_modified(|changes| {
            let known = changed && *changes > 0;
            *changes += u64::from(known);
            known
        });
        result
    }

    /// Leads a pod's ports to its address, by rules of the kernel and at loopback addresses; what keeps some of
    /// the latter closed.
    pub(crate) async fn lead_host_ports(&self, uid: &str, address: IpAddr) -> Vec<String> {
        let at_loopback = self.with_host_ports(|ports| {
            let news = ports.lead(uid, address);
            (ports.at_loopback(uid, &self.policy.cluster), news)
        });
        self.loopback.open(uid, at_loopback).await
    }

    /// Takes a pod's ports back: others may have them then.
    pub(crate) async fn release_host_ports(&self, uid: &str) {
        self.loopback.close(uid).await;
        self.with_host_ports(|ports| ((), ports.release(uid)));
    }

    /// Whether Services and ports of pods are there for whoever dials through the kernel.
    pub(crate) fn forwards(&self) -> bool {
        self.forwards.load(Ordering::Relaxed)
    }

    /// Notes that rules of the kernel follow this from now on.
    pub(crate) fn followed_by_kernel(&self) {
        self.forwards.store(true, Ordering::Relaxed);
    }

    /// What connections are judged by.
    pub(crate) fn judge(&self) -> &Arc<Judge> {
        &self.judge
    }

    /// Ends following.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }

    /// Names by which a pod may dial an address, because it looked them up.
    fn granted(&self, pod: &PodSandbox, address: IpAddr) -> Vec<String> {
        let grants = self.grants.lock().unwrap_or_else(PoisonError::into_inner);
        let names = grants.get(&(pod.id.0.clone(), canonical(address)));
        let live = names.into_iter().flatten().filter(|(_, until)| *until > Instant::now());
        live.map(|(name, _)| name.clone()).collect()
    }

    fn grant(&self, pod: &PodSandbox, name: &str, addresses: &[IpAddr]) {
        let mut grants = self.grants.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if grants.len() > GRANTS {
            grants.retain(|_, names| {
                names.retain(|(_, until)| *until > now);
                !names.is_empty()
            });
        }
        for address in addresses {
            let names = grants.entry((pod.id.0.clone(), canonical(*address))).or_default();
            names.retain(|(known, until)| known != name && *until > now);
            names.push((name.to_owned(), now + GRANT));
        }
    }

    /// What a name stands for in a pod: its own table of hosts goes before the cluster's names.
    fn answer(&self, pod: &PodSandbox, name: &str) -> Answer {
        match pod.hosts.get(&name.to_ascii_lowercase()) {
            Some(addresses) => Answer::Addresses(addresses.clone()),
            None => names::resolve(&self.table.load(), &self.config.pod_cidrs, &pod.namespace, name),
        }
    }

    /// Addresses of a name outside the cluster, unless no pattern of the pod could mean it: a look-up is a
    /// message to whoever runs the name's servers.
    async fn outside(&self, pod: &PodSandbox, name: &str) -> Result<Vec<IpAddr>, Error> {
        if !patterns(pod).iter().any(|pattern| pattern.may_mean(name)) {
            return Err(Error::Config(format!(
                "{name} is outside the cluster and not allowed; add \"{name}:PORT\" to the annotation ketch.dev/outbound"
            )));
        }
        // No such name is an answer, not an error.
        let found = tokio::net::lookup_host((name, 0)).await;
        let mut addresses: Vec<IpAddr> = found.into_iter().flatten().map(|address| address.ip()).collect();
        addresses.dedup();
        Ok(addresses)
    }

    /// Refuses targets among this machine's pod addresses that a program of the host would answer, because
    /// it listens on all addresses and no pod has the port.
    fn check_host(&self, target: SocketAddr, transport: Transport) -> Result<SocketAddr, Error> {
        let local = |range: &Cidr| range.contains(target.ip());
        let loopback = target.ip().is_loopback() && self.config.pod_cidrs.iter().any(local);
        if !loopback && !self.config.local_pods.iter().any(local) {
            return Ok(target);
        }
        let [tcp, udp] = &self.listeners;
        let cache = if transport == Transport::Tcp { tcp } else { udp };
        let mut cache = cache.lock().unwrap_or_else(PoisonError::into_inner);
        let age = cache.0.map(|at| at.elapsed());
        if age.is_none_or(|age| age > LISTENERS_FRESH) {
            *cache = (Some(Instant::now()), read_listeners(transport));
        } else if cache.1.is_hosts(target) {
            // A pod may have bound the port since.
            *cache = (Some(Instant::now()), read_listeners(transport));
        }
        if cache.1.is_hosts(target) {
            let text = format!("no pod listens on {target}; a program of the node does, on all addresses");
            return Err(Error::Config(text));
        }
        Ok(target)
    }

    fn is_door(&self, target: SocketAddr) -> bool {
        self.config.door.is_some_and(|door| SocketAddr::from(door) == target)
    }

    fn route_as(
        &self,
        pod: &PodSandbox,
        target: SocketAddr,
        transport: Transport,
        names: &[&str],
    ) -> Result<SocketAddr, Error> {
        let Route { to: route, as_if } = self.choose(pod, target, transport, names)?;
        let allowed = self.judge.current().check(pod, as_if, transport);
        allowed.map_err(|reason| Error::Config(format!("{as_if}: {reason}")))?;
        if self.is_door(route) {
            return Ok(route);
        }
        let named = canonical(target.ip()) == route.ip()
            && patterns(pod).iter().any(|pattern| pattern.names(route.ip(), route.port(), names));
        let sandboxed = pod.network_namespace.is_some() && (route.ip() == pod.ip || route.ip().is_loopback());
        if named || sandboxed { Ok(route) } else { self.check_host(route, transport) }
    }

    /// Where a connection to a port of a Service goes.
    fn by_service(
        &self,
        table: &Table,
        patterns: &[Pattern],
        (namespace, name): &(String, String),
        target: SocketAddr,
        endpoint: Option<SocketAddr>,
    ) -> Result<Route, Error> {
        let own = (namespace.as_str(), name.as_str());
        let door = self.config.door.filter(|_| own == API).map(SocketAddr::from);
        // The door leads where the node knows the API to be, whether others are told or not.
        let behind = || door.and_then(|_| api::behind_door(table).next());
        let endpoint = endpoint.or_else(behind).ok_or_else(|| {
            let port = target.port();
            Error::Config(format!("Service {namespace}/{name} has no ready endpoint on port {port}"))
        })?;
        let service = if api::is_at(table, endpoint) { API } else { own };
        self.policy.check_service(patterns, service, target, endpoint).map_err(denied)?;
        Ok(Route { to: door.unwrap_or(endpoint), as_if: endpoint })
    }

    fn choose(
        &self,
        pod: &PodSandbox,
        target: SocketAddr,
        transport: Transport,
        names: &[&str],
    ) -> Result<Route, Error> {
        let patterns = patterns(pod);
        let address = canonical(target.ip());
        let target = SocketAddr::new(address, target.port());
        let inside = self.policy.cluster.iter().any(|range| range.contains(address));
        let own = address == pod.ip || (!inside && (address.is_loopback() || address.is_unspecified()));
        if own && pod.network_namespace.is_some() {
            // The pod's own loopback, shared with its containers: nothing of the node is there.
            let unspecified = address.is_unspecified();
            let port = target.port();
            return Ok(Route::straight(if unspecified { SocketAddr::new(LOCALHOST, port) } else { target }));
        }
        if own {
            // A pod's loopback is the pod itself; the node's only when a pattern says so.
            let node = self.policy.check(&patterns, target, names).is_ok() && address != pod.ip;
            return Ok(Route::straight(if node { target } else { SocketAddr::new(pod.ip, target.port()) }));
        }
        let table = self.table.load();
        match table.choose(pod.ip, target, transport, self.turn.fetch_add(1, Ordering::Relaxed)) {
            Choice::Endpoint(service, endpoint) => {
                self.by_service(&table, &patterns, service, target, Some(endpoint))
            }
            Choice::Empty(service) => self.by_service(&table, &patterns, service, target, None),
            Choice::NotService if self.config.service_cidrs.iter().any(|range| range.contains(address)) => {
                Err(Error::Config(format!("no Service has the address and port {target}")))
            }
            // Whoever knows where the Service of the API leads does without it.
            Choice::NotService if api::is_at(&table, target) || self.is_door(target) => {
                let allowed = self.policy.check_service(&patterns, API, target, target);
                let behind = api::behind_door(&table).next().filter(|_| self.is_door(target));
                allowed.map(|()| Route { to: target, as_if: behind.unwrap_or(target) }).map_err(denied)
            }
            Choice::NotService => {
                let allowed = self.policy.check(&patterns, target, names);
                allowed.map(|()| Route::straight(target)).map_err(denied)
            }
        }
    }
}

#[async_trait]
impl Network for ClusterNetwork {
    async fn resolve(&self, pod: &PodSandbox, name: &str) -> Result<Vec<IpAddr>, Error> {
        match self.answer(pod, name) {
            Answer::Own if pod.network_namespace.is_some() => Ok(vec![LOCALHOST]),
            Answer::Own => {
                let node = patterns(pod).iter().any(|pattern| *pattern == localhost(pattern));
                Ok(vec![if node { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { pod.ip }])
            }
            Answer::Addresses(addresses) => Ok(addresses),
            Answer::Unknown => Ok(Vec::new()),
            Answer::Outside(outside) => {
                let addresses = self.outside(pod, &outside).await?;
                self.grant(pod, &outside, &addresses);
                Ok(addresses)
            }
        }
    }

    fn route(&self, pod: &PodSandbox, target: SocketAddr, protocol: Protocol) -> Result<SocketAddr, Error> {
        let granted = self.granted(pod, target.ip());
        let names: Vec<&str> = granted.iter().map(String::as_str).collect();
        let transport = match protocol {
            Protocol::Tcp => Transport::Tcp,
            Protocol::Udp => Transport::Udp,
        };
        self.route_as(pod, target, transport, &names)
    }

    async fn dial(&self, pod: &PodSandbox, host: &str, port: u16) -> Result<Vec<SocketAddr>, Error> {
        let (addresses, name) = match self.answer(pod, host) {
            Answer::Own => (vec![IpAddr::V4(Ipv4Addr::LOCALHOST)], Some("localhost".to_owned())),
            Answer::Addresses(addresses) => (addresses, None),
            Answer::Unknown => (Vec::new(), None),
            Answer::Outside(name) => (self.outside(pod, &name).await?, Some(name)),
        };
        if addresses.is_empty() {
            return Err(Error::NotFound(format!("host {host}")));
        }
        let names: Vec<&str> = name.as_deref().into_iter().collect();
        let routes =
            addresses.iter().map(|ip| self.route_as(pod, SocketAddr::new(*ip, port), Transport::Tcp, &names));
        let (allowed, refused): (Vec<_>, Vec<_>) = routes.partition(Result::is_ok);
        match refused.into_iter().find_map(Result::err) {
            Some(error) if allowed.is_empty() => Err(error),
            _ => Ok(allowed.into_iter().flatten().collect()),
        }
    }

    fn is_api(&self, pod: &PodSandbox, host: &str, port: u16) -> bool {
        let table = self.table.load();
        let Some(entry) = table.entry(API.0, API.1) else { return false };
        // The pod's own table of hosts, or an alias, may lead the names elsewhere.
        let leads_there = match self.answer(pod, host) {
            Answer::Addresses(found) => {
                !found.is_empty() && found.iter().all(|ip| entry.addresses.contains(ip))
            }
            _ => false,
        };
        let is_port = |one: &EntryPort| (one.number, one.transport) == (port, Transport::Tcp);
        let named = host.parse::<IpAddr>().is_ok() || api::is_name(&pod.namespace, host);
        leads_there && named && entry.ports.iter().any(is_port)
    }
}

fn read_listeners(transport: Transport) -> Listeners {
    let mut listeners = Listeners::default();
    let tables = if transport == Transport::Tcp { ["tcp", "tcp6"] } else { ["udp", "udp6"] };
    for table in tables {
        listeners.add(&std::fs::read_to_string(format!("/proc/self/net/{table}")).unwrap_or_default());
    }
    listeners
}

fn four(address: SocketAddr) -> Option<SocketAddrV4> {
    if let SocketAddr::V4(address) = address { Some(address) } else { None }
}

/// The pod's patterns; ones that cannot be read allow nothing.
fn patterns(pod: &PodSandbox) -> Vec<Pattern> {
    pod.outbound.iter().filter_map(|text| text.parse().ok()).collect()
}

/// `localhost` with the port of `pattern`.
fn localhost(pattern: &Pattern) -> Pattern {
    pattern.with_name("localhost")
}

fn denied(reason: ketch_net::policy::Denied) -> Error {
    Error::Config(reason.to_string())
}

/// A change of one of the watched kinds.
enum Change {
    Service(Box<watcher::Event<Service>>),
    Slice(Box<watcher::Event<EndpointSlice>>),
}

pub(crate) fn events<K>(api: Api<K>) -> impl Stream<Item = watcher::Event<K>> + Send + 'static
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
{
    watcher(api, watcher::Config::default()).default_backoff().filter_map(|event| async {
        event
            .inspect_err(|error| tracing::warn!(%error, "a watch of the node's network was interrupted"))
            .ok()
    })
}

async fn follow(network: Arc<ClusterNetwork>, client: kube::Client) {
    let services = events(Api::<Service>::all(client.clone())).map(|event| Change::Service(Box::new(event)));
    let slices = events(Api::<EndpointSlice>::all(client)).map(|event| Change::Slice(Box::new(event)));
    let mut changes = select(services.boxed(), slices.boxed()).map(Ok::<_, std::convert::Infallible>);
    let (mut services, mut slices) = (Mirror::default(), Mirror::default());
    while let Some(Ok(Some(change))) = network.stop.run_until_cancelled(changes.try_next()).await {
        take(&mut services, &mut slices, change);
        let _ = tokio::time::timeout(GATHER, async {
            while let Ok(Some(change)) = changes.try_next().await {
                take(&mut services, &mut slices, change);
            }
        })
        .await;
        let table = Table::build(services.objects.values(), slices.objects.values());
        network.judge.behind_door(
            network
                .config
                .door
                .map(|at| Door { at, leads_to: api::behind_door(&table).filter_map(four).collect() }),
        );
        network.table.store(Arc::new(table));
        if services.complete && slices.complete {
            network.changes.send_modify(|changes| *changes += 1);
        }
    }
}

fn take(services: &mut Mirror<Service>, slices: &mut Mirror<EndpointSlice>, change: Change) {
    match change {
        Change::Service(event) => services.take(*event),
        Change::Slice(event) => slices.take(*event),
    }
}

/// Objects of a kind by namespace and name.
struct Mirror<K> {
    objects: HashMap<(Option<String>, Option<String>), K>,
    listed: HashMap<(Option<String>, Option<String>), K>,
    /// Whether there was a whole list.
    complete: bool,
}

impl<K> Default for Mirror<K> {
    fn default() -> Self {
        Self { objects: HashMap::new(), listed: HashMap::new(), complete: false }
    }
}

impl<K: kube::Resource> Mirror<K> {
    fn take(&mut self, event: watcher::Event<K>) {
        let key = |object: &K| (object.meta().namespace.clone(), object.meta().name.clone());
        match event {
            watcher::Event::Apply(object) => {
                self.objects.insert(key(&object), object);
            }
            watcher::Event::Delete(object) => {
                self.objects.remove(&key(&object));
            }
            watcher::Event::Init => self.listed.clear(),
            watcher::Event::InitApply(object) => {
                self.listed.insert(key(&object), object);
            }
            watcher::Event::InitDone => {
                self.objects = std::mem::take(&mut self.listed);
                self.complete = true;
            }
        }
    }
}
