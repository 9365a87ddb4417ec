//! A registry that is not Ketch's: Debian's `docker-registry`, open, with passwords, or with tokens under TLS.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{BasicConstraints, CertificateParams, Issuer, KeyPair, SanType};
use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer},
};
use serde_json::{Value, json};

use crate::{Ketch, root, succeeded, until};

/// Of the user `puller`, who may do everything.
pub const PASSWORD: &str = "s3cret";
/// `PASSWORD`, as bcrypt has it.
const USERS: &str = "puller:$2b$12$u3MNTYyBj2AgUjNbOqMHt.4pvdhNOJMs56LaBl.JRxK9e.SP3pLhq\n";
const SERVICE: &str = "test-registry";

/// How a registry is secured.
pub enum Secured {
    /// Plain HTTP, for everyone.
    Not,
    /// Plain HTTP, with a password.
    Passwords,
    /// TLS with an authority of its own, and tokens of a server that is the same authority's.
    Tokens(Authority),
}

/// An authority that nobody knows, and a certificate of it for this machine.
pub struct Authority {
    /// Its certificate.
    pub file: PathBuf,
    certificate: CertificateDer<'static>,
    key: KeyPair,
}

/// A registry of its own, killed when dropped.
pub struct Registry {
    child: Child,
    /// Where it is reached on loopback.
    pub address: String,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Registry {
    /// Starts one that keeps its files in `dir`. `None`: the program could not be had.
    pub fn start(dir: &Path, secured: &Secured) -> Option<Self> {
        let program = root().join("target/tools/docker-registry/usr/bin/docker-registry");
        if !program.is_file() {
            eprintln!("skipped: {} is missing", program.display());
            return None;
        }
        fs::create_dir_all(dir).unwrap();
        // Nobody else takes a port that was free a moment ago.
        let port = TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port();
        let path = |name: &str| dir.join(name).display().to_string();
        let http = format!("http: {{addr: '0.0.0.0:{port}'");
        let security = match secured {
            Secured::Not => format!("{http}}}\n"),
            Secured::Passwords => {
                fs::write(path("users"), USERS).unwrap();
                format!("{http}}}\nauth: {{htpasswd: {{realm: test, path: {}}}}}\n", path("users"))
            }
            Secured::Tokens(authority) => {
                let (certificate, key) = authority.write(dir);
                let realm = authority.serve_tokens();
                format!(
                    "{http}, tls: {{certificate: {certificate}, key: {key}}}}}\nauth: {{token: {{realm: '{realm}', \
                     service: {SERVICE}, issuer: test, rootcertbundle: {certificate}}}}}\n",
                )
            }
        };
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n{security}",
            path("data")
        );
        fs::write(path("config.yml"), config).unwrap();
        let log = fs::File::create(path("log")).unwrap();
        let mut command = Command::new(program);
        command.arg("serve").arg(path("config.yml")).stdin(Stdio::null());
        let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let registry = Self { child, address: format!("127.0.0.1:{port}") };
        until("the registry", || {
            TcpStream::connect(&registry.address).map(drop).map_err(|error| error.to_string())
        });
        Some(registry)
    }

    /// Copies an image of the built-in registry to this one.
    pub fn copy(&self, ketch: &Ketch, from: &str, to: &str) {
        let credentials = format!("token:{}", ketch.token());
        let target = format!("docker://{}/{to}", self.address);
        let source = format!("docker://{}/default/{from}", ketch.address("api-addr"));
        let copy = Command::new("skopeo")
            .args(["copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false"])
            .args(["--src-creds", &credentials, "--dest-creds", &format!("puller:{PASSWORD}")])
            .args([&source, &target])
            .output();
        succeeded("skopeo", copy.unwrap());
    }
}

impl Authority {
    /// A new one, written to a file in `dir`, for `address` and loopback.
    pub fn new(dir: &Path, address: IpAddr) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "an authority of a company");
        let own = KeyPair::generate().unwrap();
        let file = dir.join("authority.pem");
        fs::write(&file, params.self_signed(&own).unwrap().pem()).unwrap();
        let issuer = Issuer::new(params, own);
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, "registry");
        params.subject_alt_names = [IpAddr::from([127, 0, 0, 1]), address].map(SanType::IpAddress).into();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap().der().clone();
        Self { file, certificate, key }
    }

    /// Files with certificate and key.
    fn write(&self, dir: &Path) -> (String, String) {
        let (certificate, key) = (dir.join("certificate.pem"), dir.join("key.pem"));
        let text = BASE64_STANDARD.encode(&self.certificate);
        let text = format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n");
        fs::write(&certificate, text).unwrap();
        fs::write(&key, self.key.serialize_pem()).unwrap();
        (certificate.display().to_string(), key.display().to_string())
    }

    /// Serves tokens until the tests end; its address.
    fn serve_tokens(&self) -> String {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = PrivateKeyDer::try_from(self.key.serialize_der()).unwrap();
        let config =
            ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config =
            config.with_no_client_auth().with_single_cert(vec![self.certificate.clone()], key).unwrap();
        let (config, listener) = (Arc::new(config), TcpListener::bind("127.0.0.1:0").unwrap());
        let address: SocketAddr = listener.local_addr().unwrap();
        let signing = EncodingKey::from_ec_pem(self.key.serialize_pem().as_bytes()).unwrap();
        let chain = vec![BASE64_STANDARD.encode(&self.certificate)];
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
                // A client that does not like the certificate goes away.
                let _ = answer(StreamOwned::new(connection, stream), &signing, &chain);
            }
        });
        format!("https://{address}/token")
    }
}

/// Answers one request for a token.
fn answer(
    mut stream: StreamOwned<ServerConnection, TcpStream>,
    signing: &EncodingKey,
    chain: &[String],
) -> std::io::Result<()> {
    let mut reader = BufReader::new(&mut stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Ok(());
        }
    }
    let lower = head.to_lowercase();
    let length =
        lower.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
    let mut form = vec![0; length];
    reader.read_exact(&mut form)?;
    let right = format!("Authorization: Basic {}", BASE64_STANDARD.encode(format!("puller:{PASSWORD}")));
    let form = String::from_utf8_lossy(&form).into_owned();
    let known =
        head.lines().any(|line| line.eq_ignore_ascii_case(&right)) && lower.contains("authorization: basic ");
    let known = known || form.contains(&format!("refresh_token={PASSWORD}"));
    let tried = lower.contains("authorization: ") || form.contains("refresh_token=");
    let query =
        head.split(' ').nth(1).and_then(|path| path.split_once('?')).map(|(_, query)| query.to_owned());
    let (status, body) = match known || !tried {
        // Nobody in particular gets a token, too, but one that is good for nothing: as at the large registries.
        true => ("200 OK", json!({"token": token(&query.unwrap_or(form), known, signing, chain)})),
        false => ("401 Unauthorized", json!({"details": "incorrect username or password"})),
    };
    let body = body.to_string();
    write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())?;
    stream.conn.send_close_notify();
    stream.flush()
}

/// A token for the scope that a query or a form asks for.
fn token(query: &str, known: bool, signing: &EncodingKey, chain: &[String]) -> String {
    let fields = query.split('&').filter_map(|pair| pair.split_once('='));
    let scopes = fields
        .filter(|(name, _)| *name == "scope")
        .map(|(_, scope)| scope.replace("%3A", ":").replace("%2F", "/").replace("%2C", ","));
    let access = scopes.filter(|_| known).filter_map(|scope| {
        let mut parts = scope.split(':');
        let (kind, name) = (parts.next()?.to_owned(), parts.next()?.to_owned());
        Some(json!({"type": kind, "name": name, "actions": parts.next()?.split(',').collect::<Vec<_>>()}))
    });
    let access: Vec<Value> = access.collect();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let claims = json!({"iss": "test", "sub": "puller", "aud": SERVICE, "iat": now, "nbf": now - 60, "exp": now + 300,
        "jti": "1", "access": access});
    let mut header = Header::new(Algorithm::ES256);
    header.x5c = Some(chain.to_vec());
    jsonwebtoken::encode(&header, &claims, signing).unwrap()
}
