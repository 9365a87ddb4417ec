//! The names in registry paths. A value of one of these types is safe as part of a file name.

use crate::Error;
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::str::FromStr;

/// A repository: `NAMESPACE/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository {
    namespace: String,
    name: String,
}

impl Repository {
    /// Checks both parts: the namespace is a DNS label, the name a path component as the distribution
    /// specification has it (lower-case letters and digits, separated by `.`, `_`, `__` or dashes).
    ///
    /// # Errors
    /// [`Error::NameInvalid`].
    pub fn new(namespace: &str, name: &str) -> Result<Self, Error> {
        if !is_label(namespace) || name.len() > 128 || !is_component(name) {
            return Err(Error::NameInvalid { name: format!("{namespace}/{name}") });
        }
        Ok(Repository { namespace: namespace.to_owned(), name: name.to_owned() })
    }

    /// The namespace, as in the cluster.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The name within the namespace.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl FromStr for Repository {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (namespace, name) =
            text.split_once('/').ok_or_else(|| Error::NameInvalid { name: text.to_owned() })?;
        Repository::new(namespace, name)
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

fn is_label(text: &str) -> bool {
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    text.len() <= 63
        && ends(text.chars().next())
        && ends(text.chars().next_back())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*` of the distribution specification.
fn is_component(text: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let mut rest = text;
    loop {
        let word = rest.trim_start_matches(alphanumeric);
        if word.len() == rest.len() {
            return false;
        }
        if word.is_empty() {
            return true;
        }
        let separator = word.len() - word.trim_start_matches(['.', '_', '-']).len();
        match word.get(..separator) {
            Some("." | "_" | "__") => {}
            Some(dashes) if !dashes.is_empty() && dashes.bytes().all(|c| c == b'-') => {}
            _ => return false,
        }
        rest = word.get(separator..).unwrap_or_default();
    }
}

/// A SHA-256 digest; displayed as `sha256:…`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(String);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self::finish(Sha256::new().chain_update(bytes))
    }

    /// The digest of what was hashed.
    pub(crate) fn finish(hasher: Sha256) -> Self {
        Digest(hex(&hasher.finalize()))
    }

    /// 64 lower-case hexadecimal digits.
    pub fn hex(&self) -> &str {
        &self.0
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Whether `text` is `length` lower-case hexadecimal digits.
pub(crate) fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text.strip_prefix("sha256:") {
            Some(hex) if is_hex(hex, 64) => Ok(Digest(hex.to_owned())),
            _ => Err(Error::DigestInvalid {
                reason: format!("`{}` is not sha256: and 64 hexadecimal digits", shortened(text)),
            }),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A tag: up to 128 letters, digits, `_`, `.` and `-`, not starting with `.` or `-`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tag(String);

impl Tag {
    /// The tag itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let first = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
        let rest = text.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'.' | b'-'));
        if !first || !rest || text.len() > 128 {
            return Err(Error::TagInvalid { tag: shortened(text) });
        }
        Ok(Tag(text.to_owned()))
    }
}

/// What a manifest is asked for by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// A name that can move.
    Tag(Tag),
    /// The content itself.
    Digest(Digest),
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text.contains(':') {
            text.parse().map(Reference::Digest)
        } else {
            text.parse().map(Reference::Tag)
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reference::Tag(tag) => f.write_str(tag.as_str()),
            Reference::Digest(digest) => digest.fmt(f),
        }
    }
}

/// For error texts: what a client sent, but not all of it.
fn shortened(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_are_namespace_and_name() {
        for valid in ["default/web", "a/b", "team-1/a.b_c__d---e", "n/0"] {
            assert_eq!(valid.parse::<Repository>().unwrap().to_string(), valid);
        }
        let long = format!("n/{}", "a".repeat(129));
        for invalid in [
            "web",
            "/web",
            "default/",
            "default/web/more",
            "../etc",
            "a/..",
            "a/.",
            "a/-b",
            "a/b-",
            "a/b..c",
            "a/b___c",
            "a/B",
            "-a/b",
            "a-/b",
            "a/b._c",
            "a b/c",
            "a/b\0",
            "a/_tags",
            &long,
        ] {
            assert!(invalid.parse::<Repository>().is_err(), "{invalid}");
        }
    }

    #[test]
    fn digests_are_sha256_in_lower_case() {
        let digest = Digest::of(b"");
        let text = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(digest.to_string(), text);
        assert_eq!(text.parse::<Digest>().unwrap(), digest);
        let upper = text.to_uppercase();
        for invalid in ["", "sha256:", "sha256:../../etc/passwd", "sha512:00", &text[..70], &upper] {
            assert!(invalid.parse::<Digest>().is_err(), "{invalid}");
        }
    }

    #[test]
    fn references_are_tags_or_digests() {
        assert!(matches!("v1.0_a-b".parse(), Ok(Reference::Tag(_))));
        assert!(matches!(Digest::of(b"").to_string().parse(), Ok(Reference::Digest(_))));
        let long = "a".repeat(129);
        for invalid in ["", ".", "..", "-a", ".a", "a/b", "a b", "ä", "sha256:x", &long] {
            assert!(invalid.parse::<Reference>().is_err(), "{invalid}");
        }
    }
}
