//! Whose certificates are good for the servers that guests connect to with `wasi:http`. A guest cannot say so itself.

use std::sync::Arc;

use rustls::{
    ClientConfig, RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, pem::PemObject},
};

/// What is trusted, by who is asked.
pub(crate) struct Trust {
    world: Arc<ClientConfig>,
    api: Arc<ClientConfig>,
}

/// An authority that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrustError {
    #[error("the certificate of the cluster's authority: {0}")]
    Authority(String),
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

// === impl Trust ===

impl Trust {
    /// The roots of the web for everybody, and with them the cluster's `authority` (PEM) for its API.
    ///
    /// The authority is trusted for the API only. It is made for the cluster's own servers and clients: it has neither
    /// the audits nor the limits of a public one, and its key is a file on the server. Were it trusted everywhere,
    /// whoever has that key could pass for any host of the world to every guest, and so could whoever gets a
    /// certificate from it for a name that is not the cluster's. Containers decide the same way: they have the
    /// authority's certificate as a file, and give it to the client they use for the API.
    ///
    /// # Errors
    /// When the certificate cannot be read.
    pub(crate) fn new(authority: Option<&str>) -> Result<Self, TrustError> {
        let web = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let world = config(&provider, web.clone())?;
        let Some(pem) = authority else {
            return Ok(Self { api: Arc::clone(&world), world });
        };
        let mut both = web;
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes());
        let certificate = certificate.map_err(|error| TrustError::Authority(error.to_string()))?;
        both.add(certificate).map_err(|error| TrustError::Authority(error.to_string()))?;
        Ok(Self { world, api: config(&provider, both)? })
    }

    /// How to connect to the cluster's API, or to anybody else.
    pub(crate) fn of(&self, is_api: bool) -> Arc<ClientConfig> {
        Arc::clone(if is_api { &self.api } else { &self.world })
    }
}

fn config(provider: &Arc<CryptoProvider>, roots: RootCertStore) -> Result<Arc<ClientConfig>, rustls::Error> {
    let config = ClientConfig::builder_with_provider(Arc::clone(provider));
    let config = config.with_safe_default_protocol_versions()?;
    Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}
