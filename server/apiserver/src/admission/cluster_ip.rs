//! Addresses of Services.
//!
//! Which addresses are taken is kept in memory and read from the store once; the one server that owns the
//! store is the only one to hand them out. An address belongs to the uid of its Service, so whatever becomes
//! of a create or a delete, [`Admission::settled`] can tell what to give back.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use ketch_api::{FieldError, Status};
use ketch_store::{ListOptions, Storage};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use super::{Admission, Operation, Request};
use crate::rest::{meta, transaction::failure};

/// The range Services get their addresses from: IPv4, a prefix of 12 to 30 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceCidr {
    base: u32,
    bits: u8,
}

impl Default for ServiceCidr {
    /// `10.43.0.0/16`.
    fn default() -> Self {
        Self { base: u32::from(Ipv4Addr::new(10, 43, 0, 0)), bits: 16 }
    }
}

impl std::str::FromStr for ServiceCidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse =
            || format!("{text:?} is not an IPv4 range such as 10.43.0.0/16 (prefix of 12 to 30 bits)");
        let (address, bits) = text.split_once('/').ok_or_else(refuse)?;
        let address: Ipv4Addr = address.parse().map_err(|_| refuse())?;
        let bits: u8 = bits.parse().map_err(|_| refuse())?;
        if !(12..=30).contains(&bits) {
            return Err(refuse());
        }
        let mask = u32::MAX << (32 - u32::from(bits));
        Ok(Self { base: u32::from(address) & mask, bits })
    }
}

impl std::fmt::Display for ServiceCidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.base), self.bits)
    }
}

impl ServiceCidr {
    /// The address of the `kubernetes` Service: the first of the range.
    pub fn first(self) -> Ipv4Addr {
        Ipv4Addr::from(self.base + 1)
    }

    /// The address of the `kube-dns` Service: the tenth of the range, if it has one.
    pub fn tenth(self) -> Option<Ipv4Addr> {
        let address = Ipv4Addr::from(self.base + 10);
        self.contains(address).then_some(address)
    }

    /// Addresses that can be handed out: all but the network's and the broadcast address.
    fn size(self) -> u32 {
        (1 << (32 - u32::from(self.bits))) - 2
    }

    fn contains(self, address: Ipv4Addr) -> bool {
        (1..=self.size()).contains(&u32::from(address).wrapping_sub(self.base))
    }

    /// Where automatic addresses begin, so that explicit ones have a band of their own
    /// (KEP-3070: `min(max(16, size/16), 256)`).
    fn automatic_from(self) -> u32 {
        (self.size() / 16).clamp(16, 256).min(self.size() / 2)
    }
}

/// Which address belongs to which Service.
struct Pool {
    cidr: ServiceCidr,
    taken: HashMap<Ipv4Addr, String>,
    cursor: u32,
}

impl Pool {
    fn new(cidr: ServiceCidr) -> Self {
        Self { cidr, taken: HashMap::new(), cursor: cidr.automatic_from() }
    }

    /// The next free address of the automatic band, then of the rest.
    fn any(&mut self, owner: &str) -> Option<Ipv4Addr> {
        let size = self.cidr.size();
        for step in 0..size {
            let offset = (self.cursor + step) % size + 1;
            let address = Ipv4Addr::from(self.cidr.base + offset);
            if offset > 1 && !self.taken.contains_key(&address) {
                self.cursor = offset % size;
                self.taken.insert(address, owner.to_owned());
                return Some(address);
            }
        }
        None
    }

    fn keep_only(&mut self, owner: &str, addresses: &[Ipv4Addr]) {
        self.taken.retain(|address, own| own != owner || addresses.contains(address));
        for address in addresses.iter().filter(|address| self.cidr.contains(**address)) {
            self.taken.entry(*address).or_insert_with(|| owner.to_owned());
        }
    }
}

/// The hook.
pub(super) struct ClusterIps {
    storage: Arc<dyn Storage>,
    pool: Mutex<Pool>,
    loaded: OnceCell<()>,
}

impl ClusterIps {
    pub(super) fn new(storage: Arc<dyn Storage>, cidr: ServiceCidr) -> Self {
        Self { storage, pool: Mutex::new(Pool::new(cidr)), loaded: OnceCell::new() }
    }

    async fn load(&self) -> Result<(), Status> {
        let page = self.storage.list("/core/services/", ListOptions::default()).await.map_err(failure)?;
        for item in page.items {
            let service = crate::wire::stored::decode(&item)?;
            let uid = meta::text(&service, "uid").to_owned();
            self.locked().keep_only(&uid, &addresses(&service));
        }
        Ok(())
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The address for a Service that asks for `wanted` (empty: any).
    fn allocate(&self, request: &Request, uid: &str, wanted: &str) -> Result<Ipv4Addr, Status> {
        let invalid = |detail: &str| {
            let error = FieldError::invalid("spec.clusterIPs", [wanted], detail);
            Status::invalid("", "Service", &request.name, &[error])
        };
        let mut pool = self.locked();
        if wanted.is_empty() {
            let cidr = pool.cidr;
            let found = match request.dry_run {
                true => Some(Ipv4Addr::from(cidr.base + cidr.automatic_from() + 1)),
                false => pool.any(uid),
            };
            let full = || Status::internal(format!("failed to allocate a serviceIP: range {cidr} is full"));
            return found.ok_or_else(full);
        }
        let address: Ipv4Addr = wanted.parse().map_err(|_| invalid("must be a valid IPv4 address"))?;
        if !pool.cidr.contains(address) {
            let detail = format!(
                "failed to allocate IP {address}: the provided IP ({address}) is not in the valid range. The \
                 range of valid IPs is {}",
                pool.cidr
            );
            return Err(invalid(&detail));
        }
        match pool.taken.get(&address) {
            Some(owner) if owner != uid => {
                Err(invalid(&format!("failed to allocate IP {address}: provided IP is already allocated")))
            }
            _ => {
                if !request.dry_run {
                    pool.taken.insert(address, uid.to_owned());
                }
                Ok(address)
            }
        }
    }
}

/// The addresses a Service has.
fn addresses(service: &Value) -> Vec<Ipv4Addr> {
    let list = service.pointer("/spec/clusterIPs").and_then(Value::as_array);
    let list = list.into_iter().flatten().chain(service.pointer("/spec/clusterIP"));
    list.filter_map(|text| text.as_str()?.parse().ok()).collect()
}

fn spec<'a>(service: &'a Value, field: &str) -> &'a str {
    service.get("spec").and_then(|spec| spec.get(field)).and_then(Value::as_str).unwrap_or_default()
}

/// The address a Service asks for; empty: none.
fn asked(service: &Value) -> String {
    let first = service.pointer("/spec/clusterIPs/0").and_then(Value::as_str).unwrap_or_default();
    let own = spec(service, "clusterIP");
    if own.is_empty() { first } else { own }.to_owned()
}

#[async_trait]
impl Admission for ClusterIps {
    fn name(&self) -> &'static str {
        "ClusterIP"
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
        if spec(object, "type") == "ExternalName" {
            return Ok(());
        }
        let mut wanted = asked(object);
        // A client that leaves the address out of an update means to keep it.
        if wanted.is_empty()
            && let Some(old) = old
        {
            wanted = asked(old);
        }
        let address = match wanted.as_str() {
            "None" => "None".to_owned(),
            wanted => {
                let uid = meta::text(object, "uid").to_owned();
                self.allocate(request, &uid, wanted)?.to_string()
            }
        };
        if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
            spec.insert("clusterIP".into(), address.clone().into());
            spec.insert("clusterIPs".into(), json!([address]));
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
        self.locked().keep_only(uid, &addresses(&service));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_unique_and_come_back() {
        let mut pool = Pool::new("10.0.0.0/28".parse().unwrap());
        let mut seen = std::collections::HashSet::new();
        while let Some(address) = pool.any("a") {
            assert!(pool.cidr.contains(address) && seen.insert(address), "{address}");
        }
        // Sixteen less network, broadcast and the first, which is reserved.
        assert_eq!(seen.len(), 13);
        assert!(!seen.contains(&pool.cidr.first()));
        pool.keep_only("a", &[]);
        assert!(pool.any("b").is_some());
    }

    #[test]
    fn ranges_are_parsed() {
        let cidr: ServiceCidr = "10.43.7.1/16".parse().unwrap();
        assert_eq!(cidr, ServiceCidr::default());
        assert_eq!(cidr.to_string(), "10.43.0.0/16");
        assert_eq!(cidr.first(), Ipv4Addr::new(10, 43, 0, 1));
        assert_eq!(cidr.tenth(), Some(Ipv4Addr::new(10, 43, 0, 10)));
        assert_eq!("10.43.0.0/30".parse::<ServiceCidr>().unwrap().tenth(), None);
        for bad in ["", "10.43.0.0", "10.43.0.0/8", "10.43.0.0/31", "x/16"] {
            assert!(bad.parse::<ServiceCidr>().is_err(), "{bad}");
        }
    }
}
