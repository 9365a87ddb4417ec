//! What holds for every kind.

use http::header;
use ketch_api::Descriptor;
use serde_json::{Value, json};

use crate::{
    harness::{Harness, version},
    samples::{collection, object},
};

/// Runs `check` on every served kind.
async fn every(check: impl AsyncFn(&Harness, &Descriptor, &str)) {
    let harness = Harness::new().await;
    let kinds = harness.server.registry().iter().map(|r| r.descriptor().clone()).collect::<Vec<_>>();
    assert!(kinds.len() > 15, "only {} kinds are served", kinds.len());
    for descriptor in kinds {
        check(&harness, &descriptor, &collection(&descriptor)).await;
    }
}

#[tokio::test]
async fn create_get_list_delete() {
    every(async |harness, descriptor, path| {
        let kind = descriptor.kind;
        let body = object(descriptor, "one");
        let created = harness.post(path, &body).await.expect(201);
        for (field, wanted) in [("kind", kind), ("apiVersion", &descriptor.api_version())] {
            assert_eq!(created[field], wanted, "{kind}");
        }
        let metadata = &created["metadata"];
        assert_eq!(metadata["uid"].as_str().unwrap().len(), 36, "{kind}");
        assert!(metadata["creationTimestamp"].as_str().unwrap().ends_with('Z'), "{kind}");
        assert_eq!(metadata.get("generation").is_some(), descriptor.generation, "{kind}");
        harness.post(path, &body).await.refused(409, "AlreadyExists", "\"one\" already exists");

        let one = format!("{path}/one");
        assert_eq!(harness.get(&one).await.expect(200), created, "{kind}");
        let list = harness.get(&format!("{path}?labelSelector=case=one")).await.expect(200);
        assert_eq!(list["kind"], format!("{kind}List"));
        assert_eq!(list["items"], json!([created]), "{kind}");
        assert!(version(&list).parse::<u64>().unwrap() >= version(&created).parse().unwrap(), "{kind}");

        // What the server itself protects goes when its controllers say so.
        let release = json!({"metadata": {"finalizers": null}});
        harness.patch(&one, "merge", &release).await.expect(200);
        let deleted = harness.delete(&one).await.expect(200);
        if descriptor.kind == "Namespace" {
            assert_eq!(deleted["status"]["phase"], "Terminating");
            return;
        }
        assert_eq!(deleted["status"], "Success", "{deleted}");
        assert_eq!(deleted["details"]["uid"], metadata["uid"], "{kind}");
        let gone = harness.get(&one).await.refused(404, "NotFound", "\"one\" not found");
        assert_eq!(gone["details"]["kind"], descriptor.plural);
        harness.delete(&one).await.refused(404, "NotFound", "\"one\" not found");
    })
    .await;
}

#[tokio::test]
async fn updates_and_conflicts() {
    every(async |harness, descriptor, path| {
        let kind = descriptor.kind;
        let created = harness.post(path, &object(descriptor, "upd")).await.expect(201);
        let one = format!("{path}/upd");
        let same = harness.put(&one, &created).await.expect(200);
        assert_eq!(same, created, "{kind}: an update without a change writes nothing");

        let mut next = created.clone();
        next["metadata"]["annotations"] = json!({"a": "1"});
        next["metadata"]["uid"] = Value::Null;
        let updated = harness.put(&one, &next).await.expect(200);
        assert_ne!(version(&updated), version(&created), "{kind}");
        assert_eq!(updated["metadata"]["uid"], created["metadata"]["uid"], "{kind}");
        assert_eq!(updated["metadata"]["generation"], created["metadata"]["generation"], "{kind}");

        next["metadata"]["annotations"] = json!({"a": "2"});
        harness.put(&one, &next).await.refused(409, "Conflict", "the object has been modified");
        next["metadata"]["resourceVersion"] = Value::Null;
        harness.put(&one, &next).await.expect(200);
        next["metadata"]["uid"] = "another".into();
        harness.put(&one, &next).await.refused(409, "Conflict", "Precondition failed: UID");
        let other = harness.put(&format!("{path}/other"), &created).await;
        other.refused(400, "BadRequest", "does not match the name on the URL");
        let mut missing = object(descriptor, "missing");
        missing["metadata"]["labels"] = json!({});
        let answer = harness.put(&format!("{path}/missing"), &missing).await;
        match descriptor.create_on_update {
            true => {
                assert_eq!(answer.expect(201)["metadata"]["name"], "missing");
                missing["metadata"] = json!({"name": "seen", "resourceVersion": "1"});
                let answer = harness.put(&format!("{path}/seen"), &missing).await;
                answer.refused(404, "NotFound", "not found");
            }
            false => {
                answer.refused(404, "NotFound", "not found");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn patches_of_every_type() {
    every(async |harness, descriptor, path| {
        let kind = descriptor.kind;
        harness.post(path, &object(descriptor, "pat")).await.expect(201);
        let one = format!("{path}/pat");
        let merge = json!({"metadata": {"annotations": {"m": "1", "gone": "x"}}});
        harness.patch(&one, "merge", &merge).await.expect(200);
        let strategic = json!({"metadata": {"annotations": {"s": "1", "gone": null}}});
        let answer = harness.patch(&one, "strategic-merge", &strategic).await;
        if descriptor.group == "ketch.dev" {
            // As for custom resources upstream.
            answer.refused(415, "UnsupportedMediaType", "application/merge-patch+json");
            harness.patch(&one, "merge", &strategic).await.expect(200);
        } else {
            answer.expect(200);
        }
        let json_patch = json!([{"op": "add", "path": "/metadata/annotations/j", "value": "1"}]);
        let patched = harness.patch(&one, "json", &json_patch).await.expect(200);
        assert_eq!(patched["metadata"]["annotations"], json!({"j": "1", "m": "1", "s": "1"}), "{kind}");
        let stale = json!({"metadata": {"resourceVersion": "1", "annotations": {"x": "y"}}});
        harness.patch(&one, "merge", &stale).await.refused(409, "Conflict", "the object has been modified");
        let renamed = json!({"metadata": {"name": "other"}});
        harness.patch(&one, "merge", &renamed).await.refused(400, "BadRequest", "does not match the name");
        let missing = format!("{path}/missing");
        harness.patch(&missing, "merge", &merge).await.refused(404, "NotFound", "\"missing\" not found");
        let apply = [("content-type", "application/apply-patch+yaml")];
        let refused = harness.send("PATCH", &one, &apply, "{}").await;
        refused.refused(415, "UnsupportedMediaType", "application/strategic-merge-patch+json");
    })
    .await;
}

#[tokio::test]
async fn watches_tell_every_change_from_a_revision() {
    every(async |harness, descriptor, path| {
        let kind = descriptor.kind;
        let start = version(&harness.get(path).await.expect(200)).to_owned();
        harness.post(path, &object(descriptor, "wat")).await.expect(201);
        let mut events = harness.watch(&format!("{path}?watch=1&resourceVersion={start}")).await;
        assert_eq!(events.next_of().await, ("ADDED".into(), "wat".into()), "{kind}");
        let one = format!("{path}/wat");
        let patch = json!({"metadata": {"annotations": {"m": "1"}}});
        let patched = harness.patch(&one, "merge", &patch).await.expect(200);
        let event = events.next().await.unwrap();
        assert_eq!(event, json!({"type": "MODIFIED", "object": patched}), "{kind}");
        harness.delete(&one).await.expect(200);
        let event = events.next().await.unwrap();
        let stays = kind == "Namespace" || patched["metadata"].get("finalizers").is_some();
        let wanted = if stays { "MODIFIED" } else { "DELETED" };
        assert_eq!(event["type"], wanted, "{kind}");
        assert_ne!(version(&event["object"]), version(&patched), "{kind}");
    })
    .await;
}

#[tokio::test]
async fn dry_runs_store_nothing() {
    every(async |harness, descriptor, path| {
        let kind = descriptor.kind;
        let body = object(descriptor, "dry");
        let answer = harness.post(&format!("{path}?dryRun=All"), &body).await.expect(201);
        assert!(answer["metadata"]["uid"].is_string(), "{kind}");
        assert!(answer["metadata"].get("resourceVersion").is_none(), "{kind}");
        harness.get(&format!("{path}/dry")).await.refused(404, "NotFound", "not found");
        let created = harness.post(path, &body).await.expect(201);
        let one = format!("{path}/dry");
        let patch = json!({"metadata": {"annotations": {"a": "b"}}});
        let patched = harness.patch(&format!("{one}?dryRun=All"), "merge", &patch).await.expect(200);
        assert_eq!(patched["metadata"]["annotations"]["a"], "b", "{kind}");
        harness.delete(&format!("{one}?dryRun=All")).await.expect(200);
        assert_eq!(harness.get(&one).await.expect(200), created, "{kind}");
        let refused = harness.post(&format!("{path}?dryRun=Some"), &body).await;
        refused.refused(422, "Invalid", "dryRun");
    })
    .await;
}

#[tokio::test]
async fn unknown_fields_are_refused_warned_of_or_ignored() {
    every(async |harness, descriptor, path| {
        let kind = descriptor.kind;
        let mut body = object(descriptor, "unk");
        body["metadata"]["nosuch"] = 1.into();
        body["bogus"] = 1.into();
        let strict = harness.post(&format!("{path}?fieldValidation=Strict"), &body).await;
        let refused = strict.refused(400, "BadRequest", "strict decoding error: ");
        let message = refused["message"].as_str().unwrap();
        assert!(message.contains("unknown field \"bogus\""), "{kind}: {message}");
        assert!(message.contains("unknown field \"metadata.nosuch\""), "{kind}: {message}");
        let warned = harness.post(path, &body).await;
        warned.expect(201);
        let warnings = warned.headers.get_all(header::WARNING).iter().map(|v| v.to_str().unwrap());
        assert!(warnings.into_iter().any(|w| w == "299 - \"unknown field \\\"bogus\\\"\""), "{kind}");
        harness.delete(&format!("{path}/unk")).await;
        body["metadata"]["name"] = "unk2".into();
        let ignored = harness.post(&format!("{path}?fieldValidation=Ignore"), &body).await;
        ignored.expect(201);
        let warnings = ignored.headers.get_all(header::WARNING).iter();
        assert_eq!(warnings.filter(|w| w.to_str().unwrap().contains("unknown field")).count(), 0, "{kind}");
        let patch = json!({"bogus": 2});
        let patched = harness.patch(&format!("{path}/unk2?fieldValidation=Strict"), "merge", &patch).await;
        patched.refused(400, "BadRequest", "strict decoding error: unknown field \"bogus\"");
    })
    .await;
}

#[tokio::test]
async fn tables_and_metadata_only_forms() {
    every(async |harness, descriptor, path| {
        let kind = descriptor.kind;
        harness.post(path, &object(descriptor, "tab")).await.expect(201);
        let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")];
        for uri in [path.to_owned(), format!("{path}/tab")] {
            let value = harness.send("GET", &uri, &table, "").await.expect(200);
            assert_eq!((&value["kind"], &value["apiVersion"]), (&json!("Table"), &json!("meta.k8s.io/v1")));
            let columns = value["columnDefinitions"].as_array().unwrap();
            assert!(!columns.is_empty(), "{kind}");
            for row in value["rows"].as_array().unwrap() {
                assert_eq!(row["cells"].as_array().unwrap().len(), columns.len(), "{kind}: {row}");
                assert_eq!(row["object"]["kind"], "PartialObjectMetadata", "{kind}");
            }
        }
        let whole = harness.send("GET", &format!("{path}/tab?includeObject=Object"), &table, "").await;
        assert_eq!(whole.expect(200)["rows"][0]["object"]["kind"], kind);
        let partial = [("accept", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io")];
        let list = harness.send("GET", path, &partial, "").await.expect(200);
        assert_eq!(list["kind"], "PartialObjectMetadataList");
        let mut keys = list["items"][0].as_object().unwrap().keys().collect::<Vec<_>>();
        keys.sort();
        assert_eq!(keys, ["apiVersion", "kind", "metadata"], "{kind}");
    })
    .await;
}

#[tokio::test]
async fn generated_names() {
    every(async |harness, descriptor, path| {
        let mut body = object(descriptor, "x");
        body["metadata"] = json!({"generateName": "gen-"});
        let one = harness.post(path, &body).await.expect(201);
        let two = harness.post(path, &body).await.expect(201);
        let name = one["metadata"]["name"].as_str().unwrap();
        assert!(name.starts_with("gen-") && name.len() == 9, "{name}");
        assert_ne!(name, two["metadata"]["name"].as_str().unwrap());
        body["metadata"] = json!({});
        let refused = harness.post(path, &body).await;
        refused.refused(422, "Invalid", "name or generateName is required");
    })
    .await;
}

#[tokio::test]
async fn status_is_another_part() {
    every(async |harness, descriptor, path| {
        let created = harness.post(path, &object(descriptor, "sta")).await.expect(201);
        let uri = format!("{path}/sta/status");
        if !descriptor.status {
            harness.get(&uri).await.refused(404, "NotFound", "could not find the requested resource");
            return;
        }
        assert_eq!(harness.get(&uri).await.expect(200), created);
        let patch = json!({"metadata": {"annotations": {"s": "1"}}, "spec": {"paused": true}});
        let patched = harness.patch(&uri, "merge", &patch).await.expect(200);
        assert_eq!(patched["metadata"]["annotations"]["s"], "1", "{}", descriptor.kind);
        assert_eq!(patched["spec"], created["spec"], "{}", descriptor.kind);
        let mut whole = patched.clone();
        whole["status"] = json!({});
        let put = harness.put(&format!("{path}/sta"), &whole).await.expect(200);
        assert_eq!(put.get("status"), patched.get("status"), "{}", descriptor.kind);
    })
    .await;
}

#[tokio::test]
async fn yaml_in_and_out() {
    every(async |harness, descriptor, path| {
        let yaml = serde_saphyr_text(&object(descriptor, "yam"));
        let headers = [("content-type", "application/yaml"), ("accept", "application/yaml")];
        let answer = harness.send("POST", path, &headers, &yaml).await;
        assert_eq!(answer.code, 201, "{}", answer.text);
        assert_eq!(answer.headers[header::CONTENT_TYPE], "application/yaml");
        assert!(answer.text.contains(&format!("kind: {}", descriptor.kind)), "{}", answer.text);
    })
    .await;
}

/// JSON is YAML; the comment makes sure it is read as such.
fn serde_saphyr_text(value: &Value) -> String {
    format!("# a comment\n{value}\n")
}
