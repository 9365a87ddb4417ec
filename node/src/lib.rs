//! The node agent: runs the pods that are bound to this node and tells the API how they are.
//!
//! [`machine`] decides, synchronously; a worker per pod acts. Everything is level-triggered: what a
//! restarted agent needs to know is in pod statuses and in its runtimes.

mod actions;
mod addresses;
mod agent;
mod api;
mod context;
mod env;
mod events;
mod fields;
#[cfg(fuzzing)]
pub mod fuzzing;
mod host;
mod host_ports;
mod images;
mod index;
mod isolation;
mod kind;
mod logs;
mod loopback;
pub mod machine;
pub mod membership;
mod network;
mod options;
mod overlay;
mod placement;
mod pods;
mod pressure;
mod proxy;
mod register;
mod services;
mod sources;
mod streaming;
mod usage;
mod volumes;
mod worker;
mod writer;

pub use agent::Node;
pub use images::{
    Identity, Keyring, LocalRegistry, PodImages, Registries, RegistryHost, RegistryHosts, Wanted,
    check_registries,
};
pub use isolation::PolicyRules;
pub use ketch_dns as dns;
pub use ketch_gateway as gateway;
pub use ketch_net::{
    Cidr, PodRanges,
    anyip::{
        AnyIpError, ensure_address as make_address_local, ensure_wasm as make_local,
        forget_address as forget_local_address, forget_wasm as forget_local,
    },
    nft::{Facts as ProxyFacts, Nft as RuleTable},
};
pub use ketch_overlay::Identity as OverlayIdentity;
pub use network::{ClusterNetwork, NetworkConfig};
pub use options::{ApiAddress, NodeOptions, RuntimeEntry, StartError, Unavailable};
pub use overlay::{IdentitySource, NodeOverlay, OverlayOptions, RelayHost};
pub use proxy::ServiceProxy;
pub use services::LocalServices;
pub use volumes::discard_inside;
