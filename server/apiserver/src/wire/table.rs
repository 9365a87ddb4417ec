//! The `Table` and `PartialObjectMetadata` forms of objects and lists.

use jiff::Timestamp;
use ketch_api::{DynStrategy, Status};
use serde_json::{Value, json};

use super::negotiate::MetaVersion;

/// What each row carries besides its cells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Include {
    None,
    #[default]
    Metadata,
    Object,
}

impl Include {
    /// Reads the `includeObject` parameter.
    pub(crate) fn parse(text: Option<&str>) -> Result<Self, Status> {
        match text {
            None | Some("Metadata") => Ok(Self::Metadata),
            Some("None") => Ok(Self::None),
            Some("Object") => Ok(Self::Object),
            Some(other) => Err(Status::invalid(
                "meta.k8s.io",
                "TableOptions",
                "",
                &[ketch_api::FieldError::not_supported(
                    "includeObject",
                    other,
                    &["Metadata", "None", "Object"],
                )],
            )),
        }
    }
}

/// How to render tables of one request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Style {
    pub(crate) version: MetaVersion,
    pub(crate) include: Include,
    pub(crate) now: Timestamp,
}

/// A table of `objects`. `metadata` is the list's; `header` is false for later events of a watch.
pub(crate) fn table(
    strategy: &dyn DynStrategy,
    style: Style,
    metadata: Value,
    objects: Vec<Value>,
    header: bool,
) -> Value {
    let columns = strategy.columns().iter().map(|column| {
        json!({"name": column.name, "type": column.r#type, "format": column.format,
            "description": "", "priority": column.priority})
    });
    let columns: Vec<Value> = if header { columns.collect() } else { Vec::new() };
    let rows = objects.into_iter().map(|object| row(strategy, style, object)).collect::<Vec<_>>();
    json!({"kind": "Table", "apiVersion": style.version.api_version(), "metadata": metadata,
        "columnDefinitions": columns, "rows": rows})
}

fn row(strategy: &dyn DynStrategy, style: Style, object: Value) -> Value {
    let cells = strategy.row(&object, style.now);
    match style.include {
        Include::None => json!({"cells": cells}),
        Include::Metadata => json!({"cells": cells, "object": partial(&object, style.version)}),
        Include::Object => json!({"cells": cells, "object": object}),
    }
}

/// The metadata-only form of `object`.
pub(crate) fn partial(object: &Value, version: MetaVersion) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": version.api_version(),
        "metadata": object.get("metadata").cloned().unwrap_or_else(|| json!({}))})
}
