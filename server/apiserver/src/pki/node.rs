//! Certificates of nodes, and the TLS of connections that only nodes may make.

use std::{sync::Arc, time::Duration};

use ketch_api::{
    join::{CONTROL_PROTOCOL, POD_RANGE_URI},
    names::{GATEWAY_GROUP, GATEWAY_USER_PREFIX, NODE_USER_PREFIX, NODES_GROUP},
};
use rcgen::{CertificateParams, CertificateSigningRequestParams, ExtendedKeyUsagePurpose, SanType};
use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier};

use super::{Pki, PkiError};

/// What a node shows for its two duties. Both are for the same key; PEM.
#[derive(Debug)]
pub struct NodeCertificates {
    /// As the node: `system:node:NAME` in `system:nodes`, with a URI per range of its pod addresses.
    pub node: String,
    /// As the gateway on it, which reads what routes are made of and nothing else.
    pub gateway: String,
}

impl Pki {
    /// Certificates for the key of a signing request. Only the public key is taken from the request.
    ///
    /// The node's certificate is good for both ends of a connection between nodes. It has no host name, so
    /// that a node cannot pass for the server.
    ///
    /// # Errors
    /// When the request is malformed or not signed by its own key, or a range is not plain text.
    pub fn sign_node(
        &self,
        request: &str,
        name: &str,
        ranges: &[&str],
        life: Duration,
    ) -> Result<NodeCertificates, PkiError> {
        let key = CertificateSigningRequestParams::from_pem(request)?.public_key;
        let mut params = self.ca.client_params(&format!("{NODE_USER_PREFIX}{name}"), &[NODES_GROUP], life)?;
        params.insert_extended_key_usage(ExtendedKeyUsagePurpose::ServerAuth);
        for range in ranges {
            params.subject_alt_names.push(SanType::URI(format!("{POD_RANGE_URI}{range}").try_into()?));
        }
        let sign = |params: CertificateParams| {
            params.signed_by(&key, &self.ca.issuer).map(|certificate| certificate.pem())
        };
        let gateway = format!("{GATEWAY_USER_PREFIX}{name}");
        let gateway = self.ca.client_params(&gateway, &[GATEWAY_GROUP], life)?;
        Ok(NodeCertificates { node: sign(params)?, gateway: sign(gateway)? })
    }

    /// TLS 1.3 for the control tunnel: whoever connects must show a certificate of this authority. Whose it
    /// is must be looked at by the caller.
    ///
    /// # Errors
    /// When rustls refuses the configuration.
    pub fn control_config(&self) -> Result<ServerConfig, PkiError> {
        let tls = |error: &dyn std::fmt::Display| PkiError::Tls(error.to_string());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.certificate.clone()).map_err(|error| tls(&error))?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|error| tls(&error))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| tls(&error))?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::clone(&self.serving) as Arc<dyn rustls::server::ResolvesServerCert>);
        config.alpn_protocols = vec![CONTROL_PROTOCOL.to_vec()];
        Ok(config)
    }
}
