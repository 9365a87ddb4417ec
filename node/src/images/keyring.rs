//! Credentials for registries, as `docker login` writes them and `imagePullSecrets` carry them. Pure.
//!
//! Which credential is for which image follows `k8s.io/kubernetes/pkg/credentialprovider`: a key is a registry
//! with an optional path, `*` stands for any part of a label, and the longest key goes first.

use std::{collections::BTreeMap, fmt};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::reference::DOCKER_HUB;

/// Most bytes of keys of one Secret that are looked at; the Secret itself is limited too.
const LIMIT: usize = 1 << 20;
/// Most credentials that are tried for one image.
const TRIES: usize = 8;

/// Who pulls. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Credential {
    pub(super) user: String,
    pub(super) password: String,
    /// A refresh token of the registry's authorization server.
    pub(super) identity: Option<String>,
}

/// The credentials of one pod.
#[derive(Clone, Debug, Default)]
pub struct Keyring {
    entries: Vec<(Place, Credential)>,
}

/// Where a credential is good.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    host: String,
    path: String,
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

/// One registry's entry.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

// === impl Credential ===

impl Credential {
    /// Value of an `Authorization` header.
    pub(super) fn basic(&self) -> String {
        format!("Basic {}", BASE64_STANDARD.encode(format!("{}:{}", self.user, self.password)))
    }

    /// Tells credentials apart without giving them away.
    pub(super) fn fingerprint(&self) -> String {
        let all =
            format!("{}\0{}\0{}", self.user, self.password, self.identity.as_deref().unwrap_or_default());
        Sha256::digest(all).iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential")
    }
}

// === impl Keyring ===

impl Keyring {
    /// Takes in a Secret's data: `.dockerconfigjson` or the older `.dockercfg`.
    ///
    /// # Errors
    /// When it has neither, or what it has cannot be read; the text has nothing of its contents.
    pub(crate) fn add(&mut self, data: &BTreeMap<String, Vec<u8>>) -> Result<(), &'static str> {
        let read = |bytes: &Vec<u8>| (bytes.len() <= LIMIT).then_some(bytes.clone());
        let unreadable = "it is not the JSON that docker login writes";
        let entries = if let Some(bytes) = data.get(".dockerconfigjson").and_then(read) {
            serde_json::from_slice::<DockerConfig>(&bytes).map_err(|_| unreadable)?.auths
        } else if let Some(bytes) = data.get(".dockercfg").and_then(read) {
            serde_json::from_slice(&bytes).map_err(|_| unreadable)?
        } else {
            return Err("it has neither .dockerconfigjson nor .dockercfg");
        };
        for (key, entry) in entries {
            if let Some(credential) = credential(entry) {
                self.entries.push((Place::parse(&key), credential));
            }
        }
        self.entries.sort_by(|(a, _), (b, _)| (&b.host, &b.path).cmp(&(&a.host, &a.path)));
        Ok(())
    }

    /// Credentials for a repository of a registry, the likeliest first.
    pub(super) fn of(&self, host: &str, repository: &str) -> Vec<&Credential> {
        let good = self.entries.iter().filter(|(place, _)| place.covers(host, repository));
        good.map(|(_, credential)| credential).take(TRIES).collect()
    }
}

fn credential(entry: Entry) -> Option<Credential> {
    let decoded =
        BASE64_STANDARD.decode(entry.auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let (user, password) = match decoded.as_deref().and_then(|text| text.split_once(':')) {
        // Docker pads with zero bytes.
        Some((user, password)) => (user.to_owned(), password.trim_end_matches('\0').to_owned()),
        None => (entry.username, entry.password),
    };
    let identity = Some(entry.identitytoken).filter(|token| !token.is_empty());
    let usable = !user.is_empty() || identity.is_some();
    usable.then_some(Credential { user, password, identity })
}

// === impl Place ===

impl Place {
    fn parse(key: &str) -> Self {
        let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let path = path.trim_matches('/');
        // `docker login` writes the API's root.
        let path = if matches!(path, "v1" | "v2") { "" } else { path };
        Self { host: canonical(&host.to_ascii_lowercase()), path: path.to_owned() }
    }

    fn covers(&self, host: &str, repository: &str) -> bool {
        let under = repository.strip_prefix(&self.path);
        let path = self.path.is_empty() || under.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        path && host_matches(&self.host, &canonical(host))
    }
}

/// The names that Docker Hub has had.
fn canonical(host: &str) -> String {
    match host {
        "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => DOCKER_HUB.to_owned(),
        other => other.to_owned(),
    }
}

fn host_matches(pattern: &str, host: &str) -> bool {
    let split = |text: &str| {
        let (name, port) = text.split_once(':').unwrap_or((text, ""));
        (name.split('.').map(str::to_owned).collect::<Vec<_>>(), port.to_owned())
    };
    let ((pattern, pattern_port), (host, port)) = (split(pattern), split(host));
    pattern_port == port
        && pattern.len() == host.len()
        && pattern.iter().zip(&host).all(|(pattern, label)| glob(pattern, label))
}

/// Whether `text` is what `pattern` says, `*` being anything. Both are a tenant's: what is between two stars is
/// taken where it comes first, which is as good as anywhere, so nothing is tried twice.
fn glob(pattern: &str, text: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == text };
    let (middle, end) = rest.rsplit_once('*').unwrap_or(("", rest));
    let inner = text.strip_prefix(start).and_then(|text| text.strip_suffix(end));
    let Some(mut inner) = inner else { return false };
    middle.split('*').all(|part| match inner.split_once(part) {
        Some((_, after)) => {
            inner = after;
            true
        }
        None => false,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn keyring(auths: Value) -> Keyring {
        let mut keyring = Keyring::default();
        let data = json!({ "auths": auths }).to_string().into_bytes();
        keyring.add(&BTreeMap::from([(".dockerconfigjson".to_owned(), data)])).unwrap();
        keyring
    }

    fn login(user: &str) -> Value {
        json!({"auth": BASE64_STANDARD.encode(format!("{user}:s3cret:x"))})
    }

    #[test]
    fn the_longest_key_that_matches_goes_first() {
        let all = keyring(json!({
            "https://index.docker.io/v1/": login("hub"),
            "registry.example.com": login("whole"),
            "registry.example.com/team": login("team"),
            "registry.example.com:5000": login("port"),
            "*.dkr.example.org": login("any"),
        }));
        let users = |host: &str, repository: &str| {
            let found = all.of(host, repository);
            found.iter().map(|one| one.user.clone()).collect::<Vec<_>>().join(" ")
        };
        for (host, repository, expected) in [
            ("docker.io", "library/nginx", "hub"),
            ("registry-1.docker.io", "library/nginx", "hub"),
            ("registry.example.com", "web", "whole"),
            ("registry.example.com", "team/web", "team whole"),
            ("registry.example.com", "teams/web", "whole"),
            ("registry.example.com:5000", "web", "port"),
            ("eu.dkr.example.org", "web", "any"),
            ("a.b.dkr.example.org", "web", ""),
            ("example.org", "web", ""),
        ] {
            assert_eq!(users(host, repository), expected, "{host}/{repository}");
        }
        assert_eq!(all.of("docker.io", "x").first().unwrap().password, "s3cret:x");
    }

    #[test]
    fn stars_stand_for_anything_however_many_there_are() {
        for (pattern, text, expected) in [
            ("a", "a", true),
            ("*", "", true),
            ("a*", "ab", true),
            ("*b", "ab", true),
            ("a*b", "ab", true),
            ("ab*ba", "aba", false),
            ("a*b*a", "abba", true),
            ("a*c*a", "abba", false),
            ("*a*ab*", "xaab", true),
            ("**", "x", true),
            ("*x", "a", false),
        ] {
            assert_eq!(glob(pattern, text), expected, "{pattern} {text}");
        }
        let text = "a".repeat(200);
        assert!(!glob(&format!("{}b*", "*a".repeat(100)), &text));
        assert!(glob(&"*".repeat(1_000_000), &text));
    }

    #[test]
    fn every_form_of_a_login_is_read_and_none_is_printed() {
        let all = keyring(json!({
            "a.example": {"username": "ann", "password": "s3cret"},
            "b.example": {"auth": "", "identitytoken": "t0ken"},
            "c.example": {},
        }));
        assert_eq!(all.of("a.example", "x").first().unwrap().basic(), "Basic YW5uOnMzY3JldA==");
        assert_eq!(all.of("b.example", "x").first().unwrap().identity.as_deref(), Some("t0ken"));
        assert!(all.of("c.example", "x").is_empty());
        let printed = format!("{all:?}");
        assert!(
            !printed.contains("s3cret") && !printed.contains("t0ken") && !printed.contains("ann"),
            "{printed}"
        );
        let mut old = Keyring::default();
        let data = json!({"old.example": login("old")}).to_string().into_bytes();
        old.add(&BTreeMap::from([(".dockercfg".to_owned(), data)])).unwrap();
        assert_eq!(old.of("old.example", "x").len(), 1);
        assert!(old.add(&BTreeMap::from([("x".to_owned(), Vec::new())])).is_err());
        let broken = BTreeMap::from([(".dockercfg".to_owned(), b"{\"a\": 1, s3cret".to_vec())]);
        assert!(!old.add(&broken).unwrap_err().contains("s3cret"));
    }
}
