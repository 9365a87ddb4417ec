//! Bearer tokens and console sessions.

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};

use super::*;
use crate::auth::{
    console::{SESSION_LIFE, clear_cookie},
    token::{Bound, Claims, Reference},
};

fn object(uid: &str) -> Value {
    json!({"metadata": {"name": "x", "uid": uid}})
}

async fn cluster() -> Cluster {
    Cluster::new(vec![
        ("/core/serviceaccounts/dev/robot", object("sa-1")),
        ("/core/pods/dev/web", object("pod-1")),
        ("/core/nodes/n1", object("node-1")),
    ])
    .await
}

fn reference(name: &str, uid: &str) -> Reference {
    Reference { name: name.into(), uid: uid.into() }
}

fn claims(cluster: &Cluster) -> Claims {
    let now = cluster.now().as_second();
    Claims {
        iss: ISSUER.into(),
        sub: "system:serviceaccount:dev:robot".into(),
        aud: vec![ISSUER.into()],
        exp: now + 3600,
        iat: now,
        nbf: now,
        jti: "id".into(),
        kubernetes: Bound {
            namespace: "dev".into(),
            serviceaccount: reference("robot", "sa-1"),
            ..Bound::default()
        },
    }
}

async fn authenticate(cluster: &Cluster, token: &str) -> Result<Option<User>, u16> {
    let header = format!("Bearer {token}");
    cluster
        .auth
        .authenticate(&parts("GET", &[("authorization", &header)]))
        .await
        .map_err(|status| status.code)
}

#[tokio::test]
async fn a_token_of_the_cluster_is_its_service_account() {
    let cluster = cluster().await;
    let bound = Bound {
        namespace: "dev".into(),
        serviceaccount: reference("robot", "sa-1"),
        pod: Some(reference("web", "pod-1")),
        node: Some(reference("n1", "node-1")),
        secret: None,
    };
    let token = cluster.auth.tokens().issue(bound, vec![ISSUER.into()], cluster.now(), 600).unwrap();
    let user = authenticate(&cluster, &token).await.unwrap().unwrap();
    assert_eq!((user.name.as_str(), user.uid.as_str()), ("system:serviceaccount:dev:robot", "sa-1"));
    assert_eq!(user.groups, ["system:serviceaccounts", "system:serviceaccounts:dev", "system:authenticated"]);
    assert_eq!(user.extra["authentication.kubernetes.io/pod-name"], ["web"]);
    assert_eq!(user.extra["authentication.kubernetes.io/node-uid"], ["node-1"]);
    cluster.advance(600);
    assert_eq!(authenticate(&cluster, &token).await, Err(401), "expired");
}

#[tokio::test]
async fn every_other_token_is_refused() {
    let cluster = cluster().await;
    let good = claims(&cluster);
    let now = cluster.now().as_second();
    let tokens = cluster.auth.tokens();
    let sign = |change: fn(&mut Claims, i64)| {
        let mut claims = good.clone();
        change(&mut claims, now);
        tokens.sign(&claims).unwrap()
    };
    assert!(authenticate(&cluster, &sign(|_, _| {})).await.is_ok());
    let valid = sign(|_, _| {});
    let [header, body, signature]: [&str; 3] = valid.split('.').collect::<Vec<_>>().try_into().unwrap();
    let encode = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let mut root = good.clone();
    root.sub = "system:serviceaccount:kube-system:root".into();
    // The public key as the secret of an HMAC: the confusion that trusts the token's own algorithm.
    let public = tokens.key_set()["keys"][0]["x"].as_str().unwrap().to_owned();
    let symmetric = |secret: &[u8]| {
        let header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::HS256);
        jsonwebtoken::encode(&header, &good, &jsonwebtoken::EncodingKey::from_secret(secret)).unwrap()
    };
    let other_key = rcgen::KeyPair::generate().unwrap().serialize_pem();
    let other = token::ServiceAccountTokens::new(&other_key, ISSUER).unwrap();
    #[rustfmt::skip]
    let cases = [
        ("expired", sign(|c, now| c.exp = now)),
        ("not valid yet", sign(|c, now| c.nbf = now + 61)),
        ("another audience", sign(|c, _| c.aud = vec!["vault".into()])),
        ("no audience", sign(|c, _| c.aud = vec![])),
        ("another issuer", sign(|c, _| c.iss = "https://evil.example".into())),
        ("another subject", sign(|c, _| c.sub = "system:serviceaccount:kube-system:root".into())),
        ("a recreated account", sign(|c, _| c.kubernetes.serviceaccount.uid = "sa-0".into())),
        ("a deleted account", sign(|c, _| { c.sub = "system:serviceaccount:dev:gone".into(); c.kubernetes.serviceaccount = reference("gone", "sa-1"); })),
        ("a recreated pod", sign(|c, _| c.kubernetes.pod = Some(reference("web", "pod-0")))),
        ("a deleted pod", sign(|c, _| c.kubernetes.pod = Some(reference("gone", "pod-1")))),
        ("a recreated node", sign(|c, _| c.kubernetes.node = Some(reference("n1", "node-0")))),
        ("a deleted secret", sign(|c, _| c.kubernetes.secret = Some(reference("s", "1")))),
        ("another key", other.sign(&good).unwrap()),
        ("a changed body", format!("{header}.{}.{signature}", encode(json!(root)))),
        ("alg none", format!("{}.{body}.", encode(json!({"alg": "none", "typ": "JWT"})))),
        ("alg none with a signature", format!("{}.{body}.{signature}", encode(json!({"alg": "none"})))),
        ("HMAC with the public key", symmetric(public.as_bytes())),
        ("HMAC with the key set", symmetric(tokens.key_set().to_string().as_bytes())),
        ("HMAC with nothing", symmetric(b"")),
        ("no signature", format!("{header}.{body}.")),
        ("nonsense", "nonsense".into()),
        ("two dots", "..".into()),
        ("huge", "a".repeat(100_000)),
    ];
    for (name, token) in cases {
        assert_eq!(authenticate(&cluster, &token).await, Err(401), "{name}");
    }
}

#[tokio::test]
async fn deleting_what_a_token_is_bound_to_revokes_it() {
    let cluster = cluster().await;
    let mut bound = claims(&cluster);
    bound.kubernetes.pod = Some(reference("web", "pod-1"));
    let token = cluster.auth.tokens().sign(&bound).unwrap();
    assert!(authenticate(&cluster, &token).await.is_ok());
    let deleting =
        json!({"metadata": {"name": "web", "uid": "pod-1", "deletionTimestamp": cluster.now().to_string()}});
    cluster.put("/core/pods/dev/web", deleting).await;
    assert!(authenticate(&cluster, &token).await.is_ok(), "a pod may say goodbye");
    cluster.advance(60);
    assert_eq!(authenticate(&cluster, &token).await, Err(401));
    cluster.remove("/core/serviceaccounts/dev/robot").await;
    let plain = cluster.auth.tokens().sign(&claims(&cluster)).unwrap();
    assert_eq!(authenticate(&cluster, &plain).await, Err(401));
}

#[tokio::test]
async fn odd_authorization_headers_are_refused() {
    let cluster = cluster().await;
    let good = format!("Bearer {}", cluster.auth.tokens().sign(&claims(&cluster)).unwrap());
    for headers in [
        vec![("authorization", "")],
        vec![("authorization", "Bearer")],
        vec![("authorization", "Bearer ")],
        vec![("authorization", "Basic cm9vdDpyb290")],
        vec![("authorization", good.as_str()), ("authorization", good.as_str())],
    ] {
        let got = cluster.auth.authenticate(&parts("GET", &headers)).await;
        assert_eq!(got.map_err(|status| status.code), Err(401), "{headers:?}");
    }
    assert_eq!(cluster.auth.authenticate(&parts("GET", &[])).await, Ok(None));
    let protocol = format!(
        "base64url.bearer.authorization.k8s.io.{}, v5.channel.k8s.io",
        URL_SAFE_NO_PAD.encode(good.strip_prefix("Bearer ").unwrap())
    );
    let user =
        cluster.auth.authenticate(&parts("GET", &[("sec-websocket-protocol", &protocol)])).await.unwrap();
    assert_eq!(user.unwrap().name, "system:serviceaccount:dev:robot");
}

#[tokio::test]
async fn bootstrap_tokens_are_read_from_secrets() {
    let cluster = cluster().await;
    let encode = |text: &str| STANDARD.encode(text);
    let secret = json!({
        "metadata": {"name": "bootstrap-token-abcdef"}, "type": "bootstrap.kubernetes.io/token",
        "data": {"token-id": encode("abcdef"), "token-secret": encode("0123456789abcdef"),
            "usage-bootstrap-authentication": encode("true")},
    });
    let token = "abcdef.0123456789abcdef";
    assert_eq!(authenticate(&cluster, token).await, Err(401));
    cluster.put("/core/secrets/kube-system/bootstrap-token-abcdef", secret).await;
    let user = authenticate(&cluster, token).await.unwrap().unwrap();
    assert_eq!(user.name, "system:bootstrap:abcdef");
    assert_eq!(authenticate(&cluster, "abcdef.0123456789abcdee").await, Err(401));
    assert!(!cluster.allows(&user, &ask("list core/secrets kube-system/")));
}

/// Cookie header of a session that has just begun.
async fn logged_in(cluster: &Cluster) -> String {
    let console = cluster.auth.console();
    let token = console.create_token("admin", &["system:masters"], PATIENCE).await.unwrap();
    let cookie = console.login(&token, None).await.unwrap().set_cookie(true);
    cookie.split(';').next().unwrap().to_owned()
}

#[tokio::test]
async fn a_login_token_is_good_once() {
    let cluster = cluster().await;
    let console = cluster.auth.console();
    let token = console.create_token("admin", &["system:masters"], PATIENCE).await.unwrap();
    let session = console.login(&token, None).await.unwrap();
    assert_eq!(session.user, User::new("admin", &["system:masters"]));
    let cookie = session.set_cookie(false);
    for part in ["HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=43200"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    assert_eq!(console.login(&token, None).await.unwrap_err().code, 401);
    let expired = console.create_token("admin", &[], Duration::from_secs(60)).await.unwrap();
    cluster.advance(60);
    assert_eq!(console.login(&expired, None).await.unwrap_err().code, 401);
    // Neither secret is in the store.
    let page = cluster.storage.list("/_console/", ketch_store::ListOptions::default()).await.unwrap();
    let secret = cookie.split(['=', ';']).nth(1).unwrap();
    assert_eq!(page.items.len(), 1);
    for item in page.items {
        let text = format!("{} {}", item.key, String::from_utf8_lossy(&item.value));
        assert!(!text.contains(&token) && !text.contains(secret), "{text}");
    }
}

#[tokio::test]
async fn a_session_lasts_until_logout_or_expiry() {
    let cluster = cluster().await;
    let cookie = logged_in(&cluster).await;
    let with_cookie = parts("GET", &[("cookie", &format!("a=b; {cookie}; c=d"))]);
    assert_eq!(cluster.auth.authenticate(&with_cookie).await.unwrap().unwrap().name, "admin");
    // Another server with the same store knows it too.
    let other = Auth::start_with_clock(
        Arc::clone(&cluster.storage),
        &cluster.key,
        Arc::new(|| Timestamp::from_second(START).unwrap()),
    );
    assert!(other.await.unwrap().authenticate(&with_cookie).await.unwrap().is_some());
    cluster.auth.console().logout(&with_cookie.headers).await.unwrap();
    assert_eq!(cluster.auth.authenticate(&with_cookie).await, Ok(None));
    let again = parts("GET", &[("cookie", &logged_in(&cluster).await)]);
    cluster.advance(i64::try_from(SESSION_LIFE.as_secs()).unwrap());
    assert_eq!(cluster.auth.authenticate(&again).await, Ok(None));
    // The next login clears away what has expired.
    logged_in(&cluster).await;
    let page =
        cluster.storage.list("/_console/sessions/", ketch_store::ListOptions::default()).await.unwrap();
    assert_eq!(page.items.len(), 1);
    assert!(clear_cookie(true).starts_with("ketch_session=; ") && clear_cookie(true).contains("Max-Age=0"));
}

#[tokio::test]
async fn another_sites_page_cannot_use_the_cookie() {
    let cluster = cluster().await;
    let cookie = logged_in(&cluster).await;
    #[rustfmt::skip]
    let cases: [(&str, Headers, bool); 9] = [
        ("GET", &[], true),
        ("HEAD", &[], true),
        ("POST", &[], false),
        ("DELETE", &[("x-ketch-console", "0")], false),
        ("POST", &[("x-ketch-console", "1")], true),
        ("GET", &[("upgrade", "websocket"), ("host", "localhost:6440"), ("origin", "http://localhost:6440")], true),
        ("GET", &[("upgrade", "websocket"), ("host", "localhost:6440"), ("origin", "http://evil.localhost:8080")], false),
        ("GET", &[("upgrade", "websocket"), ("host", "localhost:6440")], false),
        ("GET", &[("upgrade", "websocket"), ("host", "localhost:6440"), ("x-ketch-console", "1")], false),
    ];
    for (method, headers, accepted) in cases {
        let mut all = headers.to_vec();
        all.push(("cookie", &cookie));
        let got = cluster.auth.authenticate(&parts(method, &all)).await;
        match accepted {
            true => assert_eq!(got.unwrap().unwrap().name, "admin", "{method} {headers:?}"),
            false => assert_eq!(got.unwrap_err().code, 403, "{method} {headers:?}"),
        }
    }
}

#[tokio::test]
async fn guessing_logins_is_slowed_down() {
    let cluster = cluster().await;
    let console = cluster.auth.console();
    let from = |last: u8| Some(std::net::IpAddr::from([10, 0, 0, last]));
    for _ in 0..10 {
        assert_eq!(console.login("guess", from(1)).await.unwrap_err().code, 401);
    }
    let token = console.create_token("admin", &[], PATIENCE).await.unwrap();
    assert_eq!(console.login(&token, from(1)).await.unwrap_err().code, 429);
    assert_eq!(console.login("guess", from(2)).await.unwrap_err().code, 401, "others are not affected");
    cluster.advance(60);
    let token = console.create_token("admin", &[], PATIENCE).await.unwrap();
    assert!(console.login(&token, from(1)).await.is_ok());
}
