//! What can be pulled, and what is said of what cannot.

use std::sync::Arc;

use ketch_runtime::{Error, Runtime};

use crate::rig::{Guests, digest, guest, run, runtime};

async fn refused(wasm: Vec<u8>) -> String {
    let error = runtime().pull("bad:1", Guests::with("bad:1", wasm)).await.unwrap_err();
    assert!(matches!(error, Error::Image(_)), "{error:?}");
    error.to_string()
}

fn component(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap()
}

#[test]
fn what_cannot_run_is_refused_with_the_reason() {
    run(async {
        let junk = refused(b"#!/bin/sh\necho no\n".to_vec()).await;
        assert!(junk.starts_with("bad:1 cannot run here: "), "{junk}");
        let cut = refused(guest("hello")[..5000].to_vec()).await;
        assert!(cut.contains("cannot run here"), "{cut}");
        let imports = component(
            r#"(component (import "foo:bar/baz@1.0.0" (instance)) (import "one:two/three" (instance)))"#,
        );
        assert_eq!(
            refused(imports).await,
            "bad:1 cannot run here: it imports \"foo:bar/baz@1.0.0\", \"one:two/three\", which nothing here provides"
        );
        let library = refused(component("(component)")).await;
        assert!(library.contains("nothing to run: it exports nothing, but neither wasi:http"), "{library}");
        let module = component(r#"(module (import "env" "f" (func)) (func (export "_start")))"#);
        assert!(refused(module).await.contains("it imports \"env\" \"f\", which nothing here provides"));
        assert!(refused(component("(module)")).await.contains("has no _start function"));
    });
}

#[test]
fn an_index_leads_to_its_wasm_image() {
    run(async {
        let wasm = guest("hello");
        let inner = serde_json::json!({"layers": [
            {"mediaType": "application/wasm", "digest": digest(&wasm), "size": wasm.len()},
        ]})
        .to_string();
        let index = serde_json::json!({"manifests": [
            {"digest": "sha256:00", "platform": {"architecture": "arm64", "os": "linux"}},
            {"digest": digest(inner.as_bytes()), "platform": {"architecture": "wasm", "os": "wasip2"}},
        ]})
        .to_string();
        let name = format!("test.local/multi@{}", digest(inner.as_bytes()));
        let source = Guests {
            own: vec![("test.local/multi:1".into(), wasm)],
            manifests: vec![("test.local/multi:1".into(), index.clone()), (name, inner)],
        };
        let image = runtime().pull("test.local/multi:1", Arc::new(source)).await.unwrap();
        assert_eq!(image.digest, digest(index.as_bytes()));
        assert_eq!(image.id, format!("test.local/multi@{}", image.digest));
    });
}

#[test]
fn a_pull_of_what_is_there_asks_for_no_blob() {
    run(async {
        let wasm = guest("job");
        let first = runtime().pull("again:1", Guests::with("again:1", wasm.clone())).await.unwrap();
        let layer =
            serde_json::json!({"mediaType": "application/wasm", "digest": digest(&wasm), "size": wasm.len()});
        let manifest = serde_json::json!({"schemaVersion": 2, "layers": [layer]}).to_string();
        let without_blobs = Guests { own: Vec::new(), manifests: vec![("again:1".into(), manifest)] };
        assert_eq!(runtime().pull("again:1", Arc::new(without_blobs)).await.unwrap(), first);
    });
}
