//! The documents as clients read them.

use http::Request;

use super::*;

fn all() -> OpenApi {
    OpenApi::new(ketch_api::kinds::all().iter().map(|kind| kind.descriptor().clone()).collect())
}

fn get(api: &OpenApi, path: &str, headers: &[(&str, &str)]) -> Response<Body> {
    let mut request = Request::get(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    api.handle(&request.body(()).unwrap().into_parts().0).unwrap_or_default()
}

async fn json(response: Response<Body>) -> Value {
    let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

/// Every document of version 3, through the index.
async fn documents(api: &OpenApi) -> Vec<(String, Value)> {
    let index = json(get(api, "/openapi/v3", &[])).await;
    let mut all = Vec::new();
    for (path, entry) in index["paths"].as_object().unwrap() {
        let url = entry["serverRelativeURL"].as_str().unwrap();
        all.push((path.clone(), json(get(api, url, &[])).await));
    }
    all
}

/// Calls `visit` with every `$ref` in `value`.
fn references(value: &Value, visit: &mut impl FnMut(&str)) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| references(item, visit)),
        Value::Object(fields) => {
            if let Some(Value::String(reference)) = fields.get("$ref") {
                visit(reference);
            }
            fields.values().for_each(|value| references(value, visit));
        }
        _ => {}
    }
}

#[tokio::test]
async fn every_kind_has_a_schema_and_a_patch_operation_that_validates() {
    let api = all();
    let documents = documents(&api).await;
    for kind in &api.kinds {
        let path = document_path(kind.group, kind.version);
        let (_, document) = documents.iter().find(|(name, _)| *name == path).expect(&path);
        let gvk = json!({"group": kind.group, "version": kind.version, "kind": kind.kind});
        let schemas = document["components"]["schemas"].as_object().unwrap();
        let own = schemas.iter().find(|(_, schema)| {
            schema["x-kubernetes-group-version-kind"].as_array().is_some_and(|all| all.contains(&gvk))
        });
        let (name, schema) = own.unwrap_or_else(|| panic!("{gvk} has no schema: add it to type_of"));
        assert!(schema["properties"]["metadata"].is_object(), "{name}");
        let patch = document["paths"]
            .as_object()
            .unwrap()
            .values()
            .map(|path| &path["patch"])
            .find(|patch| patch["x-kubernetes-group-version-kind"] == gvk)
            .unwrap_or_else(|| panic!("{gvk} has no PATCH"));
        let parameters = patch["parameters"].as_array().unwrap();
        assert!(parameters.iter().any(|p| p["name"] == "fieldValidation" && p["in"] == "query"), "{gvk}");
        let strategic =
            patch["requestBody"]["content"].get("application/strategic-merge-patch+json").is_some();
        assert_eq!(strategic, kind.group != "ketch.dev", "{gvk}");
    }
}

#[tokio::test]
async fn references_lead_somewhere() {
    let api = all();
    for (path, document) in documents(&api).await {
        let mut count = 0;
        references(&document, &mut |reference| {
            let name = reference.strip_prefix("#/components/schemas/").expect(reference);
            assert!(document["components"]["schemas"].get(name).is_some(), "{path}: {reference}");
            count += 1;
        });
        assert!(count > 0, "{path}");
        assert!(!document.to_string().contains("\"nullable\""), "{path}");
    }
    let v2 = json(get(&api, "/openapi/v2", &[])).await;
    references(&v2, &mut |reference| {
        let name = reference.strip_prefix("#/definitions/").expect(reference);
        assert!(v2["definitions"].get(name).is_some(), "{reference}");
    });
}

#[tokio::test]
async fn merge_keys_are_written() {
    let api = all();
    let document = json(get(&api, "/openapi/v3/apis/apps/v1", &[])).await;
    let spec = &document["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"]["properties"];
    assert_eq!(spec["containers"]["x-kubernetes-patch-merge-key"], "name");
    assert_eq!(spec["containers"]["x-kubernetes-patch-strategy"], "merge");
    assert_eq!(spec["volumes"]["x-kubernetes-patch-strategy"], "merge,retainKeys");
    assert!(spec["tolerations"].get("x-kubernetes-patch-strategy").is_none());
    let ports = &document["components"]["schemas"]["io.k8s.api.core.v1.Container"]["properties"]["ports"];
    assert_eq!(ports["x-kubernetes-patch-merge-key"], "containerPort");
}

#[tokio::test]
async fn own_kinds_have_full_names() {
    let api = all();
    let document = json(get(&api, "/openapi/v3/apis/ketch.dev/v1", &[])).await;
    let schemas = &document["components"]["schemas"];
    let function = &schemas["dev.ketch.v1.Function"];
    let spec = &function["properties"]["spec"];
    assert!(spec.to_string().contains("#/components/schemas/dev.ketch.v1.FunctionSpec"), "{spec}");
    assert_eq!(schemas["dev.ketch.v1.FunctionSpec"]["properties"]["image"]["type"], "string");
    assert_eq!(schemas["dev.ketch.v1.FunctionSpec"]["properties"]["timeoutSeconds"]["type"], "integer");
}

#[test]
fn what_the_client_knows_is_not_sent_again() {
    let api = all();
    let path = "/openapi/v3/api/v1";
    let first = get(&api, path, &[]);
    let tag = first.headers()[header::ETAG].to_str().unwrap().to_owned();
    assert_eq!(get(&api, path, &[("if-none-match", &tag)]).status(), StatusCode::NOT_MODIFIED);
    assert_eq!(get(&api, path, &[("if-none-match", "\"other\"")]).status(), StatusCode::OK);
    let hash = tag.trim_matches('"');
    let named = get(&api, &format!("{path}?hash={hash}"), &[]);
    assert!(named.headers()[header::CACHE_CONTROL].to_str().unwrap().contains("immutable"));
    let outdated = get(&api, &format!("{path}?hash=00"), &[]);
    assert_eq!(outdated.status(), StatusCode::MOVED_PERMANENTLY);
    assert_eq!(outdated.headers()[header::LOCATION].to_str().unwrap(), format!("{path}?hash={hash}"));
    // The same kinds make the same documents, so that servers behind one name agree.
    assert_eq!(get(&all(), path, &[]).headers()[header::ETAG], *tag);
}

#[test]
fn other_paths_are_not_its_business() {
    let api = all();
    for path in ["/openapi/v3/apis/nothing/v1", "/openapi/v4", "/openapi", "/"] {
        let parts = Request::get(path).body(()).unwrap().into_parts().0;
        assert!(api.handle(&parts).is_none(), "{path}");
    }
}

#[tokio::test]
async fn version_2_is_there_as_protobuf() {
    let api = all();
    let accept = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    let response = get(&api, "/openapi/v2", &[("accept", accept)]);
    let media = response.headers()[header::CONTENT_TYPE].to_str().unwrap().to_owned();
    assert_eq!(media, "application/com.github.proto-openapi.spec.v2.v1.0+protobuf");
    let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    // `swagger = 1: "2.0"` begins the message.
    assert!(bytes.starts_with(b"\x0a\x032.0\x12"), "{:?}", &bytes[..8]);
    let json = get(&api, "/openapi/v2", &[("accept", "application/json")]);
    assert_eq!(json.headers()[header::CONTENT_TYPE], "application/json");
}
