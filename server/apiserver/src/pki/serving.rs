//! The serving certificate: made in memory, replaced while connections go on.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls::{
    pki_types::PrivateKeyDer,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::{Authority, PkiError, base_params};

/// Life of a serving certificate. Renewed after two thirds of it.
pub(super) const LIFE: Duration = Duration::from_secs(90 * 86_400);

/// Names every API server answers to, whatever the machine is called.
const OWN_NAMES: &[&str] = &[
    "localhost",
    "127.0.0.1",
    "::1",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
];

/// Hands rustls the current certificate, and makes the next one when it is due. Making one takes a
/// fraction of a millisecond, so the handshake that notices does it.
pub(super) struct Resolver {
    authority: Arc<Authority>,
    names: Vec<String>,
    current: ArcSwap<Issued>,
    /// Held by the one who renews; others go on with the current certificate.
    renewing: Mutex<()>,
}

struct Issued {
    key: Arc<CertifiedKey>,
    renew_at: Timestamp,
}

impl Resolver {
    pub(super) fn new(authority: Arc<Authority>, names: &[String]) -> Result<Self, PkiError> {
        let mut all: Vec<String> = OWN_NAMES.iter().map(ToString::to_string).collect();
        for name in names {
            if !all.contains(name) {
                all.push(name.clone());
            }
        }
        let current = ArcSwap::from_pointee(issue(&authority, &all)?);
        Ok(Self { authority, names: all, current, renewing: Mutex::new(()) })
    }

    pub(super) fn current(&self) -> Arc<CertifiedKey> {
        if (self.authority.clock)() >= self.current.load().renew_at {
            self.renew();
        }
        Arc::clone(&self.current.load().key)
    }

    fn renew(&self) {
        let Ok(_renewing) = self.renewing.try_lock() else { return };
        if (self.authority.clock)() < self.current.load().renew_at {
            return;
        }
        match issue(&self.authority, &self.names) {
            Ok(next) => self.current.store(Arc::new(next)),
            // The current one still has a third of its life; every handshake tries again.
            Err(error) => tracing::error!(%error, "cannot renew the serving certificate"),
        }
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _client: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolver").field("names", &self.names).finish_non_exhaustive()
    }
}

fn issue(authority: &Authority, names: &[String]) -> Result<Issued, PkiError> {
    let now = (authority.clock)();
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = base_params(now, LIFE)?;
    params.subject_alt_names = CertificateParams::new(names)?.subject_alt_names;
    params.distinguished_name.push(DnType::CommonName, "ketch");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.insert_extended_key_usage(ExtendedKeyUsagePurpose::ServerAuth);
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, &authority.issuer)?;
    let private = PrivateKeyDer::try_from(key.serialize_der()).map_err(|e| PkiError::Tls(e.to_owned()))?;
    let signing = rustls::crypto::aws_lc_rs::sign::any_supported_type(&private)
        .map_err(|e| PkiError::Tls(e.to_string()))?;
    let chain = vec![certificate.der().clone(), authority.certificate.clone()];
    let renew_at = now.checked_add(LIFE * 2 / 3).unwrap_or(Timestamp::MAX);
    Ok(Issued { key: Arc::new(CertifiedKey::new(chain, signing)), renew_at })
}
