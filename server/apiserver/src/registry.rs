//! Which resources there are, and under which store keys their objects live.

use std::collections::BTreeMap;
use std::sync::Arc;

use ketch_api::{Descriptor, DynStrategy, status::GroupResource};

/// One served kind.
pub struct Resource {
    strategy: Box<dyn DynStrategy>,
}

impl Resource {
    /// The kind's rules.
    pub fn strategy(&self) -> &dyn DynStrategy {
        self.strategy.as_ref()
    }

    /// The kind's names and capabilities.
    pub fn descriptor(&self) -> &Descriptor {
        self.strategy.descriptor()
    }

    /// For messages.
    pub fn group_resource(&self) -> GroupResource<'static> {
        self.descriptor().group_resource()
    }

    /// Store key of an object; `namespace` is ignored for cluster-scoped kinds.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        format!("{}{name}", self.prefix(namespace))
    }

    /// Store prefix of all objects, or of those of one namespace.
    pub fn prefix(&self, namespace: &str) -> String {
        let Descriptor { group, plural, namespaced, .. } = self.descriptor();
        let group = if group.is_empty() { "core" } else { group };
        match namespace {
            name if *namespaced && !name.is_empty() => format!("/{group}/{plural}/{name}/"),
            _ => format!("/{group}/{plural}/"),
        }
    }
}

/// Every served kind, found by group, version and plural.
#[derive(Default)]
pub struct Registry {
    resources: BTreeMap<(String, String, String), Arc<Resource>>,
    order: Vec<Arc<Resource>>,
}

impl Registry {
    /// A registry of `strategies`. Of two with the same names the later one is served.
    pub fn new(strategies: Vec<Box<dyn DynStrategy>>) -> Self {
        let mut registry = Self::default();
        for strategy in strategies {
            let resource = Arc::new(Resource { strategy });
            let Descriptor { group, version, plural, .. } = *resource.descriptor();
            let key = (group.to_owned(), version.to_owned(), plural.to_owned());
            if registry.resources.insert(key, resource.clone()).is_some() {
                registry.order.retain(|known| {
                    let other = known.descriptor();
                    (other.group, other.version, other.plural) != (group, version, plural)
                });
            }
            registry.order.push(resource);
        }
        registry
    }

    /// The resource a path names.
    pub fn get(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.resources.get(&(group.to_owned(), version.to_owned(), plural.to_owned()))
    }

    /// All resources in the order of registration.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.order.iter()
    }
}
