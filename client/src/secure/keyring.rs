//! The certificate a process shows, exchanged while it runs.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::{
    SignatureScheme,
    client::ResolvesClientCert,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};

/// A certificate and its key, which the next connection shows.
pub struct Keyring {
    current: ArcSwap<CertifiedKey>,
}

/// A certificate or key that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the certificate or its key cannot be used: {0}")]
pub struct KeyringError(String);

// === impl Keyring ===

impl Keyring {
    /// Takes a certificate and its key, both PEM.
    ///
    /// # Errors
    /// When one of them cannot be read.
    pub fn new(certificate: &str, key: &str) -> Result<Arc<Self>, KeyringError> {
        Ok(Arc::new(Self { current: ArcSwap::from_pointee(certified(certificate, key)?) }))
    }

    /// Shows another certificate from now on. Connections that exist keep theirs.
    ///
    /// # Errors
    /// When certificate or key cannot be read; the present ones stay.
    pub fn replace(&self, certificate: &str, key: &str) -> Result<(), KeyringError> {
        self.current.store(Arc::new(certified(certificate, key)?));
        Ok(())
    }

    /// The certificate shown now, with its chain.
    pub fn current(&self) -> Arc<CertifiedKey> {
        self.current.load_full()
    }
}

impl ResolvesClientCert for Keyring {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keyring").finish_non_exhaustive()
    }
}

fn certified(certificate: &str, key: &str) -> Result<CertifiedKey, KeyringError> {
    let pem = |error: rustls::pki_types::pem::Error| KeyringError(error.to_string());
    let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect::<Result<Vec<_>, _>>();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(pem)?;
    let signer = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)
        .map_err(|error| KeyringError(error.to_string()))?;
    let certified = CertifiedKey::new(chain.map_err(pem)?, signer);
    certified.keys_match().map_err(|error| KeyringError(error.to_string()))?;
    Ok(certified)
}
