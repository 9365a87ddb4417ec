//! The registry through its routes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "an integration test is test code outside its test functions too"
)]

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use ketch_api::wasm::{CONFIG_MEDIA_TYPE, Inspection, LAYER_MEDIA_TYPE, World};
use ketch_registry::{Digest, PushedManifest, Reference, Registry, RegistryOptions};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tower::ServiceExt;

const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

struct Fixture {
    registry: Registry,
    dir: tempfile::TempDir,
}

#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no header {name}: {self:?}")).to_str().unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Asserts status and error code, and returns the message.
    fn refused(&self, status: u16, code: &str) -> String {
        let error = &self.json()["errors"][0];
        assert_eq!((self.status.as_u16(), error["code"].as_str().unwrap()), (status, code), "{self:?}");
        error["message"].as_str().unwrap().to_owned()
    }
}

impl Fixture {
    fn new() -> Self {
        Self::with(RegistryOptions::default())
    }

    fn with(options: RegistryOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Fixture { registry: Registry::open(dir.path(), options).unwrap(), dir }
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.registry.router().oneshot(request.body(body.into()).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], Body::empty()).await
    }

    async fn begin(&self, repository: &str) -> String {
        let begun = self.send("POST", &format!("/v2/{repository}/blobs/uploads/"), &[], Body::empty()).await;
        assert_eq!(begun.status, StatusCode::ACCEPTED, "{begun:?}");
        begun.header("location").to_owned()
    }

    async fn push_blob(&self, repository: &str, content: &[u8]) -> Digest {
        let digest = Digest::of(content);
        let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
        let pushed = self.send("POST", &path, &[], content.to_vec()).await;
        assert_eq!(pushed.status, StatusCode::CREATED, "{pushed:?}");
        digest
    }

    async fn put_manifest(&self, repository: &str, reference: &str, manifest: &Value) -> Answer {
        let media_type = manifest["mediaType"].as_str().unwrap();
        let path = format!("/v2/{repository}/manifests/{reference}");
        self.send("PUT", &path, &[("content-type", media_type)], manifest.to_string()).await
    }

    /// Pushes an image with one layer and returns its manifest's digest.
    async fn push_image(&self, repository: &str, tag: &str, media_type: &str, layer: &[u8]) -> Digest {
        self.push_blob(repository, b"{}").await;
        self.push_blob(repository, layer).await;
        let manifest = image(media_type, layer);
        let pushed = self.put_manifest(repository, tag, &manifest).await;
        assert_eq!(pushed.status, StatusCode::CREATED, "{pushed:?}");
        pushed.header("docker-content-digest").parse().unwrap()
    }

    fn files_in(&self, dir: &str) -> usize {
        fn count(dir: &Path) -> usize {
            std::fs::read_dir(dir)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .map(|path| if path.is_dir() { count(&path) } else { 1 })
                .sum()
        }
        count(&self.dir.path().join(dir))
    }
}

fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": Digest::of(content).to_string(), "size": content.len() })
}

fn image(media_type: &str, layer: &[u8]) -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": IMAGE,
        "config": descriptor(CONFIG_MEDIA_TYPE, b"{}"),
        "layers": [descriptor(media_type, layer)],
    })
}

fn component() -> Vec<u8> {
    let text = r#"(component
        (import "wasi:io/poll@0.2.0" (instance))
        (instance $h) (export "wasi:http/incoming-handler@0.2.0" (instance $h)))"#;
    wat::parse_str(text).unwrap()
}

#[tokio::test]
async fn the_api_is_announced() {
    let fixture = Fixture::new();
    for path in ["/v2", "/v2/"] {
        let ping = fixture.get(path).await;
        assert_eq!(ping.status, StatusCode::OK);
        assert_eq!(ping.header("docker-distribution-api-version"), "registry/2.0");
        assert_eq!(ping.header("x-content-type-options"), "nosniff");
    }
}

#[tokio::test]
async fn a_blob_in_one_request() {
    let fixture = Fixture::new();
    let digest = fixture.push_blob("a/b", b"hello world").await;
    let path = format!("/v2/a/b/blobs/{digest}");
    let blob = fixture.get(&path).await;
    assert_eq!((blob.status, &blob.body[..]), (StatusCode::OK, &b"hello world"[..]));
    assert_eq!(blob.header("docker-content-digest"), digest.to_string());
    let head = fixture.send("HEAD", &path, &[], Body::empty()).await;
    assert_eq!((head.status, head.header("content-length"), head.body.len()), (StatusCode::OK, "11", 0));
    let part = fixture.send("GET", &path, &[("range", "bytes=6-")], Body::empty()).await;
    assert_eq!((part.status, &part.body[..]), (StatusCode::PARTIAL_CONTENT, &b"world"[..]));
    assert_eq!(part.header("content-range"), "bytes 6-10/11");
    let outside = fixture.send("GET", &path, &[("range", "bytes=11-")], Body::empty()).await;
    outside.refused(416, "RANGE_INVALID");
    assert_eq!(outside.header("content-range"), "bytes */11");
    assert_eq!(fixture.files_in("uploads"), 0);
}

#[tokio::test]
async fn a_blob_begun_and_finished() {
    let fixture = Fixture::new();
    let location = fixture.begin("a/b").await;
    let content = vec![7; 3 << 20];
    let digest = Digest::of(&content);
    let path = format!("{location}?digest={digest}");
    let finished = fixture.send("PUT", &path, &[], content.clone()).await;
    assert_eq!(finished.status, StatusCode::CREATED, "{finished:?}");
    let blob = fixture.get(finished.header("location")).await;
    assert!(blob.body == content);
    fixture.get(&location).await.refused(404, "BLOB_UPLOAD_UNKNOWN");
}

#[tokio::test]
async fn a_blob_in_chunks() {
    let fixture = Fixture::new();
    let location = fixture.begin("a/b").await;
    let first = fixture.send("PATCH", &location, &[("content-range", "0-5")], "hello ").await;
    assert_eq!((first.status, first.header("range")), (StatusCode::ACCEPTED, "0-5"));
    let wrong = fixture.send("PATCH", &location, &[("content-range", "3-7")], "world").await;
    wrong.refused(416, "BLOB_UPLOAD_INVALID");
    assert_eq!((wrong.header("range"), wrong.header("location")), ("0-5", &*location));
    fixture
        .send("PATCH", &location, &[("content-range", "x")], "world")
        .await
        .refused(400, "BLOB_UPLOAD_INVALID");
    fixture.send("PATCH", &location, &[("content-range", "6-8")], "wor").await;
    let digest = Digest::of(b"hello world");
    let finished =
        fixture.send("PUT", &format!("{location}?digest={digest}"), &[("content-range", "9-10")], "ld").await;
    assert_eq!(finished.status, StatusCode::CREATED, "{finished:?}");
    assert_eq!(fixture.get(&format!("/v2/a/b/blobs/{digest}")).await.body, "hello world");
}

#[tokio::test]
async fn an_upload_that_is_cut_off_goes_on_where_it_was() {
    let fixture = Fixture::new();
    let location = fixture.begin("a/b").await;
    let content: Vec<u8> = (0..2_500_000_u32).map(|index| (index % 253) as u8).collect();
    let sent = Bytes::copy_from_slice(&content[..1_700_000]);
    let cut = futures::stream::iter([Ok(sent), Err(std::io::Error::other("cut"))]);
    fixture.send("PATCH", &location, &[], Body::from_stream(cut)).await.refused(400, "BLOB_UPLOAD_INVALID");

    let status = fixture.get(&location).await;
    assert_eq!((status.status, status.header("range")), (StatusCode::NO_CONTENT, "0-1699999"));
    let range = format!("1700000-{}", content.len() - 1);
    let rest = content[1_700_000..].to_vec();
    let resumed = fixture.send("PATCH", &location, &[("content-range", &range)], rest).await;
    assert_eq!(resumed.status, StatusCode::ACCEPTED, "{resumed:?}");
    let digest = Digest::of(&content);
    let finished = fixture.send("PUT", &format!("{location}?digest={digest}"), &[], Body::empty()).await;
    assert_eq!(finished.status, StatusCode::CREATED, "{finished:?}");
    assert!(fixture.get(&format!("/v2/a/b/blobs/{digest}")).await.body == content);
}

#[tokio::test]
async fn a_request_that_is_dropped_halfway_leaves_a_usable_upload() {
    let fixture = Fixture::new();
    let location = fixture.begin("a/b").await;
    let content = vec![9; 2 << 20];
    let endless = futures::StreamExt::chain(
        futures::stream::iter([Ok::<_, std::io::Error>(Bytes::from(content.clone()))]),
        futures::stream::pending(),
    );
    {
        let request = fixture.send("PATCH", &location, &[], Body::from_stream(endless));
        let arrived = async {
            while fixture.get(&location).await.header("range") == "0-0" {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            answer = request => panic!("the body never ends: {answer:?}"),
            () = arrived => {}
        }
    }
    let range = format!("{}-{}", content.len(), content.len());
    let resumed = fixture.send("PATCH", &location, &[("content-range", &range)], "x").await;
    assert_eq!(resumed.status, StatusCode::ACCEPTED, "{resumed:?}");
    let digest = Digest::of(&[content, b"x".to_vec()].concat());
    let finished = fixture.send("PUT", &format!("{location}?digest={digest}"), &[], Body::empty()).await;
    assert_eq!(finished.status, StatusCode::CREATED, "{finished:?}");
}

#[tokio::test]
async fn wrong_content_is_not_stored() {
    let fixture = Fixture::new();
    let location = fixture.begin("a/b").await;
    let digest = Digest::of(b"right");
    let wrong = fixture.send("PUT", &format!("{location}?digest={digest}"), &[], "wrong").await;
    let message = wrong.refused(400, "DIGEST_INVALID");
    assert!(message.contains(&Digest::of(b"wrong").to_string()), "{message}");
    fixture.get(&format!("/v2/a/b/blobs/{digest}")).await.refused(404, "BLOB_UNKNOWN");
    fixture.get(&location).await.refused(404, "BLOB_UPLOAD_UNKNOWN");
    let whole = format!("/v2/a/b/blobs/uploads/?digest={digest}");
    fixture.send("POST", &whole, &[], "wrong").await.refused(400, "DIGEST_INVALID");
    let missing = fixture.begin("a/b").await;
    fixture.send("PUT", &missing, &[], "x").await.refused(400, "DIGEST_INVALID");
    assert_eq!((fixture.files_in("uploads"), fixture.files_in("blobs")), (1, 0));
}

#[tokio::test]
async fn uploads_are_cancelled_limited_and_forgotten() {
    let fixture = Fixture::with(RegistryOptions { max_uploads: 2, ..RegistryOptions::default() });
    let first = fixture.begin("a/b").await;
    fixture.begin("a/b").await;
    let refused = fixture.send("POST", "/v2/a/b/blobs/uploads/", &[], Body::empty()).await;
    refused.refused(429, "TOOMANYREQUESTS");
    let other = first.replace("/a/b/", "/a/c/");
    fixture.get(&other).await.refused(404, "BLOB_UPLOAD_UNKNOWN");
    let cancelled = fixture.send("DELETE", &first, &[], Body::empty()).await;
    assert_eq!(cancelled.status, StatusCode::NO_CONTENT);
    assert_eq!(fixture.files_in("uploads"), 1);
    let reopened = Registry::open(fixture.dir.path(), RegistryOptions::default()).unwrap();
    assert_eq!(fixture.files_in("uploads"), 0);
    drop(reopened);

    let fixture = Fixture::with(RegistryOptions { upload_ttl: Duration::ZERO, ..RegistryOptions::default() });
    let expired = fixture.begin("a/b").await;
    fixture.begin("a/b").await;
    fixture.get(&expired).await.refused(404, "BLOB_UPLOAD_UNKNOWN");
    assert_eq!(fixture.files_in("uploads"), 1);
}

#[tokio::test]
async fn too_much_is_refused_with_the_limit() {
    let options =
        RegistryOptions { max_blob_bytes: 1_000, max_manifest_bytes: 300, ..RegistryOptions::default() };
    let fixture = Fixture::with(options);
    let announced = fixture.begin("a/b").await;
    let refused = fixture.send("PATCH", &announced, &[("content-length", "1001")], Body::empty()).await;
    assert!(refused.refused(413, "SIZE_INVALID").contains("1000 bytes"));
    let unannounced =
        futures::stream::iter((0..20).map(|_| Ok::<_, std::io::Error>(Bytes::from(vec![1; 100]))));
    let refused = fixture.send("PATCH", &announced, &[], Body::from_stream(unannounced)).await;
    refused.refused(413, "SIZE_INVALID");
    assert_eq!(fixture.files_in("uploads"), 0, "space is given back at once");
    let long = json!({ "mediaType": IMAGE, "schemaVersion": 2, "annotations": { "a": "x".repeat(300) } });
    fixture.put_manifest("a/b", "v1", &long).await.refused(413, "SIZE_INVALID");
}

#[tokio::test]
async fn no_path_leads_out() {
    let fixture = Fixture::new();
    let secret = fixture.dir.path().join("secret");
    std::fs::write(&secret, "secret").unwrap();
    let digest = Digest::of(b"x");
    let escapes = [
        "/v2/..%2f..%2fetc/b/tags/list".to_owned(),
        "/v2/a/..%2f..%2fsecret/tags/list".to_owned(),
        "/v2/a/%2e%2e/tags/list".to_owned(),
        "/v2/a/b/blobs/sha256:..%2f..%2f..%2fsecret".to_owned(),
        "/v2/a/b/manifests/..%2f..%2f..%2f..%2fsecret".to_owned(),
        "/v2/a/b/manifests/%2e%2e".to_owned(),
        "/v2/a/b/blobs/uploads/..%2f..%2fsecret".to_owned(),
        "/v2/a/b%00/tags/list".to_owned(),
        format!("/v2/A/b/blobs/{digest}"),
        format!("/v2/a/_blobs/blobs/{digest}"),
    ];
    for path in escapes {
        let answer = fixture.get(&path).await;
        assert!(matches!(answer.status.as_u16(), 400 | 404), "{path}: {answer:?}");
        assert!(!answer.body.windows(6).any(|window| window == b"secret") || path.contains("secret"));
    }
    let mount = format!("/v2/a/b/blobs/uploads/?mount={digest}&from=..%2f..");
    assert_eq!(fixture.send("POST", &mount, &[], Body::empty()).await.status, StatusCode::ACCEPTED);
    assert_eq!(std::fs::read(&secret).unwrap(), b"secret");
}

#[tokio::test]
async fn blobs_belong_to_their_repository() {
    let fixture = Fixture::new();
    let digest = fixture.push_blob("team/one", b"shared").await;
    fixture.get(&format!("/v2/team/two/blobs/{digest}")).await.refused(404, "BLOB_UNKNOWN");
    let mount = |target: &str| format!("/v2/{target}/blobs/uploads/?mount={digest}&from=team/one");
    let mounted = fixture.send("POST", &mount("team/two"), &[], Body::empty()).await;
    assert_eq!(mounted.status, StatusCode::CREATED);
    assert_eq!(fixture.get(mounted.header("location")).await.body, "shared");
    let foreign = fixture.send("POST", &mount("other/two"), &[], Body::empty()).await;
    assert_eq!(foreign.status, StatusCode::ACCEPTED, "another namespace has to upload");
    fixture.get(&format!("/v2/other/two/blobs/{digest}")).await.refused(404, "BLOB_UNKNOWN");
    let deleted = fixture.send("DELETE", &format!("/v2/team/one/blobs/{digest}"), &[], Body::empty()).await;
    assert_eq!(deleted.status, StatusCode::ACCEPTED);
    fixture.get(&format!("/v2/team/one/blobs/{digest}")).await.refused(404, "BLOB_UNKNOWN");
    assert_eq!(fixture.get(&format!("/v2/team/two/blobs/{digest}")).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_manifest_by_tag_and_digest() {
    let fixture = Fixture::new();
    let first = fixture.push_image("a/b", "v1", LAYER_MEDIA_TYPE, b"one").await;
    let expected = image(LAYER_MEDIA_TYPE, b"one").to_string();
    for reference in ["v1".to_owned(), first.to_string()] {
        let manifest = fixture.get(&format!("/v2/a/b/manifests/{reference}")).await;
        assert_eq!(manifest.body, expected, "bytes are kept as they came");
        assert_eq!(manifest.header("content-type"), IMAGE);
        assert_eq!(manifest.header("docker-content-digest"), first.to_string());
    }
    let head = fixture.send("HEAD", "/v2/a/b/manifests/v1", &[], Body::empty()).await;
    assert_eq!(head.header("content-length"), expected.len().to_string());

    let second = fixture.push_image("a/b", "v1", LAYER_MEDIA_TYPE, b"two").await;
    assert_eq!(fixture.get("/v2/a/b/manifests/v1").await.header("docker-content-digest"), second.to_string());
    assert_eq!(fixture.get(&format!("/v2/a/b/manifests/{first}")).await.status, StatusCode::OK);

    let untagged = fixture.send("DELETE", "/v2/a/b/manifests/v1", &[], Body::empty()).await;
    assert_eq!(untagged.status, StatusCode::ACCEPTED);
    fixture.get("/v2/a/b/manifests/v1").await.refused(404, "MANIFEST_UNKNOWN");
    assert_eq!(fixture.get(&format!("/v2/a/b/manifests/{second}")).await.status, StatusCode::OK);
    fixture.put_manifest("a/b", "again", &image(LAYER_MEDIA_TYPE, b"two")).await;
    let path = format!("/v2/a/b/manifests/{second}");
    assert_eq!(fixture.send("DELETE", &path, &[], Body::empty()).await.status, StatusCode::ACCEPTED);
    fixture.get("/v2/a/b/manifests/again").await.refused(404, "MANIFEST_UNKNOWN");
    fixture.send("DELETE", &path, &[], Body::empty()).await.refused(404, "MANIFEST_UNKNOWN");
}

#[tokio::test]
async fn a_manifest_is_checked() {
    let fixture = Fixture::new();
    let manifest = image(LAYER_MEDIA_TYPE, b"code");
    let missing = fixture.put_manifest("a/b", "v1", &manifest).await;
    assert!(missing.refused(400, "MANIFEST_BLOB_UNKNOWN").contains(&Digest::of(b"{}").to_string()));
    fixture.push_blob("a/b", b"{}").await;
    fixture.push_blob("other/repo", b"code").await;
    let missing = fixture.put_manifest("a/b", "v1", &manifest).await;
    assert!(missing.refused(400, "MANIFEST_BLOB_UNKNOWN").contains(&Digest::of(b"code").to_string()));
    fixture.push_blob("a/b", b"code").await;
    let mut lying = manifest.clone();
    lying["layers"][0]["size"] = json!(5);
    fixture.put_manifest("a/b", "v1", &lying).await.refused(400, "MANIFEST_INVALID");
    let page = [("content-type", "text/html")];
    fixture.send("PUT", "/v2/a/b/manifests/v1", &page, "<script>").await.refused(400, "MANIFEST_INVALID");
    let other = Digest::of(b"other").to_string();
    fixture.put_manifest("a/b", &other, &manifest).await.refused(400, "DIGEST_INVALID");
    fixture.put_manifest("a/b", "-v1", &manifest).await.refused(400, "TAG_INVALID");
    fixture.get("/v2/a/b/manifests/v1").await.refused(404, "MANIFEST_UNKNOWN");
    assert_eq!(fixture.put_manifest("a/b", "v1", &manifest).await.status, StatusCode::CREATED);
}

#[tokio::test]
async fn an_index_needs_its_manifests() {
    let fixture = Fixture::new();
    let digest = fixture.push_image("a/b", "v1", LAYER_MEDIA_TYPE, b"code").await;
    let entry = |digest: &Digest| json!({ "mediaType": IMAGE, "digest": digest.to_string(), "size": 1 });
    let index =
        |digest: &Digest| json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry(digest)] });
    let missing = fixture.put_manifest("a/b", "all", &index(&Digest::of(b"missing"))).await;
    missing.refused(400, "MANIFEST_BLOB_UNKNOWN");
    let pushed = fixture.put_manifest("a/b", "all", &index(&digest)).await;
    assert_eq!(pushed.status, StatusCode::CREATED, "{pushed:?}");
    assert_eq!(fixture.get("/v2/a/b/manifests/all").await.header("content-type"), INDEX);
}

#[tokio::test]
async fn tags_come_in_pages() {
    let fixture = Fixture::new();
    fixture.get("/v2/a/b/tags/list").await.refused(404, "NAME_UNKNOWN");
    for tag in ["b", "a", "d", "c", "B"] {
        fixture.push_image("a/b", tag, LAYER_MEDIA_TYPE, b"code").await;
    }
    let all = fixture.get("/v2/a/b/tags/list").await;
    assert_eq!(all.json(), json!({ "name": "a/b", "tags": ["B", "a", "b", "c", "d"] }));
    assert!(all.headers.get("link").is_none());
    let page = fixture.get("/v2/a/b/tags/list?n=2&last=a").await;
    assert_eq!(page.json()["tags"], json!(["b", "c"]));
    assert_eq!(page.header("link"), "</v2/a/b/tags/list?n=2&last=c>; rel=\"next\"");
    let rest = fixture.get("/v2/a/b/tags/list?n=2&last=c").await;
    assert_eq!((rest.json()["tags"].clone(), rest.headers.get("link")), (json!(["d"]), None));
    assert_eq!(fixture.get("/v2/a/b/tags/list?n=0").await.json()["tags"], json!([]));
}

#[tokio::test]
async fn referrers_are_found_by_subject_and_type() {
    let fixture = Fixture::new();
    let subject = fixture.push_image("a/b", "v1", LAYER_MEDIA_TYPE, b"code").await;
    for kind in ["signature", "sbom"] {
        let mut manifest = image("text/plain", b"code");
        manifest["artifactType"] = json!(format!("application/x-{kind}"));
        manifest["annotations"] = json!({ "kind": kind });
        manifest["subject"] = json!({ "mediaType": IMAGE, "digest": subject.to_string(), "size": 1 });
        let pushed = fixture.put_manifest("a/b", kind, &manifest).await;
        assert_eq!(pushed.header("oci-subject"), subject.to_string());
    }
    let all = fixture.get(&format!("/v2/a/b/referrers/{subject}")).await;
    assert_eq!(all.header("content-type"), INDEX);
    assert_eq!(all.json()["manifests"].as_array().unwrap().len(), 2);
    let one = fixture.get(&format!("/v2/a/b/referrers/{subject}?artifactType=application/x-sbom")).await;
    assert_eq!(one.header("oci-filters-applied"), "artifactType");
    let found = &one.json()["manifests"];
    assert_eq!((found.as_array().unwrap().len(), &found[0]["annotations"]["kind"]), (1, &json!("sbom")));
    let none = fixture.get(&format!("/v2/x/y/referrers/{subject}")).await;
    assert_eq!((none.status, &none.json()["manifests"]), (StatusCode::OK, &json!([])));
}

#[tokio::test]
async fn garbage_is_what_no_manifest_names() {
    let fixture = Fixture::new();
    let kept = fixture.push_image("a/b", "v1", LAYER_MEDIA_TYPE, b"kept").await;
    let loose = fixture.push_blob("a/b", b"loose").await;
    let young = fixture.registry.collect_garbage(Duration::from_secs(3_600)).await.unwrap();
    assert_eq!(young.blobs, 0, "a push may be under way");
    let collected = fixture.registry.collect_garbage(Duration::ZERO).await.unwrap();
    assert_eq!((collected.blobs, collected.bytes), (1, 5));
    fixture.get(&format!("/v2/a/b/blobs/{loose}")).await.refused(404, "BLOB_UNKNOWN");
    assert_eq!(fixture.get(&format!("/v2/a/b/blobs/{}", Digest::of(b"kept"))).await.body, "kept");
    fixture.send("DELETE", &format!("/v2/a/b/manifests/{kept}"), &[], Body::empty()).await;
    let collected = fixture.registry.collect_garbage(Duration::ZERO).await.unwrap();
    assert_eq!((collected.blobs, fixture.files_in("blobs")), (2, 0));
}

#[tokio::test]
async fn a_wasm_push_is_announced_and_inspected() {
    let pushed: Arc<Mutex<Vec<PushedManifest>>> = Arc::default();
    let seen = pushed.clone();
    let on_push = Arc::new(move |manifest| seen.lock().unwrap().push(manifest));
    let fixture = Fixture::with(RegistryOptions { on_push: Some(on_push), ..RegistryOptions::default() });
    let code = component();
    let manifest = fixture.push_image("team/hello", "v1", LAYER_MEDIA_TYPE, &code).await;
    fixture.push_image("team/hello", "text", "text/plain", b"no code").await;
    {
        let pushed = pushed.lock().unwrap();
        let [event] = &pushed[..] else { panic!("{pushed:?}") };
        assert_eq!(
            (event.repository.to_string(), event.reference.to_string()),
            ("team/hello".into(), "v1".into())
        );
        assert_eq!((&event.manifest, &event.layer), (&manifest, &Digest::of(&code)));
        assert_eq!(std::fs::read(&event.path).unwrap(), code);
    }
    for reference in [Digest::of(&code).to_string(), manifest.to_string(), "v1".to_owned()] {
        let answer = fixture.get(&format!("/v2/team/hello/_ketch/inspect/{reference}")).await;
        let inspection: Inspection = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!((inspection.world, inspection.problems.len()), (World::Http, 0));
        assert_eq!(inspection.digest, Digest::of(&code).to_string());
    }
    let text = fixture.get("/v2/team/hello/_ketch/inspect/text").await;
    assert!(text.refused(422, "WASM_INVALID").contains("no WebAssembly layer"));
    let blob = fixture.get(&format!("/v2/team/hello/_ketch/inspect/{}", Digest::of(b"no code"))).await;
    assert!(blob.refused(422, "WASM_INVALID").contains("a text file"));
    fixture.get("/v2/team/hello/_ketch/inspect/v9").await.refused(404, "MANIFEST_UNKNOWN");
    let layer = fixture
        .registry
        .wasm_layer(&"team/hello".parse().unwrap(), &"v1".parse::<Reference>().unwrap())
        .await;
    assert_eq!(layer.unwrap().unwrap().0, Digest::of(&code));
}

#[tokio::test]
async fn everything_is_there_after_reopening() {
    let fixture = Fixture::new();
    let digest = fixture.push_image("a/b", "v1", LAYER_MEDIA_TYPE, b"code").await;
    let registry = Registry::open(fixture.dir.path(), RegistryOptions::default()).unwrap();
    let reopened = Fixture { registry, dir: fixture.dir };
    assert_eq!(
        reopened.get("/v2/a/b/manifests/v1").await.header("docker-content-digest"),
        digest.to_string()
    );
    assert_eq!(reopened.registry.repositories().await.unwrap(), ["a/b".parse().unwrap()]);
}
