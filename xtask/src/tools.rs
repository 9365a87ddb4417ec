//! What the build and the tests need from the machine, and how to get it.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::shell::{cargo, has, output, program, run, step, tools_dir};

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
        run(as_root("apt-get").args(["update", "-qq"]))?;
        run(as_root("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "-y", "-qq", "--no-install-recommends"])
            .args(&missing)
            .stdout(std::process::Stdio::null()))
    })
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

/// What every build needs: a C compiler for the TLS library.
pub fn build_packages() -> Result<()> {
    packages(&[("cc", "gcc"), ("make", "make")])
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
    install("trunk", "trunk", TRUNK, &["--no-default-features", "--features", "rustls"])?;
    install("wasm-bindgen", "wasm-bindgen-cli", &locked("wasm-bindgen")?, &[])
}

/// Installs a crate's program into the workspace's tool folder unless that very version is there.
pub fn install(bin: &str, krate: &str, version: &str, flags: &[&str]) -> Result<()> {
    // Tools run for seconds: a quick build matters more than a quick program.
    const QUICK: &[(&str, &str)] = &[
        ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1"),
        ("CARGO_PROFILE_RELEASE_LTO", "false"),
        ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
    ];
    install_with(bin, krate, version, flags, QUICK)
}

/// As [`install`], for a program whose speed is measured: built the way its authors release it.
pub fn install_fast(bin: &str, krate: &str, version: &str) -> Result<()> {
    install_with(bin, krate, version, &[], &[])
}

fn install_with(bin: &str, krate: &str, version: &str, flags: &[&str], env: &[(&str, &str)]) -> Result<()> {
    let found = output(program(bin).arg("--version")).unwrap_or_default();
    if found.split_whitespace().any(|word| word.trim_start_matches('v') == version) {
        return Ok(());
    }
    step(&format!("build {krate} {version} (once)"), || {
        // The crate's own lock file first; without it where a mirror lacks a version it names.
        let build = |locked| cargo_install(krate, version, flags, env, locked);
        build(true).or_else(|_| build(false))
    })
}

fn cargo_install(
    krate: &str,
    version: &str,
    flags: &[&str],
    env: &[(&str, &str)],
    locked: bool,
) -> Result<()> {
    run(cargo()
        .args(["install", "--quiet", krate, "--version", version, "--root"])
        .arg(tools_dir())
        .args(flags)
        .args(locked.then_some("--locked"))
        .env("CARGO_TARGET_DIR", tools_dir().join("build"))
        .env("CARGO_PROFILE_RELEASE_DEBUG", "false")
        .envs(env.iter().copied()))
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
