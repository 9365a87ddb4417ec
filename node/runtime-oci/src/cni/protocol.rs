//! What the plugin is told and what it answers. Pure.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
};

use serde::Deserialize;
use serde_json::json;

use crate::pod::ADDRESS;

/// Versions of the protocol that are spoken.
const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// Capability by which containerd hands a pod's annotations on.
const ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";
/// The gateway that every pod has and no interface.
pub(super) const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

// Error codes of the protocol.
const INCOMPATIBLE: u32 = 1;
const INVALID_ENVIRONMENT: u32 = 4;
const IO: u32 = 5;
const UNDECODABLE: u32 = 6;
const INVALID_CONFIG: u32 = 7;

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Give a pod its network.
    Add,
    /// Take it away.
    Del,
    /// Say whether it is as made.
    Check,
    /// Say which versions are spoken.
    Version,
}

/// The plugin's environment.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    command: Option<String>,
    container: Option<String>,
    namespace: Option<String>,
    interface: Option<String>,
}

impl Environment {
    /// From environment variables.
    pub fn from_variables(read: impl Fn(&str) -> Option<String>) -> Self {
        Self {
            command: read("CNI_COMMAND"),
            container: read("CNI_CONTAINERID"),
            namespace: read("CNI_NETNS"),
            interface: read("CNI_IFNAME"),
        }
    }
}

/// The plugin's configuration, as far as it is used.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Config {
    pub(super) cni_version: String,
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) mtu: Option<u32>,
    runtime_config: HashMap<String, serde_json::Value>,
}

/// A checked call.
#[derive(Clone, Debug)]
pub struct Request {
    pub(super) command: Command,
    /// Of the sandbox; the host's end of the veth is named after it.
    pub(super) container: String,
    pub(super) namespace: Option<PathBuf>,
    pub(super) interface: String,
    pub(super) config: Config,
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    code: u32,
    message: String,
}

impl Problem {
    /// Something with the kernel or a file; may be tried again.
    pub(super) fn io(message: &str) -> Self {
        Self { code: IO, message: message.to_owned() }
    }

    fn new(code: u32, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// As the protocol wants it.
    pub(super) fn to_json(&self) -> String {
        json!({"cniVersion": "1.0.0", "code": self.code, "msg": self.message}).to_string()
    }
}

/// Reads a call.
///
/// # Errors
/// With the protocol's code for what is wrong.
pub fn parse(environment: &Environment, input: &[u8]) -> Result<Request, Problem> {
    let command = match environment.command.as_deref() {
        Some("ADD") => Command::Add,
        Some("DEL") => Command::Del,
        Some("CHECK") => Command::Check,
        Some("VERSION") => Command::Version,
        other => {
            let text = format!("CNI_COMMAND {:?} is not supported", other.unwrap_or_default());
            return Err(Problem::new(INVALID_ENVIRONMENT, text));
        }
    };
    let config: Config = serde_json::from_slice(input)
        .map_err(|error| Problem::new(UNDECODABLE, format!("the configuration is not valid: {error}")))?;
    let request = Request {
        command,
        container: environment.container.clone().unwrap_or_default(),
        namespace: environment.namespace.clone().filter(|path| !path.is_empty()).map(PathBuf::from),
        interface: environment.interface.clone().unwrap_or_default(),
        config,
    };
    if command != Command::Version {
        check(&request)?;
    }
    Ok(request)
}

fn check(request: &Request) -> Result<(), Problem> {
    let version = &request.config.cni_version;
    if !VERSIONS.contains(&version.as_str()) {
        let text = format!("version {version:?} is not one of {}", VERSIONS.join(", "));
        return Err(Problem::new(INCOMPATIBLE, text));
    }
    let id = &request.container;
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if id.is_empty() || id.len() > 256 || !id.chars().all(safe) {
        return Err(Problem::new(INVALID_ENVIRONMENT, "CNI_CONTAINERID is not valid"));
    }
    let name = &request.interface;
    // The kernel's limit is 15 bytes.
    if !(1..=15).contains(&name.len()) || !name.chars().all(safe) || name == "." || name == ".." {
        return Err(Problem::new(INVALID_ENVIRONMENT, "CNI_IFNAME is not valid"));
    }
    if request.namespace.is_none() && request.command != Command::Del {
        return Err(Problem::new(INVALID_ENVIRONMENT, "CNI_NETNS is missing"));
    }
    Ok(())
}

impl Request {
    /// The address the pod is to have.
    pub(super) fn address(&self) -> Result<Ipv4Addr, Problem> {
        let given = self
            .config
            .runtime_config
            .get(ANNOTATIONS)
            .and_then(|annotations| annotations.get(ADDRESS))
            .and_then(|value| value.as_str());
        match given.map(str::parse) {
            Some(Ok(IpAddr::V4(ip))) if !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast() => {
                Ok(ip)
            }
            other => Err(Problem::new(
                INVALID_CONFIG,
                format!("the pod has no usable IPv4 address in its annotation {ADDRESS}: {other:?}"),
            )),
        }
    }
}

/// Ends of a veth pair.
#[derive(Clone, Debug)]
pub(super) struct Made {
    pub(super) host: String,
    pub(super) host_mac: String,
    pub(super) pod_mac: String,
    pub(super) address: Ipv4Addr,
}

/// The answer to ADD.
pub(super) fn added(request: &Request, made: &Made) -> String {
    let mut ip = json!({"address": format!("{}/32", made.address), "gateway": GATEWAY, "interface": 1});
    if request.config.cni_version.starts_with("0.")
        && let Some(ip) = ip.as_object_mut()
    {
        ip.insert("version".to_owned(), json!("4"));
    }
    json!({
        "cniVersion": request.config.cni_version,
        "interfaces": [
            {"name": made.host, "mac": made.host_mac},
            {"name": request.interface, "mac": made.pod_mac, "sandbox": request.namespace},
        ],
        "ips": [ip],
        "routes": [{"dst": "0.0.0.0/0", "gw": GATEWAY}],
        "dns": {},
    })
    .to_string()
}

/// The answer to ADD for the loopback interface.
pub(super) fn loopback(request: &Request) -> String {
    let interface = json!({"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": request.namespace});
    json!({"cniVersion": request.config.cni_version, "interfaces": [interface], "ips": [], "dns": {}})
        .to_string()
}

/// The answer to VERSION.
pub(super) fn versions(asked: &str) -> String {
    let version = if VERSIONS.contains(&asked) { asked } else { "1.0.0" };
    json!({"cniVersion": version, "supportedVersions": VERSIONS}).to_string()
}

/// The network's configuration. 0.4.0 is understood by every containerd since 1.3.
pub(super) fn configuration(plugin: &str) -> String {
    let plugin = json!({"type": plugin, "capabilities": {ANNOTATIONS: true}});
    format!("{:#}\n", json!({"cniVersion": "0.4.0", "name": "ketch", "plugins": [plugin]}))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn environment(command: &str) -> Environment {
        Environment {
            command: Some(command.into()),
            container: Some("abc".into()),
            namespace: Some("/run/netns/x".into()),
            interface: Some("eth0".into()),
        }
    }

    fn input(version: &str, ip: &str) -> Vec<u8> {
        json!({"cniVersion": version, "name": "ketch", "type": "ketch-cni",
            "runtimeConfig": {ANNOTATIONS: {ADDRESS: ip}}})
        .to_string()
        .into_bytes()
    }

    #[test]
    fn a_call_has_an_address() {
        for version in VERSIONS {
            let request = parse(&environment("ADD"), &input(version, "10.42.0.7")).unwrap();
            assert_eq!(request.address().unwrap(), Ipv4Addr::new(10, 42, 0, 7));
        }
        for bad in ["", "nonsense", "::1", "127.0.0.1", "0.0.0.0"] {
            assert!(parse(&environment("ADD"), &input("1.0.0", bad)).unwrap().address().is_err(), "{bad}");
        }
    }

    #[test]
    fn faults_have_the_codes_of_the_protocol() {
        let code = |environment: &Environment, input: &[u8]| parse(environment, input).unwrap_err().code;
        assert_eq!(code(&environment("ADD"), &input("9.0.0", "10.0.0.1")), INCOMPATIBLE);
        assert_eq!(code(&environment("STATUS"), &input("1.0.0", "10.0.0.1")), INVALID_ENVIRONMENT);
        assert_eq!(code(&environment("ADD"), b"{"), UNDECODABLE);
        let nameless = Environment { interface: Some("../../etc/passwd".into()), ..environment("ADD") };
        assert_eq!(code(&nameless, &input("1.0.0", "10.0.0.1")), INVALID_ENVIRONMENT);
        let gone = Environment { namespace: None, ..environment("DEL") };
        assert!(parse(&gone, &input("1.0.0", "")).is_ok(), "a pod without a namespace can be removed");
        let problem: serde_json::Value = serde_json::from_str(&Problem::io("it broke").to_json()).unwrap();
        assert_eq!(problem["code"], 5);
    }

    #[test]
    fn the_answer_is_of_the_version_asked_for() {
        let made = Made {
            host: "kt1".into(),
            host_mac: "02:00:00:00:00:01".into(),
            pod_mac: "02:00:00:00:00:02".into(),
            address: Ipv4Addr::new(10, 42, 0, 7),
        };
        for (version, has_family) in [("0.4.0", true), ("1.0.0", false)] {
            let request = parse(&environment("ADD"), &input(version, "10.42.0.7")).unwrap();
            let answer: serde_json::Value = serde_json::from_str(&added(&request, &made)).unwrap();
            assert_eq!(answer["cniVersion"], version);
            assert_eq!(answer["ips"][0]["address"], "10.42.0.7/32");
            assert_eq!(answer["ips"][0].get("version").is_some(), has_family);
        }
    }

    proptest! {
        #[test]
        fn any_input_is_answered(command in ".{0,8}", id in ".{0,20}", name in ".{0,20}", bytes: Vec<u8>) {
            let environment = Environment {
                command: Some(command), container: Some(id), namespace: None, interface: Some(name),
            };
            _ = parse(&environment, &bytes);
        }

        #[test]
        fn any_annotation_is_answered(version in "[01]\\.[0-9]\\.[0-9]", ip in ".{0,40}") {
            if let Ok(request) = parse(&environment("ADD"), &input(&version, &ip)) {
                _ = request.address();
            }
        }
    }
}
