//! Where registries are reached: `[registries."HOST"]` of the configuration. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use url::Url;

use super::reference::DOCKER_HUB;

/// How one registry is reached.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct RegistryHost {
    /// Asked first, in this order: `https://mirror.example.com` or, in plain text, `http://10.0.0.5:5000`.
    pub mirrors: Vec<String>,
    /// Whether the registry itself is asked in plain text.
    pub plain_http: bool,
}

/// By host, as image references name it.
pub type RegistryHosts = BTreeMap<String, RegistryHost>;

/// One place to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// Without a path.
    pub(super) url: Url,
    /// What credentials go by.
    pub(super) host: String,
}

/// Faults of a configuration: its first.
///
/// # Errors
/// Names the registry and what is wrong.
pub fn check(hosts: &RegistryHosts) -> Result<(), String> {
    for (host, settings) in hosts {
        if host.contains('/') || host.is_empty() {
            return Err(format!(
                "{host:?} is no registry: write it as docker.io or registry.example.com:5000"
            ));
        }
        for mirror in &settings.mirrors {
            endpoint(mirror).map_err(|why| format!("mirror {mirror:?} of {host}: {why}"))?;
        }
    }
    Ok(())
}

fn endpoint(text: &str) -> Result<Endpoint, String> {
    let url = Url::parse(text).map_err(|error| error.to_string())?;
    let bare = url.path() == "/" && url.query().is_none() && url.username().is_empty();
    let host = url.host_str().filter(|_| matches!(url.scheme(), "http" | "https") && bare);
    let host = host.ok_or("it is written as https://HOST:PORT or http://HOST:PORT")?;
    let host = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    Ok(Endpoint { url, host })
}

/// Where images of `host` are asked for, in order. Registries on this machine are asked in plain text.
pub(super) fn endpoints(hosts: &RegistryHosts, host: &str) -> Result<Vec<Endpoint>, String> {
    let settings = hosts.get(host).cloned().unwrap_or_default();
    let name = host.split(':').next().unwrap_or_default();
    let near = name == "localhost" || name.ends_with(".localhost") || name.starts_with("127.");
    let scheme = if near || settings.plain_http { "http" } else { "https" };
    let real = if host == DOCKER_HUB { "registry-1.docker.io" } else { host };
    let mut all = Vec::new();
    for mirror in &settings.mirrors {
        all.push(endpoint(mirror)?);
    }
    let url = Url::parse(&format!("{scheme}://{real}")).map_err(|error| format!("{host}: {error}"))?;
    all.push(Endpoint { url, host: host.to_owned() });
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(host: &str, mirrors: &[&str], plain_http: bool) -> RegistryHosts {
        let mirrors = mirrors.iter().map(|mirror| (*mirror).to_owned()).collect();
        RegistryHosts::from([(host.to_owned(), RegistryHost { mirrors, plain_http })])
    }

    #[test]
    fn mirrors_come_first_and_plain_text_is_an_exception() {
        let urls = |hosts: &RegistryHosts, host: &str| {
            let all = endpoints(hosts, host).unwrap();
            all.iter().map(|one| format!("{} {}", one.url, one.host)).collect::<Vec<_>>().join(", ")
        };
        let none = RegistryHosts::new();
        let mirrored = hosts("docker.io", &["http://10.0.0.5:5000", "https://mirror.example.com"], false);
        for (hosts, host, expected) in [
            (&none, "docker.io", "https://registry-1.docker.io/ docker.io"),
            (&none, "127.0.0.1:5000", "http://127.0.0.1:5000/ 127.0.0.1:5000"),
            (&none, "localhost.example.com", "https://localhost.example.com/ localhost.example.com"),
            (&hosts("r.lan:5000", &[], true), "r.lan:5000", "http://r.lan:5000/ r.lan:5000"),
            (
                &mirrored,
                "docker.io",
                "http://10.0.0.5:5000/ 10.0.0.5:5000, https://mirror.example.com/ mirror.example.com, \
                 https://registry-1.docker.io/ docker.io",
            ),
        ] {
            assert_eq!(urls(hosts, host), expected, "{host}");
        }
    }

    #[test]
    fn what_cannot_be_a_mirror_is_named() {
        assert!(check(&hosts("docker.io", &["https://m.example"], false)).is_ok());
        for mirror in ["m.example", "ftp://m.example", "https://m.example/v2/x", "https://a:b@m.example"] {
            let why = check(&hosts("docker.io", &[mirror], false)).unwrap_err();
            assert!(why.contains(mirror) && why.contains("docker.io"), "{why}");
        }
        assert!(check(&hosts("https://docker.io", &[], false)).is_err());
    }
}
