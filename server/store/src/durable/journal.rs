//! The journal: what is acknowledged and not in the database yet.
//!
//! A commit of the database writes and syncs a dozen scattered pages, twice. Appending to one file and
//! syncing once costs a fraction, so that is what a write waits for; the database follows in checkpoints.
//!
//! Frames are checked with a hash that is keyed with a random number of the database. A checkpoint puts a
//! new number there in the same transaction as the events, which makes the whole journal void at that
//! instant: no frame is applied twice, none outlives its database, and none can be forged by storing
//! something that looks like one.
//!
//! A frame is the length of its payload (u32), the hash (16 bytes), and the payload: for each event its
//! revision and the length of its row (u64 each), and the row of the log table. Numbers are little endian.

use super::failure::Failure;
use super::tables::{decode_event, encode_event};
use crate::{Event, Revision};
use redb::StorageBackend;
use sha2::{Digest, Sha256};
use std::sync::Arc;

const HASH_BYTES: usize = 16;
const HEAD_BYTES: usize = 4 + HASH_BYTES;
/// Zeros written at a time when the file is made.
const FILL_BYTES: usize = 64 << 10;

/// An append-only file that starts over at each checkpoint.
pub(super) struct Journal {
    file: Box<dyn StorageBackend>,
    salt: u64,
    /// Where the next frame goes.
    end: u64,
    capacity: u64,
}

impl Journal {
    /// Reads the events after `after` that were acknowledged under `salt`, and goes on behind them.
    ///
    /// The file is filled with zeros up to `capacity` first, so that appending needs neither space nor
    /// changes to the file system's own records. If there is no space for that, there is less journal.
    pub(super) fn open(
        file: Box<dyn StorageBackend>,
        salt: u64,
        after: Revision,
        capacity: u64,
    ) -> Result<(Self, Vec<Arc<Event>>), Failure> {
        let failed = |error| Failure::new("reading the store's journal", redb::Error::Io(error));
        let length = file.len().map_err(failed)?;
        let mut content = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
        file.read(0, &mut content).map_err(failed)?;
        let (events, end) = replay(&content, salt, after);
        let filled = fill(&*file, length, capacity);
        let capacity = filled.unwrap_or_else(|error| {
            tracing::warn!(%error, length, capacity, "the store's journal stays small, which makes writes slow");
            length
        });
        Ok((Journal { file, salt, end, capacity }, events))
    }

    pub(super) fn salt(&self) -> u64 {
        self.salt
    }

    /// Appends the events and syncs. False: there is no room, a checkpoint must come first.
    ///
    /// After an error it is open whether the events are there; they are not acknowledged, and the next
    /// frame takes their place.
    pub(super) fn append(&mut self, events: &[Arc<Event>]) -> Result<bool, Failure> {
        let frame = encode(self.salt, events);
        let after = self.end + frame.len() as u64;
        if after > self.capacity || frame.len() > u32::MAX as usize {
            return Ok(false);
        }
        self.file
            .write(self.end, &frame)
            .and_then(|()| self.file.sync_data())
            .map_err(|error| Failure::new("writing the store's journal", redb::Error::Io(error)))?;
        self.end = after;
        Ok(true)
    }

    /// Starts over after a checkpoint that stored `salt`.
    pub(super) fn restart(&mut self, salt: u64) {
        self.salt = salt;
        self.end = 0;
    }
}

fn fill(file: &dyn StorageBackend, length: u64, capacity: u64) -> std::io::Result<u64> {
    let zeros = vec![0; FILL_BYTES];
    let mut at = length;
    while at < capacity {
        let part = zeros.get(..usize::try_from(capacity - at).unwrap_or(FILL_BYTES).min(FILL_BYTES));
        let part = part.unwrap_or_default();
        file.set_len(at + part.len() as u64)?;
        file.write(at, part)?;
        at += part.len() as u64;
    }
    if at > length {
        file.sync_data()?;
    }
    Ok(capacity)
}

fn hash(salt: u64, payload: &[u8]) -> [u8; HASH_BYTES] {
    let hash: [u8; 32] =
        Sha256::new().chain_update(salt.to_le_bytes()).chain_update(payload).finalize().into();
    let mut short = [0; HASH_BYTES];
    short.iter_mut().zip(hash).for_each(|(to, from)| *to = from);
    short
}

fn encode(salt: u64, events: &[Arc<Event>]) -> Vec<u8> {
    let mut payload = Vec::new();
    let mut row = Vec::new();
    for event in events {
        encode_event(event, &mut row);
        payload.extend_from_slice(&event.revision.to_le_bytes());
        payload.extend_from_slice(&(row.len() as u64).to_le_bytes());
        payload.extend_from_slice(&row);
    }
    let mut frame = Vec::with_capacity(HEAD_BYTES + payload.len());
    frame.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    frame.extend_from_slice(&hash(salt, &payload));
    frame.extend_from_slice(&payload);
    frame
}

/// All whole frames from the start, and where the last one ends. What follows was never acknowledged, or
/// is of an earlier life of the file.
fn replay(content: &[u8], salt: u64, after: Revision) -> (Vec<Arc<Event>>, u64) {
    let (mut events, mut rest) = (Vec::new(), content);
    let mut expected = after + 1;
    while let Some((payload, tail)) = split_frame(rest, salt) {
        let Some(frame) = decode(payload, expected) else { break };
        expected += frame.len() as u64;
        events.extend(frame);
        rest = tail;
    }
    (events, (content.len() - rest.len()) as u64)
}

fn split_frame(content: &[u8], salt: u64) -> Option<(&[u8], &[u8])> {
    let (length, content) = content.split_first_chunk()?;
    let (expected, content) = content.split_first_chunk::<HASH_BYTES>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    let (payload, rest) = content.split_at_checked(length)?;
    (!payload.is_empty() && hash(salt, payload) == *expected).then_some((payload, rest))
}

fn decode(mut payload: &[u8], mut expected: Revision) -> Option<Vec<Arc<Event>>> {
    let mut events = Vec::new();
    while !payload.is_empty() {
        let (revision, rest) = payload.split_first_chunk()?;
        let (length, rest) = rest.split_first_chunk()?;
        let (row, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
        let revision = u64::from_le_bytes(*revision);
        if revision != expected {
            return None;
        }
        events.push(Arc::new(decode_event(revision, row)?));
        expected += 1;
        payload = rest;
    }
    Some(events)
}

/// Reads hostile files; the doors are in [`crate::fuzzing`].
#[cfg(fuzzing)]
pub(crate) mod fuzz {
    use super::{Arc, Event, decode, encode, replay};

    /// What is in a file.
    pub(crate) fn read(content: &[u8]) -> (Vec<Arc<Event>>, u64) {
        replay(content, 7, 0)
    }

    /// The bytes of a frame.
    pub(crate) fn frame(events: &[Arc<Event>]) -> Vec<u8> {
        encode(7, events)
    }

    /// What is in a frame whose hash is right.
    pub(crate) fn payload(bytes: &[u8]) -> Option<Vec<Arc<Event>>> {
        decode(bytes, 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Versioned;
    use redb::backends::InMemoryBackend;

    fn event(revision: Revision, value: impl Into<bytes::Bytes>) -> Arc<Event> {
        let key: Arc<str> = "/a".into();
        let current = Some(Versioned { key: key.clone(), value: value.into(), revision, created: 1 });
        Arc::new(Event { revision, key, current, previous: None })
    }

    fn content(journal: &Journal) -> Vec<u8> {
        let mut content = vec![0; journal.file.len().unwrap() as usize];
        journal.file.read(0, &mut content).unwrap();
        content
    }

    fn journal(capacity: u64) -> Journal {
        Journal::open(Box::new(InMemoryBackend::new()), 7, 0, capacity).unwrap().0
    }

    #[test]
    fn what_is_appended_is_replayed() {
        let mut journal = journal(10_000);
        let events = [event(1, "a"), event(2, "b"), event(3, "c")];
        assert!(journal.append(&events[..2]).unwrap());
        assert!(journal.append(&events[2..]).unwrap());
        let content = content(&journal);
        assert_eq!(replay(&content, 7, 0), (events.to_vec(), journal.end));
        assert_eq!(replay(&content, 8, 0), (vec![], 0), "of another database");
        assert_eq!(replay(&content, 7, 1), (vec![], 0), "not contiguous");
        let first = encode(7, &events[..2]).len();
        for cut in first..journal.end as usize {
            assert_eq!(replay(&content[..cut], 7, 0), (events[..2].to_vec(), first as u64));
        }
    }

    #[test]
    fn any_damage_ends_the_replay() {
        let mut journal = journal(10_000);
        journal.append(&[event(1, "a")]).unwrap();
        let whole = content(&journal);
        for byte in 0..journal.end as usize {
            let mut damaged = whole.clone();
            damaged[byte] ^= 1;
            assert_eq!(replay(&damaged, 7, 0).0, [], "byte {byte}");
        }
    }

    #[test]
    fn nothing_of_an_earlier_life_comes_back() {
        let mut journal = journal(10_000);
        // A value that is a frame, at every place where a shorter first frame could end.
        let forged = encode(7, &[event(2, "forged")]).repeat(20);
        journal.append(&[event(1, forged)]).unwrap();
        journal.restart(8);
        for length in 0..200 {
            journal.restart(8);
            journal.append(&[event(1, vec![b'x'; length])]).unwrap();
            let (events, _) = replay(&content(&journal), 8, 0);
            assert_eq!(events, [event(1, vec![b'x'; length])]);
        }
    }

    #[test]
    fn a_full_journal_takes_nothing() {
        let mut journal = journal(200);
        assert!(!journal.append(&[event(1, vec![0; 300])]).unwrap());
        assert!(journal.append(&[event(1, vec![0; 60])]).unwrap());
        assert!(!journal.append(&[event(2, vec![0; 60])]).unwrap());
        journal.restart(9);
        assert!(journal.append(&[event(2, vec![0; 60])]).unwrap());
        assert_eq!(content(&journal).len(), 200);
    }
}
