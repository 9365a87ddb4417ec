//! Join tokens: Secrets of the bootstrap type in `kube-system`, as `kubeadm` makes them, in the group that may
//! join. What is printed carries the fingerprint of the cluster's authority, too.

use std::{net::IpAddr, path::Path};

use anyhow::{Context, Result, anyhow, bail};
use base64::{Engine, prelude::BASE64_STANDARD};
use clap::Args;
use jiff::{SignedDuration, Span, SpanRelativeTo, Timestamp};
use ketch_api::join::{JOINERS_GROUP, Token};
use ketch_node::membership::ServerAddress;
use serde_json::{Value, json};
use sha2::Digest;

use super::super::{Connection, apply::json_request, machine};
use crate::output;

const SECRETS: &str = "/api/v1/namespaces/kube-system/secrets";
const NAME_PREFIX: &str = "bootstrap-token-";
/// A token is for somebody who is about to type it.
const LONGEST: SignedDuration = SignedDuration::from_hours(24 * 30);

/// What the token is for.
#[derive(Args)]
pub(crate) struct Create {
    /// How long it can be used: 30m, 24h, 7d.
    #[arg(long, default_value = "24h", value_name = "TIME")]
    ttl: String,
    /// Where the other machine reaches this server [default: what the kubeconfig says].
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// A remark for `ketch token list`.
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
}

/// Makes a token and prints it; what to do with it goes to standard error.
pub(super) async fn create(connection: &Connection, create: Create) -> Result<()> {
    let expires = expiration(&create.ttl, Timestamp::now())?;
    let (path, config) = connection.config().await?;
    let authority = config.root_cert.as_ref().and_then(|all| all.first());
    let authority = authority.context("the kubeconfig names no certificate authority to pin")?;
    let server = address(create.server.as_deref(), &config.cluster_url, run_address(&path))?;
    let token =
        Token { fingerprint: hex(&sha2::Sha256::digest(authority)), id: random(6)?, secret: random(16)? };
    let secret = secret(&token, expires, create.description.as_deref());
    let cluster = connection.open().await?;
    cluster.send(json_request(http::Method::POST, SECRETS, &secret, "application/json")?).await?;
    output::line(&token);
    output::note(format!(
        "\nIt lets one machine join, until {}. There:\n",
        expires.strftime("%Y-%m-%d %H:%M UTC")
    ));
    output::note(format!("  ketch node --server {server} --token {token}"));
    if server.host().parse().is_ok_and(|ip: IpAddr| ip.is_loopback()) {
        output::note(
            "\nThis server is known by a loopback address only. For other machines start it with --api-addr \
             0.0.0.0:6443 --quic-addr 0.0.0.0:6444, and give its address here with --server.",
        );
    }
    Ok(())
}

/// Prints what tokens there are, without their secrets.
pub(super) async fn list(connection: &Connection) -> Result<()> {
    let cluster = connection.open().await?;
    let path = format!("{SECRETS}?fieldSelector=type%3Dbootstrap.kubernetes.io%2Ftoken");
    let found = cluster.get(&path).await?.unwrap_or_default();
    let rows: Vec<Vec<String>> = found["items"].as_array().into_iter().flatten().filter_map(row).collect();
    if rows.is_empty() {
        output::note("no tokens; `ketch token create` makes one");
        return Ok(());
    }
    let header = ["ID", "EXPIRES", "FOR", "DESCRIPTION"].map(str::to_owned);
    output::line(output::table(&header, &rows).trim_end());
    Ok(())
}

/// Deletes tokens.
pub(super) async fn delete(connection: &Connection, ids: &[String]) -> Result<()> {
    let cluster = connection.open().await?;
    for given in ids {
        let id = given.parse::<Token>().map_or_else(|_| given.clone(), |token| token.id);
        let plain = id.len() == 6 && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if !plain {
            bail!("\"{id}\" is not the name of a token; see `ketch token list`");
        }
        let path = format!("{SECRETS}/{NAME_PREFIX}{id}");
        let request = json_request(http::Method::DELETE, &path, &json!({}), "application/json")?;
        if cluster.send(request).await?.status() == http::StatusCode::NOT_FOUND {
            bail!("there is no token {id}: it has been used, has expired or was deleted");
        }
        output::line(format!("token {id} deleted"));
    }
    Ok(())
}

fn secret(token: &Token, expires: Timestamp, description: Option<&str>) -> Value {
    let encode = |text: &str| Value::from(BASE64_STANDARD.encode(text));
    let mut data = json!({
        "token-id": encode(&token.id), "token-secret": encode(&token.secret),
        "expiration": encode(&expires.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
        "usage-bootstrap-authentication": encode("true"), "auth-extra-groups": encode(JOINERS_GROUP),
    });
    if let Some(text) = description {
        data["description"] = encode(text);
    }
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token", "data": data,
        "metadata": {"name": format!("{NAME_PREFIX}{}", token.id), "namespace": "kube-system"},
    })
}

fn row(secret: &Value) -> Option<Vec<String>> {
    let field = |name: &str| {
        let bytes = BASE64_STANDARD.decode(secret["data"][name].as_str()?).ok()?;
        String::from_utf8(bytes).ok()
    };
    let id = secret["metadata"]["name"].as_str()?.strip_prefix(NAME_PREFIX)?;
    let groups = field("auth-extra-groups").unwrap_or_default();
    let purpose = if groups.split(',').any(|group| group == JOINERS_GROUP) { "joining" } else { "other" };
    let expires = field("expiration").unwrap_or_else(|| "never".into());
    Some(vec![id.to_owned(), expires, purpose.to_owned(), field("description").unwrap_or_default()])
}

fn expiration(ttl: &str, now: Timestamp) -> Result<Timestamp> {
    let wrong = || anyhow!("--ttl: \"{ttl}\" is not a time such as 30m, 24h or 7d, up to 30d");
    let span: Span = ttl.parse().map_err(|_| wrong())?;
    let life = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| wrong())?;
    if life < SignedDuration::from_secs(1) || life > LONGEST {
        return Err(wrong());
    }
    now.checked_add(life).map_err(|_| wrong())
}

/// Where the other machine finds the server: as asked for, as the kubeconfig says, or, when that is this
/// machine itself and the server listens on every address, by this machine's address. `listens`: the
/// server's own address, when it is here.
fn address(
    given: Option<&str>,
    config: &http::Uri,
    listens: Option<std::net::SocketAddr>,
) -> Result<ServerAddress> {
    if let Some(given) = given {
        return Ok(given.parse()?);
    }
    let found: ServerAddress = config.to_string().parse()?;
    let here = found.host() == "localhost" || found.host().parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
    match listens.filter(|listens| here && listens.ip().is_unspecified()) {
        None => Ok(found),
        Some(listens) => {
            let own = std::net::SocketAddr::new(machine::address_towards(machine::OUTSIDE), listens.port());
            Ok(format!("https://{own}").parse()?)
        }
    }
}

/// Where a server on this machine listens, from the file beside its kubeconfig.
fn run_address(kubeconfig: &Path) -> Option<std::net::SocketAddr> {
    let text = std::fs::read_to_string(kubeconfig.parent()?.join("run.json")).ok()?;
    serde_json::from_str::<Value>(&text).ok()?["api-addr"].as_str()?.parse().ok()
}

/// Random letters and digits.
fn random(length: usize) -> Result<String> {
    const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    let mut bytes = vec![0_u8; length];
    getrandom::fill(&mut bytes).map_err(|error| anyhow!("no random numbers: {error}"))?;
    // 32 divides 256: every letter is as likely as another.
    Ok(bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_bounded() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        for (ttl, expected) in [
            ("24h", Some("2026-01-02T00:00:00Z")),
            ("30m", Some("2026-01-01T00:30:00Z")),
            ("90s", Some("2026-01-01T00:01:30Z")),
            ("7d", Some("2026-01-08T00:00:00Z")),
            ("1h 30m", Some("2026-01-01T01:30:00Z")),
            ("31d", None),
            ("0s", None),
            ("-1h", None),
            ("soon", None),
            ("", None),
        ] {
            let found = expiration(ttl, now).ok().map(|at| at.to_string());
            assert_eq!(found.as_deref(), expected, "{ttl}");
        }
    }

    #[test]
    fn the_other_machine_is_given_an_address_it_can_reach() {
        let loopback = "https://127.0.0.1:6443/".parse().unwrap();
        let all = Some("0.0.0.0:6443".parse().unwrap());
        let asked = address(Some("https://box.example:6443"), &loopback, all).unwrap();
        assert_eq!(asked.to_string(), "https://box.example:6443");
        let far = address(None, &"https://10.0.0.7:6443/".parse().unwrap(), all).unwrap();
        assert_eq!(far.to_string(), "https://10.0.0.7:6443");
        assert_eq!(address(None, &loopback, None).unwrap().to_string(), "https://127.0.0.1:6443");
        let own = address(None, &loopback, all).unwrap();
        assert_eq!(own.port(), 6443);
        assert!(address(Some("box"), &loopback, all).is_err());
    }

    #[test]
    fn tokens_are_made_of_what_the_format_allows() {
        let token =
            Token { fingerprint: "ab".repeat(32), id: random(6).unwrap(), secret: random(16).unwrap() };
        assert_eq!(token.to_string().parse(), Ok(token));
    }

    #[test]
    fn a_listed_token_has_no_secret() {
        let token =
            Token { fingerprint: String::new(), id: "abcdef".into(), secret: "0123456789abcdef".into() };
        let listed = row(&secret(&token, "2026-01-01T00:00:00Z".parse().unwrap(), Some("rack 2"))).unwrap();
        assert_eq!(listed, ["abcdef", "2026-01-01T00:00:00Z", "joining", "rack 2"]);
    }
}
