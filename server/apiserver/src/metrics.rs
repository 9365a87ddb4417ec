//! What nodes and pods use: the seam to whoever measures it.

use std::time::Duration;

use jiff::Timestamp;

/// Use of a node or a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Billionths of a core, on average over the time it was measured for.
    pub nanocores: u64,
    /// Bytes of the working set, at the end of it.
    pub memory: u64,
}

/// Something measured over a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measured<T> {
    /// End of the time.
    pub at: Timestamp,
    /// Its length.
    pub window: Duration,
    /// What was measured.
    pub usage: T,
}

/// Knows what is used now. Without one, `metrics.k8s.io` is not served.
pub trait Metrics: Send + Sync + 'static {
    /// Use of the node `name`; `None`: it has not been measured, or not lately.
    fn node(&self, name: &str) -> Option<Measured<Usage>>;

    /// Use of the containers, by name, of the pod with this `uid`.
    fn pod(&self, uid: &str) -> Option<Measured<Vec<(String, Usage)>>>;
}
