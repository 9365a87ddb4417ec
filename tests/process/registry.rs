//! The registry as other programs use it: skopeo, the ORAS client, and an upload that is cut.

use std::{
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::Command,
};

use ketch_tests::{Ketch, failed, guest, root, succeeded};

const LAYOUT: &str = r#"
import hashlib, json, os, sys
wasm, out = sys.argv[1:]
os.makedirs(out + "/blobs/sha256")
def put(data, kind):
    digest = hashlib.sha256(data).hexdigest()
    open(out + "/blobs/sha256/" + digest, "wb").write(data)
    return {"mediaType": kind, "digest": "sha256:" + digest, "size": len(data)}
layer = put(open(wasm, "rb").read(), "application/wasm")
config = {"architecture": "wasm", "os": "wasip2", "layerDigests": [layer["digest"]], "component": {}}
config = put(json.dumps(config).encode(), "application/vnd.wasm.config.v0+json")
kind = "application/vnd.oci.image.manifest.v1+json"
manifest = {"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer]}
entry = put(json.dumps(manifest).encode(), kind)
entry["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
json.dump({"schemaVersion": 2, "manifests": [entry]}, open(out + "/index.json", "w"))
json.dump({"imageLayoutVersion": "1.0.0"}, open(out + "/oci-layout", "w"))
"#;

const ORAS: &str = r#"
import os, sys
import oras.client
host, token, wasm, out = sys.argv[1:]
client = oras.client.OrasClient(hostname=host, tls_verify=False, auth_backend="basic")
client.login(hostname=host, username="token", password=token, tls_verify=False)
os.chdir(os.path.dirname(wasm))
client.push(target=f"{host}/default/oras:1", files=[f"./{os.path.basename(wasm)}:application/wasm"])
pulled = client.pull(target=f"{host}/default/oras:1", outdir=out)
assert open(pulled[0], "rb").read() == open(wasm, "rb").read()
print(client.get_tags(f"{host}/default/oras"))
"#;

fn skopeo(arguments: &[&str]) -> std::process::Output {
    Command::new("skopeo").args(arguments).output().expect("skopeo is missing")
}

#[test]
fn skopeo_copies_in_and_out_and_the_copy_runs() {
    let ketch = Ketch::start();
    let dir = tempfile::tempdir().unwrap();
    let layout = dir.path().join("layout");
    let make = Command::new("python3").args(["-c", LAYOUT]).arg(guest("hello")).arg(&layout).output();
    succeeded("layout", make.unwrap());
    let source = format!("oci:{}:latest", layout.display());
    let target = format!("docker://{}/default/copied:1", ketch.address("api-addr"));
    let credentials = format!("token:{}", ketch.token());
    let flags = ["copy", "--dest-tls-verify=false", "--dest-creds"];
    succeeded("copy in", skopeo(&[&flags[..], &[&credentials, &source, &target]].concat()));
    let refused = failed("copy in", skopeo(&[&flags[..], &["token:wrong", &source, &target]].concat()));
    assert!(refused.contains("unauthorized"), "{refused}");
    let back = format!("oci:{}:1", dir.path().join("back").display());
    let flags = ["copy", "--src-tls-verify=false", "--src-creds"];
    succeeded("copy out", skopeo(&[&flags[..], &[&credentials, &target, &back]].concat()));

    succeeded("deploy", ketch.ketch(&["deploy", "ketch.local/default/copied:1"]));
    assert_eq!(ketch.call("copied", "/").unwrap().0, 200);
}

#[test]
fn the_oras_client_pushes_and_pulls() {
    let python = root().join("target/tools/python/bin");
    if !python.join("oras-installed").is_file() {
        let install = Command::new(python.join("pip")).args(["install", "--quiet", "oras"]).output();
        succeeded("pip", install.unwrap());
        std::fs::write(python.join("oras-installed"), "").unwrap();
    }
    let ketch = Ketch::start();
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(python.join("python"))
        .args(["-W", "ignore", "-c", ORAS, &ketch.address("api-addr"), &ketch.token()])
        .arg(guest("hello"))
        .arg(dir.path())
        .env("HOME", dir.path())
        .output();
    let text = succeeded("oras", output.unwrap());
    assert!(text.contains("['1']"), "{text}");
}

/// One request over plain HTTP with a body that may be shorter than announced: the head of the answer, or
/// nothing when the connection was cut.
fn send(ketch: &Ketch, head: &str, announced: usize, body: &[u8]) -> String {
    let address = ketch.address("ui-addr");
    let mut stream = TcpStream::connect(&address).unwrap();
    let head = format!(
        "{head} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {}\r\nconnection: close\r\ncontent-length: {announced}\r\ncontent-type: application/octet-stream\r\n\r\n",
        ketch.token()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    if body.len() < announced {
        return String::new();
    }
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer.split("\r\n\r\n").next().unwrap_or_default().to_lowercase()
}

fn header(head: &str, name: &str) -> String {
    let line = head.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
    line.unwrap_or_else(|| panic!("no {name} in {head}")).to_owned()
}

fn local(location: &str) -> String {
    location.find("/v2/").map_or_else(|| location.to_owned(), |at| location[at..].to_owned())
}

#[test]
fn an_upload_that_was_cut_goes_on_where_it_was() {
    let ketch = Ketch::start();
    ketch.deploy("hello", &[]);
    let bytes = std::fs::read(guest("counter")).unwrap();
    let started = send(&ketch, "POST /v2/default/cut/blobs/uploads/", 0, &[]);
    let location = local(&header(&started, "location"));
    send(&ketch, &format!("PATCH {location}"), bytes.len(), &bytes[..40_000]);
    // What arrived of a broken request either counts or does not; the registry says which.
    let received = ketch_tests::until("the registry to notice the end", || {
        let status = send(&ketch, &format!("GET {location}"), 0, &[]);
        let range = if status.contains(" 204") { header(&status, "range") } else { return Err(status) };
        let last: usize = range.rsplit('-').next().unwrap().parse().unwrap();
        Ok(if last == 0 { 0 } else { last + 1 })
    });
    assert!(received <= 40_000, "{received}");
    let rest = &bytes[received..];
    let patched = send(&ketch, &format!("PATCH {location}"), rest.len(), rest);
    assert!(patched.contains(" 202"), "{patched}");
    let digest = succeeded("sha256sum", Command::new("sha256sum").arg(guest("counter")).output().unwrap());
    let digest = digest.split_whitespace().next().unwrap();
    let location = local(&header(&patched, "location"));
    let separator = if location.contains('?') { '&' } else { '?' };
    let done = send(&ketch, &format!("PUT {location}{separator}digest=sha256:{digest}"), 0, &[]);
    assert!(done.contains(" 201"), "{done}");
    assert_eq!(ketch.call("hello", "/").unwrap().0, 200);
}

/// A Wasm module that is nothing but one custom section of `size` bytes.
fn write_large_module(path: &Path, size: usize) {
    let mut file = std::io::BufWriter::new(std::fs::File::create(path).unwrap());
    let mut length = Vec::new();
    let mut rest = size + 2;
    while rest >= 0x80 {
        length.push(0x80 | u8::try_from(rest & 0x7f).unwrap());
        rest >>= 7;
    }
    length.push(u8::try_from(rest).unwrap());
    file.write_all(b"\0asm\x01\0\0\0\0").unwrap();
    file.write_all(&length).unwrap();
    file.write_all(b"\x01x").unwrap();
    std::io::copy(&mut std::io::repeat(0).take(size as u64), &mut file).unwrap();
    file.flush().unwrap();
}

#[test]
fn a_file_of_200_mb_is_refused_with_the_limit() {
    let ketch = Ketch::start();
    ketch.deploy("hello", &[]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("large.wasm");
    write_large_module(&path, 200_000_000);
    let error = failed("deploy", ketch.ketch(&["deploy", path.to_str().unwrap()]));
    assert!(error.contains("200000") && error.contains("at most 134217728"), "{error}");
    assert_eq!(ketch.call("hello", "/").unwrap().0, 200);
}
