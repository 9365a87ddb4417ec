//! Lines of the CRI format, and what a reader asked for. Pure.

use jiff::Timestamp;

/// What a reader asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query {
    /// Stay and send what comes.
    pub(crate) follow: bool,
    /// Lines from the end; all when not given.
    pub(crate) tail: Option<u64>,
    /// Nothing older.
    pub(crate) since: Option<Timestamp>,
    /// Put each line's time before it.
    pub(crate) timestamps: bool,
    /// Bytes to send at most.
    pub(crate) limit: Option<u64>,
}

/// One line of a file: a whole line of output, or a part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Line<'a> {
    pub(super) time: &'a str,
    pub(super) partial: bool,
    pub(super) text: &'a [u8],
}

impl<'a> Line<'a> {
    /// Parses `<time> <stream> <P|F> <text>`, without the newline. `None`: not of that form.
    pub(super) fn parse(raw: &'a [u8]) -> Option<Self> {
        let mut parts = raw.splitn(4, |byte| *byte == b' ');
        let time = std::str::from_utf8(parts.next()?).ok()?;
        let stream = parts.next()?;
        let tags = parts.next()?;
        let known = matches!(stream, b"stdout" | b"stderr");
        let partial = tags.split(|byte| *byte == b':').next()? == b"P";
        known.then_some(Self { time, partial, text: parts.next().unwrap_or_default() })
    }
}

/// Turns lines of files into what the reader gets: parts joined, times put before or left out, the limit
/// kept.
#[derive(Debug)]
pub(super) struct Formatter {
    since: Option<Timestamp>,
    timestamps: bool,
    left: u64,
    inside: bool,
}

impl Formatter {
    pub(super) fn new(query: &Query) -> Self {
        Self {
            since: query.since,
            timestamps: query.timestamps,
            left: query.limit.unwrap_or(u64::MAX),
            inside: false,
        }
    }

    /// Adds a line to `out`. Lines that are no CRI lines are passed on as they are.
    pub(super) fn add(&mut self, raw: &[u8], out: &mut Vec<u8>) {
        let line = Line::parse(raw).unwrap_or(Line { time: "", partial: false, text: raw });
        if !self.inside && self.is_old(&line) {
            return;
        }
        if self.timestamps && !self.inside && !line.time.is_empty() {
            self.put(line.time.as_bytes(), out);
            self.put(b" ", out);
        }
        self.put(line.text, out);
        if !line.partial {
            self.put(b"\n", out);
        }
        self.inside = line.partial;
    }

    /// Whether the limit is reached.
    pub(super) fn is_full(&self) -> bool {
        self.left == 0
    }

    fn is_old(&self, line: &Line<'_>) -> bool {
        let Some(since) = self.since else { return false };
        line.time.parse::<Timestamp>().is_ok_and(|time| time < since)
    }

    fn put(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let count = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
        out.extend_from_slice(bytes.get(..count).unwrap_or_default());
        self.left -= count as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &[&str] = &[
        "2026-01-01T00:00:01.000000000Z stdout F one",
        "2026-01-01T00:00:02.000000000Z stderr P two ",
        "2026-01-01T00:00:02.000000001Z stderr F and a half",
        "2026-01-01T00:00:03.000000000Z stdout F ",
        "not a CRI line",
    ];

    fn read(query: &Query) -> String {
        let (mut formatter, mut out) = (Formatter::new(query), Vec::new());
        for line in LOG {
            formatter.add(line.as_bytes(), &mut out);
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn parts_are_joined() {
        assert_eq!(read(&Query::default()), "one\ntwo and a half\n\nnot a CRI line\n");
    }

    #[test]
    fn times_since_and_limits_are_kept() {
        let query = Query { timestamps: true, ..Query::default() };
        assert!(
            read(&query)
                .starts_with("2026-01-01T00:00:01.000000000Z one\n2026-01-01T00:00:02.000000000Z two and")
        );
        let since = "2026-01-01T00:00:02Z".parse().ok();
        assert_eq!(read(&Query { since, ..Query::default() }), "two and a half\n\nnot a CRI line\n");
        assert_eq!(read(&Query { limit: Some(6), ..Query::default() }), "one\ntw");
    }
}
