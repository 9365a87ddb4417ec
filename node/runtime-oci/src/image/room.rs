//! Room on the disk while an image comes in.
//!
//! Nothing says beforehand what an image unpacks to: compressed bytes, files with holes and empty files by the
//! million are all small until they are unpacked, wherever they were pushed, and other pulls go on beside this
//! one. So nothing is predicted. The file systems are watched while they fill, and the pull ends while there is
//! room for everything else.

use std::{path::PathBuf, time::Duration};

use ketch_runtime::{Error, disk::Disk};

/// Between looks: a fast disk fills by less than its reserve in this time.
const LOOK: Duration = Duration::from_millis(50);

/// Directories on the file systems that pulls write to.
#[derive(Clone, Debug)]
pub(crate) struct Room(Vec<PathBuf>);

impl Room {
    pub(crate) fn new(directories: Vec<PathBuf>) -> Self {
        Self(directories)
    }

    /// Where images are unpacked.
    pub(crate) fn images(&self) -> Option<PathBuf> {
        self.0.first().cloned()
    }

    /// Waits until one of the file systems has too little room for `reference` to go on.
    pub(crate) async fn gone(&self, reference: &str) -> Error {
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            if let Some(error) = self.shortage(reference) {
                return error;
            }
        }
    }

    /// Why `reference` cannot go on.
    fn shortage(&self, reference: &str) -> Option<Error> {
        let disks = self.0.iter().map(|path| (path, Disk::of(path)));
        let (path, disk) = disks.into_iter().find(|(_, disk)| disk.is_low())?;
        Some(no_room(reference, &path.display().to_string(), &disk))
    }

    /// What an error of a pull is, when its cause is a disk that is full.
    pub(crate) fn explain(&self, reference: &str, error: Error) -> Error {
        if !error.to_string().to_lowercase().contains("no space left") {
            return error;
        }
        self.shortage(reference).unwrap_or(Error::NoRoom(format!("{reference}: {error}; free some space")))
    }
}

fn no_room(reference: &str, path: &str, disk: &Disk) -> Error {
    let left = match disk.lacks_files() {
        true => format!("{} of {} files can still be made", disk.free_files, disk.files),
        false => format!("{} bytes are free, {} have to stay free", disk.free, disk.reserve()),
    };
    Error::NoRoom(format!(
        "there is no room for {reference}: {left} on the file system of {path}; images that no pod uses are removed \
         before the next try; if that is not enough, free some space there or use a smaller image"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_names_the_image_what_is_left_and_what_to_do() {
        let disk = Disk { size: 1000, free: 7, files: 100, free_files: 90 };
        let text = no_room("web:1", "/data", &disk).to_string();
        assert!(text.starts_with("there is no room for web:1: 7 bytes are free, 100 have to stay"), "{text}");
        assert!(text.contains("/data") && text.contains("free some space"), "{text}");
        let text = no_room("web:1", "/data", &Disk { free_files: 4, ..disk }).to_string();
        assert!(text.contains("4 of 100 files"), "{text}");
    }

    #[test]
    fn only_a_full_disk_is_explained() {
        let room = Room::new(vec!["/nowhere".into()]);
        let full = Error::Internal("unpack: write /x: No space left on device".into());
        assert!(matches!(room.explain("web:1", full), Error::NoRoom(text) if text.starts_with("web:1: ")));
        assert!(matches!(room.explain("web:1", Error::Pull("no".into())), Error::Pull(_)));
    }
}
