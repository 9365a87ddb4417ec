//! What registries and tenants write about images.

use std::collections::BTreeMap;

use super::{Keyring, auth, policy, reference, registry};

/// An image's reference. What it is taken for is read the same again.
pub(crate) fn reference(text: &str) {
    let Ok(read) = reference::Reference::parse(text) else { return };
    assert!(!read.repository.contains("..") || !read.repository.contains("/../"));
    let _ = read.is_local();
    let again = reference::Reference::parse(&read.title());
    assert!(again.is_ok_and(|again| again == read), "{text:?}");
}

/// A Secret of `imagePullSecrets`, and what of it is for an image.
pub(crate) fn keyring(config: &[u8], host: &str, repository: &str) {
    for key in [".dockerconfigjson", ".dockercfg"] {
        let mut keyring = Keyring::default();
        if keyring.add(&BTreeMap::from([(key.to_owned(), config.to_vec())])).is_ok() {
            for credential in keyring.of(host, repository) {
                let _ = (credential.basic(), credential.fingerprint());
            }
        }
    }
}

/// What a registry or its token server answers.
pub(crate) fn answer(bytes: &[u8]) {
    let _ = (auth::token(bytes), registry::words(bytes), policy::size(bytes), crate::kind::content(bytes));
    let _ = (registry::platform(bytes, true), registry::platform(bytes, false));
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Some(auth::Challenge::Bearer(bearer)) = auth::Challenge::parse(text) {
        let _ = (bearer.url("a/b"), bearer.form("a/b", "t"));
    }
}
