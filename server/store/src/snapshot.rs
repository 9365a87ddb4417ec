//! Copies of the store, for backups. A view is immutable, so writes go on while one is written.

use crate::state::View;
use crate::{Error, Revision};
use redb::Builder;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

const CACHE_BYTES: usize = 16 << 20;

/// Writes `view` to the new file `path`, durably.
pub(crate) async fn write(view: View, path: &Path) -> Result<Revision, Error> {
    let path = path.to_owned();
    let copying = tokio::task::spawn_blocking(move || {
        let revision = view.revision;
        copy(&view, &path).map(|()| revision).map_err(|source| failed(&path, source))
    });
    copying.await.unwrap_or_else(|error| {
        Err(Error::Backend { context: "writing a snapshot of the store".into(), source: error.into() })
    })
}

fn copy(view: &View, path: &Path) -> Result<(), redb::Error> {
    let file = File::options().read(true).write(true).create_new(true).open(path)?;
    let written = fill(view, file).and_then(|()| sync_parent(path).map_err(redb::Error::from));
    if written.is_err() {
        // Half a backup must not look like one. That it failed is what is reported.
        drop(std::fs::remove_file(path));
    }
    written
}

fn fill(view: &View, file: File) -> Result<(), redb::Error> {
    let database = Builder::new().set_cache_size(CACHE_BYTES).create_file(file)?;
    crate::durable::write_copy(&database, view)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.map_or_else(|| PathBuf::from("."), Path::to_path_buf))?.sync_all()
}

fn failed(path: &Path, source: redb::Error) -> Error {
    match source {
        redb::Error::Io(error) if error.kind() == io::ErrorKind::StorageFull => Error::Full,
        source => Error::Backend {
            context: format!("writing a snapshot of the store to {}", path.display()),
            source: Box::new(source),
        },
    }
}
