//! Log lines of several pods, merged by time.
//!
//! Lines come from `?timestamps=true`, so each begins with an RFC 3339 time. JSON lines are read only
//! when asked for ([`Line::fields`]), which the view does for visible rows alone.

use std::{collections::VecDeque, sync::Arc};

use jiff::Timestamp;
use serde_json::Value;

/// How bad a line sounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// debug, trace
    Debug,
    /// info, and what names no level
    Info,
    /// warn
    Warn,
    /// error, fatal, panic
    Error,
}

impl Level {
    /// For class names.
    pub fn token(self) -> &'static str {
        match self {
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
        }
    }
}

/// One line of one container.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// Position of arrival; unique in a buffer.
    pub id: u64,
    /// Index of the source it came from.
    pub source: usize,
    /// When it was written; `None` when the line carries no time.
    pub time: Option<Timestamp>,
    /// The text after the time.
    pub text: String,
    /// Read off the text.
    pub level: Level,
}

impl Line {
    /// Reads a line as the API sends it with timestamps.
    pub fn parse(source: usize, raw: &str) -> Self {
        let raw = raw.trim_end_matches('\r');
        let (time, text) = match raw.split_once(' ') {
            Some((head, rest)) if looks_like_time(head) => (head.parse().ok(), rest),
            None if looks_like_time(raw) => (raw.parse().ok(), ""),
            _ => (None, raw),
        };
        let text = if time.is_some() { text } else { raw };
        Self { id: 0, source, time, level: level(text), text: text.to_owned() }
    }

    /// The members of a JSON line: message first, level and time left out.
    pub fn fields(&self) -> Option<Vec<(String, String)>> {
        if !self.text.starts_with('{') {
            return None;
        }
        let Ok(Value::Object(map)) = serde_json::from_str::<Value>(&self.text) else { return None };
        let plain = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
        let is_message = |k: &str| matches!(k, "msg" | "message");
        let skip =
            |k: &str| matches!(k, "level" | "severity" | "lvl" | "time" | "ts" | "timestamp" | "@timestamp");
        let message = map.iter().filter(|(k, _)| is_message(k));
        let rest = map.iter().filter(|(k, _)| !is_message(k) && !skip(k));
        Some(message.chain(rest).map(|(k, v)| (k.clone(), plain(v))).collect())
    }
}

fn looks_like_time(word: &str) -> bool {
    word.len() >= 20
        && word.as_bytes().get(10) == Some(&b'T')
        && word.starts_with(|c: char| c.is_ascii_digit())
}

/// The level a line names within its first 64 bytes, as JSON member, logfmt or bare word.
fn level(text: &str) -> Level {
    let mut end = text.len().min(64);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let head = text.get(..end).unwrap_or_default().to_ascii_lowercase();
    let words = head.split(|c: char| !c.is_ascii_alphabetic()).filter(|w| !w.is_empty()).take(10);
    for word in words {
        match word {
            "error" | "err" | "fatal" | "panic" | "panicked" | "critical" | "exception" => {
                return Level::Error;
            }
            "warn" | "warning" => return Level::Warn,
            "info" | "notice" => return Level::Info,
            "debug" | "trace" => return Level::Debug,
            _ => {}
        }
    }
    Level::Info
}

/// Splits a byte stream into lines across chunk borders.
#[derive(Debug, Default)]
pub struct Splitter {
    rest: Vec<u8>,
}

impl Splitter {
    /// Longest line kept; what is beyond starts a new line, so that a stream without newlines cannot grow
    /// the buffer without bound.
    const MAX: usize = 64 * 1024;

    /// Lines completed by `chunk`, without their ends.
    pub fn push(&mut self, chunk: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for &byte in chunk {
            if byte == b'\n' || self.rest.len() >= Self::MAX {
                lines.push(String::from_utf8_lossy(&std::mem::take(&mut self.rest)).into_owned());
            }
            if byte != b'\n' {
                self.rest.push(byte);
            }
        }
        lines
    }

    /// What is left at the end of the stream.
    pub fn finish(&mut self) -> Option<String> {
        let rest = std::mem::take(&mut self.rest);
        (!rest.is_empty()).then(|| String::from_utf8_lossy(&rest).into_owned())
    }
}

/// The newest lines of all sources, ordered by time; the oldest are dropped beyond the capacity.
#[derive(Clone, Debug)]
pub struct Buffer {
    lines: VecDeque<Arc<Line>>,
    capacity: usize,
    next: u64,
    dropped: u64,
}

impl Buffer {
    /// Keeps at most `capacity` lines.
    pub fn new(capacity: usize) -> Self {
        Self { lines: VecDeque::new(), capacity, next: 0, dropped: 0 }
    }

    /// Adds a line at its place in time. A line without a time goes to the end.
    pub fn push(&mut self, mut line: Line) {
        line.id = self.next;
        self.next += 1;
        let at = match line.time {
            None => self.lines.len(),
            Some(time) => {
                // Sources are nearly in step, so the place is close to the end.
                let later = self.lines.iter().rev().take_while(|l| l.time.is_some_and(|t| t > time)).count();
                self.lines.len() - later
            }
        };
        self.lines.insert(at, Arc::new(line));
        if self.lines.len() > self.capacity {
            self.lines.pop_front();
            self.dropped += 1;
        }
    }

    /// Oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Arc<Line>> + ExactSizeIterator {
        self.lines.iter()
    }

    /// How many lines are held.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Lines given up to stay within the capacity.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.lines.clear();
    }
}

/// Whether a line passes the search text (lower case, space-separated, all must occur).
pub fn matches(line: &Line, words: &str) -> bool {
    words.is_empty() || {
        let text = line.text.to_lowercase();
        words.split_whitespace().all(|w| match w.strip_prefix("level:") {
            Some(level) => line.level.token().starts_with(level),
            None => text.contains(w),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_split_across_chunks() {
        let mut splitter = Splitter::default();
        assert_eq!(splitter.push(b"one\ntw"), ["one"]);
        assert_eq!(splitter.push("o \u{e9}".as_bytes().split_at(3).0), Vec::<String>::new());
        assert_eq!(splitter.push(&[0xa9, b'\n', b'\n']), ["two é", ""]);
        assert_eq!(splitter.push(b"end"), Vec::<String>::new());
        assert_eq!(splitter.finish().as_deref(), Some("end"));
        assert_eq!(splitter.finish(), None);
        let lines = splitter.push(&vec![b'x'; Splitter::MAX + 10]);
        assert_eq!(lines.len(), 1, "a line without end is cut");
    }

    #[test]
    fn parsing() {
        let line = Line::parse(1, "2026-01-01T00:00:01.5Z level=warn disk is filling\r");
        assert_eq!((line.level, line.text.as_str()), (Level::Warn, "level=warn disk is filling"));
        assert!(line.time.is_some());
        let bare = Line::parse(0, "thread 'main' panicked at src/main.rs:3");
        assert_eq!((bare.level, bare.time), (Level::Error, None));
        assert_eq!(Line::parse(0, "2026-01-01T00:00:01Z").text, "");
        assert_eq!(Line::parse(0, "terror and prefer words").level, Level::Info);
        assert_eq!(Line::parse(0, &"é".repeat(60)).level, Level::Info);
    }

    #[test]
    fn json_fields_put_the_message_first() {
        let line = Line::parse(0, r#"{"level":"error","ts":1,"msg":"no route","code":502}"#);
        assert_eq!(line.level, Level::Error);
        let fields = line.fields().unwrap();
        assert_eq!(fields, [("msg".into(), "no route".into()), ("code".into(), "502".into())]);
        assert_eq!(Line::parse(0, "{not json").fields(), None);
    }

    #[test]
    fn sources_are_merged_by_time_within_the_capacity() {
        let mut buffer = Buffer::new(3);
        for (source, raw) in [
            (0, "2026-01-01T00:00:01Z a"),
            (0, "2026-01-01T00:00:03Z c"),
            (1, "2026-01-01T00:00:02Z b"),
            (1, "2026-01-01T00:00:04Z d"),
        ] {
            buffer.push(Line::parse(source, raw));
        }
        let texts: Vec<_> = buffer.iter().map(|l| l.text.as_str()).collect();
        assert_eq!(texts, ["b", "c", "d"]);
        assert_eq!(buffer.dropped(), 1);
        let last = buffer.iter().next_back().unwrap();
        assert!(matches(last, "D") == matches(last, "zz"));
        assert!(matches(last, "d level:info"));
    }
}
