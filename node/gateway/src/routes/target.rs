//! Where requests end: functions, Services, endpoints.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

/// What is in flight at one address.
#[derive(Debug, Default)]
pub struct Load(AtomicUsize);

impl Load {
    /// Requests in flight.
    pub fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Counts a request until the guard is dropped.
    pub fn enter(self: &Arc<Self>) -> InFlight {
        self.0.fetch_add(1, Ordering::Relaxed);
        InFlight(Arc::clone(self))
    }
}

/// One request in flight.
#[derive(Debug)]
pub struct InFlight(Arc<Load>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One place that serves requests.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Where.
    pub address: SocketAddr,
    /// What is in flight there; shared by all routes and by successive tables.
    pub load: Arc<Load>,
    /// How long it may take to answer.
    pub timeout: Duration,
    /// Whether it speaks HTTP/2 without TLS.
    pub h2c: bool,
}

/// Places that serve the same thing.
#[derive(Clone, Debug, Default)]
pub struct Backend {
    endpoints: Vec<Endpoint>,
    turn: Arc<AtomicUsize>,
}

impl Backend {
    /// A backend of these endpoints.
    pub fn new(endpoints: Vec<Endpoint>) -> Self {
        Self { endpoints, turn: Arc::default() }
    }

    /// Its endpoints.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// The least loaded endpoint that is not in `tried`; equals take turns.
    pub fn pick(&self, tried: &[SocketAddr]) -> Option<&Endpoint> {
        let start = self.turn.fetch_add(1, Ordering::Relaxed) % self.endpoints.len().max(1);
        let rotated = self.endpoints.iter().skip(start).chain(self.endpoints.iter().take(start));
        rotated.filter(|e| !tried.contains(&e.address)).min_by_key(|e| e.load.get())
    }
}

/// A revision's part of a function's traffic.
#[derive(Clone, Debug)]
pub struct Share {
    /// FunctionRevision.
    pub revision: String,
    /// 0 to 100.
    pub percent: u32,
    /// Its ready pods.
    pub backend: Backend,
}

/// A function and who answers for it.
#[derive(Clone, Debug)]
pub struct FunctionTarget {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Revisions with traffic. Empty: none is ready.
    pub shares: Vec<Share>,
    /// Why none is ready.
    pub reason: String,
    /// Requests chosen so far; carried from table to table.
    pub turns: Arc<AtomicU64>,
}

impl FunctionTarget {
    /// The share for the next request, by percent. Over any hundred requests the split is exact, and
    /// the shares alternate rather than come in runs.
    pub fn choose(&self) -> Option<&Share> {
        let total: u64 = self.shares.iter().map(|s| u64::from(s.percent)).sum();
        if total == 0 {
            return self.shares.first();
        }
        // 61 has no common factor with 100: the multiples visit each point once.
        let mut point = self.turns.fetch_add(1, Ordering::Relaxed).wrapping_mul(61) % total;
        for share in &self.shares {
            match point.checked_sub(u64::from(share.percent)) {
                Some(rest) => point = rest,
                None => return Some(share),
            }
        }
        self.shares.last()
    }

    /// An endpoint for the next request: of the chosen revision or, when none of its pods is left, of
    /// any other that has traffic.
    pub fn pick(&self, tried: &[SocketAddr]) -> Option<&Endpoint> {
        let chosen = self.choose()?;
        let others = self.shares.iter().filter(|s| s.revision != chosen.revision && s.percent > 0);
        std::iter::once(chosen).chain(others).find_map(|share| share.backend.pick(tried))
    }
}

/// Where a route leads.
#[derive(Clone, Debug)]
pub enum Target {
    /// A function.
    Function(Arc<FunctionTarget>),
    /// A Service's endpoints; the name is for messages.
    Service(String, Backend),
    /// Nowhere: the text says why.
    Broken(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(port: u16) -> Endpoint {
        Endpoint {
            address: SocketAddr::from(([10, 42, 0, 1], port)),
            load: Arc::default(),
            timeout: Duration::from_secs(1),
            h2c: false,
        }
    }

    #[test]
    fn equals_take_turns_and_the_busy_wait() {
        let backend = Backend::new(vec![endpoint(1), endpoint(2), endpoint(3)]);
        let ports: Vec<_> = (0..6).filter_map(|_| backend.pick(&[])).map(|e| e.address.port()).collect();
        assert_eq!(ports, [1, 2, 3, 1, 2, 3]);
        let busy = backend.endpoints()[0].load.enter();
        assert!((0..6).filter_map(|_| backend.pick(&[])).all(|e| e.address.port() != 1));
        drop(busy);
        assert!((0..3).filter_map(|_| backend.pick(&[])).any(|e| e.address.port() == 1));
        let tried: Vec<_> = backend.endpoints().iter().map(|e| e.address).collect();
        assert!(backend.pick(&tried).is_none());
        assert!(Backend::default().pick(&[]).is_none());
    }

    fn function(shares: &[(&str, u32, &[u16])]) -> FunctionTarget {
        let share = |(name, percent, ports): &(&str, u32, &[u16])| Share {
            revision: (*name).to_owned(),
            percent: *percent,
            backend: Backend::new(ports.iter().map(|p| endpoint(*p)).collect()),
        };
        FunctionTarget {
            namespace: "n".into(),
            name: "f".into(),
            shares: shares.iter().map(share).collect(),
            reason: String::new(),
            turns: Arc::default(),
        }
    }

    #[test]
    fn the_split_is_exact() {
        let target = function(&[("a", 90, &[1]), ("b", 10, &[2])]);
        let chosen: Vec<_> = (0..100).filter_map(|_| target.choose()).map(|s| s.revision.as_str()).collect();
        assert_eq!(chosen.iter().filter(|r| **r == "b").count(), 10);
        let longest = chosen.split(|r| *r == "b").map(<[_]>::len).max();
        assert!(longest < Some(30), "b comes up regularly: {longest:?}");
    }

    #[test]
    fn a_revision_without_pods_is_stood_in_for() {
        let target = function(&[("a", 50, &[]), ("b", 50, &[2]), ("c", 0, &[3])]);
        assert!((0..20).all(|_| target.pick(&[]).map(|e| e.address.port()) == Some(2)));
        assert!(function(&[("a", 100, &[]), ("c", 0, &[3])]).pick(&[]).is_none(), "no traffic is no traffic");
        assert!(function(&[]).pick(&[]).is_none());
    }
}
