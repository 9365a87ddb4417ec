//! Request bodies: size, media type, duplicate and unknown fields.

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, header::CONTENT_TYPE};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use ketch_api::Status;
use serde_json::Value;

use super::{json, yaml};

/// Largest request body, in bytes; kube-apiserver's `MaxRequestBodyBytes`.
pub(crate) const LIMIT: usize = 3 << 20;

/// What a body may be, in the words of the 415 text.
const ACCEPTED: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";

/// What to do about unknown and duplicate fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

impl FieldValidation {
    /// Reads the `fieldValidation` parameter; the default is `Warn`, as upstream's.
    pub(crate) fn parse(text: Option<&str>) -> Result<Self, Status> {
        match text {
            Some("Ignore") => Ok(Self::Ignore),
            None | Some("Warn") => Ok(Self::Warn),
            Some("Strict") => Ok(Self::Strict),
            Some(other) => Err(Status::invalid(
                "meta.k8s.io",
                "CreateOptions",
                "",
                &[ketch_api::FieldError::not_supported(
                    "fieldValidation",
                    other,
                    &["Ignore", "Strict", "Warn"],
                )],
            )),
        }
    }
}

/// Media type of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Media {
    Json,
    Yaml,
    Protobuf,
}

/// Bare media type of the request's body, lower case; empty when there is no header.
pub(crate) fn content_type(headers: &HeaderMap) -> String {
    let text = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// The body's media type; absent means JSON, as upstream.
pub(crate) fn media(headers: &HeaderMap) -> Result<Media, Status> {
    match content_type(headers).as_str() {
        "" | "application/json" => Ok(Media::Json),
        "application/yaml" => Ok(Media::Yaml),
        "application/vnd.kubernetes.protobuf" => Ok(Media::Protobuf),
        _ => Err(Status::unsupported_media_type(ACCEPTED)),
    }
}

/// Collects the body, at most [`LIMIT`] bytes.
pub(crate) async fn read(body: Body) -> Result<Bytes, Status> {
    match Limited::new(body, LIMIT).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.downcast_ref::<LengthLimitError>().is_some() => Err(Status::too_large(LIMIT)),
        Err(error) => Err(Status::bad_request(format!("the body of the request could not be read: {error}"))),
    }
}

/// Parses a body. Protobuf becomes the JSON of the message it carries.
pub(crate) fn parse(media: Media, bytes: &[u8]) -> Result<json::Parsed, Status> {
    match media {
        Media::Json => json::parse(bytes).map_err(|e| Status::bad_request(malformed(bytes, &e))),
        Media::Yaml => yaml::parse(bytes),
        Media::Protobuf => {
            crate::protobuf::decode(bytes).map(|value| json::Parsed { value, duplicates: Vec::new() })
        }
    }
}

fn malformed(bytes: &[u8], error: &serde_json::Error) -> String {
    if bytes.is_empty() {
        return "the body of the request is empty: an object in JSON, YAML or protobuf is expected"
            .to_owned();
    }
    format!("couldn't get version/kind; json parse error: {error}")
}

/// Checks that `object` says it is what the path says, and fills that in where it says nothing.
pub(crate) fn check_type(object: &mut Value, api_version: &str, kind: &str) -> Result<(), Status> {
    let Some(map) = object.as_object_mut() else {
        return Err(Status::bad_request("the body of the request is not an object"));
    };
    let said = |map: &serde_json::Map<String, Value>, key: &str| {
        map.get(key).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
    };
    if let Some(own) = said(map, "apiVersion")
        && own != api_version
    {
        return Err(Status::bad_request(format!(
            "the API version in the data ({own}) does not match the expected API version ({api_version})"
        )));
    }
    if let Some(own) = said(map, "kind")
        && own != kind
    {
        return Err(Status::bad_request(format!(
            "the kind in the data ({own}) does not match the expected kind ({kind})"
        )));
    }
    map.insert("apiVersion".into(), api_version.into());
    map.insert("kind".into(), kind.into());
    Ok(())
}

/// Texts for duplicate and unknown fields, as upstream's strict decoder words them.
pub(crate) fn complaints(unknown: &[String], duplicates: &[String]) -> Vec<String> {
    let unknown = unknown.iter().filter(|path| !matches!(path.as_str(), "apiVersion" | "kind"));
    let unknown = unknown.map(|path| format!("unknown field \"{}\"", indexed(path)));
    unknown.chain(duplicates.iter().map(|path| format!("duplicate field \"{path}\""))).collect()
}

/// `spec.containers.0.x` as `spec.containers[0].x`.
fn indexed(path: &str) -> String {
    path.split('.').fold(String::new(), |mut text, part| {
        match part.parse::<usize>() {
            Ok(index) if !text.is_empty() => text.push_str(&format!("[{index}]")),
            _ if text.is_empty() => text.push_str(part),
            _ => text.push_str(&format!(".{part}")),
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn complaints_are_worded_as_upstream_words_them() {
        let texts = complaints(&["spec.containers.0.foo".into(), "kind".into()], &["a.b".into()]);
        assert_eq!(texts, ["unknown field \"spec.containers[0].foo\"", "duplicate field \"a.b\""]);
    }

    #[test]
    fn type_is_checked_and_filled_in() {
        let mut object = json!({"metadata": {}});
        check_type(&mut object, "v1", "Pod").unwrap();
        assert_eq!(object["kind"], "Pod");
        assert_eq!(check_type(&mut object, "apps/v1", "Pod").unwrap_err().code, 400);
        assert_eq!(check_type(&mut object, "v1", "Node").unwrap_err().code, 400);
        assert_eq!(check_type(&mut json!([]), "v1", "Node").unwrap_err().code, 400);
    }
}
