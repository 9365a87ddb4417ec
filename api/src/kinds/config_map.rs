//! ConfigMap and Secret: named bytes.

use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
};
use serde_json::Value;

use super::pod_spec::invalid_all;
use crate::{
    strategy::{Column, Context, Descriptor, FieldError, Meta, Strategy},
    validation::{self, IMMUTABLE},
};

/// Most bytes of keys and values an object may hold.
const SIZE_MAX: usize = 1024 * 1024;
const SEALED: &str = "field is immutable when `immutable` is set";

pub(super) struct ConfigMaps;

impl Strategy for ConfigMaps {
    type Kind = ConfigMap;

    fn descriptor(&self) -> Descriptor {
        Descriptor {
            short_names: &["cm"],
            ..Descriptor::namespaced("", "v1", "ConfigMap", "configmaps", "configmap")
        }
    }

    fn validate(&self, map: &ConfigMap) -> Vec<FieldError> {
        let text = map.data.iter().flatten().map(|(k, v)| (k, v.len()));
        let binary = map.binary_data.iter().flatten().map(|(k, v)| (k, v.0.len()));
        let mut errors = keys(map.data.iter().flatten().map(|(k, _)| k), "data");
        errors.extend(keys(map.binary_data.iter().flatten().map(|(k, _)| k), "binaryData"));
        for key in map.data.iter().flatten().map(|(k, _)| k) {
            if map.binary_data.as_ref().is_some_and(|b| b.contains_key(key)) {
                errors.push(FieldError::invalid(
                    format!("data[{key}]"),
                    key,
                    "duplicate of key present in binaryData",
                ));
            }
        }
        errors.extend(size("", text.chain(binary)));
        errors
    }

    fn validate_update(&self, new: &ConfigMap, old: &ConfigMap) -> Vec<FieldError> {
        if old.immutable != Some(true) {
            return Vec::new();
        }
        changed(&[
            ("immutable", new.immutable != Some(true)),
            ("data", new.data != old.data),
            ("binaryData", new.binary_data != old.binary_data),
        ])
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[Column::NAME, Column::integer("Data"), Column::AGE];
        COLUMNS
    }

    fn row(&self, map: &ConfigMap, metadata: &Meta<'_>) -> Vec<Value> {
        let count =
            map.data.as_ref().map_or(0, |d| d.len()) + map.binary_data.as_ref().map_or(0, |d| d.len());
        vec![metadata.name.into(), count.into(), metadata.age().into()]
    }
}

pub(super) struct Secrets;

impl Strategy for Secrets {
    type Kind = Secret;

    fn descriptor(&self) -> Descriptor {
        Descriptor::namespaced("", "v1", "Secret", "secrets", "secret")
    }

    fn default(&self, secret: &mut Secret) {
        if secret.type_.as_deref().unwrap_or_default().is_empty() {
            secret.type_ = Some("Opaque".into());
        }
        // `stringData` is write-only: it is folded in and never served.
        for (key, text) in secret.string_data.take().into_iter().flatten() {
            secret.data.get_or_insert_default().insert(key, ByteString(text.into_bytes()));
        }
    }

    fn validate(&self, secret: &Secret) -> Vec<FieldError> {
        let mut errors = keys(secret.data.iter().flatten().map(|(k, _)| k), "data");
        errors.extend(size("data", secret.data.iter().flatten().map(|(k, v)| (k, v.0.len()))));
        errors.extend(typed(secret));
        errors
    }

    fn prepare_update(&self, _cx: &Context, new: &mut Secret, old: &Secret) {
        // An update that does not name the type keeps it; the default has already been filled in.
        if new.type_.as_deref() == Some("Opaque") && old.type_.as_deref() == Some("") {
            new.type_.clone_from(&old.type_);
        }
    }

    fn validate_update(&self, new: &Secret, old: &Secret) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if new.type_ != old.type_ {
            errors.push(FieldError::invalid("type", &new.type_, IMMUTABLE));
        }
        if old.immutable == Some(true) {
            errors.extend(changed(&[
                ("immutable", new.immutable != Some(true)),
                ("data", new.data != old.data),
            ]));
        }
        errors
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] =
            &[Column::NAME, Column::text("Type"), Column::integer("Data"), Column::AGE];
        COLUMNS
    }

    fn row(&self, secret: &Secret, metadata: &Meta<'_>) -> Vec<Value> {
        let count = secret.data.as_ref().map_or(0, |d| d.len());
        vec![metadata.name.into(), secret.type_.clone().into(), count.into(), metadata.age().into()]
    }

    fn fields(&self, secret: &Secret) -> Vec<(&'static str, String)> {
        vec![("type", secret.type_.clone().unwrap_or_default())]
    }

    fn field_names(&self) -> &'static [&'static str] {
        &["type"]
    }
}

/// What a Secret's type promises to hold.
fn typed(secret: &Secret) -> Vec<FieldError> {
    let value = |key: &str| secret.data.as_ref().and_then(|d| d.get(key));
    let annotation = |key: &str| secret.metadata.annotations.as_ref().and_then(|a| a.get(key));
    let missing = |key: &str| FieldError::required(format!("data[{key}]"), "");
    let json = |key: &str| match value(key) {
        None => vec![missing(key)],
        Some(bytes) if serde_json::from_slice::<Value>(&bytes.0).is_err() => {
            vec![FieldError::invalid(
                format!("data[{key}]"),
                "<secret contents redacted>",
                "must be valid JSON",
            )]
        }
        Some(_) => Vec::new(),
    };
    match secret.type_.as_deref().unwrap_or_default() {
        "kubernetes.io/service-account-token" => match annotation("kubernetes.io/service-account.name") {
            Some(name) if !name.is_empty() => Vec::new(),
            _ => vec![FieldError::required("metadata.annotations[kubernetes.io/service-account.name]", "")],
        },
        "kubernetes.io/dockercfg" => json(".dockercfg"),
        "kubernetes.io/dockerconfigjson" => json(".dockerconfigjson"),
        "kubernetes.io/basic-auth" if value("username").is_none() && value("password").is_none() => {
            vec![missing("username"), missing("password")]
        }
        "kubernetes.io/ssh-auth" if value("ssh-privatekey").is_none_or(|v| v.0.is_empty()) => {
            vec![missing("ssh-privatekey")]
        }
        "kubernetes.io/tls" => {
            ["tls.crt", "tls.key"].into_iter().filter(|key| value(key).is_none()).map(missing).collect()
        }
        _ => Vec::new(),
    }
}

fn keys<'a>(keys: impl Iterator<Item = &'a String>, path: &str) -> Vec<FieldError> {
    keys.flat_map(|key| invalid_all(&format!("{path}[{key}]"), key, validation::config_key(key))).collect()
}

fn size<'a>(path: &str, entries: impl Iterator<Item = (&'a String, usize)>) -> Vec<FieldError> {
    let total: usize = entries.map(|(_, bytes)| bytes).sum();
    if total > SIZE_MAX { vec![FieldError::too_long(path, SIZE_MAX)] } else { Vec::new() }
}

fn changed(fields: &[(&str, bool)]) -> Vec<FieldError> {
    fields
        .iter()
        .filter(|(_, changed)| *changed)
        .map(|(path, _)| FieldError::forbidden(*path, SEALED))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::tests::{create, decoded, update};

    #[test]
    fn string_data_is_folded_in() {
        let secret = decoded(
            "Secret",
            json!({"metadata": {"name": "a"}, "data": {"a": "eA=="}, "stringData": {"b": "y"}}),
        );
        assert_eq!(secret["data"], json!({"a": "eA==", "b": "eQ=="}));
        assert_eq!(secret["type"], "Opaque");
        assert!(secret.get("stringData").is_none());
    }

    #[test]
    fn rules() {
        let fault = |kind: &str, object: Value| create(kind, object).unwrap_err().message;
        assert_eq!(
            fault("Secret", json!({"metadata": {"name": "a"}, "type": "kubernetes.io/tls"})),
            "Secret \"a\" is invalid: [data[tls.crt]: Required value, data[tls.key]: Required value]"
        );
        assert!(
            fault("ConfigMap", json!({"metadata": {"name": "a"}, "data": {"a/b": "c"}}))
                .contains("a valid config key")
        );
        assert!(
            fault("ConfigMap", json!({"metadata": {"name": "a"}, "data": {"a": "x".repeat(SIZE_MAX + 1)}}))
                .contains("Too long: may not be more than 1048576 bytes")
        );
    }

    #[test]
    fn sealed_maps_stay() {
        let old = json!({"metadata": {"name": "a"}, "data": {"a": "b"}, "immutable": true});
        assert!(update("ConfigMap", old.clone(), &old).is_ok());
        let new = json!({"metadata": {"name": "a"}, "data": {"a": "c"}});
        assert_eq!(
            update("ConfigMap", new, &old).unwrap_err().message,
            "ConfigMap \"a\" is invalid: [immutable: Forbidden: field is immutable when `immutable` is set, data: \
             Forbidden: field is immutable when `immutable` is set]"
        );
        let (tls, opaque) =
            (json!({"metadata": {"name": "a"}, "type": "x"}), json!({"metadata": {"name": "a"}}));
        assert_eq!(
            update("Secret", opaque, &tls).unwrap_err().message,
            "Secret \"a\" is invalid: type: Invalid value: \"Opaque\": field is immutable"
        );
    }
}
