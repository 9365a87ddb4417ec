//! Writes kubeconfig files: a whole one for Ketch, or an entry in the user's own.
//!
//! Invariant: an entry that Ketch did not make is never changed. Ours carry the extension `ketch.dev`;
//! everything else in the file is kept as it was read, unknown fields included (comments are lost, as
//! with `kubectl config`).

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};

/// Marks our entries.
const EXTENSION: &str = ketch_api::names::DOMAIN;

/// What can go wrong with a kubeconfig file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading or writing failed.
    #[error("cannot use kubeconfig {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no kubeconfig.
    #[error("kubeconfig is malformed: {0}")]
    Malformed(String),
    /// An entry of that name exists and is not ours.
    #[error(
        "kubeconfig already has {what} \"{name}\" that Ketch did not create; choose another context name"
    )]
    Foreign {
        /// `a cluster`, `a user` or `a context`.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// No client can be made of it.
    #[error("kubeconfig {path} cannot be used: {why}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

/// How a user proves who they are.
#[derive(Clone)]
pub enum Credentials {
    /// A bearer token.
    Token(String),
    /// A client certificate and its key, both PEM.
    Certificate {
        /// Certificate chain.
        certificate: String,
        /// Private key.
        key: String,
    },
}

/// One context with its cluster and user, which all have the same name.
#[derive(Clone)]
pub struct Entry {
    /// Name of the context.
    pub name: String,
    /// URL of the API server.
    pub server: String,
    /// Certificate of the authority that signed the server's, PEM; empty for plain HTTP.
    pub ca: String,
    /// Who the user is.
    pub credentials: Credentials,
    /// Namespace of requests that name none.
    pub namespace: Option<String>,
}

/// A kubeconfig with nothing but `entry`, which is its current context.
pub fn render(entry: &Entry) -> Result<String, Error> {
    merge("", entry)
}

/// `existing` with `entry` put in; an entry of ours with the same name is replaced. The current context
/// changes only when there was none.
///
/// # Errors
/// `existing` is no kubeconfig, or an entry of that name is not ours.
pub fn merge(existing: &str, entry: &Entry) -> Result<String, Error> {
    let mut file = parse(existing)?;
    put(&mut file, "clusters", "a cluster", &entry.name, json!({"cluster": cluster(entry)}))?;
    put(&mut file, "users", "a user", &entry.name, json!({"user": user(entry)}))?;
    put(&mut file, "contexts", "a context", &entry.name, json!({"context": context(entry)}))?;
    let current = file.get("current-context").and_then(Value::as_str).unwrap_or_default();
    if current.is_empty() {
        file.insert("current-context".into(), entry.name.clone().into());
    }
    serde_saphyr::to_string(&Value::Object(file)).map_err(|e| Error::Malformed(e.to_string()))
}

/// `existing` without our entries called `name`. Foreign ones stay.
///
/// # Errors
/// `existing` is no kubeconfig.
pub fn remove(existing: &str, name: &str) -> Result<String, Error> {
    let mut file = parse(existing)?;
    let mut context_removed = false;
    for list in ["clusters", "users", "contexts"] {
        if let Some(Value::Array(entries)) = file.get_mut(list) {
            let before = entries.len();
            entries.retain(|entry| !(name_of(entry) == name && is_ours(entry)));
            context_removed |= list == "contexts" && entries.len() != before;
        }
    }
    if context_removed && file.get("current-context").and_then(Value::as_str) == Some(name) {
        file.insert("current-context".into(), "".into());
    }
    serde_saphyr::to_string(&Value::Object(file)).map_err(|e| Error::Malformed(e.to_string()))
}

/// Writes a file with nothing but `entry`, readable by its owner only, replacing it in one step.
///
/// # Errors
/// The file cannot be written.
pub fn write(path: &Path, entry: &Entry) -> Result<(), Error> {
    replace(path, &render(entry)?)
}

/// Puts `entry` into a user's file, creating it when missing; see [`merge`].
///
/// # Errors
/// The file cannot be read, understood or written, or has a foreign entry of that name.
pub fn write_into(path: &Path, entry: &Entry) -> Result<(), Error> {
    let existing = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(source) => return Err(Error::Io { path: path.to_owned(), source }),
    };
    replace(path, &merge(&existing, entry)?)
}

fn parse(text: &str) -> Result<Map<String, Value>, Error> {
    let mut file = match text.trim() {
        "" => Map::new(),
        _ => match serde_saphyr::from_str::<Value>(text) {
            Ok(Value::Object(file)) => file,
            Ok(Value::Null) => Map::new(),
            Ok(_) => return Err(Error::Malformed("it is not a mapping".into())),
            Err(error) => return Err(Error::Malformed(error.to_string())),
        },
    };
    file.entry("apiVersion").or_insert_with(|| "v1".into());
    file.entry("kind").or_insert_with(|| "Config".into());
    Ok(file)
}

fn put(
    file: &mut Map<String, Value>,
    list: &str,
    what: &'static str,
    name: &str,
    mut entry: Value,
) -> Result<(), Error> {
    let slot = file.entry(list).or_insert_with(|| json!([]));
    if slot.is_null() {
        *slot = json!([]);
    }
    let Value::Array(entries) = slot else {
        return Err(Error::Malformed(format!("\"{list}\" is not a list")));
    };
    if let Some(object) = entry.as_object_mut() {
        object.insert("name".into(), name.into());
    }
    match entries.iter_mut().find(|existing| name_of(existing) == name) {
        Some(existing) if is_ours(existing) => *existing = entry,
        Some(_) => return Err(Error::Foreign { what, name: name.to_owned() }),
        None => entries.push(entry),
    }
    Ok(())
}

fn name_of(entry: &Value) -> &str {
    entry.get("name").and_then(Value::as_str).unwrap_or_default()
}

fn is_ours(entry: &Value) -> bool {
    let bodies = ["cluster", "user", "context"].into_iter().filter_map(|body| entry.get(body));
    let mut extensions =
        bodies.filter_map(|body| body.get("extensions")).filter_map(Value::as_array).flatten();
    extensions.any(|extension| name_of(extension) == EXTENSION)
}

fn ours() -> Value {
    json!([{"name": EXTENSION, "extension": {"managed": true}}])
}

fn cluster(entry: &Entry) -> Value {
    match entry.ca.as_str() {
        "" => json!({"server": entry.server, "extensions": ours()}),
        ca => json!({
            "server": entry.server,
            "certificate-authority-data": STANDARD.encode(ca),
            "extensions": ours(),
        }),
    }
}

fn user(entry: &Entry) -> Value {
    match &entry.credentials {
        Credentials::Token(token) => json!({"token": token, "extensions": ours()}),
        Credentials::Certificate { certificate, key } => json!({
            "client-certificate-data": STANDARD.encode(certificate),
            "client-key-data": STANDARD.encode(key),
            "extensions": ours(),
        }),
    }
}

fn context(entry: &Entry) -> Value {
    match &entry.namespace {
        None => json!({"cluster": entry.name, "user": entry.name, "extensions": ours()}),
        Some(namespace) => json!({
            "cluster": entry.name,
            "user": entry.name,
            "namespace": namespace,
            "extensions": ours(),
        }),
    }
}

/// Writes beside the file and renames, so that a reader never sees half of it.
fn replace(path: &Path, text: &str) -> Result<(), Error> {
    let failed = |source| Error::Io { path: path.to_owned(), source };
    // A link is followed: the user's file may live elsewhere.
    let target = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if let Some(dir) = target.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        std::fs::create_dir_all(dir).map_err(failed)?;
    }
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let temporary = target.with_file_name(name);
    let written = write_private(&temporary, text).and_then(|()| std::fs::rename(&temporary, &target));
    written.map_err(|source| {
        let _ = std::fs::remove_file(&temporary);
        failed(source)
    })
}

fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    // Left behind by a crash of a process with our id.
    let _ = std::fs::remove_file(path);
    let mut file = options.open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(server: &str) -> Entry {
        Entry {
            name: "ketch".into(),
            server: server.into(),
            ca: "CA".into(),
            credentials: Credentials::Certificate { certificate: "CERT".into(), key: "KEY".into() },
            namespace: Some("default".into()),
        }
    }

    const FOREIGN: &str = "apiVersion: v1\nkind: Config\ncurrent-context: prod\npreferences: {colors: true}\nclusters:\n- name: prod\n  cluster: {server: 'https://prod', x-future: 7}\nusers:\n- name: prod\n  user: {token: abc}\ncontexts:\n- name: prod\n  context: {cluster: prod, user: prod}\n";

    #[test]
    fn kube_reads_what_is_rendered() {
        let file =
            kube::config::Kubeconfig::from_yaml(&render(&entry("https://127.0.0.1:6443")).unwrap()).unwrap();
        assert_eq!(file.current_context.as_deref(), Some("ketch"));
        let cluster = file.clusters[0].cluster.as_ref().unwrap();
        assert_eq!(cluster.server.as_deref(), Some("https://127.0.0.1:6443"));
        assert_eq!(cluster.certificate_authority_data.as_deref(), Some("Q0E="));
        let context = file.contexts[0].context.as_ref().unwrap();
        assert_eq!((context.cluster.as_str(), context.namespace.as_deref()), ("ketch", Some("default")));
    }

    #[test]
    fn foreign_entries_are_kept_as_they_are() {
        let merged = merge(FOREIGN, &entry("https://a")).unwrap();
        let before: Value = serde_saphyr::from_str(FOREIGN).unwrap();
        let after: Value = serde_saphyr::from_str(&merged).unwrap();
        for list in ["clusters", "users", "contexts"] {
            assert_eq!(before[list][0], after[list][0]);
            assert_eq!(after[list][1]["name"], "ketch");
        }
        assert_eq!(after["current-context"], "prod");
        assert_eq!(after["preferences"], before["preferences"]);
        let without: Value = serde_saphyr::from_str(&remove(&merged, "ketch").unwrap()).unwrap();
        assert_eq!(without, before);
    }

    #[test]
    fn ours_is_replaced_and_a_namesake_is_refused() {
        let once = merge(FOREIGN, &entry("https://old")).unwrap();
        let twice: Value = serde_saphyr::from_str(&merge(&once, &entry("https://new")).unwrap()).unwrap();
        assert_eq!(twice["clusters"].as_array().unwrap().len(), 2);
        assert_eq!(twice["clusters"][1]["cluster"]["server"], "https://new");
        let namesake = Entry { name: "prod".into(), ..entry("https://a") };
        let error = merge(FOREIGN, &namesake).unwrap_err();
        assert!(error.to_string().contains("a cluster \"prod\""), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn files_are_private_and_links_survive() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("real");
        std::fs::write(&real, FOREIGN).unwrap();
        let link = dir.path().join("config");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        write_into(&link, &entry("https://a")).unwrap();
        assert!(link.symlink_metadata().unwrap().is_symlink());
        assert!(std::fs::read_to_string(&real).unwrap().contains("https://a"));
        assert_eq!(real.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left behind");
        let fresh = dir.path().join("sub/dir/config");
        write(&fresh, &entry("https://a")).unwrap();
        assert_eq!(fresh.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn malformed_files_are_left_alone() {
        assert!(matches!(merge("clusters: 7", &entry("https://a")), Err(Error::Malformed(_))));
        assert!(matches!(merge("- a\n", &entry("https://a")), Err(Error::Malformed(_))));
    }
}
