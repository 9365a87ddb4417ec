//! Doors to what reads the journal, for the fuzz targets only.

use std::sync::Arc;

use crate::{Event, Versioned, durable::journal::fuzz};

/// Reads a file that may hold anything, and the payload of a frame that may.
pub fn anything(bytes: &[u8]) {
    let (_, end) = fuzz::read(bytes);
    assert!(end <= bytes.len() as u64);
    if let Some(events) = fuzz::payload(bytes) {
        // 20: length and hash.
        let again = fuzz::frame(&events).get(20..).and_then(fuzz::payload);
        assert!(again == Some(events), "events are the same when they are written again");
    }
}

/// Writes frames of these values, one for each list, damages a byte or cuts the end off, and reads: what comes
/// back is the frames before the damage, whole and in order.
pub fn torn(frames: &[Vec<Vec<u8>>], at: usize, damage: u8) {
    let (mut revision, mut content, mut ends, mut written) = (0, Vec::new(), vec![0], Vec::new());
    for values in frames.iter().filter(|values| !values.is_empty()) {
        let events: Vec<Arc<Event>> = values
            .iter()
            .map(|value| {
                revision += 1;
                event(revision, value)
            })
            .collect();
        content.extend(fuzz::frame(&events));
        ends.push(content.len());
        written.push(events);
    }
    let at = at % content.len().max(1);
    match damage {
        0 => content.truncate(at),
        bits => {
            if let Some(byte) = content.get_mut(at) {
                *byte ^= bits;
            }
        }
    }
    let whole = ends.iter().rposition(|end| *end <= at).unwrap_or(0);
    let expected: Vec<Arc<Event>> = written.into_iter().take(whole).flatten().collect();
    let (read, end) = fuzz::read(&content);
    assert!(read == expected, "{} events came back, {} were whole", read.len(), expected.len());
    assert_eq!(Some(&usize::try_from(end).unwrap_or(usize::MAX)), ends.get(whole));
}

fn event(revision: u64, value: &[u8]) -> Arc<Event> {
    let key: Arc<str> = format!("/a/{}", value.len()).into();
    let side =
        |revision| Some(Versioned { key: key.clone(), value: value.to_vec().into(), revision, created: 1 });
    let (current, previous) = match value.first() {
        Some(0) => (None, side(1)),
        Some(1) => (side(revision), side(1)),
        _ => (side(revision), None),
    };
    Arc::new(Event { revision, key, current, previous })
}
