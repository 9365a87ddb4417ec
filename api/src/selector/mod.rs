//! Label selectors (here) and field selectors ([`FieldSelector`]): parse, match, print.
//!
//! Grammar and meaning are those of `k8s.io/apimachinery`'s `pkg/labels` and `pkg/fields`.

mod field;

use std::{collections::BTreeMap, fmt};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use serde_json::Value;

pub use self::field::{FieldSelector, FieldTerm};
use crate::validation;

/// Why a text is no selector; becomes a 400.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseError(String);

/// What a requirement asks of a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// Has exactly the one value.
    Equals,
    /// Has not the one value, or is missing.
    NotEquals,
    /// Has one of the values.
    In,
    /// Has none of the values, or is missing.
    NotIn,
    /// Is there.
    Exists,
    /// Is missing.
    DoesNotExist,
    /// Is a whole number above the one value.
    GreaterThan,
    /// Is a whole number below the one value.
    LessThan,
}

/// One condition of a [`Selector`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// Label key.
    pub key: String,
    /// What is asked.
    pub operator: Operator,
    /// Values, sorted.
    pub values: Vec<String>,
}

/// A label selector: every requirement must hold. Without requirements it selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl Requirement {
    /// Checks key, values and their number.
    pub fn new(key: &str, operator: Operator, mut values: Vec<String>) -> Result<Self, ParseError> {
        if let Some(fault) = validation::qualified_name(key).first() {
            return Err(ParseError(format!("key: Invalid value: \"{key}\": {fault}")));
        }
        let fault = match (operator, values.len()) {
            (Operator::In | Operator::NotIn, 0) => {
                Some("for 'in', 'notin' operators, values set can't be empty")
            }
            (Operator::Exists | Operator::DoesNotExist, 1..) => {
                Some("values set must be empty for exists and does not exist")
            }
            (Operator::Equals | Operator::NotEquals, n) if n != 1 => {
                Some("exact-match compatibility requires one single value")
            }
            (Operator::GreaterThan | Operator::LessThan, n) if n != 1 => {
                Some("for 'Gt', 'Lt' operators, exactly one value is required")
            }
            _ => None,
        };
        if let Some(fault) = fault {
            return Err(ParseError(format!("values: Invalid value: {values:?}: {fault}")));
        }
        if matches!(operator, Operator::GreaterThan | Operator::LessThan)
            && let Some(value) = values.iter().find(|v| v.parse::<i64>().is_err())
        {
            let fault = "for 'Gt', 'Lt' operators, the value must be an integer";
            return Err(ParseError(format!("values[0]: Invalid value: \"{value}\": {fault}")));
        }
        for (n, value) in values.iter().enumerate() {
            if let Some(fault) = validation::label_value(value).first() {
                return Err(ParseError(format!("values[{n}][{key}]: Invalid value: \"{value}\": {fault}")));
            }
        }
        values.sort();
        values.dedup();
        Ok(Self { key: key.to_owned(), operator, values })
    }

    fn matches(&self, value: Option<&str>) -> bool {
        let listed = || value.is_some_and(|v| self.values.iter().any(|one| one == v));
        let number = |text: Option<&str>| text.and_then(|t| t.parse::<i64>().ok());
        let compare = |holds: fn(&i64, &i64) -> bool| {
            let bound = number(self.values.first().map(String::as_str));
            number(value).zip(bound).is_some_and(|(a, b)| holds(&a, &b))
        };
        match self.operator {
            Operator::Equals | Operator::In => listed(),
            Operator::NotEquals | Operator::NotIn => !listed(),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan => compare(i64::gt),
            Operator::LessThan => compare(i64::lt),
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, values) = (&self.key, self.values.join(","));
        match self.operator {
            Operator::Equals => write!(f, "{key}={values}"),
            Operator::NotEquals => write!(f, "{key}!={values}"),
            Operator::In => write!(f, "{key} in ({values})"),
            Operator::NotIn => write!(f, "{key} notin ({values})"),
            Operator::Exists => write!(f, "{key}"),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::GreaterThan => write!(f, "{key}>{values}"),
            Operator::LessThan => write!(f, "{key}<{values}"),
        }
    }
}

impl Selector {
    /// Selects everything.
    pub const fn everything() -> Self {
        Self { requirements: Vec::new(), nothing: false }
    }

    /// Selects nothing.
    pub const fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    /// Parses the form of `kubectl -l` and `?labelSelector=`.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let mut parser = Parser { tokens: tokens(text), at: 0 };
        let mut requirements = Vec::new();
        while parser.peek() != &Token::End {
            requirements.push(parser.requirement()?);
            match parser.next() {
                Token::End => break,
                Token::Comma => match parser.peek() {
                    Token::Word(_) | Token::Not => {}
                    found => return Err(unexpected(found, "identifier after ','")),
                },
                found => return Err(unexpected(&found, "',' or 'end of string'")),
            }
        }
        // Upstream sorts by key, so equal selectors print alike.
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self { requirements, nothing: false })
    }

    /// The object form. An empty selector selects everything.
    pub fn from_object(selector: &LabelSelector) -> Result<Self, ParseError> {
        let labels = selector.match_labels.iter().flatten();
        let mut requirements = labels
            .map(|(key, value)| Requirement::new(key, Operator::Equals, vec![value.clone()]))
            .collect::<Result<Vec<_>, _>>()?;
        for expression in selector.match_expressions.iter().flatten() {
            requirements.push(expression_requirement(expression)?);
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self { requirements, nothing: false })
    }

    /// [`Selector::from_object`], where a missing selector selects nothing.
    pub fn from_optional(selector: Option<&LabelSelector>) -> Result<Self, ParseError> {
        selector.map_or(Ok(Self::nothing()), Self::from_object)
    }

    /// Each label must have the given value, as a Service's `spec.selector`. Labels are not checked.
    pub fn from_labels(labels: &BTreeMap<String, String>) -> Self {
        let equals = |(key, value): (&String, &String)| Requirement {
            key: key.clone(),
            operator: Operator::Equals,
            values: vec![value.clone()],
        };
        Self { requirements: labels.iter().map(equals).collect(), nothing: false }
    }

    /// Whether it selects every object.
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }

    /// Its conditions.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Whether these labels are selected.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.matches_with(|key| labels.get(key).map(String::as_str))
    }

    /// Whether an object with these labels, if any, is selected.
    pub fn matches_optional(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        self.matches_with(|key| labels.and_then(|l| l.get(key)).map(String::as_str))
    }

    /// Whether an object is selected by its `metadata.labels`.
    pub fn matches_object(&self, object: &Value) -> bool {
        let labels = object.get("metadata").and_then(|m| m.get("labels"));
        self.matches_with(|key| labels.and_then(|l| l.get(key)).and_then(Value::as_str))
    }

    /// Whether labels reached through `get` are selected.
    pub fn matches_with<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(get(&r.key)))
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, requirement) in self.requirements.iter().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            write!(f, "{comma}{requirement}")?;
        }
        Ok(())
    }
}

fn expression_requirement(expression: &LabelSelectorRequirement) -> Result<Requirement, ParseError> {
    let operator = match expression.operator.as_str() {
        "In" => Operator::In,
        "NotIn" => Operator::NotIn,
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        other => return Err(ParseError(format!("\"{other}\" is not a valid label selector operator"))),
    };
    Requirement::new(&expression.key, operator, expression.values.clone().unwrap_or_default())
}

/// As tables show a selector: `<none>` when empty.
pub fn display(selector: &LabelSelector) -> String {
    match Selector::from_object(selector) {
        Ok(selector) if selector.is_everything() => "<none>".to_owned(),
        Ok(selector) => selector.to_string(),
        Err(_) => "<error>".to_owned(),
    }
}

/// As tables show a map of labels: `<none>` when empty.
pub fn display_labels(labels: Option<&BTreeMap<String, String>>) -> String {
    match labels {
        Some(labels) if !labels.is_empty() => Selector::from_labels(labels).to_string(),
        _ => "<none>".to_owned(),
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Comma,
    Open,
    Close,
    Not,
    Equals,
    DoubleEquals,
    NotEquals,
    Greater,
    Less,
    End,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Token::Word(word) => word,
            Token::Comma => ",",
            Token::Open => "(",
            Token::Close => ")",
            Token::Not => "!",
            Token::Equals => "=",
            Token::DoubleEquals => "==",
            Token::NotEquals => "!=",
            Token::Greater => ">",
            Token::Less => "<",
            Token::End => "",
        })
    }
}

fn unexpected(found: &Token, expected: &str) -> ParseError {
    ParseError(format!("unable to parse requirement: found '{found}', expected: {expected}"))
}

fn tokens(text: &str) -> Vec<Token> {
    let special = |c: char| matches!(c, '(' | ')' | ',' | '!' | '=' | '<' | '>');
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let symbol = [
            ("==", Token::DoubleEquals),
            ("!=", Token::NotEquals),
            ("=", Token::Equals),
            ("!", Token::Not),
            (",", Token::Comma),
            ("(", Token::Open),
            (")", Token::Close),
            (">", Token::Greater),
            ("<", Token::Less),
        ]
        .into_iter()
        .find_map(|(symbol, token)| rest.strip_prefix(symbol).map(|after| (token, after)));
        let (token, after) = symbol.unwrap_or_else(|| {
            let end = rest.find(|c: char| special(c) || c.is_whitespace()).unwrap_or(rest.len());
            // `first` is neither special nor a space here, so a word is never empty and the loop ends.
            let (word, after) = rest.split_at(end.max(first.len_utf8()));
            (Token::Word(word.to_owned()), after)
        });
        tokens.push(token);
        rest = after.trim_start();
    }
    tokens.push(Token::End);
    tokens
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> &Token {
        self.tokens.get(self.at).unwrap_or(&Token::End)
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    fn requirement(&mut self) -> Result<Requirement, ParseError> {
        let missing = self.peek() == &Token::Not;
        if missing {
            self.next();
        }
        let key = match self.next() {
            Token::Word(key) => key,
            found => return Err(unexpected(&found, "identifier")),
        };
        if missing {
            return Requirement::new(&key, Operator::DoesNotExist, Vec::new());
        }
        if matches!(self.peek(), Token::End | Token::Comma) {
            return Requirement::new(&key, Operator::Exists, Vec::new());
        }
        let operator = match self.next() {
            Token::Equals | Token::DoubleEquals => Operator::Equals,
            Token::NotEquals => Operator::NotEquals,
            Token::Greater => Operator::GreaterThan,
            Token::Less => Operator::LessThan,
            Token::Word(word) if word == "in" => Operator::In,
            Token::Word(word) if word == "notin" => Operator::NotIn,
            found => return Err(unexpected(&found, "in, notin, =, ==, !=, gt, lt")),
        };
        let values = match operator {
            Operator::In | Operator::NotIn => self.set()?,
            _ => vec![self.exact_value()?],
        };
        Requirement::new(&key, operator, values)
    }

    /// The value after `=`, which may be empty.
    fn exact_value(&mut self) -> Result<String, ParseError> {
        match self.peek() {
            Token::End | Token::Comma => Ok(String::new()),
            Token::Word(_) => match self.next() {
                Token::Word(word) => Ok(word),
                found => Err(unexpected(&found, "identifier")),
            },
            found => Err(unexpected(found, "identifier")),
        }
    }

    /// `(a, b, )`: an empty place is the empty value.
    fn set(&mut self) -> Result<Vec<String>, ParseError> {
        match self.next() {
            Token::Open => {}
            found => return Err(unexpected(&found, "'('")),
        }
        let (mut values, mut place) = (Vec::new(), None);
        loop {
            match self.next() {
                Token::Word(word) if place.is_none() => place = Some(word),
                Token::Comma => values.push(place.take().unwrap_or_default()),
                Token::Close => {
                    values.push(place.take().unwrap_or_default());
                    return Ok(values);
                }
                found => return Err(unexpected(&found, "',', ')' or identifier")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn selects_as_upstream() {
        let web = labels(&[("app", "web"), ("tier", "front"), ("n", "5")]);
        for (text, want) in [
            ("", true),
            ("app=web", true),
            ("app==web", true),
            ("app = web", true),
            ("app=db", false),
            ("app!=db", true),
            ("app!=web", false),
            ("missing!=x", true),
            ("app in (web,db)", true),
            ("app in (db)", false),
            ("app notin (db)", true),
            ("app notin (web)", false),
            ("missing notin (a)", true),
            ("app", true),
            ("missing", false),
            ("!missing", true),
            ("!app", false),
            ("app=web,tier=front", true),
            ("app=web , tier in ( back )", false),
            ("n>4", true),
            ("n<5", false),
            ("app>1", false),
            ("missing=", false),
            ("in in (in)", false),
        ] {
            assert_eq!(Selector::parse(text).unwrap().matches(&web), want, "{text}");
        }
        assert!(!Selector::nothing().matches(&web));
        assert!(Selector::parse("a=").unwrap().matches(&labels(&[("a", "")])));
        assert!(Selector::parse("a in (,x)").unwrap().matches(&labels(&[("a", "")])));
    }

    #[test]
    fn refuses_what_is_no_selector() {
        for text in [
            "=",
            "a=b,",
            ",a",
            "a in",
            "a in (",
            "a in b",
            "a b",
            "a=(",
            "!",
            "!a=b",
            "a=b=c",
            "a in (b c)",
            "a=-",
            "-a",
            "a>x",
            "(a)",
        ] {
            assert!(Selector::parse(text).is_err(), "{text}");
        }
        assert_eq!(
            Selector::parse("a=b,").unwrap_err().to_string(),
            "unable to parse requirement: found '', expected: identifier after ','"
        );
    }

    #[test]
    fn prints_sorted() {
        for (text, want) in [
            ("b=1,a in (y,x)", "a in (x,y),b=1"),
            ("!a", "!a"),
            ("a", "a"),
            ("a!=b", "a!=b"),
            ("a==b", "a=b"),
            ("a notin (b)", "a notin (b)"),
        ] {
            assert_eq!(Selector::parse(text).unwrap().to_string(), want);
        }
    }

    #[test]
    fn object_form() {
        let selector: LabelSelector = serde_json::from_value(json!({
            "matchLabels": {"app": "web"},
            "matchExpressions": [{"key": "tier", "operator": "In", "values": ["a", "b"]}, {"key": "x", "operator": "DoesNotExist"}],
        }))
        .unwrap();
        assert_eq!(display(&selector), "app=web,tier in (a,b),!x");
        let parsed = Selector::from_object(&selector).unwrap();
        assert!(parsed.matches_object(&json!({"metadata": {"labels": {"app": "web", "tier": "b"}}})));
        assert!(!parsed.matches_object(&json!({"metadata": {}})));
        assert_eq!(display(&LabelSelector::default()), "<none>");
        assert!(Selector::from_optional(Some(&LabelSelector::default())).unwrap().is_everything());
        assert!(!Selector::from_optional(None).unwrap().matches(&labels(&[])));
        let bad: LabelSelector =
            serde_json::from_value(json!({"matchExpressions": [{"key": "a", "operator": "Near"}]})).unwrap();
        assert!(Selector::from_object(&bad).is_err());
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "\\PC{0,60}") {
            let _ = Selector::parse(&text);
        }

        #[test]
        fn printing_and_parsing_agree(text in "(!?[ab]|[ab](=|!=| in \\(|>)[xy12]?,?[xy]?\\)?){1}(,[cd]=[z])?") {
            if let Ok(selector) = Selector::parse(&text) {
                prop_assert_eq!(Selector::parse(&selector.to_string()).unwrap(), selector);
            }
        }
    }
}
