//! `metadata`, as far as the server owns it.

use jiff::Timestamp;
use ketch_api::Status;
use serde_json::{Map, Value};

/// What a client may send but only the server decides; dropped or replaced on create, as upstream.
const SERVER_OWNED: &[&str] = &[
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "selfLink",
    "managedFields",
    "resourceVersion",
    "generation",
];
/// What an update keeps from the old object.
const KEPT: &[&str] = &[
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "generateName",
    "managedFields",
    "name",
    "namespace",
];

/// `metadata` of `object`, made if there is none.
pub(crate) fn of_mut(object: &mut Value) -> Result<&mut Map<String, Value>, Status> {
    let map = object
        .as_object_mut()
        .ok_or_else(|| Status::bad_request("the body of the request is not an object"))?;
    let metadata = map.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
    if metadata.is_null() {
        *metadata = Value::Object(Map::new());
    }
    metadata.as_object_mut().ok_or_else(|| Status::bad_request("metadata is not an object"))
}

/// A string field of `metadata`; empty when absent.
pub(crate) fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object.get("metadata").and_then(|m| m.get(field)).and_then(Value::as_str).unwrap_or_default()
}

/// A whole-number field of `metadata`.
pub(crate) fn integer(object: &Value, field: &str) -> Option<i64> {
    object.get("metadata").and_then(|m| m.get(field)).and_then(Value::as_i64)
}

/// `metadata.finalizers`.
pub(crate) fn finalizers(object: &Value) -> Vec<&str> {
    let list = object.pointer("/metadata/finalizers").and_then(Value::as_array);
    list.map(|list| list.iter().filter_map(Value::as_str).collect()).unwrap_or_default()
}

/// Whether deletion has begun.
pub(crate) fn deleting(object: &Value) -> bool {
    !text(object, "deletionTimestamp").is_empty()
}

/// Time stamps in objects have whole seconds.
pub(crate) fn timestamp(at: Timestamp) -> Value {
    Timestamp::from_second(at.as_second()).unwrap_or(at).to_string().into()
}

/// Makes the metadata of a new object: the client's, less what is the server's.
pub(crate) fn initialise(
    object: &mut Value,
    namespace: &str,
    name: &str,
    generation: bool,
    now: Timestamp,
) -> Result<(), Status> {
    let metadata = of_mut(object)?;
    for field in SERVER_OWNED {
        metadata.remove(*field);
    }
    metadata.insert("name".into(), name.into());
    if !namespace.is_empty() {
        metadata.insert("namespace".into(), namespace.into());
    }
    metadata.insert("uid".into(), uid()?.into());
    metadata.insert("creationTimestamp".into(), timestamp(now));
    if generation {
        metadata.insert("generation".into(), 1.into());
    }
    Ok(())
}

/// Gives `new` what an update may not change.
pub(crate) fn carry_over(new: &mut Value, old: &Value) -> Result<(), Status> {
    let metadata = of_mut(new)?;
    metadata.remove("selfLink");
    metadata.remove("resourceVersion");
    for field in KEPT {
        match old.get("metadata").and_then(|m| m.get(*field)) {
            Some(value) => metadata.insert((*field).to_owned(), value.clone()),
            None => metadata.remove(*field),
        };
    }
    Ok(())
}

/// Raises `metadata.generation` by one.
pub(crate) fn bump_generation(object: &mut Value) -> Result<(), Status> {
    let next = integer(object, "generation").unwrap_or(0) + 1;
    of_mut(object)?.insert("generation".into(), next.into());
    Ok(())
}

/// Whether anything but metadata and status differs.
pub(crate) fn spec_differs(a: &Value, b: &Value) -> bool {
    const ASIDE: &[&str] = &["metadata", "status", "apiVersion", "kind"];
    fn rest(object: &Value) -> Vec<(&String, &Value)> {
        let fields = object.as_object().into_iter().flatten();
        let fields = fields.filter(|(key, value)| !ASIDE.contains(&key.as_str()) && !value.is_null());
        let mut fields = fields.collect::<Vec<_>>();
        fields.sort_by_key(|(key, _)| *key);
        fields
    }
    rest(a) != rest(b)
}

fn random(bytes: &mut [u8]) -> Result<(), Status> {
    getrandom::fill(bytes).map_err(|e| Status::internal(format!("reading random bytes: {e}")))
}

/// A random (version 4) UUID.
pub(crate) fn uid() -> Result<String, Status> {
    let mut bytes = [0_u8; 16];
    random(&mut bytes)?;
    let mut n = u128::from_be_bytes(bytes);
    n = (n & !(0xf << 76)) | (0x4 << 76);
    n = (n & !(0x3 << 62)) | (0x2 << 62);
    let hex = format!("{n:032x}");
    let (head, rest) = hex.split_at(8);
    let (a, rest) = rest.split_at(4);
    let (b, rest) = rest.split_at(4);
    let (c, tail) = rest.split_at(4);
    Ok(format!("{head}-{a}-{b}-{c}-{tail}"))
}

/// Completes a `generateName` prefix: cut to 58 bytes, then five characters that spell no words
/// (`k8s.io/apiserver/pkg/storage/names`).
pub(crate) fn generate_name(prefix: &str) -> Result<String, Status> {
    const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut bytes = [0_u8; 5];
    random(&mut bytes)?;
    let mut name = String::with_capacity(63);
    for c in prefix.chars() {
        if name.len() + c.len_utf8() > 58 {
            break;
        }
        name.push(c);
    }
    for byte in bytes {
        let letter = ALPHABET.get(usize::from(byte) % ALPHABET.len()).copied().unwrap_or(b'x');
        name.push(char::from(letter));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn uids_are_version_4() {
        let uid = uid().unwrap();
        assert_eq!(uid.len(), 36);
        assert_eq!(uid.as_bytes()[14], b'4');
        assert!(b"89ab".contains(&uid.as_bytes()[19]));
        assert_ne!(uid, super::uid().unwrap());
    }

    #[test]
    fn generated_names_fit() {
        assert_eq!(generate_name(&"a".repeat(80)).unwrap().len(), 63);
        assert!(generate_name("web-").unwrap().starts_with("web-"));
    }

    #[test]
    fn clients_do_not_set_what_the_server_owns() {
        let mut object =
            json!({"metadata": {"uid": "x", "managedFields": [], "labels": {"a": "b"}, "generation": 9}});
        initialise(&mut object, "default", "n", true, Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(object["metadata"]["generation"], 1);
        assert_eq!(object["metadata"]["creationTimestamp"], "1970-01-01T00:00:00Z");
        assert_ne!(object["metadata"]["uid"], "x");
        let mut new = json!({"metadata": {"uid": "y", "deletionTimestamp": "1970-01-01T00:00:00Z"}});
        carry_over(&mut new, &object).unwrap();
        assert_eq!(new["metadata"]["uid"], object["metadata"]["uid"]);
        assert!(!deleting(&new));
    }

    #[test]
    fn status_and_metadata_are_not_spec() {
        let a = json!({"metadata": {"a": 1}, "spec": {"x": 1}, "status": 1});
        assert!(!spec_differs(&a, &json!({"spec": {"x": 1}, "data": null})));
        assert!(spec_differs(&a, &json!({"spec": {"x": 2}})));
    }
}
