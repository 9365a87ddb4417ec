//! What the client wants back: media type and, for reads, the `Table` and metadata-only forms.

use http::{HeaderMap, header::ACCEPT};
use ketch_api::Status;

/// Encodings the server answers in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Encoding {
    #[default]
    Json,
    Yaml,
}

/// How the object is transformed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Form {
    #[default]
    Object,
    /// `meta.k8s.io` `Table` of this version.
    Table(MetaVersion),
    /// `PartialObjectMetadata` (or its list) of this version.
    Metadata(MetaVersion),
}

/// Version of `meta.k8s.io`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MetaVersion {
    V1,
    V1Beta1,
}

impl MetaVersion {
    /// `meta.k8s.io/v1` or `meta.k8s.io/v1beta1`.
    pub(crate) fn api_version(self) -> &'static str {
        match self {
            Self::V1 => "meta.k8s.io/v1",
            Self::V1Beta1 => "meta.k8s.io/v1beta1",
        }
    }
}

/// The outcome of content negotiation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Accepted {
    pub(crate) encoding: Encoding,
    pub(crate) form: Form,
}

impl Encoding {
    /// Content-Type of answers.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Yaml => "application/yaml",
        }
    }
}

/// One clause of an Accept header.
pub(crate) struct Clause<'a> {
    /// `type/subtype`.
    pub(crate) media: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
    quality: f32,
}

impl Clause<'_> {
    /// Value of a parameter, empty when absent.
    pub(crate) fn parameter(&self, name: &str) -> &str {
        self.parameters.iter().find(|(own, _)| *own == name).map_or("", |(_, value)| value)
    }
}

/// Clauses of the Accept headers, best first; one `*/*` when there is none.
pub(crate) fn clauses(headers: &HeaderMap) -> Vec<Clause<'_>> {
    let texts = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut clauses = texts
        .flat_map(|text| text.split(','))
        .map(str::trim)
        .filter(|text| !text.is_empty())
        .map(clause)
        .collect::<Vec<_>>();
    if clauses.is_empty() {
        clauses.push(clause("*/*"));
    }
    clauses.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    clauses
}

fn clause(text: &str) -> Clause<'_> {
    let mut parts = text.split(';').map(str::trim);
    let media = parts.next().unwrap_or_default();
    let parameters = parts
        .filter_map(|part| part.split_once('='))
        .map(|(key, value)| (key.trim(), value.trim().trim_matches('"')));
    let parameters = parameters.collect::<Vec<_>>();
    let quality =
        parameters.iter().find(|(key, _)| *key == "q").and_then(|(_, q)| q.parse().ok()).unwrap_or(1.0);
    Clause { media, parameters, quality }
}

/// Picks the first clause the server can honour. `forms` tells whether transforms are possible here.
pub(crate) fn negotiate(headers: &HeaderMap, forms: bool) -> Result<Accepted, Status> {
    clauses(headers)
        .iter()
        .find_map(|clause| accept(clause, forms))
        .ok_or_else(|| Status::not_acceptable("application/json, application/yaml"))
}

fn accept(clause: &Clause<'_>, forms: bool) -> Option<Accepted> {
    let encoding = match clause.media {
        "application/json" | "*/*" | "application/*" => Encoding::Json,
        "application/yaml" => Encoding::Yaml,
        _ => return None,
    };
    let version = match clause.parameter("v") {
        "v1" => Some(MetaVersion::V1),
        "v1beta1" => Some(MetaVersion::V1Beta1),
        _ => None,
    };
    let version = version.filter(|_| clause.parameter("g") == "meta.k8s.io");
    let form = match (clause.parameter("as"), forms) {
        ("", _) => Form::Object,
        ("Table", true) => Form::Table(version?),
        ("PartialObjectMetadata" | "PartialObjectMetadataList", true) => Form::Metadata(version?),
        _ => return None,
    };
    Some(Accepted { encoding, form })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(accept: &str) -> Result<Accepted, Status> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, accept.parse().unwrap());
        negotiate(&headers, true)
    }

    #[test]
    fn first_clause_that_can_be_honoured_wins() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
        assert_eq!(with(table).unwrap().form, Form::Table(MetaVersion::V1));
        let metadata = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,\
                        application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
        assert_eq!(with(metadata).unwrap().form, Form::Metadata(MetaVersion::V1));
        assert_eq!(
            with("application/vnd.kubernetes.protobuf,application/json").unwrap(),
            Accepted::default()
        );
        assert_eq!(with("application/json;q=0.5, application/yaml").unwrap().encoding, Encoding::Yaml);
        assert_eq!(with("*/*").unwrap(), Accepted::default());
        assert_eq!(negotiate(&HeaderMap::new(), true).unwrap(), Accepted::default());
        assert_eq!(with("text/html").unwrap_err().code, 406);
        assert_eq!(with("application/json;as=Unknown;v=v1;g=meta.k8s.io").unwrap_err().code, 406);
    }
}
