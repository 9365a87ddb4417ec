//! Field selectors: `status.phase=Running,spec.nodeName!=`.

use std::fmt;

use serde_json::Value;

use super::ParseError;

/// A field selector: every term must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    terms: Vec<FieldTerm>,
}

/// One condition of a [`FieldSelector`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldTerm {
    /// Path, for instance `status.phase`.
    pub field: String,
    /// What it must, or must not, be.
    pub value: String,
    /// Whether `value` is what it must not be.
    pub negated: bool,
}

impl FieldSelector {
    /// Parses the form of `?fieldSelector=`: `a=b,c!=d`, with `\` before a literal `,`, `=` or `\`.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let mut terms = Vec::new();
        for part in split_unescaped(text) {
            if part.is_empty() {
                continue;
            }
            terms.push(field_term(part).ok_or_else(|| {
                ParseError(format!("invalid selector: '{text}'; can't understand '{part}'"))
            })??);
        }
        Ok(Self { terms })
    }

    /// Whether it selects every object.
    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    /// Its conditions; the server checks that their fields exist.
    pub fn terms(&self) -> &[FieldTerm] {
        &self.terms
    }

    /// The value `field` must have, when there is only one.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|t| !t.negated && t.field == field).map(|t| t.value.as_str())
    }

    /// Whether an object is selected whose fields `get` returns; a field that is not set is empty.
    pub fn matches_with<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.terms.iter().all(|t| (get(&t.field).unwrap_or_default() == t.value) != t.negated)
    }

    /// [`FieldSelector::matches_with`] over what [`crate::strategy::DynStrategy::fields`] returns and the
    /// object's own name and namespace.
    pub fn matches(&self, object: &Value, fields: &[(&'static str, String)]) -> bool {
        let own = |name: &str| object.get("metadata").and_then(|m| m.get(name)).and_then(Value::as_str);
        self.matches_with(|field| match field {
            "metadata.name" => own("name"),
            "metadata.namespace" => own("namespace"),
            _ => fields.iter().find(|(name, _)| *name == field).map(|(_, value)| value.as_str()),
        })
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, term) in self.terms.iter().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            let operator = if term.negated { "!=" } else { "=" };
            write!(f, "{comma}{}{operator}{}", term.field, escape(&term.value))?;
        }
        Ok(())
    }
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=")
}

/// Splits at commas that no `\` precedes.
fn split_unescaped(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut escaped) = (Vec::new(), 0, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b',' => {
                parts.extend(text.get(start..at));
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.extend(text.get(start..));
    parts
}

/// `None` without an operator.
fn field_term(part: &str) -> Option<Result<FieldTerm, ParseError>> {
    let operators = [("!=", true), ("==", false), ("=", false)];
    let (at, (operator, negated)) = part.char_indices().find_map(|(at, _)| {
        let rest = part.get(at..)?;
        operators.iter().find(|(operator, _)| rest.starts_with(operator)).map(|found| (at, *found))
    })?;
    let (field, rest) = part.split_at(at);
    let value = unescape(rest.strip_prefix(operator).unwrap_or_default());
    Some(value.map(|value| FieldTerm { field: field.to_owned(), value, negated }))
}

fn unescape(text: &str) -> Result<String, ParseError> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(escaped @ ('\\' | ',' | '=')) => out.push(escaped),
                other => {
                    let sequence = other.map_or_else(|| "\\".to_owned(), |o| format!("\\{o}"));
                    return Err(ParseError(format!(
                        "invalid field selector: invalid escape sequence: {sequence}"
                    )));
                }
            },
            ',' | '=' => {
                return Err(ParseError(format!("invalid field selector: unescaped character in value: {c}")));
            }
            other => out.push(other),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn fields() {
        let parse = |text: &str| FieldSelector::parse(text).unwrap();
        let object = json!({"metadata": {"name": "a", "namespace": "n"}});
        let fields = [("status.phase", "Running".to_owned()), ("spec.nodeName", String::new())];
        for (text, want) in [
            ("", true),
            ("metadata.name=a", true),
            ("metadata.name=b", false),
            ("status.phase=Running,metadata.namespace=n", true),
            ("status.phase!=Running", false),
            ("status.phase==Running", true),
            ("spec.nodeName=", true),
            ("spec.nodeName!=", false),
        ] {
            assert_eq!(parse(text).matches(&object, &fields), want, "{text}");
        }
        assert_eq!(parse("a=b\\,c\\=d").terms()[0].value, "b,c=d");
        assert_eq!(parse("a=b\\,c\\=d").to_string(), "a=b\\,c\\=d");
        assert_eq!(parse("metadata.name=x,a!=b").exact("metadata.name"), Some("x"));
        assert_eq!(
            FieldSelector::parse("bad").unwrap_err().to_string(),
            "invalid selector: 'bad'; can't understand 'bad'"
        );
        assert!(FieldSelector::parse("a=b\\x").is_err());
        assert!(FieldSelector::parse("a=b=c").is_err());
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "\\PC{0,60}") {
            let _ = FieldSelector::parse(&text);
        }
    }
}
