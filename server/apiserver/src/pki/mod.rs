//! The cluster's own certificate authority and what it signs.
//!
//! The authority is made at the first start and kept under the data directory; its key never leaves the
//! directory. Everything else is short-lived and cheap to make again: the serving certificate exists only
//! in memory and is replaced at two thirds of its life, client certificates belong to who asked for them.
//!
//! All keys are ECDSA P-256: accepted by every TLS stack a client may bring, and a signature costs less
//! than a tenth of an RSA one.

mod files;
mod node;
mod serving;

pub use node::NodeCertificates;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SerialNumber,
};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, pem::PemObject},
    server::WebPkiClientVerifier,
};

/// Life of the authority: ten years, as kubeadm's.
const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Certificates are valid from this long before they are made, for clients whose clocks are behind.
const BACKDATE: Duration = Duration::from_secs(300);

/// Tells the time; replaced in tests.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The certificate authority of this cluster.
pub struct Pki {
    ca: Arc<Authority>,
    serving: Arc<serving::Resolver>,
    service_account_key: String,
}

/// A certificate and its private key, both PEM.
pub struct ClientCertificate {
    /// The certificate.
    pub certificate: String,
    /// Its private key, PKCS #8. Secret.
    pub key: zeroize::Zeroizing<String>,
}

/// What can go wrong with keys and certificates.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file under the directory cannot be read or written.
    #[error("cannot access {path}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// One of certificate and key is there without the other.
    #[error(
        "{missing} is missing while its other half exists; restore it from a backup, or remove both to \
         create a new authority (every kubeconfig and node certificate then stops working)"
    )]
    HalfAuthority {
        /// The file that is not there.
        missing: PathBuf,
    },
    /// A key or certificate could not be made or read.
    #[error("cannot make or read a certificate or key")]
    Certificate(#[from] rcgen::Error),
    /// The PEM text is not what it should be.
    #[error("cannot read PEM: {0}")]
    Pem(String),
    /// rustls refused the configuration.
    #[error("cannot configure TLS: {0}")]
    Tls(String),
    /// The operating system gave no random numbers.
    #[error("no random numbers from the operating system: {0}")]
    Random(getrandom::Error),
    /// A certificate has room for two groups.
    #[error("a client certificate can carry at most two groups, {0} were asked for; use a token instead")]
    TooManyGroups(usize),
}

/// The signing half.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
    clock: Clock,
}

// === impl Pki ===

impl Pki {
    /// Opens the authority in `dir`, creating it when the directory is empty or does not exist.
    /// `names` are host names and addresses the serving certificate is for, besides localhost and the
    /// names of the `kubernetes` Service.
    ///
    /// # Errors
    /// When files cannot be accessed, or only half of the authority is there.
    pub fn open(dir: impl AsRef<Path>, names: &[String]) -> Result<Self, PkiError> {
        Self::open_with_clock(dir, names, Arc::new(Timestamp::now))
    }

    /// [`Pki::open`] with another clock.
    ///
    /// # Errors
    /// See [`Pki::open`].
    pub fn open_with_clock(dir: impl AsRef<Path>, names: &[String], clock: Clock) -> Result<Self, PkiError> {
        let dir = dir.as_ref();
        files::private_dir(dir)?;
        let ca = Arc::new(Authority::open(dir, clock)?);
        let serving = Arc::new(serving::Resolver::new(Arc::clone(&ca), names)?);
        let service_account_key = files::load_or_create(&dir.join("service-account.key"), || {
            Ok(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?.serialize_pem())
        })?;
        Ok(Self { ca, serving, service_account_key })
    }

    /// TLS 1.2 and 1.3 with HTTP/2 and HTTP/1.1; client certificates of this authority are accepted, none
    /// is required. The serving certificate renews itself.
    ///
    /// # Errors
    /// When rustls refuses the configuration.
    pub fn server_config(&self) -> Result<ServerConfig, PkiError> {
        let tls = |e: &dyn std::fmt::Display| PkiError::Tls(e.to_string());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.certificate.clone()).map_err(|e| tls(&e))?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .map_err(|e| tls(&e))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| tls(&e))?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::clone(&self.serving) as Arc<dyn rustls::server::ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }

    /// A new key and a certificate for it: common name `user`, organisations `groups` (at most two).
    ///
    /// # Errors
    /// When there are too many groups or signing fails.
    pub fn client_cert(
        &self,
        user: &str,
        groups: &[&str],
        ttl: Duration,
    ) -> Result<ClientCertificate, PkiError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let params = self.ca.client_params(user, groups, ttl)?;
        let certificate = params.signed_by(&key, &self.ca.issuer)?.pem();
        Ok(ClientCertificate { certificate, key: key.serialize_pem().into() })
    }

    /// A certificate for the key of a signing request. Only the public key is taken from the request;
    /// whom the certificate is for is the caller's decision.
    ///
    /// # Errors
    /// When the request is malformed or not signed by its own key, or there are too many groups.
    pub fn sign_request(
        &self,
        request: &str,
        user: &str,
        groups: &[&str],
        ttl: Duration,
    ) -> Result<String, PkiError> {
        let request = CertificateSigningRequestParams::from_pem(request)?;
        let params = self.ca.client_params(user, groups, ttl)?;
        Ok(params.signed_by(&request.public_key, &self.ca.issuer)?.pem())
    }

    /// Certificate of the authority, PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca.pem
    }

    /// SHA-256 of the authority's certificate in hexadecimal: what a join token pins.
    pub fn ca_fingerprint(&self) -> String {
        use sha2::Digest;
        sha2::Sha256::digest(&self.ca.certificate).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Key that signs service-account tokens, PEM (PKCS #8). Secret.
    pub fn service_account_key(&self) -> &str {
        &self.service_account_key
    }
}

impl std::fmt::Debug for Pki {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pki").finish_non_exhaustive()
    }
}

// === impl ClientCertificate ===

impl std::fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientCertificate").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

// === impl Authority ===

impl Authority {
    fn open(dir: &Path, clock: Clock) -> Result<Self, PkiError> {
        let (cert_path, key_path) = (dir.join("ca.crt"), dir.join("ca.key"));
        let pem = match (files::read(&cert_path)?, files::read(&key_path)?) {
            (Some(certificate), Some(key)) => (certificate, key),
            (None, None) => {
                let (certificate, key) = Self::create(&clock)?;
                // The key first: a crash in between leaves the half that names its loss.
                files::write(&key_path, &key)?;
                files::write(&cert_path, &certificate)?;
                (certificate, key)
            }
            (Some(_), None) => return Err(PkiError::HalfAuthority { missing: key_path }),
            (None, Some(_)) => return Err(PkiError::HalfAuthority { missing: cert_path }),
        };
        let (pem, key) = pem;
        let certificate =
            CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| PkiError::Pem(e.to_string()))?;
        let issuer = Issuer::from_ca_cert_der(&certificate, KeyPair::from_pem(&key)?)?;
        Ok(Self { issuer, certificate, pem, clock })
    }

    fn create(clock: &Clock) -> Result<(String, String), PkiError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = base_params(clock(), CA_LIFE)?;
        params.distinguished_name.push(DnType::CommonName, "ketch-ca");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
    }

    fn client_params(
        &self,
        user: &str,
        groups: &[&str],
        ttl: Duration,
    ) -> Result<CertificateParams, PkiError> {
        let mut params = base_params((self.clock)(), ttl)?;
        params.distinguished_name.push(DnType::CommonName, user);
        // The name holds one attribute per type, and the same object identifier as a custom type is a
        // second one.
        let types = [DnType::OrganizationName, DnType::CustomDnType(vec![2, 5, 4, 10])];
        if groups.len() > types.len() {
            return Err(PkiError::TooManyGroups(groups.len()));
        }
        for (r#type, group) in types.into_iter().zip(groups) {
            params.distinguished_name.push(r#type, *group);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.insert_extended_key_usage(ExtendedKeyUsagePurpose::ClientAuth);
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }
}

/// Validity and serial number; an empty name.
fn base_params(now: Timestamp, life: Duration) -> Result<CertificateParams, PkiError> {
    let mut serial = [0u8; 16];
    getrandom::fill(&mut serial).map_err(PkiError::Random)?;
    // Positive and of full length, as RFC 5280 wants serial numbers to be.
    serial[0] = serial[0] & 0x7f | 0x40;
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now = Duration::from_secs(u64::try_from(now.as_second()).unwrap_or_default());
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = epoch + now.saturating_sub(BACKDATE);
    params.not_after = epoch + now.saturating_add(life);
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

#[cfg(test)]
mod tests;
