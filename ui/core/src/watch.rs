//! The frames of the watch socket and when to try again.

use serde_json::{Value, json};

use crate::object::{int, text};

/// What the server says about one watch.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    /// `ADDED`, `MODIFIED`, `DELETED` or `BOOKMARK` and the object.
    Event {
        /// Which watch.
        id: u64,
        /// The kind of event.
        verb: String,
        /// The object.
        object: Value,
    },
    /// The watch's history is gone: list again.
    Expired {
        /// Which watch.
        id: u64,
    },
    /// The watch is over; the status says why when it failed.
    End {
        /// Which watch.
        id: u64,
        /// `Status` code, 0 when it just ended.
        code: i64,
        /// What the status says.
        message: String,
    },
}

impl Frame {
    /// Reads a frame; `None` when it is none of ours.
    pub fn parse(frame: &str) -> Option<Self> {
        let mut frame: Value = serde_json::from_str(frame).ok()?;
        let id = frame.get("id")?.as_u64()?;
        if let Some(event) = frame.get_mut("event") {
            let verb = text(event, "/type").to_owned();
            let object = event.get_mut("object").map(Value::take).unwrap_or_default();
            return Some(match verb.as_str() {
                "ERROR" => Self::ended(id, &object),
                _ => Frame::Event { id, verb, object },
            });
        }
        frame.get("end").map(|status| Self::ended(id, status))
    }

    fn ended(id: u64, status: &Value) -> Self {
        let code = int(status, "/code").unwrap_or(0);
        if code == 410 {
            return Frame::Expired { id };
        }
        Frame::End { id, code, message: text(status, "/message").to_owned() }
    }
}

/// The frame that starts a watch of `collection` after `version`. `table` asks for rows instead of
/// objects; a server that sends objects all the same is understood too.
pub fn start(id: u64, collection: &str, version: &str, table: bool) -> String {
    let separator = if collection.contains('?') { '&' } else { '?' };
    let path = format!("{collection}{separator}watch=1&allowWatchBookmarks=true&resourceVersion={version}");
    let mut frame = json!({"id": id, "path": path});
    if table && let Some(map) = frame.as_object_mut() {
        map.insert("accept".to_owned(), crate::table::ACCEPT.into());
    }
    frame.to_string()
}

/// The frame that ends one.
pub fn cancel(id: u64) -> String {
    json!({"id": id, "cancel": true}).to_string()
}

/// Milliseconds before attempt `n` (from 1): doubling from 250 to 10,000, less up to a fifth by
/// `jitter` in 0..1, so that the tabs of one browser do not return in step.
pub fn backoff(attempt: u32, jitter: f64) -> u32 {
    let base = 250u32.saturating_mul(1 << attempt.saturating_sub(1).min(10)).min(10_000);
    base - (f64::from(base) * 0.2 * jitter.clamp(0.0, 1.0)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames() {
        let event = Frame::parse(r#"{"id":3,"event":{"type":"ADDED","object":{"kind":"Pod"}}}"#).unwrap();
        assert_eq!(event, Frame::Event { id: 3, verb: "ADDED".into(), object: json!({"kind": "Pod"}) });
        let gone = r#"{"id":3,"event":{"type":"ERROR","object":{"kind":"Status","code":410}}}"#;
        assert_eq!(Frame::parse(gone), Some(Frame::Expired { id: 3 }));
        assert_eq!(Frame::parse(r#"{"id":3,"end":{"code":410}}"#), Some(Frame::Expired { id: 3 }));
        let end = Frame::End { id: 4, code: 403, message: "no".into() };
        assert_eq!(Frame::parse(r#"{"id":4,"end":{"code":403,"message":"no"}}"#), Some(end));
        assert_eq!(
            Frame::parse(r#"{"id":4,"end":null}"#),
            Some(Frame::End { id: 4, code: 0, message: String::new() })
        );
        assert_eq!(Frame::parse("{}"), None);
        assert_eq!(Frame::parse("nope"), None);
    }

    #[test]
    fn starting() {
        let frame: Value =
            serde_json::from_str(&start(1, "/api/v1/pods?labelSelector=a", "5", false)).unwrap();
        assert_eq!(
            frame["path"],
            "/api/v1/pods?labelSelector=a&watch=1&allowWatchBookmarks=true&resourceVersion=5"
        );
        assert!(start(1, "/api/v1/pods", "5", true).contains("as=Table"));
    }

    #[test]
    fn backing_off_is_bounded() {
        assert_eq!(backoff(1, 0.0), 250);
        assert_eq!(backoff(3, 0.0), 1000);
        assert_eq!(backoff(99, 0.0), 10_000);
        assert_eq!(backoff(99, 1.0), 8_000);
    }
}
