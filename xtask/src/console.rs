//! The console: built by Trunk, pre-compressed, embedded in the binary by the server crate.

use std::{
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context, Result};

use crate::{
    shell::{program, run, say, step},
    tools,
};

const DIST: &str = "ui/dist";

/// Builds `ui/dist` unless it is newer than everything it is made from.
pub fn build() -> Result<()> {
    if newest(&[
        "ui/src",
        "ui/core",
        "ui/styles",
        "ui/index.html",
        "ui/Cargo.toml",
        "api",
        "Trunk.toml",
        "Cargo.lock",
    ]) <= modified(Path::new(DIST).join("index.html"))
    {
        say("==> console: up to date");
        return Ok(());
    }
    tools::build_packages()?;
    tools::console()?;
    step("build the console", || {
        // Trunk 0.21 takes NO_COLOR=1 for a malformed flag.
        run(program("trunk")
            .args(["build", "--release", "--offline"])
            .env("TRUNK_SKIP_VERSION_CHECK", "true")
            .env_remove("NO_COLOR"))
    })?;
    step("compress the console", || compress(Path::new(DIST)))
}

/// Writes a `.br` beside every file that gets smaller by it.
fn compress(dir: &Path) -> Result<()> {
    for file in files(dir) {
        let name = file.to_string_lossy();
        if ["wasm", "js", "css", "html", "svg", "json"].iter().any(|ext| name.ends_with(&format!(".{ext}"))) {
            run(program("brotli").args(["--force", "--keep", "--quality=9"]).arg(&file))?;
        }
    }
    Ok(())
}

/// Every file under `dir`.
pub fn files(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let path = entry.path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found.sort();
    found
}

fn newest(paths: &[&str]) -> SystemTime {
    let all = paths.iter().flat_map(|path| {
        let path = Path::new(path);
        if path.is_dir() { files(path) } else { vec![path.to_path_buf()] }
    });
    all.map(modified).max().unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Time of the last change; the epoch when there is no such file.
pub fn modified(path: impl AsRef<Path>) -> SystemTime {
    fs::metadata(path).and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Bytes of the largest compressed wasm file: what a first visit downloads.
pub fn wire_size() -> Result<u64> {
    let sizes =
        files(Path::new(DIST)).into_iter().filter(|file| file.to_string_lossy().ends_with(".wasm.br"));
    sizes
        .map(|file| Ok(fs::metadata(file)?.len()))
        .max_by_key(|size: &Result<u64>| *size.as_ref().unwrap_or(&0))
        .context("the console has no compressed wasm file")?
}
