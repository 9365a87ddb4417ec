//! A registry of a company: TLS of an authority that nobody else knows, and tokens for those who have a password.
//! Images of both kinds.

use std::net::{IpAddr, UdpSocket};

use ketch_tests::{
    Authority, Containers, Ketch, PASSWORD, Registry, Secured,
    image::{Archive, Pusher},
    until,
};
use serde_json::json;

/// An address of this machine that is not on loopback.
fn address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    // Nothing is sent.
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_loopback())
}

fn create(ketch: &Ketch, name: &str, image: &str, secrets: &[&str]) {
    let secrets: Vec<_> = secrets.iter().map(|name| json!({"name": name})).collect();
    // 0 is for ever, where the component counts milliseconds.
    let time = if name.starts_with("job") { "0" } else { "3600" };
    let container =
        json!({"name": "main", "image": image, "args": ["sleep", time], "imagePullPolicy": "Always"});
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"restartPolicy": "Never",
        "imagePullSecrets": secrets, "containers": [container]}});
    ketch.apply(&pod.to_string());
}

fn waits(ketch: &Ketch, pod: &str, parts: &[&str]) {
    let path = "jsonpath={.status.containerStatuses[0].state.waiting}";
    let text =
        until(&format!("{pod} to wait"), || match ketch.kubectl_ok(&["get", "pod", pod, "-o", path]) {
            text if text.contains("ErrImagePull") => Ok(text),
            text => Err(text),
        });
    assert!(parts.iter().all(|part| text.contains(part)), "{pod}: {parts:?} in {text}");
}

fn runs(ketch: &Ketch, pod: &str) {
    until(&format!("{pod} to run"), || {
        let status =
            ketch.kubectl_ok(&["get", "pod", pod, "-o", "jsonpath={.status.containerStatuses[0].state}"]);
        if status.contains("\"running\"") { Ok(()) } else { Err(status) }
    });
}

/// A Secret as `docker login` writes it.
fn secret(ketch: &Ketch, name: &str, registry: &str, entry: serde_json::Value) {
    let config = json!({"auths": {registry: entry}}).to_string();
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name},
        "type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": config}});
    ketch.apply(&secret.to_string());
}

#[test]
fn an_authority_and_tokens_of_ones_own_are_for_both_kinds() {
    let Some(address) = address() else {
        eprintln!("skipped: this machine has no address but loopback");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), address);
    let ca = authority.file.display().to_string();
    let Some(registry) = Registry::start(&dir.path().join("registry"), &Secured::Tokens(authority)) else {
        return;
    };
    let data = dir.path().join("data");
    std::fs::create_dir_all(&data).unwrap();
    std::fs::write(
        data.join("config.toml"),
        format!("[registries.\"{}\"]\nca = \"{ca}\"\n", registry.address),
    )
    .unwrap();
    let Some(containers) = Containers::start_in(&data, 198, 199) else { return };
    let ketch = containers.ketch();
    ketch.deploy("job", &[]);
    Pusher::new(ketch).push("box:latest", &[Archive::busybox().pack()]);

    let entry = |password: &str| json!({"username": "puller", "password": password});
    secret(ketch, "wrong", &registry.address, entry("gue55"));
    secret(ketch, "right", &registry.address, entry(PASSWORD));
    secret(ketch, "refresh", &registry.address, json!({"auth": "", "identitytoken": PASSWORD}));
    for kind in ["job", "box"] {
        registry.copy(ketch, &format!("{kind}:latest"), &format!("team/{kind}:1"));
        let image = format!("{}/team/{kind}:1", registry.address);
        let pod = |name: &str| format!("{kind}-{name}");
        create(ketch, &pod("nobody"), &image, &[]);
        create(ketch, &pod("guesser"), &image, &["wrong"]);
        create(ketch, &pod("puller"), &image, &["wrong", "right"]);
        create(ketch, &pod("refresher"), &image, &["refresh"]);
        let port = registry.address.rsplit(':').next().unwrap();
        let stranger = format!("{address}:{port}");
        create(ketch, &pod("stranger"), &format!("{stranger}/team/{kind}:1"), &[]);
        for name in ["puller", "refresher"] {
            runs(ketch, &pod(name));
        }
        waits(ketch, &pod("nobody"), &["access denied (401", "imagePullSecrets"]);
        waits(ketch, &pod("guesser"), &["access denied", "incorrect username or password", "/token"]);
        waits(
            ketch,
            &pod("stranger"),
            &[&format!("no secure connection to {stranger}"), "[registries.", "ca ="],
        );
    }
    let log = ketch.output();
    assert!(!log.contains(PASSWORD) && !log.contains("gue55"), "no credential is logged");
}
