//! What the build and the tests need from the machine, and how to get it.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::shell::{cargo, has, output, program, run, say, step, tools_dir};

/// Trunk 0.22 needs a newer compiler than the workspace's.
const TRUNK: &str = "0.21.14";

/// Installs the Debian packages whose program is missing. `(program, package)` pairs.
pub fn packages(wanted: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<&str> =
        wanted.iter().filter(|(bin, _)| !has(bin)).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    step(&format!("install system packages: {}", missing.join(", ")), || {
        if !has("apt-get") {
            bail!("install {} with this system's package manager, then run this again", missing.join(", "));
        }
        refresh_packages()?;
        run(as_root("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "-y", "-qq", "--no-install-recommends"])
            .args(&missing)
            .stdout(std::process::Stdio::null()))
    })
}

/// The oldest kubectl that has to work, Debian's, beside whatever the machine has. `None`: this is no
/// Debian, or its package cannot be had.
pub fn oldest_kubectl() -> Option<std::path::PathBuf> {
    beside("oldest-kubectl", "kubernetes-client", "usr/bin/kubectl")
}

/// A registry with passwords, for tests; not installed, because Debian's package would start it.
pub fn registry() -> Option<std::path::PathBuf> {
    beside("docker-registry", "docker-registry", "usr/bin/docker-registry")
}

/// A program of a Debian package that is unpacked into the directory of tools instead of being installed.
fn beside(name: &str, package: &str, path: &str) -> Option<std::path::PathBuf> {
    let dir = tools_dir().join(name);
    let program_path = dir.join(path);
    if program_path.is_file() {
        return Some(program_path);
    }
    std::fs::create_dir_all(&dir).ok()?;
    run(program("apt-get").args(["download", "-qq", package]).current_dir(&dir)).ok()?;
    let mut files = std::fs::read_dir(&dir).ok()?.flatten().map(|entry| entry.path());
    let package = files.find(|path| path.extension().is_some_and(|extension| extension == "deb"))?;
    run(program("dpkg-deb").arg("--extract").args([&package, &dir])).ok()?;
    program_path.is_file().then_some(program_path)
}

fn as_root(name: &str) -> std::process::Command {
    let root = output(program("id").arg("-u")).as_deref() == Some("0");
    if root {
        return program(name);
    }
    let mut command = program("sudo");
    command.arg(name);
    command
}

/// What every build needs: a C compiler for the TLS library, `protoc` for containerd's interfaces.
pub fn build_packages() -> Result<()> {
    packages(&[("cc", "gcc"), ("make", "make"), ("protoc", "protobuf-compiler")])
}

/// What a node uses to run containers and to lead packets to them.
pub fn container_packages() -> Result<()> {
    packages(&[("containerd", "containerd"), ("runc", "runc"), ("nft", "nftables")])
}

/// What only tests use.
pub fn test_packages() -> Result<()> {
    packages(&[
        ("busybox", "busybox-static"),
        ("crun", "crun"),
        ("curl", "curl"),
        ("ip", "iproute2"),
        ("kubectl", "kubernetes-client"),
        ("skopeo", "skopeo"),
    ])
}

/// Adds rustup targets.
pub fn targets(wanted: &[&str]) -> Result<()> {
    let sysroot =
        output(program("rustc").args(["--print", "sysroot"])).context("rustc is missing: install rustup")?;
    let missing: Vec<&&str> = wanted
        .iter()
        .filter(|target| !Path::new(&sysroot).join("lib/rustlib").join(target).exists())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    step("add the WebAssembly targets", || run(program("rustup").args(["target", "add"]).args(missing)))
}

/// Trunk, the wasm-bindgen of exactly the lock file's version, and Brotli.
pub fn console() -> Result<()> {
    targets(&["wasm32-unknown-unknown"])?;
    packages(&[("brotli", "brotli")])?;
    install("trunk", "trunk", TRUNK, &["--no-default-features", "--features", "rustls"], Build::Quick)?;
    install("wasm-bindgen", "wasm-bindgen-cli", &locked("wasm-bindgen")?, &[], Build::Quick)
}

/// Reads the lists of Debian packages again.
pub fn refresh_packages() -> Result<()> {
    run(as_root("apt-get").args(["update", "-qq"]))
}

/// How a program is built.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Build {
    /// A tool that runs for seconds: a quick build matters more than a quick program.
    Quick,
    /// A peer that is measured: as its makers release it.
    Released,
}

/// Installs a crate's program into the workspace's tool folder unless that very version is there.
pub fn install(bin: &str, krate: &str, version: &str, flags: &[&str], build: Build) -> Result<()> {
    let found = output(program(bin).arg("--version")).unwrap_or_default();
    if found.split_whitespace().any(|word| word.trim_start_matches('v') == version) {
        return Ok(());
    }
    step(&format!("build {krate} {version} (once)"), || {
        // The crate's own lock file first; without it where a mirror lacks a version it names.
        cargo_install(krate, version, flags, build, true).or_else(|_| {
            say(&format!("    that was with the lock file of {krate}; once more without it"));
            cargo_install(krate, version, flags, build, false)
        })
    })
}

fn cargo_install(krate: &str, version: &str, flags: &[&str], build: Build, locked: bool) -> Result<()> {
    let mut command = cargo();
    command
        .args(["install", "--quiet", krate, "--version", version, "--root"])
        .arg(tools_dir())
        .args(flags)
        .args(locked.then_some("--locked"))
        .env("CARGO_TARGET_DIR", tools_dir().join("build"));
    if build == Build::Quick {
        command
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")
            .env("CARGO_PROFILE_RELEASE_LTO", "false")
            .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16")
            .env("CARGO_PROFILE_RELEASE_DEBUG", "false");
    }
    run(&mut command)
}

/// Version of a package in `Cargo.lock`.
fn locked(name: &str) -> Result<String> {
    let lock: toml::Table = std::fs::read_to_string("Cargo.lock").context("read Cargo.lock")?.parse()?;
    let packages =
        lock.get("package").and_then(toml::Value::as_array).context("Cargo.lock has no packages")?;
    packages
        .iter()
        .find(|package| package.get("name").and_then(toml::Value::as_str) == Some(name))
        .and_then(|package| package.get("version").and_then(toml::Value::as_str))
        .map(str::to_owned)
        .with_context(|| format!("{name} is not in Cargo.lock"))
}
