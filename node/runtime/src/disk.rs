//! How full a file system may get: one answer for the node's conditions, the pulls of runtimes and the collector
//! of images.

use std::path::Path;

/// What stays free of a large file system, in bytes: images and logs are small beside it.
const ENOUGH: u64 = 1 << 30;
/// Share of a small one that stays free, in bytes, and of every one, in files: one in so many.
const BYTES: u64 = 10;
const FILES: u64 = 20;

/// A file system at one time. All zeros: nothing is known of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// Bytes there are.
    pub size: u64,
    /// Bytes that are free for programs without privileges.
    pub free: u64,
    /// Files there can be; 0: as many as there is room for.
    pub files: u64,
    /// Files that can be made.
    pub free_files: u64,
}

impl Disk {
    /// The file system that `path` is on.
    pub fn of(path: &Path) -> Self {
        let Ok(stat) = nix::sys::statvfs::statvfs(path) else { return Self::default() };
        Self {
            size: stat.blocks().saturating_mul(stat.fragment_size()),
            free: stat.blocks_available().saturating_mul(stat.fragment_size()),
            files: stat.files(),
            free_files: stat.files_available(),
        }
    }

    /// Bytes that have to stay free: a tenth, at most 1 GiB.
    pub fn reserve(&self) -> u64 {
        ENOUGH.min(self.size / BYTES)
    }

    /// Whether less is free than has to be: the node's disk pressure.
    pub fn is_low(&self) -> bool {
        self.free < self.reserve() || self.lacks_files()
    }

    /// Whether files run out before bytes do: less than a twentieth of them can be made.
    pub fn lacks_files(&self) -> bool {
        self.free_files < self.reserved_files()
    }

    /// Files for which there has to be room: a twentieth.
    pub fn reserved_files(&self) -> u64 {
        self.files / FILES
    }

    /// Percent of the bytes in use, rounded down; 0 when nothing is known.
    pub fn used_percent(&self) -> u64 {
        self.size.saturating_sub(self.free).saturating_mul(100).checked_div(self.size).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_or_a_gibibyte_stays_free() {
        let disk = |size: u64, free: u64| Disk { size, free, ..Disk::default() };
        for (disk, low) in [
            (Disk::default(), false),
            (disk(1000, 100), false),
            (disk(1000, 99), true),
            (disk(1 << 40, 1 << 30), false),
            (disk(1 << 40, (1 << 30) - 1), true),
            (Disk { files: 1000, free_files: 50, ..disk(1000, 500) }, false),
            (Disk { files: 1000, free_files: 49, ..disk(1000, 500) }, true),
        ] {
            assert_eq!(disk.is_low(), low, "{disk:?}");
        }
        assert_eq!((disk(1000, 150).used_percent(), Disk::default().used_percent()), (85, 0));
    }

    #[test]
    fn a_file_system_is_read() {
        let here = Disk::of(Path::new("/"));
        assert!(here.size > 0 && here.free <= here.size, "{here:?}");
        assert_eq!(Disk::of(Path::new("/nowhere")), Disk::default());
    }
}
