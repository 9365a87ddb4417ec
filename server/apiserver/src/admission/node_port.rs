//! Node ports of Services of type NodePort and LoadBalancer; the same book-keeping as for addresses.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use ketch_api::{FieldError, Status};
use ketch_store::{ListOptions, Storage};
use serde_json::Value;
use tokio::sync::OnceCell;

use super::{Admission, Operation, Request};
use crate::rest::{meta, transaction::failure};

/// Upstream's default range.
const FIRST: i64 = 30_000;
const LAST: i64 = 32_767;
/// Ports below this one are handed out only when asked for or when the rest is used up.
const AUTOMATIC_FROM: i64 = FIRST + 128;

/// A port on every node; TCP and UDP are apart.
type Port = (String, i64);

/// The hook.
pub(super) struct NodePorts {
    storage: Arc<dyn Storage>,
    taken: Mutex<HashMap<Port, String>>,
    loaded: OnceCell<()>,
}

impl NodePorts {
    pub(super) fn new(storage: Arc<dyn Storage>) -> Self {
        Self { storage, taken: Mutex::new(HashMap::new()), loaded: OnceCell::new() }
    }

    async fn load(&self) -> Result<(), Status> {
        let page = self.storage.list("/core/services/", ListOptions::default()).await.map_err(failure)?;
        for item in page.items {
            let service = crate::wire::stored::decode(&item)?;
            self.keep_only(meta::text(&service, "uid"), &ports(&service));
        }
        Ok(())
    }

    fn keep_only(&self, owner: &str, ports: &[Port]) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.retain(|port, own| own != owner || ports.contains(port));
        for port in ports {
            taken.entry(port.clone()).or_insert_with(|| owner.to_owned());
        }
    }

    /// The port to use for `wanted` (0: any).
    fn allocate(&self, request: &Request, uid: &str, index: usize, wanted: &Port) -> Result<i64, Status> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let (protocol, number) = wanted;
        let invalid = |detail: &str| {
            let error = FieldError::invalid(format!("spec.ports[{index}].nodePort"), number, detail);
            Status::invalid("", "Service", &request.name, &[error])
        };
        let owner = |number: i64| taken.get(&(protocol.clone(), number));
        let chosen = match *number {
            0 => (AUTOMATIC_FROM..=LAST)
                .chain(FIRST..AUTOMATIC_FROM)
                .find(|candidate| owner(*candidate).is_none())
                .ok_or_else(|| Status::internal("failed to allocate a nodePort: range is full"))?,
            number if !(FIRST..=LAST).contains(&number) => {
                let detail = format!(
                    "provided port is not in the valid range. The range of valid ports is {FIRST}-{LAST}"
                );
                return Err(invalid(&detail));
            }
            number if owner(number).is_some_and(|own| own != uid) => {
                return Err(invalid("provided port is already allocated"));
            }
            number => number,
        };
        if !request.dry_run {
            taken.insert((protocol.clone(), chosen), uid.to_owned());
        }
        Ok(chosen)
    }
}

fn port_of(port: &Value) -> Port {
    let protocol = port.get("protocol").and_then(Value::as_str).unwrap_or("TCP");
    (protocol.to_owned(), port.get("nodePort").and_then(Value::as_i64).unwrap_or(0))
}

/// The node ports a Service has.
fn ports(service: &Value) -> Vec<Port> {
    let list = service.pointer("/spec/ports").and_then(Value::as_array);
    list.into_iter().flatten().map(port_of).filter(|(_, number)| *number > 0).collect()
}

/// The node port the old Service had for the same port.
fn previous(old: Option<&Value>, port: &Value) -> i64 {
    let list = old.and_then(|old| old.pointer("/spec/ports")).and_then(Value::as_array);
    let same = |other: &&Value| {
        ["port", "name"].iter().all(|field| other.get(*field) == port.get(*field))
            && port_of(other).0 == port_of(port).0
    };
    list.into_iter().flatten().find(same).map_or(0, |found| port_of(found).1)
}

#[async_trait]
impl Admission for NodePorts {
    fn name(&self) -> &'static str {
        "NodePort"
    }

    async fn review(&self, request: &Request, _object: Option<&mut Value>) -> Result<(), Status> {
        if request.is("", "services") {
            self.loaded.get_or_try_init(|| self.load()).await?;
        }
        Ok(())
    }

    fn mutate(&self, request: &Request, object: &mut Value, old: Option<&Value>) -> Result<(), Status> {
        if !request.is("", "services")
            || !request.subresource.is_empty()
            || request.operation == Operation::Delete
        {
            return Ok(());
        }
        let kind = object.pointer("/spec/type").and_then(Value::as_str).unwrap_or_default();
        let off =
            object.pointer("/spec/allocateLoadBalancerNodePorts").and_then(Value::as_bool) == Some(false);
        if kind != "NodePort" && (kind != "LoadBalancer" || off) {
            return Ok(());
        }
        let uid = meta::text(object, "uid").to_owned();
        let list = object.pointer_mut("/spec/ports").and_then(Value::as_array_mut);
        for (index, port) in list.into_iter().flatten().enumerate() {
            let mut wanted = port_of(port);
            if wanted.1 == 0 {
                wanted.1 = previous(old, port);
            }
            let number = self.allocate(request, &uid, index, &wanted)?;
            if let Some(port) = port.as_object_mut() {
                port.insert("nodePort".into(), number.into());
            }
        }
        Ok(())
    }

    fn settled(&self, request: &Request, uid: &str, stored: Option<&[u8]>) {
        if !request.is("", "services") {
            return;
        }
        let service =
            stored.and_then(|bytes| serde_json::from_slice::<Value>(bytes).ok()).unwrap_or_default();
        let uid = if uid.is_empty() { meta::text(&service, "uid") } else { uid };
        self.keep_only(uid, &ports(&service));
    }
}
