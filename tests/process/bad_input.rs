//! One clear message for what people get wrong, and nothing lost by it.

use ketch_tests::{Ketch, binary, failed, guest};

#[test]
fn files_that_are_no_component_are_refused_with_the_reason() {
    let ketch = Ketch::start();
    ketch.deploy("hello", &[]);
    let dir = tempfile::tempdir().unwrap();
    let whole = std::fs::read(guest("hello")).unwrap();
    let cases: [(&str, Vec<u8>, &[&str]); 4] = [
        ("text.wasm", b"hello, world\n".to_vec(), &["not", "WebAssembly"]),
        ("elf.wasm", std::fs::read(binary()).unwrap()[..4096].to_vec(), &["ELF"]),
        ("cut.wasm", whole[..whole.len() / 2].to_vec(), &["ends too early", "cut off"]),
        ("empty.wasm", Vec::new(), &["empty"]),
    ];
    for (name, bytes, words) in cases {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let error = failed(name, ketch.ketch(&["deploy", path.to_str().unwrap()]));
        for word in words {
            assert!(error.to_lowercase().contains(&word.to_lowercase()), "{name}: {error}");
        }
        assert_eq!(error.lines().filter(|line| line.starts_with("error:")).count(), 1, "{error}");
    }
    assert_eq!(ketch.call("hello", "/").unwrap().0, 200, "the running function is untouched");
}

#[test]
fn manifests_are_refused_by_field() {
    let ketch = Ketch::start();
    let unknown = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {a: b}\nspecs: 1\n";
    let error = failed("unknown field", ketch.kubectl_with(&["create", "-f", "-"], unknown));
    assert!(error.contains("unknown field \"specs\""), "{error}");

    let selector = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec:\n  selector: {matchLabels: {a: b}}\n  template:\n    metadata: {labels: {a: c}}\n    spec: {containers: [{name: c, image: i}]}\n";
    let error = failed("selector", ketch.kubectl_with(&["create", "-f", "-"], selector));
    assert!(error.contains("spec.template.metadata.labels") && error.contains("Invalid value"), "{error}");

    let error = failed("bad yaml", ketch.kubectl_with(&["create", "-f", "-"], "a: [\n"));
    assert!(!error.is_empty());
}

#[test]
fn an_image_that_does_not_exist_is_named_on_the_pod() {
    let ketch = Ketch::start();
    ketch.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: lost}\nspec:\n  runtimeClassName: ketch-wasm\n  containers: [{name: c, image: 'ketch.local/default/lost:1'}]\n");
    let message = ketch_tests::until("the reason", || {
        let text = ketch.kubectl_ok(&["get", "pod", "lost", "-o", "jsonpath={.status.containerStatuses[0].state.waiting.reason} {.status.containerStatuses[0].state.waiting.message}"]);
        if text.contains("ImagePull") { Ok(text) } else { Err(text) }
    });
    assert!(message.contains("ketch.local/default/lost:1"), "{message}");
    let table = ketch.kubectl_ok(&["get", "pod", "lost", "--no-headers"]);
    assert!(table.contains("ImagePull"), "{table}");
}

#[test]
fn a_second_ketch_in_the_same_directory_says_so() {
    let ketch = Ketch::start();
    let second = std::process::Command::new(binary())
        .args(["up", "--api-addr", "127.0.0.1:0", "--data-dir"])
        .arg(&ketch.dir)
        .output()
        .unwrap();
    let error = failed("second up", second);
    assert!(error.contains("in use") && error.contains("--data-dir"), "{error}");
}

#[test]
fn a_taken_port_and_bad_options_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let up = |flags: &[&str]| {
        std::process::Command::new(binary())
            .args(["up", "--data-dir"])
            .arg(dir.path())
            .args(flags)
            .output()
            .unwrap()
    };
    let free = [
        "--ui-addr",
        "127.0.0.1:0",
        "--http-addr",
        "127.0.0.1:0",
        "--https-addr",
        "127.0.0.1:0",
        "--dns-addr",
        "127.0.0.1:0",
    ];
    let error = failed("taken port", up(&[&["--api-addr", &address], &free[..]].concat()));
    assert!(error.contains(&address) && error.contains("--api-addr"), "{error}");

    let bad = up(&["--api-addr", "nonsense"]);
    assert_eq!(bad.status.code(), Some(64));
    assert!(failed("bad address", bad).contains("api-addr"));
}
