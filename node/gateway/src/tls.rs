//! TLS of the front door.

use std::sync::Arc;

use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};

/// A server configuration with a fresh self-signed certificate for `names`, HTTP/2 and HTTP/1.1: what
/// the gateway shows until it is given a real one.
///
/// # Errors
/// A name is no DNS name.
pub fn self_signed(names: &[String]) -> Result<Arc<ServerConfig>, crate::Error> {
    let certified =
        rcgen::generate_simple_self_signed(names.to_vec()).map_err(|e| crate::Error::Tls(e.to_string()))?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder.with_no_client_auth().with_single_cert(vec![certified.cert.der().clone()], key)
        })
        .map_err(|e| crate::Error::Tls(e.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
