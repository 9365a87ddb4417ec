//! From a file to a URL, a new revision, and back.

use ketch_tests::{Ketch, guest, succeeded, until};

#[test]
fn a_component_becomes_a_url_a_revision_and_a_rollback() {
    let ketch = Ketch::start();
    let url = ketch.deploy("hello", &[]);
    assert!(url.starts_with("http://hello.default.localhost:"), "{url}");
    // `deploy` returns when the URL answers: no waiting here.
    let (status, body) = ketch.call("hello", "/").unwrap();
    assert_eq!(status, 200, "{body}");
    let logs = succeeded("ketch logs", ketch.ketch(&["logs", "function/hello"]));
    assert!(!logs.trim().is_empty(), "the component logs each request");

    let pods = ketch.kubectl_ok(&["get", "pods", "-l", "ketch.dev/function=hello", "--no-headers"]);
    assert!(pods.contains("hello-00001") && pods.contains("1/1") && pods.contains("Running"), "{pods}");
    let owner = ketch.kubectl_ok(&[
        "get",
        "deployment",
        "hello-00001",
        "-o",
        "jsonpath={.metadata.ownerReferences[0].kind}",
    ]);
    assert_eq!(owner, "FunctionRevision");

    succeeded(
        "second deploy",
        ketch.ketch(&["deploy", guest("hello").to_str().unwrap(), "--env", "GREETING=second"]),
    );
    let (_, body) = ketch.call("hello", "/").unwrap();
    assert!(body.contains("second"), "{body}");

    let patch = r#"{"spec":{"traffic":[{"revisionName":"hello-00001","percent":100}]}}"#;
    ketch.kubectl_ok(&["patch", "function", "hello", "--type=merge", "-p", patch]);
    until("the rollback", || match ketch.call("hello", "/") {
        Ok((200, body)) if !body.contains("second") => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

#[test]
fn components_of_other_toolchains_run_unmodified() {
    let ketch = Ketch::start();
    for (name, text) in
        [("hello-js", "Hello from JavaScript"), ("hello-py", "Hello from Python"), ("hello-p3", "")]
    {
        ketch.deploy(name, &[]);
        let (status, body) = ketch.call(name, "/").unwrap();
        assert_eq!(status, 200, "{name}: {body}");
        assert!(body.contains(text), "{name}: {body}");
    }
}

#[test]
fn instances_run_side_by_side() {
    let (one, two) = (Ketch::start(), Ketch::start());
    assert_ne!(one.address("api-addr"), two.address("api-addr"));
    one.deploy("hello", &["--env", "GREETING=one"]);
    two.deploy("hello", &["--env", "GREETING=two"]);
    assert!(one.call("hello", "/").unwrap().1.contains("one"));
    assert!(two.call("hello", "/").unwrap().1.contains("two"));
}
