//! The authority on disk, and what it signs.

use std::{
    os::unix::fs::PermissionsExt,
    sync::atomic::{AtomicI64, Ordering},
};

use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::*;

const DAY: Duration = Duration::from_secs(86_400);

fn pki(dir: &Path) -> Pki {
    Pki::open(dir, &["box.example".into(), "10.43.0.1".into()]).unwrap()
}

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

#[test]
fn the_authority_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (pki(dir.path()), pki(dir.path()));
    assert_eq!(first.ca_pem(), second.ca_pem());
    assert_eq!(first.service_account_key(), second.service_account_key());
    assert_eq!(first.ca_fingerprint().len(), 64);
    let old = first.client_cert("a", &[], DAY).unwrap();
    assert!(verifies(&second, &old.certificate));
}

#[test]
fn keys_are_for_their_owner_only() {
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("server/pki");
    pki(&inner);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&inner), 0o700);
    for name in ["ca.key", "ca.crt", "service-account.key"] {
        assert_eq!(mode(&inner.join(name)), 0o600, "{name}");
    }
}

#[test]
fn half_an_authority_is_refused() {
    for lost in ["ca.key", "ca.crt"] {
        let dir = tempfile::tempdir().unwrap();
        pki(dir.path());
        std::fs::remove_file(dir.path().join(lost)).unwrap();
        let error = Pki::open(dir.path(), &[]).unwrap_err().to_string();
        assert!(error.contains(lost) && error.contains("backup"), "{error}");
    }
}

fn verifies(pki: &Pki, certificate: &str) -> bool {
    let (certificate, ca) = (der(certificate), der(pki.ca_pem()));
    let (_, certificate) = X509Certificate::from_der(&certificate).unwrap();
    let (_, ca) = X509Certificate::from_der(&ca).unwrap();
    certificate.verify_signature(Some(ca.public_key())).is_ok()
}

#[test]
fn a_client_certificate_names_user_and_groups() {
    let dir = tempfile::tempdir().unwrap();
    let pki = pki(dir.path());
    let issued = pki.client_cert("jane", &["dev", "ops"], DAY).unwrap();
    assert!(verifies(&pki, &issued.certificate));
    let user = crate::serve::certificate_user(&der(&issued.certificate)).unwrap();
    assert_eq!(
        (user.name.as_str(), user.groups),
        ("jane", vec!["dev".to_owned(), "ops".to_owned(), "system:authenticated".to_owned()])
    );
    assert!(matches!(pki.client_cert("jane", &["a", "b", "c"], DAY), Err(PkiError::TooManyGroups(3))));
}

#[test]
fn a_signing_request_gets_a_certificate_for_its_key_and_our_name() {
    let dir = tempfile::tempdir().unwrap();
    let pki = pki(dir.path());
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut wanted = CertificateParams::default();
    wanted.distinguished_name.push(DnType::CommonName, "system:masters-please");
    let request = wanted.serialize_request(&key).unwrap().pem().unwrap();
    let signed = pki.sign_request(&request, "system:node:n1", &["system:nodes"], DAY).unwrap();
    let signed_der = der(&signed);
    let (_, certificate) = X509Certificate::from_der(&signed_der).unwrap();
    assert_eq!(certificate.public_key().subject_public_key.data.as_ref(), key.public_key_raw());
    assert_eq!(crate::serve::certificate_user(&signed_der).unwrap().name, "system:node:n1");
    assert!(pki.sign_request("nonsense", "x", &[], DAY).is_err());
}

#[test]
fn the_serving_certificate_has_all_names_and_renews_at_two_thirds() {
    let dir = tempfile::tempdir().unwrap();
    let now = Arc::new(AtomicI64::new(1_800_000_000));
    let clock = {
        let now = Arc::clone(&now);
        Arc::new(move || Timestamp::from_second(now.load(Ordering::SeqCst)).unwrap())
    };
    let pki = Pki::open_with_clock(dir.path(), &["box.example".into(), "10.43.0.1".into()], clock).unwrap();
    let certificate = || pki.serving.current().cert[0].clone();
    let first = certificate();
    let (_, parsed) = X509Certificate::from_der(&first).unwrap();
    let names: Vec<String> = parsed
        .subject_alternative_name()
        .unwrap()
        .unwrap()
        .value
        .general_names
        .iter()
        .map(|name| match name {
            GeneralName::DNSName(name) => (*name).to_owned(),
            GeneralName::IPAddress([a, b, c, d]) => format!("{a}.{b}.{c}.{d}"),
            other => format!("{other:?}"),
        })
        .collect();
    for wanted in
        ["localhost", "127.0.0.1", "kubernetes.default.svc.cluster.local", "box.example", "10.43.0.1"]
    {
        assert!(names.iter().any(|name| name == wanted), "{wanted} in {names:?}");
    }
    let life = i64::try_from(serving::LIFE.as_secs()).unwrap();
    now.fetch_add(life * 2 / 3 - 1, Ordering::SeqCst);
    assert_eq!(certificate(), first);
    now.fetch_add(1, Ordering::SeqCst);
    assert_ne!(certificate(), first);
}

#[test]
fn a_node_gets_certificates_for_its_two_duties() {
    let dir = tempfile::tempdir().unwrap();
    let pki = pki(dir.path());
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let request = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let signed = pki.sign_node(&request, "n1", &["10.42.3.0/24"], DAY).unwrap();
    let user = |pem: &str| crate::serve::certificate_user(&der(pem)).unwrap();
    let (node, gateway) = (user(&signed.node), user(&signed.gateway));
    assert_eq!(crate::auth::node::node_name(&node), Some("n1"));
    assert_eq!(node.extra["ketch.dev/pod-range"], ["10.42.3.0/24"]);
    assert_eq!(gateway.name, "system:ketch-gateway:n1");
    assert!(gateway.extra.is_empty());
    assert!(gateway.in_group("system:ketch-gateways") && !gateway.in_group("system:nodes"));
    assert!(!node.in_group("system:ketch-gateways"));
    let node = der(&signed.node);
    let (_, parsed) = X509Certificate::from_der(&node).unwrap();
    let names = &parsed.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(names[..], [GeneralName::URI("ketch://pod-range/10.42.3.0/24")], "no host names");
    let usage = parsed.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && usage.server_auth);
}
