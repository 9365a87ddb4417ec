//! `cargo xtask fuzz`: the fuzz targets of `tests/fuzz`, each for a while.

use anyhow::{Context, Result, bail};

use crate::{
    shell::{cargo, root, run, say},
    tools,
};

const CARGO_FUZZ: &str = "0.13.2";

/// Runs every target, or the named one, for `seconds` each. Findings are left in `tests/fuzz/artifacts`.
pub fn run_all(target: Option<&str>, seconds: u32) -> Result<()> {
    tools::build_packages()?;
    tools::packages(&[("c++", "g++")])?;
    tools::install("cargo-fuzz", "cargo-fuzz", CARGO_FUZZ, &[], tools::Build::Quick)?;
    let targets = targets()?;
    if let Some(unknown) = target.filter(|name| !targets.iter().any(|known| known == name)) {
        bail!("there is no fuzz target \"{unknown}\"; there are {}", targets.join(", "));
    }
    for name in targets.iter().filter(|name| target.is_none_or(|wanted| wanted == name.as_str())) {
        say(&format!("==> fuzz {name} for {seconds} s"));
        run(cargo()
            // Coverage instrumentation is not stable yet; the code under test is built as always.
            .env("RUSTC_BOOTSTRAP", "1")
            .args(["fuzz", "run", "--fuzz-dir", "tests/fuzz", "--sanitizer", "none", name, "--"])
            .args([
                format!("-max_total_time={seconds}"),
                "-rss_limit_mb=4096".to_owned(),
                "-timeout=10".to_owned(),
            ]))?;
    }
    Ok(())
}

/// Names of the targets: the files.
fn targets() -> Result<Vec<String>> {
    let entries = std::fs::read_dir(root().join("tests/fuzz/targets")).context("read tests/fuzz/targets")?;
    let paths = entries.flatten().map(|entry| entry.path());
    let mut names: Vec<String> =
        paths.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned())).collect();
    names.sort();
    Ok(names)
}
