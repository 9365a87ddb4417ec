//! The first conversation with the server: a token for an identity.

use std::time::Duration;

use http::Method;
use jiff::Timestamp;
use ketch_api::join::{JOIN_PATH, Membership, Request, Token};
use ketch_client::secure::{self, Authority};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};

use super::{
    Identity, JoinError, ServerAddress,
    server::{self, Fault},
};

/// For the answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Joins the cluster at `server`. The key is made here and stays here; the token is used up.
///
/// # Errors
/// See [`JoinError`]; nothing has been changed then, except that an answer that was lost on its way has used
/// up the token.
pub async fn join(server: &ServerAddress, token: &Token, node_name: &str) -> Result<Identity, JoinError> {
    let pinned = Authority::pinned(&token.fingerprint);
    let tls = secure::tls(&pinned, None).map_err(|error| JoinError::Key(error.to_string()))?;
    let client = secure::connect(server.uri(), tls);
    let (key, request) = signing_request(node_name)?;
    let bearer = token.bearer();
    let asked = server::ask::<Membership>(&client, Method::POST, JOIN_PATH, Some(&bearer), &request);
    let given = tokio::time::timeout(PATIENCE, asked).await;
    let given = given.map_err(|_| JoinError::Unreachable(server.clone(), "no answer".to_owned()))?;
    let given = given.map_err(|fault| refused(fault, server))?;
    // The server has proved that it has the authority's key; this is whether it knows what it says.
    if !pinned.is(&given.authority) {
        return Err(JoinError::WrongAuthority(server.clone()));
    }
    let identity = Identity::new(server.to_string(), node_name.to_owned(), key, given, Timestamp::now());
    Ok(identity)
}

/// A new key (PEM) and the request for certificates of it.
///
/// # Errors
/// When the system has no random numbers.
pub fn signing_request(node_name: &str) -> Result<(String, Request), JoinError> {
    let failed = |error: rcgen::Error| JoinError::Key(error.to_string());
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let request = CertificateParams::default().serialize_request(&key).map_err(failed)?;
    let signing_request = request.pem().map_err(failed)?;
    Ok((key.serialize_pem(), Request { node_name: node_name.to_owned(), signing_request }))
}

fn refused(fault: Fault, server: &ServerAddress) -> JoinError {
    match fault {
        Fault::Status(status, _) if status.as_u16() == 401 => JoinError::Token,
        Fault::Status(_, message) => JoinError::Refused(message),
        Fault::Unreadable(why) => JoinError::Answer(server.clone(), why),
        Fault::Connection(failure) => JoinError::of(failure, server),
    }
}
