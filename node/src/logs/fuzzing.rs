//! What containers wrote, read back.

use super::line::{Formatter, Query};

/// Lines of a log file, for readers who want much or little.
pub(crate) fn log(bytes: &[u8], limit: u64) {
    let (mut whole, mut cut) = (Vec::new(), Vec::new());
    for (out, limit) in [(&mut whole, None), (&mut cut, Some(limit))] {
        let since = "2026-01-01T00:00:00Z".parse().ok();
        let mut formatter = Formatter::new(&Query {
            timestamps: limit.is_none_or(|n| n % 2 == 0),
            since,
            limit,
            ..Query::default()
        });
        for line in bytes.split(|byte| *byte == b'\n') {
            formatter.add(line, out);
        }
    }
    assert!(cut.len() as u64 <= limit);
}
