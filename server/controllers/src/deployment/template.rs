//! When two pod templates are the same, and what a ReplicaSet made from one is called. Pure.

use ketch_api::k8s::api::core::v1::PodTemplateSpec;
use serde_json::Value;

/// Label that tells the ReplicaSets of a Deployment, and their pods, apart.
pub(super) const HASH_LABEL: &str = "pod-template-hash";

/// Letters and digits that cannot form words, as in `k8s.io/apimachinery/pkg/util/rand`.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// A short name for a template that is the same on every server, at all times. `collisions` is how often
/// a hash was found to be taken by another template.
///
/// FNV-1a of the template's canonical JSON, encoded as upstream encodes its hash. The values differ from
/// upstream's, which hashes a dump of Go's memory.
pub(super) fn hash(template: &PodTemplateSpec, collisions: i32) -> String {
    let mut text = canonical(template).to_string();
    if collisions > 0 {
        text.push_str(&collisions.to_string());
    }
    let hash =
        text.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let encode =
        |digit: u8| ALPHABET.get(usize::from(digit) % ALPHABET.len()).copied().map_or('x', char::from);
    hash.to_string().bytes().map(encode).collect()
}

/// Whether pods made from one would be pods made from the other; the hash label does not count, nor does
/// the difference between an empty and a missing field.
pub(super) fn same(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    a == b || canonical(a) == canonical(b)
}

fn canonical(template: &PodTemplateSpec) -> Value {
    let mut template = template.clone();
    if let Some(labels) = template.metadata.as_mut().and_then(|meta| meta.labels.as_mut()) {
        labels.remove(HASH_LABEL);
    }
    let mut value = serde_json::to_value(&template).unwrap_or_default();
    prune(&mut value);
    value
}

/// Takes out nulls and what is empty without them.
fn prune(value: &mut Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => {
            map.retain(|_, field| !prune(field));
            map.is_empty()
        }
        Value::Array(items) => {
            for item in items.iter_mut() {
                prune(item);
            }
            items.is_empty()
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn template(image: &str, hash: Option<&str>) -> PodTemplateSpec {
        serde_json::from_value(json!({
            "metadata": {"labels": {"app": "web", HASH_LABEL: hash}},
            "spec": {"containers": [{"name": "c", "image": image}]},
        }))
        .unwrap_or_else(|_| {
            serde_json::from_value(json!({
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": image}]},
            }))
            .unwrap()
        })
    }

    #[test]
    fn the_hash_is_stable_and_depends_on_the_content_only() {
        assert_eq!(hash(&template("a", None), 0), hash(&template("a", Some("xyz")), 0));
        assert_ne!(hash(&template("a", None), 0), hash(&template("b", None), 0));
        assert_ne!(hash(&template("a", None), 0), hash(&template("a", None), 1));
        let name = hash(&template("a", None), 0);
        assert!(name.len() <= 10 && name.bytes().all(|b| ALPHABET.contains(&b)), "{name}");
    }

    #[test]
    fn empty_and_missing_fields_are_the_same() {
        let mut padded = template("a", Some("h"));
        padded.spec.as_mut().unwrap().volumes = Some(Vec::new());
        padded.spec.as_mut().unwrap().security_context = Some(Default::default());
        assert!(same(&template("a", None), &padded));
        assert!(!same(&template("a", None), &template("b", None)));
    }
}
