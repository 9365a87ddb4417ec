//! `hostPath` volumes and their types.

use std::{
    fs::{FileType, Metadata},
    io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::Path,
};

use ketch_api::k8s::api::core::v1::HostPathVolumeSource;

/// Checks that the path is what the volume says, and makes what it says may be made.
///
/// # Errors
/// With upstream's words when it is something else, or not there.
pub(super) fn prepare(volume: &HostPathVolumeSource) -> Result<(), String> {
    let path = Path::new(&volume.path);
    let kind = volume.type_.as_deref().unwrap_or_default();
    let named = |error: io::Error| format!("hostPath {}: {error}", volume.path);
    match (kind, path.metadata()) {
        ("", Ok(_)) => Ok(()),
        // Upstream leaves it to the container's runtime to make a directory; here it is never a surprise.
        ("", Err(error)) => Err(format!("{}; set type: DirectoryOrCreate to have it made", named(error))),
        ("DirectoryOrCreate", Err(_)) => make_directory(path).map_err(named),
        ("FileOrCreate", Err(_)) => make_file(path).map_err(named),
        (_, Ok(found)) if is(kind, &found) => Ok(()),
        (_, Err(error)) if error.kind() != io::ErrorKind::NotFound => Err(named(error)),
        _ => Err(format!("hostPath type check failed: {} is not a {}", volume.path, noun(kind))),
    }
}

/// Guests see directories only.
///
/// # Errors
/// When the path is something else.
pub(super) fn check_guest(path: &Path) -> Result<(), String> {
    match path.is_dir() {
        true => Ok(()),
        false => Err(format!(
            "{} is not a directory: a Wasm container sees directories only; mount the one it is in",
            path.display()
        )),
    }
}

fn is(kind: &str, found: &Metadata) -> bool {
    let of: fn(&FileType) -> bool = match kind {
        "Directory" | "DirectoryOrCreate" => FileType::is_dir,
        "File" | "FileOrCreate" => FileType::is_file,
        "Socket" => FileType::is_socket,
        "CharDevice" => FileType::is_char_device,
        "BlockDevice" => FileType::is_block_device,
        _ => |_| false,
    };
    of(&found.file_type())
}

fn noun(kind: &str) -> &str {
    match kind {
        "Directory" | "DirectoryOrCreate" => "directory",
        "File" | "FileOrCreate" => "file",
        "Socket" => "socket file",
        "CharDevice" => "character device",
        "BlockDevice" => "block device",
        other => other,
    }
}

fn make_directory(path: &Path) -> io::Result<()> {
    std::fs::create_dir_all(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
}

/// Upstream does not make its parents either.
fn make_file(path: &Path) -> io::Result<()> {
    std::fs::OpenOptions::new().create(true).append(true).open(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_checked() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        std::fs::write(dir.path().join("file"), "").unwrap();
        std::fs::create_dir(dir.path().join("directory")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
        let (null, none) = ("/dev/null".to_owned(), at("none"));
        for (path, kind, error) in [
            (&at("file"), "", None),
            (&none, "", Some("set type: DirectoryOrCreate")),
            (&at("directory"), "Directory", None),
            (&at("file"), "Directory", Some("is not a directory")),
            (&at("file"), "File", None),
            (&at("directory"), "File", Some("is not a file")),
            (&at("directory"), "FileOrCreate", Some("is not a file")),
            (&at("file"), "DirectoryOrCreate", Some("is not a directory")),
            (&at("socket"), "Socket", None),
            (&at("file"), "Socket", Some("is not a socket file")),
            (&null, "CharDevice", None),
            (&null, "BlockDevice", Some("is not a block device")),
            (&none, "CharDevice", Some("is not a character device")),
            (&none, "Directory", Some("hostPath type check failed")),
            (&at("made/deep"), "DirectoryOrCreate", None),
            (&at("new"), "FileOrCreate", None),
            (&at("no/parent"), "FileOrCreate", Some("No such file")),
            (&at("file"), "Nonsense", Some("is not a Nonsense")),
        ] {
            let volume = HostPathVolumeSource { path: path.clone(), type_: Some(kind.to_owned()) };
            match (prepare(&volume), error) {
                (Ok(()), None) => {}
                (Err(text), Some(part)) => assert!(text.contains(part), "{path} {kind}: {text}"),
                (got, _) => panic!("{path} {kind}: {got:?}"),
            }
        }
        assert!(dir.path().join("made/deep").is_dir() && dir.path().join("new").is_file());
        let guest = |path: String| check_guest(Path::new(&path));
        assert!(guest(at("directory")).is_ok());
        assert!(guest(at("file")).unwrap_err().contains("directories only"));
    }
}
