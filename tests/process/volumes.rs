//! Claims and volumes with real kubectl: data that outlives pods and the daemon, and goes when it should.

use std::path::{Path, PathBuf};

use ketch_tests::{Containers, Ketch, until};

const CLAIM: &str = r"
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: NAME}
spec:
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 1Gi}}
";

/// A pod of the sample `job` that does something with the claim and stays. What it prints is seen when the line ends.
fn pod(name: &str, claim: &str, arguments: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  volumes: [{{name: data, persistentVolumeClaim: {{claimName: {claim}}}}}]
  containers:
  - name: main
    image: "ketch.local/default/job:latest"
    args: [{arguments}, sleep, "0"]
    volumeMounts: [{{name: data, mountPath: /data}}]
"#
    )
}

fn field(ketch: &Ketch, what: &str, path: &str) -> String {
    let output = ketch.kubectl(&["get", what, "-o", &format!("jsonpath={{{path}}}")]);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn is(ketch: &Ketch, what: &str, path: &str, expected: &str) {
    until(&format!("{what} {path} {expected}"), || match field(ketch, what, path) {
        found if found == expected => Ok(()),
        found => Err(found),
    });
}

fn is_gone(ketch: &Ketch, what: &str) {
    until(&format!("{what} to go"), || match ketch.kubectl(&["get", what, "-o", "name"]) {
        output if String::from_utf8_lossy(&output.stderr).contains("NotFound") => Ok(()),
        output => Err(String::from_utf8_lossy(&output.stdout).into_owned()),
    });
}

fn says(ketch: &Ketch, pod: &str, text: &str) {
    until(&format!("{pod} to say {text}"), || {
        let output = ketch.kubectl(&["logs", pod]);
        let log = String::from_utf8_lossy(&output.stdout).into_owned();
        if log.contains(text) { Ok(()) } else { Err(log + &String::from_utf8_lossy(&output.stderr)) }
    });
}

fn has_event(ketch: &Ketch, object: &str, text: &str) {
    let about = format!("involvedObject.name={object}");
    until(&format!("an event about {object}: {text}"), || {
        match ketch.kubectl_ok(&["get", "events", "--field-selector", &about]) {
            events if events.contains(text) => Ok(()),
            events => Err(events),
        }
    });
}

fn delete(ketch: &Ketch, what: &str) {
    ketch.kubectl_ok(&["delete", what, "--grace-period=1", "--timeout=60s"]);
}

/// Directory of the volume a claim has.
fn data(dir: &Path, ketch: &Ketch, claim: &str) -> PathBuf {
    dir.join("node/volumes").join(field(ketch, &format!("pvc/{claim}"), ".spec.volumeName"))
}

#[test]
fn data_outlives_pods_and_the_daemon_and_goes_with_its_claim() {
    let dir = tempfile::tempdir().unwrap();
    let mut ketch = Ketch::start_in(dir.path(), &[]);
    ketch.deploy("job", &[]);
    let classes = ketch.kubectl_ok(&["get", "sc"]);
    assert!(
        classes.contains("local-path (default)") && classes.contains("WaitForFirstConsumer"),
        "{classes}"
    );

    // A pod waits for its claim, the claim for its pod, and both for nothing else.
    ketch.apply(&pod("first", "data", r#"write, /data/greeting, "kept\n""#));
    has_event(&ketch, "first", "persistentvolumeclaim \"data\" not found");
    ketch.apply(&CLAIM.replace("NAME", "data"));
    ketch.kubectl_ok(&["wait", "--for=condition=Ready", "pod/first", "--timeout=60s"]);
    is(&ketch, "pvc/data", ".status.phase", "Bound");
    let directory = data(dir.path(), &ketch, "data");
    until("the file", || match std::fs::read_to_string(directory.join("greeting")) {
        Ok(text) if text == "kept\n" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let table = ketch.kubectl_ok(&["get", "pv,pvc"]);
    for word in ["RWO", "1Gi", "Delete", "Bound", "default/data", "local-path", "<unset>"] {
        assert!(table.contains(word), "{word} in\n{table}");
    }
    assert!(ketch.kubectl_ok(&["describe", "pvc", "data"]).contains("Used By:       first"));

    delete(&ketch, "pod/first");
    ketch.apply(&pod("second", "data", r#"cat, /data/greeting"#));
    says(&ketch, "second", "kept");
    let mut ketch = {
        ketch.kill();
        drop(ketch);
        Ketch::start_in(dir.path(), &[])
    };
    until("the pod to run again", || match field(&ketch, "pod/second", ".status.phase").as_str() {
        "Running" | "Failed" | "Succeeded" => Ok(()),
        other => Err(other.to_owned()),
    });
    ketch.apply(&pod("third", "data", r#"cat, /data/greeting"#));
    says(&ketch, "third", "kept");

    ketch.kubectl_ok(&[
        "patch",
        "pvc",
        "data",
        "-p",
        r#"{"spec":{"resources":{"requests":{"storage":"2Gi"}}}}"#,
    ]);
    is(&ketch, "pvc/data", ".status.capacity.storage", "2Gi");

    // In use, it stays.
    ketch.kubectl_ok(&["delete", "pvc", "data", "--wait=false"]);
    let shown = ketch.kubectl_ok(&["get", "pvc", "data"]);
    assert!(shown.contains("Terminating") && directory.is_dir(), "{shown}");
    delete(&ketch, "pod/second");
    delete(&ketch, "pod/third");
    is_gone(&ketch, "pvc/data");
    until("no volumes", || match ketch.kubectl_ok(&["get", "pv", "-o", "name"]) {
        none if none.is_empty() => Ok(()),
        some => Err(some),
    });
    assert!(!directory.exists(), "the data is gone");
    ketch.kill();
}

#[test]
fn volumes_that_are_retained_or_an_administrators_stay() {
    let ketch = Ketch::start();
    let dir = ketch.dir.clone();
    ketch.deploy("job", &[]);
    ketch.apply(&CLAIM.replace("NAME", "keep"));
    has_event(&ketch, "keep", "waiting for first consumer to be created before binding");
    ketch.apply(&pod("writer", "keep", r#"write, /data/greeting, "kept\n""#));
    ketch.kubectl_ok(&["wait", "--for=condition=Ready", "pod/writer", "--timeout=60s"]);
    let directory = data(&dir, &ketch, "keep");
    let volume = format!("pv/{}", field(&ketch, "pvc/keep", ".spec.volumeName"));
    ketch.kubectl_ok(&["patch", &volume, "-p", r#"{"spec":{"persistentVolumeReclaimPolicy":"Retain"}}"#]);
    delete(&ketch, "pod/writer");
    delete(&ketch, "pvc/keep");
    is(&ketch, &volume, ".status.phase", "Released");
    assert_eq!(std::fs::read_to_string(directory.join("greeting")).unwrap(), "kept\n");
    delete(&ketch, &volume);
    assert!(directory.join("greeting").exists(), "the object is gone, the data is not");

    let disk = dir.join("disk");
    std::fs::create_dir(&disk).unwrap();
    std::fs::write(disk.join("greeting"), "by hand\n").unwrap();
    ketch.apply(&format!(
        r#"
apiVersion: v1
kind: PersistentVolume
metadata: {{name: disk}}
spec:
  accessModes: [ReadWriteOnce]
  capacity: {{storage: 5Gi}}
  hostPath: {{path: {}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: own}}
spec:
  storageClassName: ""
  accessModes: [ReadWriteOnce]
  resources: {{requests: {{storage: 1Gi}}}}
"#,
        disk.display()
    ));
    is(&ketch, "pvc/own", ".spec.volumeName", "disk");
    ketch.apply(&pod("reader", "own", r#"cat, /data/greeting"#));
    says(&ketch, "reader", "by hand");
    delete(&ketch, "pod/reader");
    delete(&ketch, "pvc/own");
    is(&ketch, "pv/disk", ".status.phase", "Released");
    assert!(disk.join("greeting").exists());
}

#[test]
fn both_kinds_share_a_claim() {
    let Some(containers) = Containers::start(164, 165) else { return };
    containers.push(&["busybox"]);
    let ketch = containers.ketch();
    ketch.deploy("job", &[]);
    ketch.apply(&CLAIM.replace("NAME", "shared"));
    ketch.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: box}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {runAsUser: 1000, fsGroup: 4242}
  volumes:
  - {name: data, persistentVolumeClaim: {claimName: shared}}
  - {name: sealed, persistentVolumeClaim: {claimName: shared, readOnly: true}}
  containers:
  - name: main
    image: ketch.local/default/busybox:latest
    command: [sh, -c, "echo from a container > /data/greeting; echo part > /part/file; ls -ln /data; exec sleep 3600"]
    volumeMounts:
    - {name: data, mountPath: /data}
    - {name: data, mountPath: /part, subPath: deep/part}
    - {name: sealed, mountPath: /sealed}
"#,
    );
    ketch.kubectl_ok(&["wait", "--for=condition=Ready", "pod/box", "--timeout=60s"]);
    says(ketch, "box", "4242");
    let directory = data(&ketch.dir, ketch, "shared");
    until("the file of a subPath", || {
        std::fs::read_to_string(directory.join("deep/part/file")).map_err(|error| error.to_string())
    });
    let sealed = ketch.kubectl(&["exec", "box", "--", "sh", "-c", "echo x > /sealed/x"]);
    assert!(String::from_utf8_lossy(&sealed.stderr).contains("Read-only file system"), "{sealed:?}");
    ketch.apply(&pod("guest", "shared", r#"cat, /data/greeting, write, /data/answer, "from a component""#));
    says(ketch, "guest", "from a container");
    let answer = || ketch.kubectl(&["exec", "box", "--", "cat", "/data/answer"]);
    until("the answer", || match String::from_utf8_lossy(&answer().stdout).into_owned() {
        text if text == "from a component" => Ok(()),
        text => Err(text),
    });
    delete(ketch, "pod/box");
    delete(ketch, "pod/guest");
    delete(ketch, "pvc/shared");
    until("the data to go", || if directory.exists() { Err("it is there".into()) } else { Ok(()) });
}
