//! The `continue` token of a paged list: base64url of upstream's JSON.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ketch_api::Status;
use serde::{Deserialize, Serialize};

const VERSION: &str = "meta.k8s.io/v1";

/// Where a list goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PageToken {
    #[serde(rename = "v")]
    version: String,
    /// Revision of the first page; -1 for the latest.
    #[serde(rename = "rv")]
    pub(crate) revision: i64,
    /// The last key delivered, relative to the list's prefix.
    #[serde(rename = "start")]
    pub(crate) after: String,
}

impl PageToken {
    pub(crate) fn new(revision: i64, after: &str) -> Self {
        Self { version: VERSION.to_owned(), revision, after: after.to_owned() }
    }

    /// The text clients send back.
    pub(crate) fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    /// Reads a token; 400 when it is none of ours.
    pub(crate) fn decode(text: &str) -> Result<Self, Status> {
        let refuse = |why: String| Status::bad_request(format!("continue key is not valid: {why}"));
        let bytes = URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map_err(|e| refuse(e.to_string()))?;
        let token: Self = serde_json::from_slice(&bytes).map_err(|e| refuse(e.to_string()))?;
        match token.version.as_str() {
            VERSION if token.after.is_empty() => Err(refuse("encoded start key empty".into())),
            VERSION if token.revision == 0 || token.revision < -1 => {
                Err(refuse("incorrect encoded start resourceVersion".into()))
            }
            VERSION => Ok(token),
            other => Err(refuse(format!("server does not recognize this encoded version {other:?}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_round_trip_and_garbage_is_refused() {
        let token = PageToken::new(7, "default/web");
        assert_eq!(PageToken::decode(&token.encode()).unwrap(), token);
        for bad in ["", "%%%", "e30", &PageToken::new(0, "a").encode(), &PageToken::new(3, "").encode()] {
            assert_eq!(PageToken::decode(bad).unwrap_err().code, 400, "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in ".{0,80}") {
            let _ = PageToken::decode(&text);
        }
    }
}
