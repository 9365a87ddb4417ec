//! Strategic merge patch: a JSON merge patch that knows which lists are sets of named items.
//!
//! The rules are those of `k8s.io/apimachinery/pkg/util/strategicpatch`: lists with the patch strategy
//! `merge` are merged by their merge key, `$patch` replaces or deletes, `$deleteFromPrimitiveList/…`,
//! `$setElementOrder/…` and `$retainKeys` do what they say. Which list has which key is in
//! [`crate::typegraph`].
//!
//! Custom kinds have no merge keys, here as upstream: the patch type is refused for them.

use ketch_api::Status;
use serde_json::{Map, Value};

use crate::typegraph::{Field, GRAPH, Kind, Message, PatchStrategy, Shape};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM_LIST: &str = "$deleteFromPrimitiveList/";
const SET_ORDER: &str = "$setElementOrder/";

/// Nesting beyond which a patch is refused; the deepest kind has a dozen levels.
const MAX_DEPTH: usize = 64;

/// What a patch of a kind without merge keys may be sent as instead.
const OTHER_PATCH_TYPES: &str =
    "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml";

/// Longest list that is merged item by item. Every item is looked for in the other list, so the work grows
/// with the square; no kind comes near.
const MAX_MERGED: usize = 4096;

type Object = Map<String, Value>;

/// Applies `patch` to `original`, an object of the kind named.
///
/// # Errors
/// 415 when the kind has no merge keys, 400 when the patch does not follow the format.
pub fn apply(
    group: &str,
    version: &str,
    kind: &str,
    original: Value,
    patch: &Value,
) -> Result<Value, Status> {
    let Some(message) = GRAPH.kind(group, version, kind) else {
        return Err(Status::unsupported_media_type(OTHER_PATCH_TYPES));
    };
    let (Value::Object(original), Value::Object(patch)) = (original, patch) else {
        return Err(Status::bad_request("invalid strategic merge patch: a JSON object is required"));
    };
    merge_object(original, patch.clone(), Schema::Message(message), 0)
        .map(Value::Object)
        .map_err(|fault| Status::bad_request(format!("invalid strategic merge patch: {fault}")))
}

/// Why a patch cannot be applied.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("unknown value of $patch: {0}")]
    Directive(Value),
    #[error("an item does not have the merge key \"{key}\": {item}")]
    NoMergeKey { key: &'static str, item: Value },
    #[error("lists cannot be merged without a merge key: field \"{0}\"")]
    NotMergeable(String),
    #[error("\"{0}\" must be a list")]
    NotAList(String),
    #[error("the items of \"{0}\" must be either all objects or all scalars")]
    MixedList(String),
    #[error("the list \"{0}\" has items that $setElementOrder does not have, or has them in another order")]
    Order(String),
    #[error("\"{0}\" is set but is not one of $retainKeys")]
    NotRetained(String),
    #[error("it is nested more than {MAX_DEPTH} levels deep")]
    TooDeep,
    #[error("the list \"{0}\" has more than {MAX_MERGED} items; send a JSON merge patch instead")]
    TooLong(String),
}

/// What is known of an object's fields.
#[derive(Clone, Copy)]
enum Schema {
    Message(&'static Message),
    /// A map, or free-form JSON.
    Unknown,
}

impl Schema {
    fn field(self, name: &str) -> Option<&'static Field> {
        match self {
            Self::Message(message) => GRAPH.field(message, name),
            Self::Unknown => None,
        }
    }

    /// Of the objects in the field, and how the field is patched.
    fn below(self, name: &str) -> (Self, PatchStrategy) {
        let Some(field) = self.field(name) else { return (Self::Unknown, PatchStrategy::default()) };
        let schema = match (field.shape, field.kind) {
            (Shape::One | Shape::Repeated, Kind::Message(index)) => {
                GRAPH.message(index).map_or(Self::Unknown, Self::Message)
            }
            _ => Self::Unknown,
        };
        (schema, field.patch)
    }
}

fn merge_object(
    mut original: Object,
    mut patch: Object,
    schema: Schema,
    depth: usize,
) -> Result<Object, Fault> {
    if depth > MAX_DEPTH {
        return Err(Fault::TooDeep);
    }
    match patch.remove(DIRECTIVE) {
        None => {}
        Some(Value::String(word)) if word == "replace" => return Ok(cleaned(patch)),
        Some(Value::String(word)) if word == "delete" => return Ok(Object::new()),
        Some(Value::String(word)) if word == "merge" => {}
        Some(other) => return Err(Fault::Directive(other)),
    }
    retain_keys(&mut original, &mut patch)?;
    delete_from_lists(&mut original, &mut patch)?;
    merge_ordered_lists(&mut original, &mut patch, schema, depth)?;
    for (name, change) in patch {
        if change.is_null() {
            original.remove(&name);
            continue;
        }
        let merged = match original.remove(&name) {
            None => without_directives(change),
            Some(current) => Some(merge_value(&name, current, change, schema, depth)?),
        };
        if let Some(merged) = merged {
            original.insert(name, merged);
        }
    }
    Ok(original)
}

fn merge_value(
    name: &str,
    current: Value,
    change: Value,
    schema: Schema,
    depth: usize,
) -> Result<Value, Fault> {
    let (below, strategy) = schema.below(name);
    match (current, change) {
        (Value::Object(_), Value::Object(change)) if strategy.replace => Ok(Value::Object(cleaned(change))),
        (Value::Object(current), Value::Object(change)) => {
            merge_object(current, change, below, depth + 1).map(Value::Object)
        }
        (Value::Array(current), Value::Array(change)) if strategy.merge => {
            merge_list(name, current, change, below, strategy.merge_key, depth + 1).map(Value::Array)
        }
        (_, change) => Ok(without_directives(change).unwrap_or(Value::Null)),
    }
}

/// `$retainKeys`: what it does not list goes.
fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<(), Fault> {
    let keys = match patch.remove(RETAIN_KEYS) {
        None => return Ok(()),
        Some(Value::Array(keys)) => keys,
        Some(_) => return Err(Fault::NotAList(RETAIN_KEYS.to_owned())),
    };
    let kept = |name: &str| keys.iter().any(|key| key.as_str() == Some(name));
    let stray = patch.iter().find(|(name, value)| {
        !value.is_null() && !name.starts_with(DELETE_FROM_LIST) && !name.starts_with(SET_ORDER) && !kept(name)
    });
    if let Some((name, _)) = stray {
        return Err(Fault::NotRetained(name.clone()));
    }
    original.retain(|name, _| kept(name));
    Ok(())
}

/// `$deleteFromPrimitiveList/NAME`: takes these scalars out.
fn delete_from_lists(original: &mut Object, patch: &mut Object) -> Result<(), Fault> {
    for (name, gone) in take_prefixed(patch, DELETE_FROM_LIST) {
        let Value::Array(gone) = gone else { return Err(Fault::NotAList(name)) };
        if let Some(Value::Array(items)) = original.get_mut(&name) {
            check_length(&name, &[Some(items), Some(&gone)])?;
            items.retain(|item| !gone.contains(item));
        }
    }
    Ok(())
}

/// `$setElementOrder/NAME`: merges the list if the patch has it, then puts the items in the order given.
fn merge_ordered_lists(
    original: &mut Object,
    patch: &mut Object,
    schema: Schema,
    depth: usize,
) -> Result<(), Fault> {
    for (name, order) in take_prefixed(patch, SET_ORDER) {
        let Value::Array(order) = order else { return Err(Fault::NotAList(name)) };
        let (below, strategy) = schema.below(&name);
        let key = strategy.merge_key;
        let change = take_list(patch, &name)?;
        let current = take_list(original, &name)?;
        check_length(&name, &[Some(&order), change.as_ref(), current.as_ref()])?;
        if let Some(change) = &change {
            check_order(&name, change, &order, key)?;
        }
        let server_order = current.clone().unwrap_or_default();
        let merged = match (current, change) {
            (None, None) => continue,
            (Some(current), None) => current,
            (None, Some(change)) => without_directives_in(change),
            (Some(current), Some(change)) if strategy.merge => {
                merge_list(&name, current, change, below, key, depth + 1)?
            }
            (Some(_), Some(change)) => change,
        };
        original.insert(name, Value::Array(ordered(merged, &order, &server_order, key)));
    }
    Ok(())
}

fn check_length(name: &str, lists: &[Option<&Vec<Value>>]) -> Result<(), Fault> {
    match lists.iter().flatten().map(|list| list.len()).sum::<usize>() {
        0..=MAX_MERGED => Ok(()),
        _ => Err(Fault::TooLong(name.to_owned())),
    }
}

fn take_list(object: &mut Object, name: &str) -> Result<Option<Vec<Value>>, Fault> {
    match object.remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(items)) => Ok(Some(items)),
        Some(_) => Err(Fault::NotAList(name.to_owned())),
    }
}

/// Takes the entries whose name starts with `prefix`, without it.
fn take_prefixed(patch: &mut Object, prefix: &str) -> Vec<(String, Value)> {
    let names: Vec<String> = patch.keys().filter(|name| name.starts_with(prefix)).cloned().collect();
    names
        .into_iter()
        .filter_map(|full| {
            let value = patch.remove(&full)?;
            full.strip_prefix(prefix).map(|name| (name.to_owned(), value))
        })
        .collect()
}

/// Merges a list whose strategy is `merge`: by key when it has objects, as a set when it has scalars.
fn merge_list(
    name: &str,
    current: Vec<Value>,
    change: Vec<Value>,
    schema: Schema,
    key: Option<&'static str>,
    depth: usize,
) -> Result<Vec<Value>, Fault> {
    check_length(name, &[Some(&current), Some(&change)])?;
    let objects = current.iter().chain(&change).filter(|item| item.is_object()).count();
    if objects == 0 {
        let mut merged: Vec<Value> = Vec::with_capacity(current.len() + change.len());
        for item in current.iter().chain(&change) {
            if !merged.contains(item) {
                merged.push(item.clone());
            }
        }
        return Ok(ordered(merged, &change, &current, None));
    }
    if objects != current.len() + change.len() {
        return Err(Fault::MixedList(name.to_owned()));
    }
    let key = key.ok_or_else(|| Fault::NotMergeable(name.to_owned()))?;
    let (current, change) = apply_item_directives(current, change, key)?;
    let (server_order, patch_order) = (current.clone(), change.clone());
    let merged = merge_items(current, change, key, schema, depth)?;
    Ok(ordered(merged, &patch_order, &server_order, Some(key)))
}

/// Items with `$patch`: `delete` takes the item with that key out, `replace` empties the list first.
/// Returns what is left of the list and of the patch.
fn apply_item_directives(
    mut current: Vec<Value>,
    change: Vec<Value>,
    key: &'static str,
) -> Result<(Vec<Value>, Vec<Value>), Fault> {
    let mut rest = Vec::with_capacity(change.len());
    let mut replace = false;
    for item in change {
        match item.get(DIRECTIVE) {
            None => rest.push(item),
            Some(Value::String(word)) if word == "replace" => replace = true,
            Some(Value::String(word)) if word == "delete" => {
                let Some(wanted) = item.get(key) else { return Err(Fault::NoMergeKey { key, item }) };
                current.retain(|candidate| candidate.get(key) != Some(wanted));
            }
            Some(other) => return Err(Fault::Directive(other.clone())),
        }
    }
    if replace {
        current.clear();
    }
    Ok((current, rest))
}

fn merge_items(
    mut current: Vec<Value>,
    change: Vec<Value>,
    key: &'static str,
    schema: Schema,
    depth: usize,
) -> Result<Vec<Value>, Fault> {
    for item in change {
        let Some(wanted) = item.get(key) else { return Err(Fault::NoMergeKey { key, item }) };
        let found = current.iter_mut().find(|candidate| candidate.get(key) == Some(wanted));
        match (found, item) {
            (Some(place), Value::Object(item)) => {
                if let Value::Object(before) = place.take() {
                    *place = Value::Object(merge_object(before, item, schema, depth)?);
                }
            }
            (_, item) => current.extend(without_directives(item)),
        }
    }
    Ok(current)
}

/// Whether two items are the same: equal keys, or equal scalars.
fn same(a: &Value, b: &Value, key: Option<&str>) -> bool {
    match key {
        Some(key) => a.get(key).is_some() && a.get(key) == b.get(key),
        None => a == b,
    }
}

fn position(list: &[Value], item: &Value, key: Option<&str>) -> Option<usize> {
    list.iter().position(|candidate| same(candidate, item, key))
}

/// The items of the patch must come in the order of `$setElementOrder`; those it deletes do not count.
fn check_order(name: &str, change: &[Value], order: &[Value], key: Option<&str>) -> Result<(), Fault> {
    let mut rest = order.iter();
    for item in change.iter().filter(|item| item.get(DIRECTIVE).is_none()) {
        if !rest.any(|candidate| same(candidate, item, key)) {
            return Err(Fault::Order(name.to_owned()));
        }
    }
    Ok(())
}

/// Puts the items that `order` has in its order, and merges the others in, keeping their places relative
/// to the items they preceded in `server_order`.
fn ordered(items: Vec<Value>, order: &[Value], server_order: &[Value], key: Option<&str>) -> Vec<Value> {
    let place = |list: &[Value], item: &Value| position(list, item, key);
    let (mut named, mut others): (Vec<Value>, Vec<Value>) =
        items.into_iter().partition(|item| place(order, item).is_some());
    named.sort_by_key(|item| place(order, item));
    others.sort_by_key(|item| place(server_order, item).unwrap_or(usize::MAX));
    let mut merged = Vec::with_capacity(named.len() + others.len());
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    while let (Some(other), Some(next)) = (others.peek(), named.peek()) {
        let before = match (place(server_order, other), place(server_order, next)) {
            (Some(other), Some(next)) => other < next,
            _ => false,
        };
        merged.extend(if before { others.next() } else { named.next() });
    }
    merged.extend(named);
    merged.extend(others);
    merged
}

// === new values: no directives, no nulls ===

/// A value that takes no other's place: directives and nulls mean nothing in it. `None`: it was only a
/// directive.
fn without_directives(value: Value) -> Option<Value> {
    match value {
        Value::Null => None,
        Value::Object(mut object) => match object.remove(DIRECTIVE) {
            Some(Value::String(word)) if word == "delete" => None,
            Some(_) if object.is_empty() => None,
            _ => Some(Value::Object(cleaned(object))),
        },
        Value::Array(items) => Some(Value::Array(without_directives_in(items))),
        scalar => Some(scalar),
    }
}

fn without_directives_in(items: Vec<Value>) -> Vec<Value> {
    items.into_iter().filter_map(without_directives).collect()
}

fn cleaned(object: Object) -> Object {
    let directive =
        |name: &str| name == RETAIN_KEYS || name.starts_with(SET_ORDER) || name.starts_with(DELETE_FROM_LIST);
    object
        .into_iter()
        .filter(|(name, _)| !directive(name))
        .filter_map(|(name, value)| without_directives(value).map(|value| (name, value)))
        .collect()
}

#[cfg(test)]
#[path = "strategic_tests.rs"]
mod tests;
