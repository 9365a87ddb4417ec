//! Container images made here, as they should be or not, and pushed to a Ketch's registry by nothing but HTTP.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
};

use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

use crate::{Ketch, PATIENCE};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// `sha256:…`.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(bytes))
}

/// This machine, as images name it, and another one.
pub fn architectures() -> (&'static str, &'static str) {
    if cfg!(target_arch = "aarch64") { ("arm64", "amd64") } else { ("amd64", "arm64") }
}

/// A layer: what is pushed, and the digest of what it unpacks to.
#[derive(Clone)]
pub struct Layer {
    /// Compressed.
    pub bytes: Vec<u8>,
    /// As the configuration names it.
    pub diff_id: String,
}

/// A layer that is being made: files and links with whatever names, as no honest program writes them.
#[derive(Default)]
pub struct Archive(Vec<u8>);

impl Archive {
    /// Debian's static busybox as `/bin/sh` and a few others.
    pub fn busybox() -> Self {
        let program = fs::read("/bin/busybox").expect("busybox-static is installed");
        let links = ["sh", "cat", "sleep", "true"].map(|name| format!("bin/{name}"));
        let archive = Self::default().file("bin/busybox", &program);
        links.iter().fold(archive, |all, link| all.link(EntryType::Symlink, link, "/bin/busybox"))
    }

    /// Adds a file that anybody may run.
    pub fn file(mut self, path: &str, bytes: &[u8]) -> Self {
        self.header(EntryType::Regular, path, "", bytes.len() as u64);
        self.padded(bytes);
        self
    }

    /// Adds a symbolic or hard link.
    pub fn link(mut self, kind: EntryType, path: &str, target: &str) -> Self {
        self.header(kind, path, target, 0);
        self
    }

    /// Adds a file of `size` bytes that is nothing but a hole, in the way of GNU tar (PAX, version 1.0).
    pub fn hole(mut self, path: &str, size: u64) -> Self {
        let fields = [("major", "1"), ("minor", "0"), ("name", path), ("realsize", &size.to_string())];
        let records: String =
            fields.iter().map(|(key, value)| record(&format!("GNU.sparse.{key}={value}"))).collect();
        self.0.extend_from_slice(named(EntryType::XHeader, "pax", "", records.len() as u64).as_bytes());
        self.padded(records.as_bytes());
        // The map of what is no hole: no entries.
        self.file(path, &[&b"0\n"[..], &[0; 510]].concat())
    }

    fn padded(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
    }

    fn header(&mut self, kind: EntryType, path: &str, target: &str, size: u64) {
        self.0.extend_from_slice(named(kind, path, target, size).as_bytes());
    }

    /// The layer.
    pub fn pack(mut self) -> Layer {
        self.0.extend_from_slice(&[0; 1024]);
        Layer { bytes: gzip(&self.0), diff_id: digest(&self.0) }
    }

    /// The layer with a file of `mib` MiB of zeros besides; its digest is right only if `exact`, which takes time.
    pub fn pack_with_zeros(mut self, path: &str, mib: u64, exact: bool) -> Layer {
        self.header(EntryType::Regular, path, "", mib << 20);
        let (chunk, end) = (vec![0; 1 << 20], [0; 1024]);
        // A gzip file may be many, one after the other.
        let zeros = gzip(&chunk);
        let count = usize::try_from(mib).unwrap();
        let bytes = [gzip(&self.0), zeros.repeat(count), gzip(&end)].concat();
        let mut sum = Sha256::new_with_prefix(&self.0);
        (0..if exact { count } else { 0 }).for_each(|_| sum.update(&chunk));
        sum.update(end);
        Layer { bytes, diff_id: format!("sha256:{:x}", sum.finalize()) }
    }
}

fn named(kind: EntryType, path: &str, target: &str, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o755);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    // By hand: a library refuses the names that matter here.
    let old = header.as_old_mut();
    old.name[..path.len()].copy_from_slice(path.as_bytes());
    old.linkname[..target.len()].copy_from_slice(target.as_bytes());
    header.set_cksum();
    header
}

/// A line of an extended header, which begins with its own length.
fn record(text: &str) -> String {
    let rest = text.len() + 2;
    let length = (rest..).find(|length| rest + length.to_string().len() == *length).unwrap();
    format!("{length} {text}\n")
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut zip = GzEncoder::new(Vec::new(), Compression::fast());
    zip.write_all(bytes).unwrap();
    zip.finish().unwrap()
}

/// Pushes to the namespace `default` of a Ketch's registry.
pub struct Pusher {
    address: String,
    token: String,
}

impl Pusher {
    /// To the registry of `ketch`, as an administrator.
    pub fn new(ketch: &Ketch) -> Self {
        Self { address: ketch.address("ui-addr"), token: ketch.token() }
    }

    /// Pushes an image for this machine; its reference.
    pub fn push(&self, name: &str, layers: &[Layer]) -> String {
        self.push_for(architectures().0, name, layers);
        format!("ketch.local/default/{name}")
    }

    /// Pushes an image for `architecture` as `NAME:TAG`; the descriptor of its manifest.
    pub fn push_for(&self, architecture: &str, name: &str, layers: &[Layer]) -> Value {
        let (repository, tag) = name.split_once(':').unwrap();
        let ids: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
        let config = json!({"os": "linux", "architecture": architecture, "config": {"Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": ids}});
        let blob = |bytes: &[u8], kind: &str| {
            let digest = digest(bytes);
            let path = format!("/v2/default/{repository}/blobs/uploads/?digest={digest}");
            self.send("POST", &path, "application/octet-stream", bytes);
            json!({"mediaType": kind, "digest": digest, "size": bytes.len()})
        };
        let config = blob(config.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json");
        let kind = "application/vnd.oci.image.layer.v1.tar+gzip";
        let layers: Vec<Value> = layers.iter().map(|layer| blob(&layer.bytes, kind)).collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers})
            .to_string();
        self.send("PUT", &format!("/v2/default/{repository}/manifests/{tag}"), MANIFEST, manifest.as_bytes());
        json!({"mediaType": MANIFEST, "digest": digest(manifest.as_bytes()), "size": manifest.len(),
            "platform": {"os": "linux", "architecture": architecture}})
    }

    /// Pushes an index of manifests as `NAME:TAG`; its reference.
    pub fn push_index(&self, name: &str, entries: &[Value]) -> String {
        let (repository, tag) = name.split_once(':').unwrap();
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).to_string();
        self.send("PUT", &format!("/v2/default/{repository}/manifests/{tag}"), INDEX, index.as_bytes());
        format!("ketch.local/default/{name}")
    }

    fn send(&self, method: &str, path: &str, kind: &str, body: &[u8]) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let (address, token, length) = (&self.address, &self.token, body.len());
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\
             content-type: {kind}\r\ncontent-length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 201"), "{method} {path}: {answer}");
    }
}

/// Where the registry of the data directory `dir` has the blob of `layer`.
pub fn stored(dir: &Path, layer: &Layer) -> std::path::PathBuf {
    let name = digest(&layer.bytes);
    let hex = name.trim_start_matches("sha256:");
    dir.join("server/registry/blobs/sha256").join(&hex[..2]).join(hex)
}
