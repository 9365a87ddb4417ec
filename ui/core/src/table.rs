//! Lists as the server lays them out: `meta.k8s.io/v1` `Table`.

use std::{cmp::Ordering, sync::Arc};

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    filter,
    health::State,
    object::{created, items, namespace, text},
    rows::Keyed,
};

/// `Accept` of a list that should come as a table.
pub const ACCEPT: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

/// One column.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    /// Header.
    pub name: String,
    /// Whether cells are numbers.
    pub numeric: bool,
    /// 0: always shown; 1: only where there is room.
    pub priority: i64,
}

/// One row: the cells and the object's metadata.
#[derive(Clone, Debug, PartialEq)]
pub struct TableRow {
    key: String,
    version: String,
    haystack: String,
    /// As text, one per column.
    pub cells: Vec<String>,
    /// `PartialObjectMetadata` of the object, or all of it.
    pub object: Value,
}

/// A decoded table.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// Header.
    pub columns: Vec<Column>,
    /// Body.
    pub rows: Vec<Arc<TableRow>>,
    /// resourceVersion of the list.
    pub version: String,
    /// Token of the next page; empty on the last.
    pub next: String,
}

impl Keyed for TableRow {
    fn key(&self) -> &str {
        &self.key
    }
    fn version(&self) -> &str {
        &self.version
    }
}

impl Table {
    /// Reads a `Table`; `None` when the answer is of another kind.
    pub fn parse(answer: &Value) -> Option<Self> {
        if text(answer, "/kind") != "Table" {
            return None;
        }
        let columns = items(answer, "/columnDefinitions").iter().map(|c| Column {
            name: text(c, "/name").to_owned(),
            numeric: matches!(text(c, "/type"), "integer" | "number"),
            priority: c.get("priority").and_then(Value::as_i64).unwrap_or(0),
        });
        Some(Self {
            columns: columns.collect(),
            rows: items(answer, "/rows").iter().map(|r| Arc::new(TableRow::parse(r))).collect(),
            version: text(answer, "/metadata/resourceVersion").to_owned(),
            next: text(answer, "/metadata/continue").to_owned(),
        })
    }
}

impl TableRow {
    fn parse(row: &Value) -> Self {
        let object = row.get("object").cloned().unwrap_or_default();
        let cells: Vec<String> = items(row, "/cells").iter().map(cell).collect();
        let haystack = format!("{} {}", cells.join(" "), namespace(&object)).to_lowercase();
        Self {
            key: text(&object, "/metadata/uid").to_owned(),
            version: text(&object, "/metadata/resourceVersion").to_owned(),
            haystack,
            cells,
            object,
        }
    }

    /// The cell of column `index`, or the empty string.
    pub fn cell(&self, index: usize) -> &str {
        self.cells.get(index).map_or("", String::as_str)
    }
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A row beside the index of its status column, for [`filter::Filter`].
pub struct Filtered<'a>(pub &'a TableRow, pub Option<usize>);

impl filter::Row for Filtered<'_> {
    fn haystack(&self) -> &str {
        &self.0.haystack
    }
    fn status(&self) -> Vec<String> {
        let word = self.1.map_or("", |index| self.0.cell(index));
        vec![word.to_lowercase(), State::of_word(word).token().to_owned()]
    }
    fn namespace(&self) -> &str {
        namespace(&self.0.object)
    }
    fn label(&self, key: &str) -> Option<&str> {
        self.0.object.pointer("/metadata/labels")?.get(key)?.as_str()
    }
    fn created(&self) -> Option<Timestamp> {
        created(&self.0.object)
    }
}

/// Compares two rows by column `index`: times by creation, numbers as numbers, the rest as text in
/// which digits count as numbers (`node-9` before `node-10`).
pub fn compare(a: &TableRow, b: &TableRow, column: &Column, index: usize) -> Ordering {
    if column.name == "Age" {
        return created(&b.object).cmp(&created(&a.object));
    }
    natural(a.cell(index), b.cell(index))
}

/// Text order in which runs of digits compare by value.
pub fn natural(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        let (Some(x), Some(y)) = (a.chars().next(), b.chars().next()) else {
            return a.len().cmp(&b.len());
        };
        let order = if x.is_ascii_digit() && y.is_ascii_digit() {
            let (n, rest_a) = number(a);
            let (m, rest_b) = number(b);
            (a, b) = (rest_a, rest_b);
            n.len().cmp(&m.len()).then_with(|| n.cmp(m))
        } else {
            a = a.get(x.len_utf8()..).unwrap_or_default();
            b = b.get(y.len_utf8()..).unwrap_or_default();
            x.to_lowercase().cmp(y.to_lowercase())
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

/// Leading digits without leading zeros, and the rest.
fn number(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at_checked(end).unwrap_or((text, ""));
    (digits.trim_start_matches('0'), rest)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::filter::Filter;

    fn table() -> Table {
        Table::parse(&json!({
            "kind": "Table", "metadata": {"resourceVersion": "42"},
            "columnDefinitions": [
                {"name": "Name", "type": "string", "priority": 0},
                {"name": "Restarts", "type": "integer", "priority": 0},
                {"name": "Status", "type": "string", "priority": 0},
                {"name": "Age", "type": "string", "priority": 0},
            ],
            "rows": [
                {"cells": ["web-10", 2, "CrashLoopBackOff", "1m"], "object": {"metadata": {"uid": "u1", "resourceVersion": "7",
                    "namespace": "default", "labels": {"app": "web"}, "creationTimestamp": "2026-01-01T00:00:00Z"}}},
                {"cells": ["web-9", null, "Running", "2m"], "object": {"metadata": {"uid": "u2", "resourceVersion": "8",
                    "namespace": "default", "creationTimestamp": "2026-01-01T00:01:00Z"}}},
            ],
        }))
        .unwrap()
    }

    #[test]
    fn rows_are_read_with_their_metadata() {
        let table = table();
        assert_eq!(table.version, "42");
        assert_eq!(table.columns[1], Column { name: "Restarts".into(), numeric: true, priority: 0 });
        assert_eq!((table.rows[0].cell(1), table.rows[1].cell(1)), ("2", ""));
        assert_eq!(table.rows[0].key(), "u1");
        assert!(Table::parse(&json!({"kind": "PodList"})).is_none());
    }

    #[test]
    fn filters_see_the_status_column() {
        let table = table();
        let now = "2026-01-01T00:02:00Z".parse().unwrap();
        let names = |filter: &str| {
            let filter = Filter::parse(filter);
            let hits = table.rows.iter().filter(|r| filter.matches(&Filtered(r, Some(2)), now));
            hits.map(|r| r.cell(0).to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names("status:failed"), ["web-10"]);
        assert_eq!(names("label:app=web"), ["web-10"]);
        assert_eq!(names("age<90s"), ["web-9"]);
        assert_eq!(names("default web"), ["web-10", "web-9"]);
    }

    #[test]
    fn order() {
        assert_eq!(natural("web-9", "web-10"), Ordering::Less);
        assert_eq!(natural("a", "a1"), Ordering::Less);
        assert_eq!(natural("v007", "v7"), Ordering::Equal);
        assert_eq!(natural("2", "10"), Ordering::Less);
        let table = table();
        let by = |i: usize| compare(&table.rows[0], &table.rows[1], &table.columns[i], i);
        assert_eq!(by(0), Ordering::Greater);
        assert_eq!(by(3), Ordering::Greater, "the younger comes first");
    }
}
