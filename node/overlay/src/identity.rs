//! Who a node is: its certificate, and what the certificate of a peer says.
//!
//! Both ends present the certificate that they use as clients of the API server, so both are verified the
//! way a server verifies clients: signed by the cluster's authority, for client authentication. The name
//! is in the common name (`system:node:NAME`); host names play no part.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use ketch_net::Cidr;
use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error as TlsError, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

/// What both ends must agree on; another version of the frames is another protocol.
pub(crate) const ALPN: &[u8] = b"ketch-overlay/1";

/// Common names of nodes begin with it.
const NODE: &str = "system:node:";

/// URI names of certificates that say which pod addresses a node may send from begin with it.
const POD_RANGE: &str = "ketch://pod-range/";

/// Certificate, key and authority of a node, as PEM.
#[derive(Clone)]
pub struct Identity {
    /// The node's certificate, followed by intermediates if there are any. Common name
    /// `system:node:NAME`, for client authentication.
    pub certificate: String,
    /// Its key.
    pub key: String,
    /// Certificate of the authority that peers' certificates must be signed by.
    pub authority: String,
}

/// An identity that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A text is not PEM of what it should be.
    #[error("cannot read the {what} of the node: {cause}")]
    Pem {
        /// Certificate, key or authority.
        what: &'static str,
        /// Cause.
        cause: String,
    },
    /// The certificate names no node.
    #[error("the certificate is for \"{0}\", not for a node (system:node:NAME)")]
    Name(String),
    /// TLS refuses it.
    #[error("cannot configure TLS between nodes: {0}")]
    Tls(String),
}

/// What a certificate says of its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    /// Name of the node.
    pub(crate) name: String,
    /// Ranges it may send from; empty when the certificate does not limit them.
    pub(crate) ranges: Vec<Cidr>,
    /// When the certificate ends.
    pub(crate) expires: SystemTime,
}

/// Both directions of TLS for one identity.
pub(crate) struct Tls {
    pub(crate) name: String,
    pub(crate) expires: SystemTime,
    pub(crate) client: Arc<QuicClientConfig>,
    pub(crate) server: Arc<QuicServerConfig>,
}

// === impl Identity ===

impl Identity {
    /// Time until the certificate ends; `None`: it has ended, or cannot be read.
    pub fn left(&self) -> Option<Duration> {
        let own = named(self.chain().ok()?.first()?).ok()?;
        own.expires.duration_since(SystemTime::now()).ok()
    }

    fn chain(&self) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
        let chain =
            CertificateDer::pem_slice_iter(self.certificate.as_bytes()).collect::<Result<Vec<_>, _>>();
        chain.map_err(|e| unreadable("certificate", &e))
    }

    /// Configurations for both directions.
    pub(crate) fn tls(&self) -> Result<Tls, IdentityError> {
        let chain = self.chain()?;
        let own = chain.first().ok_or_else(|| unreadable("certificate", &"there is none"))?;
        let Named { name, expires, .. } = named(own)?;
        let key = || PrivateKeyDer::from_pem_slice(self.key.as_bytes()).map_err(|e| unreadable("key", &e));
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(self.authority.as_bytes()) {
            let root = root.map_err(|e| unreadable("authority", &e))?;
            roots.add(root).map_err(|e| unreadable("authority", &e))?;
        }
        let tls = |e: &dyn std::fmt::Display| IdentityError::Tls(e.to_string());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let chains = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|e| tls(&e))?;
        let verifier = Arc::new(Verifier { chains });
        let server = server(&provider, &verifier, chain.clone(), key()?).map_err(|e| tls(&e))?;
        let client = client(&provider, verifier, chain, key()?).map_err(|e| tls(&e))?;
        Ok(Tls {
            name,
            expires,
            client: Arc::new(QuicClientConfig::try_from(client).map_err(|e| tls(&e))?),
            server: Arc::new(QuicServerConfig::try_from(server).map_err(|e| tls(&e))?),
        })
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

fn unreadable(what: &'static str, cause: &dyn std::fmt::Display) -> IdentityError {
    IdentityError::Pem { what, cause: cause.to_string() }
}

fn server(
    provider: &Arc<CryptoProvider>,
    verifier: &Arc<Verifier>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<rustls::ServerConfig, TlsError> {
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::clone(verifier) as Arc<dyn ClientCertVerifier>)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed session would keep a peer that has been renamed or lost its ranges.
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn client(
    provider: &Arc<CryptoProvider>,
    verifier: Arc<Verifier>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<rustls::ClientConfig, TlsError> {
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// Reads the node's name and ranges out of a certificate that has been verified.
pub(crate) fn named(certificate: &CertificateDer<'_>) -> Result<Named, IdentityError> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|e| unreadable("certificate", &e))?;
    let names: Vec<&str> = parsed.subject().iter_common_name().filter_map(|n| n.as_str().ok()).collect();
    // More than one common name would let readers disagree on who this is.
    let [common] = names.as_slice() else { return Err(IdentityError::Name(names.join(", "))) };
    let name = common.strip_prefix(NODE).filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| IdentityError::Name((*common).to_owned()))?;
    let end = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or_default();
    let expires = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(end));
    Ok(Named {
        name: name.to_owned(),
        ranges: pod_ranges(&parsed),
        expires: expires.unwrap_or(SystemTime::UNIX_EPOCH),
    })
}

fn pod_ranges(certificate: &X509Certificate<'_>) -> Vec<Cidr> {
    let mut ranges = Vec::new();
    for extension in certificate.extensions() {
        let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else { continue };
        for name in &names.general_names {
            let GeneralName::URI(uri) = name else { continue };
            ranges.extend(uri.strip_prefix(POD_RANGE).and_then(|text| text.parse::<Cidr>().ok()));
        }
    }
    ranges
}

// === impl Verifier ===

/// Accepts nodes of the cluster, in both directions.
#[derive(Debug)]
struct Verifier {
    chains: Arc<dyn ClientCertVerifier>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        wanted: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        self.chains.verify_client_cert(certificate, intermediates, now)?;
        let found = named(certificate).map_err(|e| TlsError::General(e.to_string()))?;
        if ServerName::try_from(found.name.as_str()).is_ok_and(|name| name == *wanted) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(TlsError::InvalidCertificate(rustls::CertificateError::NotValidForName))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.chains.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.chains.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chains.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, TlsError> {
        let verified = self.chains.verify_client_cert(certificate, intermediates, now)?;
        named(certificate).map_err(|e| TlsError::General(e.to_string()))?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.chains.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.chains.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}
