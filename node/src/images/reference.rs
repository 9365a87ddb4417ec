//! Image references. Pure.

use ketch_api::names::REGISTRY_HOST;
use ketch_runtime::Error;

/// The registry that a reference without one means.
pub(super) const DOCKER_HUB: &str = "docker.io";

/// `HOST/REPOSITORY[:TAG][@DIGEST]` with Docker's defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    /// Registry, as written or `docker.io`.
    pub(super) host: String,
    /// Path in the registry.
    pub(super) repository: String,
    /// Tag or digest to ask for.
    pub(super) version: String,
}

impl Reference {
    /// Parses a reference; the error says what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        let invalid = |why: &str| Error::Config(format!("couldn't parse image name {text:?}: {why}"));
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (text, None),
        };
        let slash = rest.rfind('/').map_or(0, |at| at + 1);
        let (name, tag) = match rest.rfind(':').filter(|at| *at >= slash) {
            Some(at) => (rest.get(..at).unwrap_or_default(), rest.get(at + 1..)),
            None => (rest, None),
        };
        let (host, path) = match name.split_once('/') {
            Some((first, path)) if first.contains(['.', ':']) || first == "localhost" => {
                (first, path.to_owned())
            }
            Some(_) => (DOCKER_HUB, name.to_owned()),
            None => (DOCKER_HUB, format!("library/{name}")),
        };
        if !is_host(host) {
            return Err(invalid("a registry is a host name with an optional port"));
        }
        let good = |part: &str| {
            let inner =
                |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-');
            !part.is_empty() && part.chars().all(inner) && !part.starts_with(['.', '_', '-'])
        };
        if !path.split('/').all(good) || name.is_empty() {
            return Err(invalid("a repository is made of lower-case letters, digits, '.', '_', '-' and '/'"));
        }
        if let Some(digest) = digest
            && !is_digest(digest)
        {
            return Err(invalid("a digest is sha256: and 64 hexadecimal digits"));
        }
        let tag_is_good = |tag: &str| {
            let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
            (1..=128).contains(&tag.len()) && tag.chars().all(inner) && !tag.starts_with(['.', '-'])
        };
        if tag.is_some_and(|tag| !tag_is_good(tag)) {
            return Err(invalid("a tag is made of letters, digits, '.', '_' and '-'"));
        }
        let version = digest.or(tag).unwrap_or("latest").to_owned();
        Ok(Self { host: host.to_ascii_lowercase(), repository: path, version })
    }

    /// Whether the built-in registry has it.
    pub(super) fn is_local(&self) -> bool {
        self.host == REGISTRY_HOST
    }

    /// The digest it asks for, if it names one.
    pub(super) fn digest(&self) -> Option<&str> {
        Some(self.version.as_str()).filter(|version| is_digest(version))
    }

    /// As messages say it.
    pub(super) fn title(&self) -> String {
        let mark = if self.digest().is_some() { '@' } else { ':' };
        format!("{}/{}{mark}{}", self.host, self.repository, self.version)
    }
}

fn is_host(text: &str) -> bool {
    let (name, port) = text.split_once(':').unwrap_or((text, "1"));
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-');
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(inner)
        && port.parse::<u16>().is_ok()
}

/// `sha256:` and 64 hexadecimal digits.
pub(super) fn is_digest(text: &str) -> bool {
    let hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    text.strip_prefix("sha256:").is_some_and(|digits| digits.len() == 64 && digits.chars().all(hex))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_have_dockers_defaults() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (text, expected) in [
            ("nginx", "docker.io/library/nginx:latest".to_owned()),
            ("acme/web:1.2", "docker.io/acme/web:1.2".to_owned()),
            ("ketch.local/default/web", "ketch.local/default/web:latest".to_owned()),
            ("ghcr.io/a/b/c:v1", "ghcr.io/a/b/c:v1".to_owned()),
            ("localhost:5000/web", "localhost:5000/web:latest".to_owned()),
            (&format!("ketch.local/default/web:1@{digest}"), format!("ketch.local/default/web@{digest}")),
        ] {
            assert_eq!(Reference::parse(text).unwrap().title(), expected, "{text}");
        }
        for bad in
            ["", "UPPER", "a//b", "a:b:c/d", "web:", "web@sha256:1", "web: x", "../x", "ketch.local/", "a/b@"]
        {
            assert!(Reference::parse(bad).is_err(), "{bad:?}");
        }
    }
}
