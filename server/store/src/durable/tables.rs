//! What is in the file: the tables, the encoding of their rows, and the transactions on them.
//!
//! | table | key | row |
//! | --- | --- | --- |
//! | `current` | key | revision, created (both u64, little endian), value |
//! | `log` | revision | what changed, with the value before it |
//! | `meta` | name | `revision`, `compacted`, `schema`, `journal` (what its frames are keyed with) |

use super::failure::Failure;
use crate::state::View;
use crate::{Event, Revision, Versioned};
use bytes::Bytes;
use redb::{
    Database, Durability, ReadOnlyTable, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

const CURRENT: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("current");
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Layout of the file; a file with a greater one was written by a later program.
const SCHEMA: u64 = 1;

const HAS_CURRENT: u8 = 1;
const HAS_PREVIOUS: u8 = 2;

/// What `meta` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) revision: Revision,
    pub(super) compacted: Revision,
    pub(super) journal: u64,
}

/// Makes the tables of a new file, and refuses one of a later program.
pub(super) fn prepare(database: &Database) -> Result<(), Failure> {
    let failed = |error: redb::Error| Failure::new("preparing the store's file", error);
    let found = read_schema(database).map_err(failed)?;
    match found {
        Some(SCHEMA) => Ok(()),
        Some(later) => Err(Failure::corrupt(
            format!("the store's file has layout {later}, this program knows {SCHEMA}"),
            "it was written by a later version: start that version, or restore a backup",
        )),
        None => commit(database, |txn| {
            txn.open_table(CURRENT)?;
            txn.open_table(LOG)?;
            let mut meta = txn.open_table(META)?;
            meta.insert("schema", SCHEMA)?;
            meta.insert("revision", 0)?;
            meta.insert("compacted", 0)?;
            meta.insert("journal", new_salt()?)?;
            Ok(())
        })
        .map_err(failed),
    }
}

fn read_schema(database: &Database) -> Result<Option<u64>, redb::Error> {
    match database.begin_read()?.open_table(META) {
        Ok(meta) => Ok(meta.get("schema")?.map(|value| value.value())),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A number nobody can guess.
pub(super) fn new_salt() -> Result<u64, redb::Error> {
    getrandom::u64().map_err(|error| redb::Error::Io(std::io::Error::other(error.to_string())))
}

/// Everything a checkpoint writes.
pub(super) struct Checkpoint<'a> {
    pub(super) events: &'a [Arc<Event>],
    /// History to forget: the revisions from the oldest kept on, as far as this step goes.
    pub(super) forget: Option<RangeInclusive<Revision>>,
    /// Voids the journal, whose events are among these.
    pub(super) salt: u64,
}

/// Writes a checkpoint in one durable transaction.
pub(super) fn write(database: &Database, checkpoint: &Checkpoint<'_>) -> Result<(), redb::Error> {
    commit(database, |txn| {
        let mut current = txn.open_table(CURRENT)?;
        let mut log = txn.open_table(LOG)?;
        let mut meta = txn.open_table(META)?;
        let mut row = Vec::new();
        let mut newest = BTreeMap::new();
        for event in checkpoint.events {
            encode_event(event, &mut row);
            log.insert(event.revision, row.as_slice())?;
            newest.insert(&event.key, event);
        }
        // What a key was in between is history, not its value.
        for (key, event) in newest {
            match &event.current {
                Some(versioned) => {
                    encode_value(versioned, &mut row);
                    current.insert(&**key, row.as_slice())?;
                }
                None => {
                    current.remove(&**key)?;
                }
            }
        }
        if let Some(last) = checkpoint.events.last() {
            meta.insert("revision", last.revision)?;
        }
        meta.insert("journal", checkpoint.salt)?;
        if let Some(forget) = &checkpoint.forget {
            log.retain_in(forget.clone(), |_, _| false)?;
            meta.insert("compacted", *forget.end())?;
        }
        Ok(())
    })
}

fn commit(
    database: &Database,
    fill: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
) -> Result<(), redb::Error> {
    let mut txn = database.begin_write()?;
    txn.set_durability(Durability::Immediate)?;
    txn.set_two_phase_commit(true);
    fill(&txn)?;
    Ok(txn.commit()?)
}

/// Writes `view` into the new, empty `database`, without history.
pub(crate) fn write_copy(database: &Database, view: &View) -> Result<(), redb::Error> {
    commit(database, |txn| {
        let mut current = txn.open_table(CURRENT)?;
        txn.open_table(LOG)?;
        let mut meta = txn.open_table(META)?;
        let mut row = Vec::new();
        for (key, versioned) in &view.values {
            encode_value(versioned, &mut row);
            current.insert(&**key, row.as_slice())?;
        }
        meta.insert("schema", SCHEMA)?;
        meta.insert("revision", view.revision)?;
        meta.insert("compacted", view.revision)?;
        meta.insert("journal", new_salt()?)?;
        Ok(())
    })
}

/// Reads `meta`.
pub(super) fn read_meta(database: &Database) -> Result<Meta, redb::Error> {
    meta_of(&database.begin_read()?.open_table(META)?)
}

fn meta_of(meta: &ReadOnlyTable<&'static str, u64>) -> Result<Meta, redb::Error> {
    let field = |name: &str| Ok::<_, redb::Error>(meta.get(name)?.map_or(0, |value| value.value()));
    Ok(Meta { revision: field("revision")?, compacted: field("compacted")?, journal: field("journal")? })
}

/// Reads all current values.
pub(super) fn read_current(database: &Database) -> Result<View, Failure> {
    let failed = |error: redb::Error| Failure::new("reading the store's file", error);
    let txn = database.begin_read().map_err(|error| failed(error.into()))?;
    let meta = txn.open_table(META).map_err(|error| failed(error.into()))?;
    let revision = meta_of(&meta).map_err(failed)?.revision;
    let table = txn.open_table(CURRENT).map_err(|error| failed(error.into()))?;
    let mut view = View { revision, ..View::default() };
    for row in table.iter().map_err(|error| failed(error.into()))? {
        let (key, value) = row.map_err(|error| failed(error.into()))?;
        let key: Arc<str> = key.value().into();
        let Some(versioned) = decode_value(&key, value.value()) else {
            return Err(Failure::corrupt(format!("reading {key} from the store's file"), "damaged row"));
        };
        view.set(&key, Some(versioned));
    }
    Ok(view)
}

/// Up to `limit` events after `after`, and what `meta` says in the same state of the file.
pub(super) fn read_log(
    database: &Database,
    after: Revision,
    limit: usize,
) -> Result<(Vec<Arc<Event>>, Meta), Failure> {
    let failed = |error: redb::Error| Failure::new("reading the store's history", error);
    let txn = database.begin_read().map_err(|error| failed(error.into()))?;
    let meta = txn.open_table(META).map_err(|error| failed(error.into()))?;
    let meta = meta_of(&meta).map_err(failed)?;
    let log = txn.open_table(LOG).map_err(|error| failed(error.into()))?;
    let mut events = Vec::new();
    for row in log.range(after + 1..).map_err(|error| failed(error.into()))?.take(limit) {
        let (revision, row) = row.map_err(|error| failed(error.into()))?;
        let Some(event) = decode_event(revision.value(), row.value()) else {
            let what = format!("reading revision {} from the store's history", revision.value());
            return Err(Failure::corrupt(what, "damaged row"));
        };
        events.push(Arc::new(event));
    }
    Ok((events, meta))
}

fn encode_value(versioned: &Versioned, row: &mut Vec<u8>) {
    row.clear();
    row.extend_from_slice(&versioned.revision.to_le_bytes());
    row.extend_from_slice(&versioned.created.to_le_bytes());
    row.extend_from_slice(&versioned.value);
}

fn decode_value(key: &Arc<str>, row: &[u8]) -> Option<Versioned> {
    let mut rest = row;
    let (revision, created) = (take_u64(&mut rest)?, take_u64(&mut rest)?);
    Some(Versioned { key: key.clone(), value: Bytes::copy_from_slice(rest), revision, created })
}

/// Flags, key, then the values that are there. Lengths are u64; the revision of the new value is the row's.
pub(super) fn encode_event(event: &Event, row: &mut Vec<u8>) {
    row.clear();
    let flag = |side: &Option<Versioned>, flag| if side.is_some() { flag } else { 0 };
    row.push(flag(&event.current, HAS_CURRENT) | flag(&event.previous, HAS_PREVIOUS));
    put_bytes(row, event.key.as_bytes());
    for versioned in event.current.iter().chain(&event.previous) {
        row.extend_from_slice(&versioned.revision.to_le_bytes());
        row.extend_from_slice(&versioned.created.to_le_bytes());
        put_bytes(row, &versioned.value);
    }
}

pub(super) fn decode_event(revision: Revision, row: &[u8]) -> Option<Event> {
    let (flags, mut rest) = row.split_first()?;
    let key: Arc<str> = std::str::from_utf8(take_bytes(&mut rest)?).ok()?.into();
    let mut side = |flag| {
        if flags & flag == 0 {
            return Some(None);
        }
        let (revision, created) = (take_u64(&mut rest)?, take_u64(&mut rest)?);
        let value = Bytes::copy_from_slice(take_bytes(&mut rest)?);
        Some(Some(Versioned { key: key.clone(), value, revision, created }))
    };
    let (current, previous) = (side(HAS_CURRENT)?, side(HAS_PREVIOUS)?);
    rest.is_empty().then_some(Event { revision, key, current, previous })
}

fn put_bytes(row: &mut Vec<u8>, bytes: &[u8]) {
    row.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    row.extend_from_slice(bytes);
}

fn take_u64(rest: &mut &[u8]) -> Option<u64> {
    let (value, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(u64::from_le_bytes(*value))
}

fn take_bytes<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(take_u64(rest)?).ok()?;
    let (bytes, tail) = rest.split_at_checked(length)?;
    *rest = tail;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn versioned(key: &Arc<str>) -> impl Strategy<Value = Option<Versioned>> + use<> {
        let key = key.clone();
        proptest::option::of((any::<Vec<u8>>(), any::<u64>(), any::<u64>())).prop_map(move |parts| {
            let (value, revision, created) = parts?;
            Some(Versioned { key: key.clone(), value: value.into(), revision, created })
        })
    }

    fn event() -> impl Strategy<Value = Event> {
        any::<(u64, String)>().prop_flat_map(|(revision, key)| {
            let key: Arc<str> = key.into();
            (versioned(&key), versioned(&key)).prop_map(move |(current, previous)| Event {
                revision,
                key: key.clone(),
                current,
                previous,
            })
        })
    }

    proptest! {
        #[test]
        fn events_survive_encoding(event in event()) {
            let mut row = Vec::new();
            encode_event(&event, &mut row);
            prop_assert_eq!(decode_event(event.revision, &row), Some(event));
        }

        #[test]
        fn damaged_rows_are_refused_not_fatal(row in any::<Vec<u8>>(), event in event(), cut in any::<usize>()) {
            decode_event(1, &row);
            decode_value(&"/a".into(), &row);
            let mut whole = Vec::new();
            encode_event(&event, &mut whole);
            prop_assert_eq!(decode_event(1, &whole[..cut % whole.len()]), None);
        }
    }
}
