//! How a node becomes part of a cluster: the token it brings, what it asks for and what it is given.
//!
//! Server and node meet only here. [`Token`] names the authority that the node must find at the server, so a
//! node never speaks to a stranger; the rest are the bodies of three endpoints:
//!
//! | endpoint | who may | body | answer |
//! | --- | --- | --- | --- |
//! | `POST` [`JOIN_PATH`] | a join token, once | [`Request`] | [`Membership`] |
//! | `POST` [`RENEW_PATH`] | a node, with its certificate | [`Request`] | [`Membership`] |
//! | `GET` [`CLUSTER_PATH`] | a node, with its certificate | none | [`Cluster`] |

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Where a node joins.
pub const JOIN_PATH: &str = "/ketch/v1/join";
/// Where a node gets the certificate after its present one.
pub const RENEW_PATH: &str = "/ketch/v1/renew";
/// Where a node learns how the cluster is set up.
pub const CLUSTER_PATH: &str = "/ketch/v1/cluster";
/// Application protocol (ALPN) of the connection over which the server reaches a node.
pub const CONTROL_PROTOCOL: &[u8] = b"ketch-control/1";
/// Group of those who hold a token that lets a node join.
pub const JOINERS_GROUP: &str = "system:bootstrappers:ketch-nodes";
/// Name of the relay of a server without a node. No node can have it: names of nodes have no `_`.
pub const SERVER_RELAY: &str = "server_relay";
/// A node's certificate has one URI of this form for each range of pod addresses that is its own:
/// `ketch://pod-range/10.42.3.0/24`.
pub const POD_RANGE_URI: &str = "ketch://pod-range/";
/// What the server knows of a user that has such a certificate: its ranges, under this key of the user's extras.
pub const POD_RANGE_EXTRA: &str = "ketch.dev/pod-range";

/// First part of every join token; the digit is the format's version.
const PREFIX: &str = "ketch1";
const ID_LENGTH: usize = 6;
const SECRET_LENGTH: usize = 16;

/// What lets a node join: `ketch1.FINGERPRINT.ID.SECRET`.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// SHA-256 of the authority's certificate (DER), 64 hexadecimal digits.
    pub fingerprint: String,
    /// Name of the token: the Secret is `bootstrap-token-ID` in `kube-system`.
    pub id: String,
    /// What proves it. Secret.
    pub secret: String,
}

/// A text that is no join token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is not a join token ({0}); it looks like ketch1.….….… and comes from `ketch token create`")]
pub struct ParseTokenError(&'static str);

/// What a node asks for.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Request {
    /// Name of its Node object.
    pub node_name: String,
    /// Signing request (PKCS #10, PEM) for the key that it keeps. Only the public key counts.
    pub signing_request: String,
}

/// What a node is given.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Membership {
    /// The authority's certificate, PEM.
    pub authority: String,
    /// `system:node:NAME` in `system:nodes`, PEM.
    pub certificate: String,
    /// For the same key, with the rights of a gateway, PEM.
    pub gateway_certificate: String,
    /// How long both are valid, in seconds from now.
    pub life_seconds: u64,
    /// The node's pod addresses, as `10.42.3.0/24`.
    pub pod_range: String,
    /// How the cluster is set up.
    pub cluster: Cluster,
}

/// How the cluster is set up. May change with a restart of the server.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cluster {
    /// Addresses of pods.
    pub pod_cidr: String,
    /// Addresses of Services.
    pub service_cidr: String,
    /// UDP port of the control tunnel, on the host where the API is.
    pub quic_port: u16,
    /// What follows `NAME.NAMESPACE.` in the URL of a Function, port included.
    pub function_domain: String,
    /// Version of the server.
    pub version: String,
    /// Where nodes meet that cannot reach each other; `None`: nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay: Option<Relay>,
}

/// What carries packets between nodes, and cannot read them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Relay {
    /// Name in its certificate: a node's, or [`SERVER_RELAY`].
    pub name: String,
    /// UDP port, on the host where the API is.
    pub port: u16,
}

// === impl Token ===

impl Token {
    /// What goes into the `Authorization` header, after `Bearer `: a Kubernetes bootstrap token.
    pub fn bearer(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }
}

impl FromStr for Token {
    type Err = ParseTokenError;

    fn from_str(text: &str) -> Result<Self, ParseTokenError> {
        let parts: Vec<&str> = text.trim().split('.').collect();
        let [prefix, fingerprint, id, secret] = parts.as_slice() else {
            return Err(ParseTokenError("it does not have four parts"));
        };
        if *prefix != PREFIX {
            return Err(ParseTokenError("it does not begin with ketch1"));
        }
        let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if fingerprint.len() != 64 || !fingerprint.bytes().all(hex) {
            return Err(ParseTokenError("its second part is not a fingerprint"));
        }
        let plain = |part: &str, length: usize| {
            part.len() == length
                && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        };
        if !plain(id, ID_LENGTH) || !plain(secret, SECRET_LENGTH) {
            return Err(ParseTokenError("its last parts are damaged"));
        }
        let own = |part: &&str| (*part).to_owned();
        Ok(Self { fingerprint: own(fingerprint), id: own(id), secret: own(secret) })
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}.{}.{}.{}", self.fingerprint, self.id, self.secret)
    }
}

impl fmt::Debug for Token {
    /// Without the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({})", self.id)
    }
}

/// The pod ranges that a certificate's URIs name; others are left out.
pub fn pod_ranges<'a>(uris: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    uris.into_iter().filter_map(|uri| uri.strip_prefix(POD_RANGE_URI)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        Token { fingerprint: "0a".repeat(32), id: "abc123".into(), secret: "0123456789abcdef".into() }
    }

    #[test]
    fn a_token_survives_its_text() {
        let text = token().to_string();
        assert_eq!(text, format!("ketch1.{}.abc123.0123456789abcdef", "0a".repeat(32)));
        assert_eq!(format!(" {text}\n").parse(), Ok(token()));
        assert_eq!(token().bearer(), "abc123.0123456789abcdef");
        assert!(!format!("{:?}", token()).contains("0123456789abcdef"), "the secret is not for logs");
    }

    #[test]
    fn other_texts_are_refused_with_a_reason() {
        let good = token().to_string();
        for (text, why) in [
            (String::new(), "four parts"),
            ("abc123.0123456789abcdef".into(), "four parts"),
            (good.replace("ketch1", "ketch2"), "begin with ketch1"),
            (good.replacen("0a", "0A", 1), "fingerprint"),
            (good.replacen("0a", "", 1), "fingerprint"),
            (good.replace("abc123", "abc12"), "damaged"),
            (good.replace("abcdef", "abcde!"), "damaged"),
            (format!("{good}.x"), "four parts"),
        ] {
            let error = text.parse::<Token>().unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("ketch token create"), "{text}: {error}");
        }
    }

    #[test]
    fn ranges_are_found_among_other_names() {
        let uris = ["https://x", "ketch://pod-range/10.42.3.0/24", "ketch://other"];
        assert_eq!(pod_ranges(uris), ["10.42.3.0/24"]);
    }
}
