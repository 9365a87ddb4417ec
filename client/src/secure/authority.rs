//! Whom to believe: an authority that is known, or the one that a join token names.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use sha2::Digest;

/// The cluster's certificate authority, as far as it is known.
#[derive(Clone, Debug)]
pub struct Authority(Known);

#[derive(Clone, Debug)]
enum Known {
    Certificate(CertificateDer<'static>),
    Fingerprint(String),
}

// === impl Authority ===

impl Authority {
    /// The authority with this certificate (PEM).
    ///
    /// # Errors
    /// When it is not a certificate.
    pub fn of(pem: &str) -> Result<Self, Error> {
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        Ok(Self(Known::Certificate(certificate)))
    }

    /// The authority whose certificate has this SHA-256 (hexadecimal). The server shows the certificate in
    /// its handshake; from then on everything is verified as if it had been known.
    pub fn pinned(fingerprint: &str) -> Self {
        Self(Known::Fingerprint(fingerprint.to_owned()))
    }

    /// Whether this is the authority with the certificate `pem`.
    pub fn is(&self, pem: &str) -> bool {
        let Ok(certificate) = CertificateDer::from_pem_slice(pem.as_bytes()) else { return false };
        match &self.0 {
            Known::Certificate(own) => *own == certificate,
            Known::Fingerprint(own) => *own == fingerprint(&certificate),
        }
    }

    /// SHA-256 of its certificate, in hexadecimal: what a join token names.
    pub fn fingerprint(&self) -> String {
        match &self.0 {
            Known::Certificate(certificate) => fingerprint(certificate),
            Known::Fingerprint(fingerprint) => fingerprint.clone(),
        }
    }

    pub(super) fn verifier(
        &self,
        provider: Arc<CryptoProvider>,
    ) -> Result<Arc<dyn ServerCertVerifier>, Error> {
        Ok(match &self.0 {
            Known::Certificate(certificate) => trusting(certificate.clone(), provider)?,
            Known::Fingerprint(fingerprint) => {
                Arc::new(Pinned { fingerprint: fingerprint.clone(), provider })
            }
        })
    }
}

/// SHA-256 of a certificate, in hexadecimal.
fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    sha2::Sha256::digest(certificate).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn trusting(
    root: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, Error> {
    let mut roots = RootCertStore::empty();
    roots.add(root)?;
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| Error::General(error.to_string()))
}

/// Looks for the pinned authority among the certificates the server sends, then verifies the server's own
/// with it: chain, name, purpose and time.
#[derive(Debug)]
struct Pinned {
    fingerprint: String,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let root = intermediates.iter().find(|sent| fingerprint(sent) == self.fingerprint);
        let root =
            root.ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?.clone().into_owned();
        let verifier = trusting(root, Arc::clone(&self.provider))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    };

    use super::*;
    use crate::secure::{Failure, explain};

    type Issuer = CertifiedIssuer<'static, KeyPair>;

    fn authority() -> Issuer {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    fn leaf(issuer: &Issuer, usage: ExtendedKeyUsagePurpose) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(["box.example".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2026, 4, 1);
        params.extended_key_usages = vec![usage];
        params.signed_by(&KeyPair::generate().unwrap(), issuer).unwrap().der().clone()
    }

    /// 2026-02-01.
    const NOW: u64 = 1_769_904_000;

    #[test]
    fn a_pinned_authority_is_looked_for_and_then_everything_is_verified() {
        use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
        let (ours, other) = (authority(), authority());
        let (root, stranger) = (ours.der().clone(), other.der().clone());
        let good = leaf(&ours, ServerAuth);
        let year = 365 * 86_400;
        type Case<'a> =
            (&'a str, CertificateDer<'static>, Vec<CertificateDer<'static>>, &'a str, u64, Option<Failure>);
        #[rustfmt::skip]
        let cases: Vec<Case<'_>> = vec![
            ("right", good.clone(), vec![root.clone()], "box.example", NOW, None),
            ("authority not sent", good.clone(), vec![], "box.example", NOW, Some(Failure::WrongAuthority)),
            ("another cluster", leaf(&other, ServerAuth), vec![stranger.clone()], "box.example", NOW, Some(Failure::WrongAuthority)),
            // The pinned certificate is public: showing it proves nothing.
            ("impostor", leaf(&other, ServerAuth), vec![stranger, root.clone()], "box.example", NOW, Some(Failure::WrongAuthority)),
            ("a node as server", leaf(&ours, ClientAuth), vec![root.clone()], "box.example", NOW, Some(Failure::WrongAuthority)),
            ("another name", good.clone(), vec![root.clone()], "other.example", NOW, Some(Failure::WrongName(String::new()))),
            ("clock behind", good.clone(), vec![root.clone()], "box.example", NOW - year, Some(Failure::WrongTime)),
            ("clock ahead", good, vec![root.clone()], "box.example", NOW + year, Some(Failure::WrongTime)),
        ];
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = Authority::pinned(&fingerprint(&root)).verifier(provider).unwrap();
        for (what, leaf, chain, name, now, expected) in cases {
            let name = ServerName::try_from(name).unwrap();
            let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
            let failure =
                verifier.verify_server_cert(&leaf, &chain, &name, &[], now).err().map(|e| explain(&e));
            match (failure, expected) {
                (Some(Failure::WrongName(names)), Some(Failure::WrongName(_))) => {
                    assert!(names.contains("box.example"), "{names}");
                }
                (failure, expected) => assert_eq!(failure, expected, "{what}"),
            }
        }
    }
}
