//! The filter language of lists: `status:failed label:app=web ns:default age<1h name`.
//!
//! Terms are joined by "and"; `-term` negates. An unfinished term (`status:`) matches everything, so
//! that a list does not flicker while someone types.

use jiff::Timestamp;

/// What a row offers to a filter.
pub trait Row {
    /// Text that bare words are looked for in, lower case.
    fn haystack(&self) -> &str;
    /// Words `status:` is compared with, lower case.
    fn status(&self) -> Vec<String>;
    /// Namespace.
    fn namespace(&self) -> &str;
    /// Value of a label.
    fn label(&self, key: &str) -> Option<&str>;
    /// When it was created.
    fn created(&self) -> Option<Timestamp>;
}

#[derive(Clone, Debug, PartialEq)]
enum Test {
    Word(String),
    Status(String),
    Namespace(String),
    Label(String, Option<String>),
    YoungerThan(i64),
    OlderThan(i64),
}

/// A parsed filter.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filter {
    terms: Vec<(bool, Test)>,
}

impl Filter {
    /// Reads a filter. Never fails: what is not a known term is a word to look for.
    pub fn parse(input: &str) -> Self {
        let terms = input.split_whitespace().filter_map(|term| match term.strip_prefix('-') {
            Some(rest) => parse_term(rest).map(|test| (true, test)),
            None => parse_term(term).map(|test| (false, test)),
        });
        Self { terms: terms.collect() }
    }

    /// Whether it matches everything.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// Whether `row` passes every term.
    pub fn matches(&self, row: &impl Row, now: Timestamp) -> bool {
        self.terms.iter().all(|(negated, test)| passes(test, row, now) != *negated)
    }
}

fn parse_term(term: &str) -> Option<Test> {
    let lower = term.to_lowercase();
    let value = |prefixes: &[&str]| prefixes.iter().find_map(|p| lower.strip_prefix(p)).map(str::to_owned);
    if let Some(status) = value(&["status:", "is:"]) {
        return (!status.is_empty()).then_some(Test::Status(status));
    }
    if let Some(namespace) = value(&["ns:", "namespace:"]) {
        return (!namespace.is_empty()).then_some(Test::Namespace(namespace));
    }
    if let Some(label) = term.strip_prefix("label:") {
        let (key, value) = match label.split_once('=') {
            Some((key, value)) => (key, Some(value.to_owned())),
            None => (label, None),
        };
        return (!key.is_empty()).then(|| Test::Label(key.to_owned(), value));
    }
    if let Some(seconds) = lower.strip_prefix("age<").map(seconds) {
        return seconds.map(Test::YoungerThan);
    }
    if let Some(seconds) = lower.strip_prefix("age>").map(seconds) {
        return seconds.map(Test::OlderThan);
    }
    (!lower.is_empty()).then_some(Test::Word(lower))
}

/// `90`, `90s`, `5m`, `1h30m`, `2d` in seconds.
fn seconds(text: &str) -> Option<i64> {
    let mut total = 0i64;
    let mut number = String::new();
    for c in text.chars() {
        let factor = match c {
            '0'..='9' => {
                number.push(c);
                continue;
            }
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            _ => return None,
        };
        total = total.checked_add(std::mem::take(&mut number).parse::<i64>().ok()?.checked_mul(factor)?)?;
    }
    if number.is_empty() { (total > 0).then_some(total) } else { total.checked_add(number.parse().ok()?) }
}

fn passes(test: &Test, row: &impl Row, now: Timestamp) -> bool {
    let age = || row.created().map(|at| now.duration_since(at).as_secs());
    match test {
        Test::Word(word) => row.haystack().contains(word.as_str()),
        Test::Status(status) => row.status().iter().any(|s| s.contains(status.as_str())),
        Test::Namespace(namespace) => row.namespace() == namespace,
        Test::Label(key, None) => row.label(key).is_some(),
        Test::Label(key, Some(value)) => row.label(key) == Some(value.as_str()),
        Test::YoungerThan(limit) => age().is_some_and(|age| age < *limit),
        Test::OlderThan(limit) => age().is_some_and(|age| age > *limit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Sample;

    impl Row for Sample {
        fn haystack(&self) -> &str {
            "web-1 default 10.42.0.7"
        }
        fn status(&self) -> Vec<String> {
            vec!["failed".into(), "crashloopbackoff".into()]
        }
        fn namespace(&self) -> &str {
            "default"
        }
        fn label(&self, key: &str) -> Option<&str> {
            (key == "app").then_some("web")
        }
        fn created(&self) -> Option<Timestamp> {
            "2026-01-01T11:00:00Z".parse().ok()
        }
    }

    #[test]
    fn terms() {
        let now = "2026-01-01T12:00:00Z".parse().unwrap();
        for (filter, expected) in [
            ("", true),
            ("WEB", true),
            ("web 10.42", true),
            ("web nope", false),
            ("-nope", true),
            ("status:failed", true),
            ("status:crash", true),
            ("status:running", false),
            ("status:", true),
            ("label:app=web", true),
            ("label:app", true),
            ("label:app=api", false),
            ("-label:tier", true),
            ("ns:default", true),
            ("ns:kube-system", false),
            ("age<2h", true),
            ("age>1h30m", false),
            ("age<30m", false),
            ("age<", true),
        ] {
            assert_eq!(Filter::parse(filter).matches(&Sample, now), expected, "{filter:?}");
        }
    }
}
