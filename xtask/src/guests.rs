//! The sample and test workloads: Rust guests always; JavaScript and Python ones with their own
//! toolchains, so that what other people's tools make is tested as it is.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{
    console::{files, modified},
    shell::{cargo, output, program, root, run, say, step, tools_dir},
    tools,
};

const DIST: &str = "workloads/dist";
const TARGET: &str = "wasm32-wasip2";
/// WASI release in the engine crate's WIT.
const ENGINE_WASI: &str = "0.2.12";
/// WASI release of the JavaScript engine in componentize-js.
const STARLINGMONKEY_WASI: &str = "0.2.10";

/// Builds every Rust guest into `workloads/dist/NAME.wasm`.
pub fn build() -> Result<()> {
    tools::targets(&[TARGET])?;
    step("build the sample workloads", || {
        run(cargo()
            .args([
                "build",
                "--quiet",
                "--release",
                "--target",
                TARGET,
                "--manifest-path",
                "workloads/Cargo.toml",
            ])
            .env("CARGO_TARGET_DIR", "workloads/target"))?;
        fs::create_dir_all(DIST)?;
        let built = Path::new("workloads/target").join(TARGET).join("release");
        for entry in fs::read_dir(&built).with_context(|| format!("read {}", built.display()))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "wasm") {
                let name = path.file_name().unwrap_or_default().to_string_lossy().replace('_', "-");
                copy_if_changed(&path, &Path::new(DIST).join(name))?;
            }
        }
        Ok(())
    })
}

/// Builds the JavaScript and the Python component.
pub fn build_foreign() -> Result<()> {
    javascript()?;
    python()
}

fn javascript() -> Result<()> {
    let (source, dist) = ("workloads/hello-js", format!("{DIST}/hello-js.wasm"));
    if up_to_date(source, &dist) {
        return Ok(());
    }
    tools::packages(&[("node", "nodejs"), ("npm", "npm")])?;
    step("build the JavaScript component with componentize-js", || {
        if !Path::new(source).join("node_modules/@bytecodealliance/componentize-js").is_dir() {
            // No lock file: npm leaves other platforms' optional packages out of it, and then refuses it.
            let install = ["install", "--no-package-lock", "--silent", "--no-fund", "--no-audit"];
            run(program("npm").args(install).current_dir(source))?;
        }
        run(program("node")
            .arg("build.mjs")
            .arg(wit("js", Some(STARLINGMONKEY_WASI))?)
            .arg(root().join(&dist))
            .current_dir(source))
    })
}

fn python() -> Result<()> {
    let (source, dist) = ("workloads/hello-py", format!("{DIST}/hello-py.wasm"));
    if up_to_date(source, &dist) {
        return Ok(());
    }
    let venv = tools_dir().join("python");
    step("build the Python component with componentize-py", || {
        if !venv.join("bin/componentize-py").is_file() {
            tools::packages(&[("python3", "python3")])?;
            if run(program("python3").args(["-m", "venv"]).arg(&venv)).is_err() {
                tools::packages(&[("pyvenv", "python3-venv")])?;
                run(program("python3").args(["-m", "venv"]).arg(&venv))?;
            }
            run(program(venv.join("bin/pip")).args(["install", "--quiet", "componentize-py"]))?;
        }
        run(program(venv.join("bin/componentize-py"))
            .arg("-d")
            .arg(wit("python", None)?)
            .args(["-w", "wasi:http/proxy", "componentize", "app", "-o"])
            .arg(root().join(&dist))
            .current_dir(source))
    })
}

/// A copy of the WIT of `wasi:http@0.2`, as the engine's own crate ships it; with `version`, of that
/// version of WASI instead of the engine's (0.2 releases differ in nothing but additions).
fn wit(name: &str, version: Option<&str>) -> Result<PathBuf> {
    let metadata =
        output(cargo().args(["metadata", "--format-version", "1", "--locked"])).context("cargo metadata")?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
    let manifest = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|package| package["name"] == "wasmtime-wasi-http")
        .and_then(|package| package["manifest_path"].as_str())
        .context("wasmtime-wasi-http is not a dependency any more")?;
    let source = Path::new(manifest).parent().context("manifest path")?.join("wit");
    let target = tools_dir().join("wit").join(name);
    for file in files(&source) {
        let text = fs::read_to_string(&file)?;
        let copy = target.join(file.strip_prefix(&source)?);
        fs::create_dir_all(copy.parent().context("path")?)?;
        fs::write(copy, version.map_or_else(|| text.clone(), |version| text.replace(ENGINE_WASI, version)))?;
    }
    Ok(target)
}

fn up_to_date(source: &str, dist: &str) -> bool {
    let built = modified(dist);
    let fresh = files(Path::new(source)).into_iter().all(|file| modified(&file) <= built);
    if fresh {
        say(&format!("==> {dist}: up to date"));
    }
    fresh
}

fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let new = fs::read(from)?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    fs::write(to, new).with_context(|| format!("write {}", to.display()))
}
