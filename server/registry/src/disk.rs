//! The files. Synchronous: callers on a runtime go through its blocking threads.
//!
//! ```text
//! blobs/sha256/ab/abcdef…                      content
//! repositories/NAMESPACE/NAME/blobs/abcdef…    empty: the repository has that blob
//! repositories/NAMESPACE/NAME/manifests/abc…   media type, newline, manifest
//! repositories/NAMESPACE/NAME/tags/TAG         digest of a manifest
//! uploads/ID                                   content on its way
//! ```

use crate::names::hex;
use crate::{Digest, Error, Reference, Repository, Tag};
use bytes::Bytes;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A stored manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Of the content.
    pub digest: Digest,
    /// As it was pushed.
    pub media_type: String,
    /// As they were pushed.
    pub content: Bytes,
}

/// The registry's directory.
#[derive(Debug)]
pub(crate) struct Disk {
    root: PathBuf,
}

impl Disk {
    /// Makes the directory if need be, and removes what an earlier process left unfinished.
    pub(crate) fn open(root: &Path) -> Result<Self, Error> {
        let disk = Disk { root: root.to_owned() };
        let uploads = disk.root.join("uploads");
        match fs::remove_dir_all(&uploads) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(Error::on("removing unfinished uploads in", &uploads)(source));
            }
            _ => {}
        }
        for dir in [uploads, disk.blobs(), disk.repositories()] {
            fs::create_dir_all(&dir).map_err(Error::on("creating", &dir))?;
        }
        Ok(disk)
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.root.join("blobs").join("sha256")
    }

    pub(crate) fn repositories(&self) -> PathBuf {
        self.root.join("repositories")
    }

    fn repository(&self, repository: &Repository) -> PathBuf {
        self.repositories().join(repository.namespace()).join(repository.name())
    }

    /// Where the content of `digest` is, if it is there.
    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.hex().get(..2).unwrap_or_default()).join(digest.hex())
    }

    pub(crate) fn claims(&self, repository: &Repository) -> PathBuf {
        self.repository(repository).join("blobs")
    }

    fn manifests(&self, repository: &Repository) -> PathBuf {
        self.repository(repository).join("manifests")
    }

    fn tags_dir(&self, repository: &Repository) -> PathBuf {
        self.repository(repository).join("tags")
    }

    /// A new, empty file for an upload, and its id: 128 random bits.
    pub(crate) fn new_upload(&self) -> Result<(String, PathBuf, File), Error> {
        let (id, path) = self.unique()?;
        let file = File::options()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(Error::on("creating the upload", &path))?;
        Ok((id, path, file))
    }

    fn unique(&self) -> Result<(String, PathBuf), Error> {
        let mut random = [0; 16];
        getrandom::fill(&mut random)
            .map_err(|error| Error::io("getting random bits", io::Error::other(error)))?;
        let id = hex(&random);
        let path = self.root.join("uploads").join(&id);
        Ok((id, path))
    }

    /// Size of a blob the repository has.
    pub(crate) fn blob_size(&self, repository: &Repository, digest: &Digest) -> Result<u64, Error> {
        let unknown = || Error::BlobUnknown { repository: repository.clone(), digest: digest.clone() };
        if !exists(&self.claims(repository).join(digest.hex()))? {
            return Err(unknown());
        }
        let path = self.blob_path(digest);
        match fs::metadata(&path) {
            Ok(metadata) => Ok(metadata.len()),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Err(unknown()),
            Err(source) => Err(Error::on("reading", &path)(source)),
        }
    }

    /// Gives a finished, synced upload its place, and the repository its claim.
    pub(crate) fn add_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        upload: &Path,
    ) -> Result<(), Error> {
        let path = self.blob_path(digest);
        let dir = parent(&path);
        fs::create_dir_all(dir).map_err(Error::on("creating", dir))?;
        fs::rename(upload, &path).map_err(Error::on("moving an upload to", &path))?;
        sync_dir(dir)?;
        self.claim(repository, digest)
    }

    /// Notes that the repository has a blob that is on disk.
    pub(crate) fn claim(&self, repository: &Repository, digest: &Digest) -> Result<(), Error> {
        self.write(&self.claims(repository).join(digest.hex()), &[])
    }

    /// Takes the repository's claim back. False: it had none.
    pub(crate) fn disclaim(&self, repository: &Repository, digest: &Digest) -> Result<bool, Error> {
        remove(&self.claims(repository).join(digest.hex()))
    }

    /// Stores a manifest, and points `tag` at it.
    pub(crate) fn put_manifest(
        &self,
        repository: &Repository,
        manifest: &Manifest,
        tag: Option<&Tag>,
    ) -> Result<(), Error> {
        let mut file = Vec::with_capacity(manifest.media_type.len() + 1 + manifest.content.len());
        file.extend_from_slice(manifest.media_type.as_bytes());
        file.push(b'\n');
        file.extend_from_slice(&manifest.content);
        self.write(&self.manifests(repository).join(manifest.digest.hex()), &file)?;
        match tag {
            Some(tag) => self
                .write(&self.tags_dir(repository).join(tag.as_str()), manifest.digest.to_string().as_bytes()),
            None => Ok(()),
        }
    }

    /// The manifest a reference leads to.
    pub(crate) fn manifest(&self, repository: &Repository, reference: &Reference) -> Result<Manifest, Error> {
        let unknown =
            || Error::ManifestUnknown { repository: repository.clone(), reference: reference.clone() };
        let digest = match reference {
            Reference::Digest(digest) => digest.clone(),
            Reference::Tag(tag) => self.tag(repository, tag)?.ok_or_else(unknown)?,
        };
        let path = self.manifests(repository).join(digest.hex());
        let file = read(&path)?.ok_or_else(unknown)?;
        let damaged = || Error::io(format!("reading {}", path.display()), io::ErrorKind::InvalidData.into());
        let end = file.iter().position(|byte| *byte == b'\n').ok_or_else(damaged)?;
        let mut content = Bytes::from(file);
        let media_type = content.split_to(end);
        let media_type = String::from_utf8(media_type.to_vec()).map_err(|_| damaged())?;
        Ok(Manifest { digest, media_type, content: content.split_off(1) })
    }

    /// Whether the repository has the manifest.
    pub(crate) fn has_manifest(&self, repository: &Repository, digest: &Digest) -> Result<bool, Error> {
        exists(&self.manifests(repository).join(digest.hex()))
    }

    fn tag(&self, repository: &Repository, tag: &Tag) -> Result<Option<Digest>, Error> {
        let path = self.tags_dir(repository).join(tag.as_str());
        let Some(file) = read(&path)? else { return Ok(None) };
        let digest = std::str::from_utf8(&file).ok().and_then(|text| text.parse().ok());
        match digest {
            Some(digest) => Ok(Some(digest)),
            None => Err(Error::io(format!("reading {}", path.display()), io::ErrorKind::InvalidData.into())),
        }
    }

    /// Removes a tag; or a manifest, with the tags that point at it.
    pub(crate) fn delete_manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<(), Error> {
        let removed = match reference {
            Reference::Tag(tag) => remove(&self.tags_dir(repository).join(tag.as_str()))?,
            Reference::Digest(digest) => {
                // Tags first: one that leads nowhere would be worse than a manifest without.
                for name in names(&self.tags_dir(repository))? {
                    let Ok(tag) = name.parse::<Tag>() else { continue };
                    if self.tag(repository, &tag)?.as_ref() == Some(digest) {
                        remove(&self.tags_dir(repository).join(tag.as_str()))?;
                    }
                }
                remove(&self.manifests(repository).join(digest.hex()))?
            }
        };
        if removed {
            return Ok(());
        }
        Err(Error::ManifestUnknown { repository: repository.clone(), reference: reference.clone() })
    }

    /// All tags of the repository, sorted.
    pub(crate) fn tags(&self, repository: &Repository) -> Result<Vec<String>, Error> {
        if !exists(&self.repository(repository))? {
            return Err(Error::NameUnknown { repository: repository.clone() });
        }
        names(&self.tags_dir(repository))
    }

    /// All manifests of the repository, by digest.
    pub(crate) fn all_manifests(&self, repository: &Repository) -> Result<Vec<Manifest>, Error> {
        let digests = names(&self.manifests(repository))?;
        digests
            .iter()
            .filter_map(|hex| format!("sha256:{hex}").parse().ok())
            .map(|digest| self.manifest(repository, &Reference::Digest(digest)))
            // Deleted in the meantime.
            .filter(|manifest| !matches!(manifest, Err(Error::ManifestUnknown { .. })))
            .collect()
    }

    /// All repositories, sorted.
    pub(crate) fn all_repositories(&self) -> Result<Vec<Repository>, Error> {
        let mut repositories = Vec::new();
        for namespace in names(&self.repositories())? {
            for name in names(&self.repositories().join(&namespace))? {
                repositories.extend(Repository::new(&namespace, &name));
            }
        }
        Ok(repositories)
    }

    /// Writes a file so that it is either the old one or the new one, also after a power cut.
    fn write(&self, path: &Path, content: &[u8]) -> Result<(), Error> {
        let (_, unfinished) = self.unique()?;
        let dir = parent(path);
        create_dirs(dir)?;
        let written = File::create_new(&unfinished)
            .and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&unfinished, path));
        if let Err(source) = written {
            // It may not have come to be; what failed is what matters.
            let _ = fs::remove_file(&unfinished);
            return Err(Error::on("writing", path)(source));
        }
        sync_dir(dir)
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

/// `create_dir_all` whose result survives a power cut.
fn create_dirs(dir: &Path) -> Result<(), Error> {
    if exists(dir)? {
        return Ok(());
    }
    create_dirs(parent(dir))?;
    match fs::create_dir(dir) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
            Err(Error::on("creating", dir)(source))
        }
        _ => sync_dir(parent(dir)),
    }
}

fn sync_dir(dir: &Path) -> Result<(), Error> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::on("syncing", dir))
}

fn exists(path: &Path) -> Result<bool, Error> {
    path.try_exists().map_err(Error::on("looking for", path))
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::on("reading", path)(source)),
    }
}

/// Removes a file. False: there was none.
pub(crate) fn remove(path: &Path) -> Result<bool, Error> {
    match fs::remove_file(path) {
        Ok(()) => sync_dir(parent(path)).map(|()| true),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(Error::on("removing", path)(source)),
    }
}

/// Sorted names in a directory; none when there is no directory.
pub(crate) fn names(dir: &Path) -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(Error::on("reading", dir)(source)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::on("reading", dir))?;
        // Names that are not text are not ours.
        names.extend(entry.file_name().into_string().ok());
    }
    names.sort_unstable();
    Ok(names)
}
