//! Which requests go where.
//!
//! A [`RouteTable`] maps a host and a path to a [`Target`]; [`build`] makes one from a [`Snapshot`]. Hosts
//! match exactly, then by wildcard (one label), then rules without a host; within a host an exact path
//! wins, then the longest prefix, then the older object. A host that matches but has no path that does
//! falls to the default backend, as in ingress-nginx.

mod function;
mod ingress;
mod table;
mod target;

use std::sync::Arc;

use arc_swap::ArcSwap;
use ketch_api::{
    function::Function,
    k8s::api::{
        core::v1::{Pod, Service},
        discovery::v1::EndpointSlice,
        networking::v1::{Ingress, IngressClass},
    },
};
use tokio::sync::watch;

pub use self::{
    table::{PathKind, RouteTable},
    target::{Backend, Endpoint, FunctionTarget, InFlight, Load, Share, Target},
};

/// Controller name of the IngressClass this gateway serves.
pub const INGRESS_CONTROLLER: &str = "ketch.dev/gateway";
/// Class name that is served whether or not an IngressClass of that name exists.
pub const INGRESS_CLASS: &str = "ketch";

/// The objects routes are made from. Complete: every object of each kind, as of some moment.
#[derive(Clone, Default)]
pub struct Snapshot {
    /// Functions.
    pub functions: Vec<Arc<Function>>,
    /// Pods that carry the function label.
    pub pods: Vec<Arc<Pod>>,
    /// Services.
    pub services: Vec<Arc<Service>>,
    /// Endpoint slices.
    pub slices: Vec<Arc<EndpointSlice>>,
    /// Ingresses.
    pub ingresses: Vec<Arc<Ingress>>,
    /// Ingress classes.
    pub classes: Vec<Arc<IngressClass>>,
}

/// Makes the table for `snapshot`. `suffix` is the domain of default function hosts, for instance
/// `localhost`. Loads and rotations are carried over from `previous`, so a rebuild does not make the
/// balance forget what is in flight.
pub fn build(snapshot: &Snapshot, suffix: &str, previous: &RouteTable) -> RouteTable {
    let mut builder = table::Builder::new(suffix, previous);
    function::add(&mut builder, snapshot);
    ingress::add(&mut builder, snapshot);
    builder.finish()
}

/// The table in force, and a signal when it changes. Cheap to clone.
#[derive(Clone)]
pub struct Routes {
    table: Arc<ArcSwap<RouteTable>>,
    version: Arc<watch::Sender<u64>>,
}

impl Default for Routes {
    fn default() -> Self {
        Self {
            table: Arc::new(ArcSwap::from_pointee(RouteTable::default())),
            version: Arc::new(watch::Sender::new(0)),
        }
    }
}

impl Routes {
    /// The table in force; [`RouteTable::is_complete`] is false until the first one.
    pub fn current(&self) -> Arc<RouteTable> {
        self.table.load_full()
    }

    /// Puts a table in force.
    pub fn publish(&self, table: RouteTable) {
        self.table.store(Arc::new(table));
        self.version.send_modify(|version| *version += 1);
    }

    /// Wakes when a table is put in force after this call.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }
}
