//! Compiled code on disk, by content and by what it was compiled for.
//!
//! `<dir>/<sha256 of the binary>-<engine hash>.cwasm`, with a MAC beside it: loading code is as trusting as
//! running it, so only what this node wrote, unchanged, is loaded. Anything else is compiled again.

use std::{
    collections::HashMap,
    fs,
    io::{self, Read, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use hmac::{Hmac, Mac};
use sha2::Sha256;
use tokio::sync::Semaphore;

use crate::{compile::Compiler, engine::Layout};

/// Identity of a file's content as far as the file system knows: a change of content changes it.
type Stamp = (u64, u64, u64, i64, i64);

pub(crate) struct Cache {
    dir: PathBuf,
    key: [u8; 32],
    engine: String,
    layout: Layout,
    compiler: Arc<dyn Compiler>,
    /// Compilers that may run at a time.
    compilers: Semaphore,
    /// One lock per binary that is being compiled or loaded, so that two pulls of it compile once.
    locks: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// Files whose MAC was checked by this process.
    checked: Mutex<HashMap<String, Stamp>>,
}

impl Cache {
    /// Opens the cache in `dir`, making directory and key when missing.
    pub(crate) fn open(
        dir: &Path,
        engine: String,
        layout: Layout,
        compiler: Arc<dyn Compiler>,
    ) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let compilers = std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2));
        Ok(Self {
            dir: dir.to_owned(),
            key: key(&dir.join("key"))?,
            engine,
            layout,
            compiler,
            compilers: Semaphore::new(compilers),
            locks: Mutex::default(),
            checked: Mutex::default(),
        })
    }

    /// Path of code compiled from `wasm`, whose hexadecimal SHA-256 is `digest`, checked to be what this
    /// node compiled. Compiles it when it is not there.
    ///
    /// # Errors
    /// Text for people: the compiler's, or the disk's.
    pub(crate) async fn code(&self, digest: &str, wasm: &Path) -> Result<PathBuf, String> {
        let path = self.dir.join(format!("{digest}-{}.cwasm", self.engine));
        let guard = self.lock(digest);
        let _held = guard.lock().await;
        let result = if self.valid(&path, digest) { Ok(()) } else { self.fill(&path, digest, wasm).await };
        drop(_held);
        self.unlock(digest, guard);
        result.map(|()| path)
    }

    /// Forgets that a file was checked and removes it: it did not load.
    pub(crate) fn discard(&self, path: &Path) {
        self.checked.lock().unwrap_or_else(PoisonError::into_inner).remove(&name(path));
        // A file that cannot be removed fails its check or its load again.
        _ = fs::remove_file(path);
        _ = fs::remove_file(mac_path(path));
    }

    /// Removes what was compiled from a binary, for this engine and for earlier ones.
    pub(crate) fn forget(&self, digest: &str) {
        let prefix = format!("{digest}-");
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix)) {
            self.discard(&entry.path());
        }
    }

    fn lock(&self, digest: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(locks.entry(digest.to_owned()).or_default())
    }

    fn unlock(&self, digest: &str, guard: Arc<tokio::sync::Mutex<()>>) {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        drop(guard);
        if locks.get(digest).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            locks.remove(digest);
        }
    }

    /// Whether `path` is what this node wrote for `digest`. Reads it only once per content and process.
    fn valid(&self, path: &Path, digest: &str) -> bool {
        let Ok(stamp) = stamp(path) else { return false };
        let mut checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        if checked.get(&name(path)) == Some(&stamp) {
            return true;
        }
        let valid = match (self.mac(path, digest), fs::read(mac_path(path))) {
            (Ok(mac), Ok(found)) => mac.verify_slice(&found).is_ok(),
            _ => false,
        };
        if valid {
            checked.insert(name(path), stamp);
        } else {
            tracing::warn!(path = %path.display(), "compiled code is not what was written; compiling again");
        }
        valid
    }

    async fn fill(&self, path: &Path, digest: &str, wasm: &Path) -> Result<(), String> {
        let _compiler = self.compilers.acquire().await.map_err(|error| error.to_string())?;
        let fresh = path.with_extension("tmp");
        self.compiler.compile(wasm, &fresh, self.layout).await?;
        let place = || -> io::Result<()> {
            let mac = self.mac(&fresh, digest)?.finalize().into_bytes();
            fs::File::open(&fresh)?.sync_all()?;
            write_private(&mac_path(path), &mac)?;
            fs::rename(&fresh, path)
        };
        place().map_err(|error| format!("cannot keep the compiled code: {error}"))?;
        if let Ok(stamp) = stamp(path) {
            self.checked.lock().unwrap_or_else(PoisonError::into_inner).insert(name(path), stamp);
        }
        Ok(())
    }

    /// MAC of a file's content for a binary and an engine.
    fn mac(&self, path: &Path, digest: &str) -> io::Result<Hmac<Sha256>> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).map_err(io::Error::other)?;
        mac.update(digest.as_bytes());
        mac.update(self.engine.as_bytes());
        let mut file = fs::File::open(path)?;
        let mut buffer = vec![0; 64 << 10];
        loop {
            let length = file.read(&mut buffer)?;
            if length == 0 {
                return Ok(mac);
            }
            mac.update(buffer.get(..length).unwrap_or_default());
        }
    }
}

fn stamp(path: &Path) -> io::Result<Stamp> {
    let data = fs::metadata(path)?;
    Ok((data.dev(), data.ino(), data.size(), data.ctime(), data.ctime_nsec()))
}

fn name(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn mac_path(path: &Path) -> PathBuf {
    path.with_extension("mac")
}

/// Reads the key, or makes one that only this user can read.
fn key(path: &Path) -> io::Result<[u8; 32]> {
    let mut key = [0; 32];
    match fs::File::open(path) {
        Ok(mut file) => file.read_exact(&mut key)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            getrandom::fill(&mut key).map_err(|error| io::Error::other(error.to_string()))?;
            write_private(path, &key)?;
        }
        Err(error) => return Err(error),
    }
    Ok(key)
}

/// Replaces `path` with `bytes` in one step, readable by this user only. Two at a time are fine.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().ok_or_else(|| io::Error::other("no directory"))?;
    let mut fresh = tempfile::NamedTempFile::new_in(dir)?;
    fresh.write_all(bytes)?;
    fresh.as_file().sync_all()?;
    fresh.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Default)]
    struct Counting(AtomicUsize);

    #[async_trait::async_trait]
    impl Compiler for Counting {
        async fn compile(&self, wasm: &Path, out: &Path, _layout: Layout) -> Result<(), String> {
            self.0.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            fs::copy(wasm, out).map(|_| ()).map_err(|error| error.to_string())
        }
    }

    fn open(dir: &Path, compiler: &Arc<Counting>) -> Cache {
        Cache::open(dir, "engine".into(), Layout::Compact, Arc::clone(compiler) as _).unwrap()
    }

    #[tokio::test]
    async fn a_binary_is_compiled_once() {
        let dir = tempfile::tempdir().unwrap();
        let wasm = dir.path().join("in.wasm");
        fs::write(&wasm, "code").unwrap();
        let compiler = Arc::new(Counting::default());
        let cache = open(dir.path(), &compiler);
        let (first, second) = tokio::join!(cache.code("abc", &wasm), cache.code("abc", &wasm));
        assert_eq!(first, second);
        assert_eq!(compiler.0.load(Ordering::SeqCst), 1);
        assert!(cache.locks.lock().unwrap().is_empty());
        let again = open(dir.path(), &compiler);
        again.code("abc", &wasm).await.unwrap();
        assert_eq!(compiler.0.load(Ordering::SeqCst), 1, "a restart keeps the code");
    }

    #[tokio::test]
    async fn changed_code_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let wasm = dir.path().join("in.wasm");
        fs::write(&wasm, "code").unwrap();
        let compiler = Arc::new(Counting::default());
        let cache = open(dir.path(), &compiler);
        let path = cache.code("abc", &wasm).await.unwrap();
        for (attempt, damage) in [&b"evil"[..], b"codecode", b""].into_iter().enumerate() {
            fs::write(&path, damage).unwrap();
            assert_eq!(cache.code("abc", &wasm).await.unwrap(), path);
            assert_eq!(fs::read(&path).unwrap(), b"code");
            assert_eq!(compiler.0.load(Ordering::SeqCst), attempt + 2);
        }
        fs::copy(&path, dir.path().join("other-engine.cwasm")).unwrap();
        fs::copy(mac_path(&path), dir.path().join("other-engine.mac")).unwrap();
        cache.code("other", &wasm).await.unwrap();
        assert_eq!(compiler.0.load(Ordering::SeqCst), 5, "code of another binary does not count");
    }

    #[tokio::test]
    async fn the_key_is_private() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path(), &Arc::default());
        assert_eq!(fs::metadata(dir.path().join("key")).unwrap().mode() & 0o777, 0o600);
    }
}
