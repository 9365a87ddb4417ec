//! Numbers, times and names as people read them.

use jiff::Timestamp;
pub use ketch_api::strategy::human_duration;

/// Age of something created at `created`, as `kubectl` prints it; `–` when unknown.
pub fn age(created: Option<Timestamp>, now: Timestamp) -> String {
    // A server's clock may be a little ahead of the browser's.
    created.map_or_else(|| "–".to_owned(), |at| human_duration(now.duration_since(at.min(now))))
}

/// Bytes with a binary unit and at most one decimal: `912 B`, `1.4 MiB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64;
    let mut unit = "B";
    for next in UNITS {
        value /= 1024.0;
        unit = next;
        if value < 1024.0 {
            break;
        }
    }
    if value >= 100.0 { format!("{value:.0} {unit}") } else { format!("{value:.1} {unit}") }
}

/// `sha256:` and the first 12 digits, enough to tell digests apart by eye.
pub fn short_digest(digest: &str) -> String {
    match digest.split_once(':') {
        Some((algorithm, hex)) => format!("{algorithm}:{}", hex.get(..12).unwrap_or(hex)),
        None => digest.to_owned(),
    }
}

/// At most `max` characters, with the middle left out: both ends of a generated name matter.
pub fn middle(text: &str, max: usize) -> String {
    let count = text.chars().count();
    if count <= max || max < 3 {
        return text.to_owned();
    }
    let tail = (max - 1) / 2;
    let head = max - 1 - tail;
    let start: String = text.chars().take(head).collect();
    let end: String = text.chars().skip(count - tail).collect();
    format!("{start}…{end}")
}

/// Milliseconds as a person says them: `640 µs` is not, `0.6 ms`, `38 ms`, `1.24 s` are.
pub fn millis(ms: f64) -> String {
    match ms {
        ms if ms < 10.0 => format!("{ms:.1} ms"),
        ms if ms < 1000.0 => format!("{ms:.0} ms"),
        ms => format!("{:.2} s", ms / 1000.0),
    }
}

/// `1 pod`, `2 pods`.
pub fn count(n: usize, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}s") }
}

/// A [`Quantity`](ketch_api::quantity)-like memory figure (`64Mi`, `1Gi`, `900k`) in bytes.
pub fn memory(quantity: &str) -> Option<f64> {
    let digits = quantity.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(quantity.len());
    let (number, unit) = quantity.split_at_checked(digits)?;
    let factor = match unit {
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        "Ti" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    number.parse::<f64>().ok().map(|n| n * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages() {
        let now: Timestamp = "2026-01-01T12:00:00Z".parse().unwrap();
        assert_eq!(age("2026-01-01T11:58:30Z".parse().ok(), now), "90s");
        assert_eq!(age("2025-12-30T12:00:00Z".parse().ok(), now), "2d");
        assert_eq!(age("2026-01-01T12:00:05Z".parse().ok(), now), "0s", "a clock ahead is not an error");
        assert_eq!(age(None, now), "–");
    }

    #[test]
    fn sizes() {
        assert_eq!(bytes(912), "912 B");
        assert_eq!(bytes(1_468_006), "1.4 MiB");
        assert_eq!(bytes(200 * 1024), "200 KiB");
        assert_eq!(bytes(5 << 40), "5.0 TiB");
    }

    #[test]
    fn names_and_digests() {
        assert_eq!(short_digest("sha256:0123456789abcdef0123"), "sha256:0123456789ab");
        assert_eq!(middle("hello-world-7c9f-x2v8q", 11), "hello…x2v8q");
        assert_eq!(middle("short", 11), "short");
        assert_eq!(count(1, "pod"), "1 pod");
        assert_eq!(count(0, "pod"), "0 pods");
    }

    #[test]
    fn memory_units() {
        assert_eq!(memory("64Mi"), Some(67_108_864.0));
        assert_eq!(memory("1500"), Some(1500.0));
        assert_eq!(memory("12q"), None);
    }
}
