//! What registries ask for before they answer: a token from elsewhere, or a password. Pure.
//!
//! Source: <https://distribution.github.io/distribution/spec/auth/token/>

use http::{HeaderMap, header};

/// What a 401 asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// A token.
    Bearer(Bearer),
    /// A user and a password.
    Basic,
}

/// Where to get a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bearer {
    pub(super) realm: String,
    service: Option<String>,
    scope: Option<String>,
}

impl Challenge {
    /// The challenge of a 401, a token rather than a password.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let texts = headers.get_all(header::WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let challenges: Vec<Self> = texts.filter_map(Self::parse).collect();
        challenges.iter().find(|one| **one != Self::Basic).or_else(|| challenges.first()).cloned()
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once(' ').unwrap_or((text, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let value = |name: &str| {
            let at = rest.find(&format!("{name}=\""))?;
            let value = rest.get(at + name.len() + 2..)?;
            value.split_once('"').map(|(value, _)| value.to_owned())
        };
        let (realm, service, scope) = (value("realm")?, value("service"), value("scope"));
        Some(Self::Bearer(Bearer { realm, service, scope }))
    }
}

impl Bearer {
    /// The address that gives a token to pull from `repository`.
    pub(super) fn url(&self, repository: &str) -> String {
        let scope = self.scope.clone().unwrap_or_else(|| format!("repository:{repository}:pull"));
        let Ok(mut url) = url::Url::parse(&self.realm) else { return self.realm.clone() };
        url.query_pairs_mut().extend_pairs(self.service.iter().map(|service| ("service", service)));
        url.query_pairs_mut().append_pair("scope", &scope);
        url.into()
    }

    /// Body of the request that turns a refresh token into one to pull from `repository`.
    pub(super) fn form(&self, repository: &str, identity: &str) -> String {
        let scope = self.scope.clone().unwrap_or_else(|| format!("repository:{repository}:pull"));
        url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs([("grant_type", "refresh_token"), ("client_id", "ketch"), ("scope", &scope)])
            .extend_pairs(self.service.iter().map(|service| ("service", service.as_str())))
            .append_pair("refresh_token", identity)
            .finish()
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
        let bearer = |text: &str| match Challenge::parse(text) {
            Some(Challenge::Bearer(bearer)) => bearer,
            other => panic!("{other:?}"),
        };
        let challenge = bearer(text);
        assert_eq!(
            challenge.form("a/b", "t&k"),
            "grant_type=refresh_token&client_id=ketch&scope=repository%3Aa%2Fb%3Apull&\
             service=registry.example.com&refresh_token=t%26k"
        );
        assert_eq!(
            challenge.url("a/b"),
            "https://auth.example.com/token?service=registry.example.com&scope=repository%3Aa%2Fb%3Apull"
        );
        let bare = bearer(r#"Bearer realm="https://x/t""#);
        assert_eq!(bare.url("a"), "https://x/t?scope=repository%3Aa%3Apull");
        assert_eq!(Challenge::parse(r#"Basic realm="x""#), Some(Challenge::Basic));
        assert_eq!(Challenge::parse("Negotiate"), None);
        let mut headers = HeaderMap::new();
        for value in [r#"Basic realm="x""#, text] {
            headers.append(header::WWW_AUTHENTICATE, value.parse().unwrap());
        }
        assert_eq!(Challenge::of(&headers), Some(Challenge::Bearer(challenge)));
        assert_eq!(token(br#"{"access_token":"t"}"#).as_deref(), Some("t"));
        assert_eq!(token(b"{\"token\":\"a\\nb\"}"), None);
    }
}
