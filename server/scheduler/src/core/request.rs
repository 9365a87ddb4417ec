//! What a pod asks of a node, and what a node has to give.

use std::collections::BTreeMap;

use ketch_api::{
    k8s::{
        api::core::v1::{Container, PodSpec, ResourceRequirements},
        apimachinery::pkg::api::resource::Quantity as Text,
    },
    quantity::Quantity,
};

/// What a container without requests counts as when nodes are compared (never when they are filtered), as
/// upstream's `GetNonzeroRequests`.
const NOMINAL_CPU: i64 = 100;
const NOMINAL_MEMORY: i64 = 200 * 1024 * 1024;

/// Amounts of resources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Thousandths of a core.
    pub cpu: i64,
    /// Bytes.
    pub memory: i64,
    /// Bytes of ephemeral storage.
    pub storage: i64,
    /// Everything else, by name.
    pub extended: BTreeMap<String, i64>,
}

// === impl Request ===

impl Request {
    /// What a pod asks for: its containers together or its largest init container, whichever is more, with
    /// the sidecars that run along, plus the overhead of its runtime class.
    pub fn of(spec: &PodSpec) -> Self {
        let mut running = Self::default();
        for container in &spec.containers {
            running.add(&Self::of_container(container));
        }
        let (mut sidecars, mut starting) = (Self::default(), Self::default());
        for container in spec.init_containers.iter().flatten() {
            let own = Self::of_container(container);
            if container.restart_policy.as_deref() == Some("Always") {
                sidecars.add(&own);
                starting.raise_to(&sidecars);
            } else {
                let mut peak = own;
                peak.add(&sidecars);
                starting.raise_to(&peak);
            }
        }
        running.add(&sidecars);
        running.raise_to(&starting);
        if let Some(overhead) = &spec.overhead {
            running.add(&Self::from_map(overhead));
        }
        running
    }

    fn of_container(container: &Container) -> Self {
        let requests = |resources: &ResourceRequirements| {
            // A limit without a request is a request; the server defaults it so, older objects may lack it.
            let mut map = resources.limits.clone().unwrap_or_default();
            map.extend(resources.requests.clone().unwrap_or_default());
            Self::from_map(&map)
        };
        container.resources.as_ref().map(requests).unwrap_or_default()
    }

    /// Of a `ResourceList`. What is no quantity counts as nothing; the server refuses it.
    pub(super) fn from_map(map: &BTreeMap<String, Text>) -> Self {
        let mut request = Self::default();
        for (name, text) in map {
            let quantity = Quantity::try_from(text).unwrap_or(Quantity::ZERO);
            match name.as_str() {
                "cpu" => request.cpu = quantity.millis(),
                "memory" => request.memory = quantity.value(),
                "ephemeral-storage" => request.storage = quantity.value(),
                "pods" => {}
                _ if quantity.is_zero() => {}
                other => {
                    request.extended.insert(other.to_owned(), quantity.value());
                }
            }
        }
        request
    }

    /// The same with something in the place of nothing, for comparing nodes: `(cpu, memory)`.
    pub(super) fn nominal(&self, containers: usize) -> (i64, i64) {
        let count = i64::try_from(containers).unwrap_or(i64::MAX);
        let or = |asked: i64, nominal: i64| if asked == 0 { nominal.saturating_mul(count) } else { asked };
        (or(self.cpu, NOMINAL_CPU), or(self.memory, NOMINAL_MEMORY))
    }

    /// Whether a sum is held at the limit of its type, and may stand for more.
    pub(super) fn is_held(&self) -> bool {
        let fixed = [self.cpu, self.memory, self.storage];
        fixed.iter().chain(self.extended.values()).any(|amount| *amount == i64::MAX)
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.cpu = self.cpu.saturating_add(other.cpu);
        self.memory = self.memory.saturating_add(other.memory);
        self.storage = self.storage.saturating_add(other.storage);
        for (name, amount) in &other.extended {
            let sum = self.extended.entry(name.clone()).or_default();
            *sum = sum.saturating_add(*amount);
        }
    }

    pub(super) fn subtract(&mut self, other: &Self) {
        self.cpu -= other.cpu;
        self.memory -= other.memory;
        self.storage -= other.storage;
        for (name, amount) in &other.extended {
            if let Some(sum) = self.extended.get_mut(name) {
                *sum -= amount;
            }
        }
    }

    fn raise_to(&mut self, other: &Self) {
        self.cpu = self.cpu.max(other.cpu);
        self.memory = self.memory.max(other.memory);
        self.storage = self.storage.max(other.storage);
        for (name, amount) in &other.extended {
            let own = self.extended.entry(name.clone()).or_default();
            *own = (*own).max(*amount);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn request(spec: serde_json::Value) -> Request {
        Request::of(&serde_json::from_value(spec).unwrap())
    }

    fn container(cpu: &str, memory: &str) -> serde_json::Value {
        json!({"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}})
    }

    #[test]
    fn containers_add_up_and_init_containers_set_a_floor() {
        let sum = request(json!({"containers": [container("250m", "64Mi"), container("1", "1Gi")],
            "initContainers": [container("2", "10Mi")]}));
        assert_eq!((sum.cpu, sum.memory), (2000, (64 + 1024) << 20));
    }

    #[test]
    fn sidecars_run_along() {
        let mut sidecar = container("500m", "1Gi");
        sidecar["restartPolicy"] = json!("Always");
        let sum = request(
            json!({"containers": [container("1", "1Gi")], "initContainers": [sidecar, container("2", "0")],
            "overhead": {"cpu": "10m"}}),
        );
        assert_eq!((sum.cpu, sum.memory), (2510, 2 << 30));
    }

    #[test]
    fn limits_stand_in_for_requests_and_other_resources_count() {
        let sum = request(
            json!({"containers": [{"name": "c", "resources": {"limits": {"cpu": "1", "example.com/gpu": "2"}}}]}),
        );
        assert_eq!((sum.cpu, sum.extended.get("example.com/gpu")), (1000, Some(&2)));
        assert_eq!(Request::default().nominal(2), (200, 400 << 20));
    }
}
