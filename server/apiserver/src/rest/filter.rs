//! Which objects of a list or watch the client wants.

use std::borrow::Cow;
use std::collections::BTreeMap;

use ketch_api::{
    Status,
    selector::{FieldSelector, Selector},
};
use ketch_store::Versioned;
use serde::Deserialize;

use super::Call;
use crate::{registry::Resource, wire::stored};

/// Label and field selector of a request, and the object name in its path.
pub(crate) struct Filter {
    labels: Selector,
    fields: FieldSelector,
    name: String,
    /// Whether the fields can be read off the key.
    fields_in_key: bool,
}

#[derive(Deserialize)]
struct Labelled<'a> {
    #[serde(borrow)]
    metadata: Labels<'a>,
}

#[derive(Deserialize)]
struct Labels<'a> {
    #[serde(borrow, default)]
    labels: Option<BTreeMap<Cow<'a, str>, Cow<'a, str>>>,
}

impl Filter {
    /// Reads the selectors of `call`; 400 for what is no selector or names a field the kind does not have.
    pub(crate) fn parse(call: &Call, resource: &Resource) -> Result<Self, Status> {
        let refuse = |e: ketch_api::selector::ParseError| Status::bad_request(e.to_string());
        let labels = Selector::parse(call.query.get("labelSelector").unwrap_or_default()).map_err(refuse)?;
        let fields =
            FieldSelector::parse(call.query.get("fieldSelector").unwrap_or_default()).map_err(refuse)?;
        let known = resource.strategy().field_names();
        let own = ["metadata.name", "metadata.namespace"];
        for term in fields.terms() {
            let field = term.field.as_str();
            if !own.contains(&field) && !known.contains(&field) {
                let list = own.iter().chain(known).map(|name| format!("\"{name}\"")).collect::<Vec<_>>();
                return Err(Status::bad_request(format!(
                    "field label not supported: {field}: \"{field}\" is not a known field selector: only {}",
                    list.join(", ")
                )));
            }
        }
        let fields_in_key = fields.terms().iter().all(|term| own.contains(&term.field.as_str()));
        Ok(Self { labels, fields, name: call.info.name.clone(), fields_in_key })
    }

    /// Whether every object passes.
    pub(crate) fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything() && self.name.is_empty()
    }

    /// Whether `object` passes. Parses no more than the selectors need.
    pub(crate) fn matches(&self, resource: &Resource, object: &Versioned) -> Result<bool, Status> {
        let (namespace, name) = place(&object.key, resource.descriptor().namespaced);
        if !self.name.is_empty() && self.name != name {
            return Ok(false);
        }
        if !self.labels.is_everything() && !self.labels_match(object)? {
            return Ok(false);
        }
        if self.fields.is_everything() {
            return Ok(true);
        }
        if self.fields_in_key {
            return Ok(self.fields.matches_with(|field| match field {
                "metadata.name" => Some(name),
                _ => Some(namespace),
            }));
        }
        let value = stored::decode(object)?;
        Ok(self.fields.matches(&value, &resource.strategy().fields(&value)))
    }

    fn labels_match(&self, object: &Versioned) -> Result<bool, Status> {
        let view: Labelled<'_> = serde_json::from_slice(&object.value)
            .map_err(|e| Status::internal(format!("the stored object {} is damaged: {e}", object.key)))?;
        let labels = view.metadata.labels.unwrap_or_default();
        Ok(self.labels.matches_with(|key| labels.get(key).map(AsRef::as_ref)))
    }
}

/// Namespace and name in a store key.
fn place(key: &str, namespaced: bool) -> (&str, &str) {
    let mut parts = key.rsplit('/');
    let name = parts.next().unwrap_or_default();
    (if namespaced { parts.next().unwrap_or_default() } else { "" }, name)
}
