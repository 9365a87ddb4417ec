//! Role-based access control: the rules of Roles and ClusterRoles, granted by bindings.
//!
//! The objects are followed in the store and arranged into a [`Snapshot`]; a decision reads the current
//! one without a lock. A change is in force as soon as the watch delivers it, within milliseconds.

mod defaults;
mod escalation;
mod rule;
mod snapshot;

pub(crate) use defaults::ensure as ensure_defaults;
pub use defaults::objects as default_objects;
pub use escalation::EscalationCheck;
pub use rule::{Rule, uncovered};
pub use snapshot::Snapshot;
pub(crate) use snapshot::{Objects, PREFIX, RoleRef};

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use ketch_store::{Event, Versioned};

use crate::auth::follow::Reflect;

/// The current rules.
#[derive(Debug, Default)]
pub struct Rbac {
    objects: Mutex<Objects>,
    current: ArcSwap<Snapshot>,
}

impl Rbac {
    /// The rules as of now. Hold on to it for one decision, not longer.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }
}

impl Reflect for Rbac {
    fn replace(&self, items: &[Versioned]) {
        let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        *objects = Objects::default();
        for item in items {
            objects.set(&item.key, Some(&item.value));
        }
        self.current.store(Arc::new(objects.snapshot()));
    }

    fn apply(&self, events: &[Arc<Event>]) {
        let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        for event in events {
            objects.set(&event.key, event.current.as_ref().map(|current| &current.value[..]));
        }
        self.current.store(Arc::new(objects.snapshot()));
    }
}
