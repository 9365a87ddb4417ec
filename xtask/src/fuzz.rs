//! `cargo xtask fuzz`: the fuzz targets of `tests/fuzz`, each for a while.
//!
//! A target starts from `tests/fuzz/inputs`, which is kept, and from what it found in earlier runs
//! (`tests/fuzz/corpus`, which is not).

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, bail};

use crate::{
    shell::{self, cargo, root, say},
    tools,
};

const CARGO_FUZZ: &str = "0.13.2";

/// Runs every target, or the named one, for `seconds` each; or the named one on the input `replay` alone. Findings
/// are left in `tests/fuzz/artifacts`.
pub fn run(target: Option<&str>, seconds: u32, replay: Option<&Path>) -> Result<()> {
    tools::build_packages()?;
    tools::packages(&[("c++", "g++")])?;
    tools::install("cargo-fuzz", "cargo-fuzz", CARGO_FUZZ, &[], tools::Build::Quick)?;
    let targets = targets()?;
    if let Some(unknown) = target.filter(|name| !targets.iter().any(|known| known == name)) {
        bail!("there is no fuzz target \"{unknown}\"; there are {}", targets.join(", "));
    }
    // What is fuzzed is what is shipped.
    fs::copy(root().join("Cargo.lock"), root().join("tests/fuzz/Cargo.lock")).context("copy Cargo.lock")?;
    for name in targets.iter().filter(|name| target.is_none_or(|wanted| wanted == name.as_str())) {
        match replay {
            Some(input) => shell::run(cargo_fuzz(name).arg(input).args(["--", "-timeout=10"]))?,
            None => explore(name, seconds)?,
        }
    }
    Ok(())
}

fn explore(name: &str, seconds: u32) -> Result<()> {
    say(&format!("==> fuzz {name} for {seconds} s"));
    let (found, inputs) = (format!("tests/fuzz/corpus/{name}"), format!("tests/fuzz/inputs/{name}"));
    for dir in [&found, &inputs] {
        fs::create_dir_all(root().join(dir)).with_context(|| format!("create {dir}"))?;
    }
    let time = format!("-max_total_time={seconds}");
    let limits = ["--", &time, "-rss_limit_mb=4096", "-timeout=10", "-print_final_stats=1"];
    shell::run(cargo_fuzz(name).args([found, inputs]).args(limits))
}

/// `cargo fuzz run TARGET`. It builds beside the workspace: the flags are others.
fn cargo_fuzz(target: &str) -> Command {
    let mut command = cargo();
    command
        // Coverage instrumentation is not stable yet; the code under test is built as always.
        .env("RUSTC_BOOTSTRAP", "1")
        .args(["fuzz", "run", "--fuzz-dir", "tests/fuzz", "--sanitizer", "none", "--target-dir"])
        .arg(root().join("target/fuzz"))
        .arg(target);
    command
}

/// Names of the targets: the files.
fn targets() -> Result<Vec<String>> {
    let entries = fs::read_dir(root().join("tests/fuzz/targets")).context("read tests/fuzz/targets")?;
    let paths = entries.flatten().map(|entry| entry.path());
    let mut names: Vec<String> =
        paths.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned())).collect();
    names.sort();
    Ok(names)
}
