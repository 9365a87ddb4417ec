//! Where registries are reached, and whom to trust there: `[registries."HOST"]` of the configuration.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
    path::{Path, PathBuf},
};

use rustls::pki_types::{CertificateDer, pem::PemObject};
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
    /// File with PEM certificates of authorities, trusted besides the system's for what this host, registry or
    /// mirror, is asked, and for where it sends us.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
}

/// Most bytes of a file with certificates.
const CA_LIMIT: u64 = 1 << 20;

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
        let Some(ca) = &settings.ca else { continue };
        if settings.plain_http {
            return Err(format!("{host} has both a ca and plain-http: take one of them away"));
        }
        authorities(ca).map_err(|why| format!("ca of {host}: {why}"))?;
    }
    Ok(())
}

/// The certificates in a file.
///
/// # Errors
/// Names the file and what is wrong with it.
pub(super) fn authorities(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let failed = |why: &str| format!("{}: {why}", path.display());
    if !path.is_absolute() {
        return Err(failed("write the whole path, from / on"));
    }
    let mut text = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(CA_LIMIT + 1).read_to_end(&mut text))
        .map_err(|error| failed(&error.to_string()))?;
    if text.len() as u64 > CA_LIMIT {
        return Err(failed("it has more than 1 MiB"));
    }
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(found) if found.is_empty() => {
            Err(failed("there is no certificate in it (-----BEGIN CERTIFICATE-----)"))
        }
        Ok(found) => {
            let mut store = rustls::RootCertStore::empty();
            let all = found.iter().try_for_each(|one| store.add(one.clone()));
            all.map(|()| found)
                .map_err(|error| failed(&format!("it has a certificate of no authority: {error}")))
        }
        Err(error) => Err(failed(&format!("it is not PEM: {error}"))),
    }
}

/// Files with the authorities that are trusted at `url` when `registry` is asked, or has sent us there.
pub(super) fn trusted(hosts: &RegistryHosts, registry: &str, url: &Url) -> BTreeSet<PathBuf> {
    let name = url.host_str().map(|name| authority(url, name));
    let entries = [Some(registry), name.as_deref()].into_iter().flatten().filter_map(|host| hosts.get(host));
    entries.filter_map(|settings| settings.ca.clone()).collect()
}

/// A host with its port, unless that is the scheme's own.
fn authority(url: &Url, host: &str) -> String {
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn endpoint(text: &str) -> Result<Endpoint, String> {
    let url = Url::parse(text).map_err(|error| error.to_string())?;
    let bare = url.path() == "/" && url.query().is_none() && url.username().is_empty();
    let host = url.host_str().filter(|_| matches!(url.scheme(), "http" | "https") && bare);
    let host = host.ok_or("it is written as https://HOST:PORT or http://HOST:PORT")?;
    let host = authority(&url, host);
    Ok(Endpoint { url, host })
}

/// Where images of `host` are asked for, in order. Registries on this machine are asked in plain text, unless there
/// is an authority for them.
pub(super) fn endpoints(hosts: &RegistryHosts, host: &str) -> Result<Vec<Endpoint>, String> {
    let settings = hosts.get(host).cloned().unwrap_or_default();
    let name = host.split(':').next().unwrap_or_default();
    let near = name == "localhost" || name.ends_with(".localhost") || name.starts_with("127.");
    let plain = settings.plain_http || (near && settings.ca.is_none());
    let scheme = if plain { "http" } else { "https" };
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
        RegistryHosts::from([(host.to_owned(), RegistryHost { mirrors, plain_http, ca: None })])
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
    fn an_authority_is_for_one_registry_and_where_it_leads() {
        let entry = |ca: &str| RegistryHost { ca: Some(ca.into()), ..RegistryHost::default() };
        let hosts = RegistryHosts::from(
            [("r.lan:5000", "/r.pem"), ("tokens.lan", "/t.pem"), ("127.0.0.1:5000", "/l.pem")]
                .map(|(host, ca)| (host.to_owned(), entry(ca))),
        );
        let files = |registry: &str, url: &str| {
            let all = trusted(&hosts, registry, &Url::parse(url).unwrap());
            all.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(files("r.lan:5000", "https://r.lan:5000/v2/"), "/r.pem");
        assert_eq!(files("r.lan:5000", "https://blobs.lan/x"), "/r.pem");
        assert_eq!(files("r.lan:5000", "https://tokens.lan/"), "/r.pem /t.pem");
        assert_eq!(files("docker.io", "https://registry-1.docker.io/"), "");
        let near = endpoints(&hosts, "127.0.0.1:5000").unwrap();
        assert_eq!(near[0].url.scheme(), "https");
    }

    #[test]
    fn a_file_without_certificates_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        let refused = |text: &[u8], plain_http: bool| {
            std::fs::write(&path, text).unwrap();
            let entry = RegistryHost { ca: Some(path.clone()), plain_http, ..RegistryHost::default() };
            check(&RegistryHosts::from([("r.lan".to_owned(), entry)])).unwrap_err()
        };
        for text in [&b"no certificate"[..], b"-----BEGIN CERTIFICATE-----\n!\n", &vec![b'x'; 2 << 20]] {
            let why = refused(text, false);
            assert!(why.contains("r.lan") && why.contains("ca.pem"), "{why}");
        }
        assert!(refused(b"", true).contains("plain-http"));
        assert!(authorities(Path::new("ca.pem")).unwrap_err().contains("whole path"));
        assert!(authorities(&dir.path().join("none")).unwrap_err().contains("No such file"));
        let own = rcgen::generate_simple_self_signed(["r.lan".to_owned()]).unwrap();
        std::fs::write(&path, own.cert.pem()).unwrap();
        assert_eq!(authorities(&path).unwrap(), [own.cert.der().clone()]);
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
