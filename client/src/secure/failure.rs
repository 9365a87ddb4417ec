//! Why there is no connection, in words for the person at the terminal.

use std::{error::Error, io};

use rustls::CertificateError;

/// Why the server could not be talked to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Its certificate is not from the authority that was expected.
    WrongAuthority,
    /// Its certificate is for other names.
    WrongName(String),
    /// Its certificate is not valid at this time: a clock is wrong, or it has expired.
    WrongTime,
    /// The server does not accept our certificate.
    Refused(String),
    /// Nobody answers there, or in another language.
    Unreachable(String),
}

/// The cause of a failed request, found at the bottom of its chain of causes.
pub fn explain(error: &(dyn Error + 'static)) -> Failure {
    let mut next = Some(error);
    let mut last = error.to_string();
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return of_tls(found);
        }
        last = error.to_string();
        // An `io::Error` hides what it wraps from `source`.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match wrapped {
            Some(inner) => Some(inner as &(dyn Error + 'static)),
            None => error.source(),
        };
    }
    // HTTP/2 passes on the text alone.
    match last.split_once("received fatal alert: ") {
        Some((_, alert)) => Failure::Refused(alert.to_owned()),
        None => Failure::Unreachable(last),
    }
}

fn of_tls(error: &rustls::Error) -> Failure {
    match error {
        rustls::Error::InvalidCertificate(why) => match why {
            CertificateError::NotValidForName => Failure::WrongName(error.to_string()),
            CertificateError::NotValidForNameContext { presented, .. } => {
                Failure::WrongName(presented.join(", "))
            }
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => Failure::WrongTime,
            _ => Failure::WrongAuthority,
        },
        rustls::Error::AlertReceived(alert) => Failure::Refused(format!("{alert:?}")),
        other => Failure::Unreachable(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_found_however_deep() {
        let tls = |why| {
            io::Error::other(io::Error::new(
                io::ErrorKind::InvalidData,
                rustls::Error::InvalidCertificate(why),
            ))
        };
        assert_eq!(explain(&tls(CertificateError::UnknownIssuer)), Failure::WrongAuthority);
        assert_eq!(explain(&tls(CertificateError::Expired)), Failure::WrongTime);
        let alert = io::Error::other("received fatal alert: CertificateExpired");
        assert_eq!(explain(&alert), Failure::Refused("CertificateExpired".to_owned()));
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        assert!(
            matches!(explain(&io::Error::other(refused)), Failure::Unreachable(why) if why.contains("refused"))
        );
    }
}
