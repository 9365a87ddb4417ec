//! Where pods go. Pure: no IO, no clock, no chance; the same cluster and pod give the same node.

mod affinity;
mod cluster;
mod decide;
mod filter;
mod request;
mod score;
#[cfg(test)]
mod tests;
mod topology;
mod volumes;

pub use cluster::{Cluster, PodInfo};
pub use decide::{Unschedulable, schedule};
pub use request::Request;
pub use volumes::{Settle, settle};
