//! Flags, `KETCH_…` environment and `config.toml`, in this order of precedence, over the defaults.
//!
//! The three forms have the same keys. An unknown key in the file is an error, and so is a value that
//! cannot be used: both before any port is bound ([`Unusable`], exit code 64).

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use clap::Args;
use ketch_runtime_oci::Choice;
use serde::{Deserialize, Serialize};

/// Marks an error as one of configuration.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Unusable(pub(crate) String);

/// Options as given; what is missing is decided by [`Flags::resolve`].
#[derive(Args, Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct Flags {
    /// Everything Ketch writes is under it [default: /var/lib/ketch as root, else $XDG_DATA_HOME/ketch].
    #[arg(long, env = "KETCH_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// TLS address of the API, the console and the registry [default: 0.0.0.0:6443; up: 127.0.0.1:6443].
    #[arg(long, env = "KETCH_API_ADDR", value_name = "ADDR")]
    api_addr: Option<String>,
    /// Plain HTTP address of the same, loopback only [default: 127.0.0.1:6440].
    #[arg(long, env = "KETCH_UI_ADDR", value_name = "ADDR")]
    ui_addr: Option<String>,
    /// Address where Functions and Ingresses answer [default: :80 as root, else 127.0.0.1:8080].
    #[arg(long, env = "KETCH_HTTP_ADDR", value_name = "ADDR")]
    http_addr: Option<String>,
    /// The same with TLS [default: :443 as root, else 127.0.0.1:8443].
    #[arg(long, env = "KETCH_HTTPS_ADDR", value_name = "ADDR")]
    https_addr: Option<String>,
    /// UDP address where nodes on other machines connect [default: 0.0.0.0:6444; up: 127.0.0.1:6444].
    #[arg(long, env = "KETCH_QUIC_ADDR", value_name = "ADDR")]
    quic_addr: Option<String>,
    /// Address of cluster DNS [default: port 53 of the tenth Service address as root, else 127.0.0.1:6453].
    #[arg(long, env = "KETCH_DNS_ADDR", value_name = "ADDR")]
    dns_addr: Option<String>,
    /// Addresses of pods [default: 10.42.0.0/16 as root, else 127.42.0.0/16].
    #[arg(long, env = "KETCH_POD_CIDR", value_name = "CIDR")]
    pod_cidr: Option<String>,
    /// Addresses of Services [default: 10.43.0.0/16 as root, else 127.43.0.0/16].
    #[arg(long, env = "KETCH_SERVICE_CIDR", value_name = "CIDR")]
    service_cidr: Option<String>,
    /// Who runs containers: managed (a containerd of Ketch's own), the socket of another one, off, or auto [default: auto].
    #[arg(long, env = "KETCH_CONTAINERD", value_name = "CHOICE")]
    containerd: Option<String>,
    /// Name of this node [default: the host's name].
    #[arg(long, env = "KETCH_NODE_NAME", value_name = "NAME")]
    node_name: Option<String>,
    /// Further names and addresses the API's certificate is for.
    #[arg(long, env = "KETCH_TLS_SAN", value_name = "NAME", value_delimiter = ',')]
    tls_san: Vec<String>,
    /// node: the server to join, https://HOST:6443.
    #[arg(long, env = "KETCH_SERVER", value_name = "URL")]
    server: Option<String>,
    /// node: a token from `ketch token create`, for the first start.
    #[arg(long, env = "KETCH_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Days the certificates of nodes are valid; they are renewed at two thirds [default: 90].
    #[arg(long, env = "KETCH_NODE_CERT_DAYS", value_name = "DAYS")]
    node_cert_days: Option<f64>,
    /// How registries are reached, by host; in the file only.
    #[arg(skip)]
    registries: ketch_node::RegistryHosts,
    /// File with the same keys [default: config.toml in the data directory, when it exists].
    #[arg(long, env = "KETCH_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,
    /// Print the options in use and exit.
    #[arg(long)]
    #[serde(skip)]
    pub(crate) print_config: bool,
}

/// Options with nothing left open.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Options {
    pub(crate) data_dir: PathBuf,
    pub(crate) api_addr: SocketAddr,
    pub(crate) ui_addr: SocketAddr,
    pub(crate) http_addr: SocketAddr,
    pub(crate) https_addr: SocketAddr,
    pub(crate) quic_addr: SocketAddr,
    /// `None`: what suits the cluster's Service range, or another one if that is taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) dns_addr: Option<SocketAddr>,
    pub(crate) pod_cidr: String,
    pub(crate) service_cidr: String,
    #[serde(serialize_with = "as_text")]
    pub(crate) containerd: Choice,
    pub(crate) node_name: String,
    pub(crate) tls_san: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) server: Option<String>,
    /// Never printed.
    #[serde(skip)]
    pub(crate) token: Option<String>,
    pub(crate) node_cert_days: f64,
    // A table: TOML has it after every value.
    #[serde(skip_serializing_if = "ketch_node::RegistryHosts::is_empty")]
    pub(crate) registries: ketch_node::RegistryHosts,
}

impl Options {
    /// How long certificates of nodes are valid.
    pub(crate) fn node_cert_life(&self) -> Duration {
        Duration::from_secs_f64(self.node_cert_days * 86_400.0)
    }
}

/// Which process the options are for; defaults differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Up,
    Server,
    Node,
}

impl Flags {
    /// Merges the file in and fills the gaps. `root` is whether we are the superuser.
    pub(crate) fn resolve(self, role: Role, root: bool) -> Result<Options> {
        let data_dir = self.data_dir.clone().map_or_else(|| default_data_dir(root), Ok)?;
        let file = read_config(self.config.as_deref(), &data_dir)?;
        let all = self.over(file);
        let data_dir = all.data_dir.unwrap_or(data_dir);
        let address = |given: Option<String>, key: &str, default: &str| {
            parse_address(given.as_deref().unwrap_or(default)).map_err(|why| unusable(key, why))
        };
        let any_or = |rooted: &'static str, user: &'static str| if root { rooted } else { user };
        let api = if role == Role::Up { "127.0.0.1:6443" } else { "0.0.0.0:6443" };
        let ui_addr = address(all.ui_addr, "ui-addr", "127.0.0.1:6440")?;
        if !ui_addr.ip().is_loopback() {
            return Err(unusable(
                "ui-addr",
                format!("{ui_addr} is not a loopback address; it serves plain HTTP"),
            ));
        }
        let quic = if role == Role::Up { "127.0.0.1:6444" } else { "0.0.0.0:6444" };
        let (pods, services) =
            if root { ("10.42.0.0/16", "10.43.0.0/16") } else { ("127.42.0.0/16", "127.43.0.0/16") };
        let pod_cidr = cidr(all.pod_cidr, "pod-cidr", pods)?;
        let service_cidr = cidr(all.service_cidr, "service-cidr", services)?;
        apart(&pod_cidr, &service_cidr)?;
        ketch_node::check_registries(&all.registries).map_err(|why| unusable("registries", why))?;
        Ok(Options {
            data_dir: std::path::absolute(data_dir)?,
            api_addr: address(all.api_addr, "api-addr", api)?,
            ui_addr,
            http_addr: address(all.http_addr, "http-addr", any_or(":80", "127.0.0.1:8080"))?,
            https_addr: address(all.https_addr, "https-addr", any_or(":443", "127.0.0.1:8443"))?,
            quic_addr: address(all.quic_addr, "quic-addr", quic)?,
            dns_addr: all.dns_addr.map(|given| address(Some(given), "dns-addr", "")).transpose()?,
            pod_cidr,
            service_cidr,
            containerd: all
                .containerd
                .as_deref()
                .unwrap_or("auto")
                .parse()
                .map_err(|why| unusable("containerd", why))?,
            node_name: node_name(all.node_name)?,
            tls_san: all.tls_san,
            server: all.server,
            token: all.token,
            node_cert_days: days(all.node_cert_days.unwrap_or(90.0))?,
            registries: all.registries,
        })
    }

    fn over(self, file: Flags) -> Flags {
        Flags {
            data_dir: self.data_dir.or(file.data_dir),
            api_addr: self.api_addr.or(file.api_addr),
            ui_addr: self.ui_addr.or(file.ui_addr),
            http_addr: self.http_addr.or(file.http_addr),
            https_addr: self.https_addr.or(file.https_addr),
            quic_addr: self.quic_addr.or(file.quic_addr),
            dns_addr: self.dns_addr.or(file.dns_addr),
            pod_cidr: self.pod_cidr.or(file.pod_cidr),
            service_cidr: self.service_cidr.or(file.service_cidr),
            containerd: self.containerd.or(file.containerd),
            node_name: self.node_name.or(file.node_name),
            tls_san: if self.tls_san.is_empty() { file.tls_san } else { self.tls_san },
            server: self.server.or(file.server),
            token: self.token.or(file.token),
            node_cert_days: self.node_cert_days.or(file.node_cert_days),
            registries: file.registries,
            config: None,
            print_config: self.print_config,
        }
    }
}

/// As it is written in a configuration.
fn as_text<S: serde::Serializer>(
    value: &impl std::fmt::Display,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

pub(crate) fn unusable(key: &str, why: impl std::fmt::Display) -> anyhow::Error {
    Unusable(format!("option {key}: {why}")).into()
}

/// The data directory when nobody names one.
pub(crate) fn default_data_dir(root: bool) -> Result<PathBuf> {
    if root { Ok(PathBuf::from("/var/lib/ketch")) } else { default_user_dir() }
}

/// `$XDG_DATA_HOME/ketch`, or what stands for it.
pub(crate) fn default_user_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("XDG_DATA_HOME").filter(|dir| !dir.is_empty()) {
        return Ok(PathBuf::from(dir).join("ketch"));
    }
    let home = std::env::var_os("HOME").filter(|dir| !dir.is_empty());
    let home =
        home.ok_or_else(|| unusable("data-dir", "neither XDG_DATA_HOME nor HOME is set; pass --data-dir"))?;
    Ok(PathBuf::from(home).join(".local/share/ketch"))
}

fn read_config(named: Option<&Path>, data_dir: &Path) -> Result<Flags> {
    let path = named.map_or_else(|| data_dir.join("config.toml"), Path::to_path_buf);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && named.is_none() => return Ok(Flags::default()),
        Err(e) => return Err(Unusable(format!("cannot read {}: {e}", path.display())).into()),
    };
    toml::from_str(&text).map_err(|e| Unusable(format!("{}: {e}", path.display())).into())
}

/// `HOST:PORT`, or `:PORT` for every address.
fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let full = if text.starts_with(':') {
        format!("0.0.0.0{text}")
    } else {
        text.replacen("localhost:", "127.0.0.1:", 1)
    };
    full.parse()
        .map_err(|_| format!("\"{text}\" is not an address; write it as 127.0.0.1:8080, [::1]:8080 or :8080"))
}

fn cidr(given: Option<String>, key: &str, default: &str) -> Result<String> {
    let text = given.unwrap_or_else(|| default.to_owned());
    let valid = text.split_once('/').is_some_and(|(ip, length)| {
        matches!(ip.parse(), Ok(IpAddr::V4(_)))
            && length.parse::<u8>().is_ok_and(|length| (8..=28).contains(&length))
    });
    match valid {
        true => Ok(text),
        false => Err(unusable(
            key,
            format!("\"{text}\" is not an IPv4 range with a length from 8 to 28, such as {default}"),
        )),
    }
}

/// A Service must not have a pod's address.
fn apart(pods: &str, services: &str) -> Result<()> {
    let [Ok(a), Ok(b)] = [pods, services].map(str::parse::<ketch_node::Cidr>) else { return Ok(()) };
    match a.covers(&b) || b.covers(&a) {
        true => Err(unusable("service-cidr", format!("{services} overlaps the addresses of pods, {pods}"))),
        false => Ok(()),
    }
}

impl Options {
    /// Fails when a range holds one of `own`, this machine's devices and their addresses: the network behind
    /// the device would be cut off. Ketch's own devices do no harm.
    pub(crate) fn keep_clear_of(&self, own: &[(String, IpAddr)]) -> Result<()> {
        for (key, text) in [("pod-cidr", &self.pod_cidr), ("service-cidr", &self.service_cidr)] {
            let Ok(range) = text.parse::<ketch_node::Cidr>() else { continue };
            let mut others = own.iter().filter(|(device, _)| !device.starts_with("ketch-"));
            if let Some((device, address)) = others.find(|(_, address)| range.contains(*address)) {
                let why = format!(
                    "{text} holds {address}, this machine's address on {device}; choose another range"
                );
                return Err(unusable(key, why));
            }
        }
        Ok(())
    }
}

/// From a few seconds, for tests of renewal, to ten years, the authority's own life.
fn days(days: f64) -> Result<f64> {
    match (0.0001..=3650.0).contains(&days) {
        true => Ok(days),
        false => Err(unusable("node-cert-days", format!("{days} is not between 0.0001 and 3650"))),
    }
}

fn node_name(given: Option<String>) -> Result<String> {
    let name = match given {
        Some(name) => name,
        None => std::fs::read_to_string("/proc/sys/kernel/hostname").context("read the host's name")?,
    };
    let name = name.trim().to_lowercase();
    let valid = !name.is_empty()
        && name.len() <= 63
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
        && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && name.bytes().last().is_some_and(|b| b.is_ascii_alphanumeric());
    match valid {
        true => Ok(name),
        false => Err(unusable("node-name", format!("\"{name}\" is not a DNS name; pass --node-name"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(flags: Flags) -> Result<Options> {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = flags.data_dir.clone().or_else(|| Some(dir.path().to_path_buf()));
        Flags { data_dir, node_name: Some("n1".into()), ..flags }.resolve(Role::Up, false)
    }

    #[test]
    fn defaults_are_for_an_ordinary_user() {
        let options = resolve(Flags::default()).unwrap();
        assert_eq!(options.api_addr.to_string(), "127.0.0.1:6443");
        assert_eq!(options.http_addr.to_string(), "127.0.0.1:8080");
        assert_eq!(options.pod_cidr, "127.42.0.0/16");
    }

    #[test]
    fn ranges_keep_clear_of_the_machines_addresses() {
        let flags = Flags {
            pod_cidr: Some("10.0.0.0/16".into()),
            service_cidr: Some("10.1.0.0/16".into()),
            ..Flags::default()
        };
        let options = resolve(flags).unwrap();
        let check = |device: &str, address: &str| {
            let own =
                [("lo".to_owned(), "127.0.0.1".parse().unwrap()), (device.into(), address.parse().unwrap())];
            options.keep_clear_of(&own).map_err(|error| error.to_string())
        };
        assert_eq!(check("eth0", "10.2.0.5"), Ok(()));
        assert_eq!(check("ketch-0a000000", "10.0.0.1"), Ok(()), "from an earlier run");
        let refused = check("eth0", "10.1.0.5").unwrap_err();
        assert!(
            refused.contains("service-cidr") && refused.contains("10.1.0.5") && refused.contains("eth0"),
            "{refused}"
        );
    }

    #[test]
    fn a_token_is_not_printed() {
        let flags = Flags { token: Some("ketch1.secret".into()), ..Flags::default() };
        let printed = toml::to_string_pretty(&resolve(flags).unwrap()).unwrap();
        assert!(!printed.contains("secret") && printed.contains("quic-addr"), "{printed}");
    }

    #[test]
    fn the_file_fills_gaps_and_flags_win() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.toml"), "http-addr = \":9000\"\napi-addr = \":9001\"\n")
            .unwrap();
        let flags =
            Flags { data_dir: Some(dir.path().into()), api_addr: Some(":7000".into()), ..Flags::default() };
        let options = resolve(flags).unwrap();
        assert_eq!(options.http_addr.to_string(), "0.0.0.0:9000");
        assert_eq!(options.api_addr.to_string(), "0.0.0.0:7000");
    }

    #[test]
    fn the_file_says_how_registries_are_reached() {
        let dir = tempfile::tempdir().unwrap();
        let write = |text: &str| {
            std::fs::write(dir.path().join("config.toml"), text).unwrap();
            resolve(Flags { data_dir: Some(dir.path().into()), ..Flags::default() })
        };
        let options = write("[registries.\"docker.io\"]\nmirrors = [\"https://m.example\"]\n").unwrap();
        assert_eq!(options.registries["docker.io"].mirrors, ["https://m.example"]);
        assert!(toml::to_string_pretty(&options).unwrap().contains("[registries.\"docker.io\"]"));
        let error = write("[registries.\"docker.io\"]\nmirrors = [\"m.example\"]\n").unwrap_err();
        assert!(error.is::<Unusable>() && error.to_string().contains("m.example"), "{error}");
        assert!(write("[registries.\"docker.io\"]\nmirror = [\"https://m\"]\n").is_err());
    }

    #[test]
    fn unknown_keys_and_bad_values_are_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.toml"), "api-adr = \":1\"\n").unwrap();
        let error = resolve(Flags { data_dir: Some(dir.path().into()), ..Flags::default() }).unwrap_err();
        assert!(error.is::<Unusable>() && error.to_string().contains("api-adr"), "{error}");
        for (flags, word) in [
            (Flags { api_addr: Some("nonsense".into()), ..Flags::default() }, "api-addr"),
            (Flags { ui_addr: Some("0.0.0.0:6440".into()), ..Flags::default() }, "loopback"),
            (Flags { pod_cidr: Some("10.0.0.0/40".into()), ..Flags::default() }, "pod-cidr"),
            (Flags { containerd: Some("maybe".into()), ..Flags::default() }, "containerd"),
            (Flags { http_addr: Some("1.2.3.4:99999".into()), ..Flags::default() }, "http-addr"),
            (Flags { dns_addr: Some("10.43.0.10".into()), ..Flags::default() }, "dns-addr"),
            (Flags { node_cert_days: Some(0.0), ..Flags::default() }, "node-cert-days"),
            (Flags { pod_cidr: Some("127.43.8.0/24".into()), ..Flags::default() }, "overlaps"),
        ] {
            let error = resolve(flags).unwrap_err();
            assert!(error.is::<Unusable>() && error.to_string().contains(word), "{error}");
        }
    }
}
