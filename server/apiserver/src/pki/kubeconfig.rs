//! Client configuration for `kubectl` and everything that reads what it reads.

use base64::{Engine, engine::general_purpose::STANDARD};

use super::ClientCertificate;

/// Name of cluster, context and user.
const NAME: &str = "ketch";

/// A kubeconfig with everything embedded, for the server at `url`. Contains the private key: keep the
/// file owner-only.
pub fn kubeconfig(url: &str, ca_pem: &str, client: &ClientCertificate) -> zeroize::Zeroizing<String> {
    let ca = STANDARD.encode(ca_pem);
    let certificate = STANDARD.encode(&client.certificate);
    let key = zeroize::Zeroizing::new(STANDARD.encode(client.key.as_bytes()));
    format!(
        "apiVersion: v1\n\
         kind: Config\n\
         clusters:\n\
         - name: {NAME}\n\
         \x20 cluster:\n\
         \x20   server: {url}\n\
         \x20   certificate-authority-data: {ca}\n\
         contexts:\n\
         - name: {NAME}\n\
         \x20 context:\n\
         \x20   cluster: {NAME}\n\
         \x20   user: {NAME}\n\
         current-context: {NAME}\n\
         users:\n\
         - name: {NAME}\n\
         \x20 user:\n\
         \x20   client-certificate-data: {certificate}\n\
         \x20   client-key-data: {}\n",
        *key
    )
    .into()
}
