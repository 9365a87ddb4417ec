//! Images of a registry that asks for a password, and of mirrors: Debian's `docker-registry` with `htpasswd`.

use ketch_tests::{Ketch, PASSWORD, Registry, Secured, until};

fn pod(name: &str, image: &str, more: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  restartPolicy: Never
  {more}
  containers: [{{name: main, image: \"{image}\", args: [sleep, \"0\"]}}]
"
    )
}

fn waits(ketch: &Ketch, pod: &str, part: &str) -> String {
    let path = "jsonpath={.status.containerStatuses[0].state.waiting}";
    until(&format!("{pod} to wait with {part}"), || {
        match ketch.kubectl_ok(&["get", "pod", pod, "-o", path]) {
            text if text.contains(part) => Ok(text),
            text => Err(text),
        }
    })
}

fn secret(ketch: &Ketch, name: &str, server: &str, password: &str) {
    ketch.kubectl_ok(&[
        "create",
        "secret",
        "docker-registry",
        name,
        &format!("--docker-server={server}"),
        "--docker-username=puller",
        &format!("--docker-password={password}"),
    ]);
}

#[test]
fn a_registry_with_passwords_is_asked_with_the_pods_own() {
    let dir = tempfile::tempdir().unwrap();
    let Some(registry) = Registry::start(&dir.path().join("registry"), &Secured::Passwords) else { return };
    let ketch = Ketch::start();
    ketch.deploy("job", &[]);
    registry.copy(&ketch, "job:latest", "team/job:1");
    let image = format!("{}/team/job:1", registry.address);

    ketch.apply(&pod("nobody", &image, ""));
    let said = waits(&ketch, "nobody", "ErrImagePull");
    assert!(said.contains("401 Unauthorized") && said.contains("authentication required"), "{said}");
    waits(&ketch, "nobody", "ImagePullBackOff");

    secret(&ketch, "wrong", &registry.address, "gue55");
    ketch.apply(&pod("guesser", &image, "imagePullSecrets: [{name: wrong}, {name: missing}]"));
    let said = waits(&ketch, "guesser", "ErrImagePull");
    assert!(said.contains("imagePullSecrets") && !said.contains("gue55"), "{said}");
    until("an event about the secret that is missing", || {
        let events = ketch.kubectl_ok(&["get", "events", "--field-selector=involvedObject.name=guesser"]);
        if events.contains("Unable to retrieve some image pull secrets (missing)") {
            Ok(())
        } else {
            Err(events)
        }
    });

    secret(&ketch, "right", &format!("http://{}/team", registry.address), PASSWORD);
    ketch.apply(&pod("puller", &image, "imagePullSecrets: [{name: wrong}, {name: right}]"));
    ketch.kubectl_ok(&["wait", "--for=condition=Ready", "pod/puller", "--timeout=60s"]);
    let log = std::fs::read_to_string(ketch.dir.join("test-output.log")).unwrap();
    assert!(!log.contains(PASSWORD) && !log.contains("gue55"), "no credential is logged");
    let listed = ketch.kubectl_ok(&["get", "node", "test-node", "-o", "jsonpath={.status.images}"]);
    let known = until("the node to name the image", || {
        let listed = ketch.kubectl_ok(&["get", "node", "test-node", "-o", "jsonpath={.status.images}"]);
        if listed.contains(&image) { Ok(listed) } else { Err(listed) }
    });
    assert!(known.contains("sizeBytes"), "{listed}");
}

#[test]
fn a_mirror_stands_in_for_a_registry() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mirror) = Registry::start(&dir.path().join("mirror"), &Secured::Not) else { return };
    let data = dir.path().join("data");
    std::fs::create_dir_all(&data).unwrap();
    // Neither the first mirror nor the registry itself answers.
    let config = format!(
        "[registries.\"127.0.0.2:9\"]\nmirrors = [\"http://127.0.0.1:1\", \"http://{}\"]\n",
        mirror.address
    );
    std::fs::write(data.join("config.toml"), config).unwrap();
    let ketch = Ketch::start_in(&data, &[]);
    ketch.deploy("job", &[]);
    mirror.copy(&ketch, "job:latest", "library/job:1");
    ketch.apply(&pod("mirrored", "127.0.0.2:9/library/job:1", ""));
    ketch.kubectl_ok(&["wait", "--for=condition=Ready", "pod/mirrored", "--timeout=60s"]);
    ketch.apply(&pod("absent", "127.0.0.2:9/library/other:1", ""));
    let said = waits(&ketch, "absent", "ErrImagePull");
    assert!(
        said.contains("cannot connect to 127.0.0.2:9"),
        "what is said of the registry itself counts: {said}"
    );
}
