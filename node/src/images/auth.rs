//! The registries' anonymous token flow. Pure.
//!
//! Source: <https://distribution.github.io/distribution/spec/auth/token/>

use http::{HeaderMap, header};

/// Where to get a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Challenge {
    pub(super) realm: String,
    service: Option<String>,
    scope: Option<String>,
}

impl Challenge {
    /// The Bearer challenge of a 401.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let texts = headers.get_all(header::WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        texts.into_iter().find_map(Self::parse)
    }

    fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let value = |name: &str| {
            let at = rest.find(&format!("{name}=\""))?;
            let value = rest.get(at + name.len() + 2..)?;
            value.split_once('"').map(|(value, _)| value.to_owned())
        };
        Some(Self { realm: value("realm")?, service: value("service"), scope: value("scope") })
    }

    /// The address that gives a token to pull from `repository`.
    pub(super) fn url(&self, repository: &str) -> String {
        let scope = self.scope.clone().unwrap_or_else(|| format!("repository:{repository}:pull"));
        let Ok(mut url) = url::Url::parse(&self.realm) else { return self.realm.clone() };
        url.query_pairs_mut().extend_pairs(self.service.iter().map(|service| ("service", service)));
        url.query_pairs_mut().append_pair("scope", &scope);
        url.into()
    }
}

/// The token in an answer.
pub(super) fn token(body: &[u8]) -> Option<String> {
    let answer: serde_json::Value = serde_json::from_slice(body).ok()?;
    let token = answer.get("token").or_else(|| answer.get("access_token"))?.as_str()?;
    // It becomes a header.
    token.bytes().all(|byte| byte.is_ascii_graphic()).then(|| token.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_says_where_to_get_a_token() {
        let text = r#"Bearer realm="https://auth.example.com/token",service="registry.example.com",scope="repository:a/b:pull""#;
        let challenge = Challenge::parse(text).unwrap();
        assert_eq!(
            challenge.url("a/b"),
            "https://auth.example.com/token?service=registry.example.com&scope=repository%3Aa%2Fb%3Apull"
        );
        let bare = Challenge::parse(r#"Bearer realm="https://x/t""#).unwrap();
        assert_eq!(bare.url("a"), "https://x/t?scope=repository%3Aa%3Apull");
        assert_eq!(Challenge::parse(r#"Basic realm="x""#), None);
        assert_eq!(token(br#"{"access_token":"t"}"#).as_deref(), Some("t"));
        assert_eq!(token(b"{\"token\":\"a\\nb\"}"), None);
    }
}
