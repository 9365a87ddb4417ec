//! `cargo xtask tidy`: the rules that the compiler does not check.
//!
//! - **Arrows**: which crate may use which. Server and node never meet, only `apiserver` and `server` use
//!   the store, only `runtime-wasm` uses wasmtime, only `api` names k8s-openapi.
//! - **Sizes**: no file over 1,000 lines, nine in ten under 500; nine in ten functions up to 35 lines, at
//!   most one in twenty over 50.
//! - **Module docs**: every file says where the reader is.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Result, bail};

use crate::{console::files, shell::say};

/// Workspace crates each crate may use, dev-dependencies aside. `*`: all.
const ARROWS: &[(&str, &[&str])] = &[
    ("api", &[]),
    ("client", &["api"]),
    ("server/store", &[]),
    ("server/apiserver", &["api", "store"]),
    ("server/registry", &["api"]),
    ("server/scheduler", &["api", "client"]),
    ("server/controllers", &["api", "client"]),
    ("server", &["api", "client", "store", "apiserver", "registry", "scheduler", "controllers"]),
    ("node/runtime", &["api"]),
    ("node/runtime-wasm", &["api", "net", "runtime"]),
    ("node/runtime-oci", &["api", "runtime"]),
    ("node/net", &["api"]),
    ("node/dns", &["api", "net"]),
    ("node/overlay", &["net"]),
    ("node/spdy", &[]),
    ("node/gateway", &["api", "runtime"]),
    ("node", &["api", "client", "runtime", "net", "dns", "gateway", "overlay", "spdy"]),
    ("cli", &["api", "client", "server", "node", "runtime", "runtime-oci", "runtime-wasm"]),
    ("ui/core", &["api"]),
    ("ui", &["api", "ui-core"]),
    ("xtask", &[]),
    ("tests", &["*"]),
    ("benches", &["*"]),
];

/// External crates that one crate alone may name.
const SOLE_USERS: &[(&str, &str)] =
    &[("wasmtime", "node/runtime-wasm"), ("k8s-openapi", "api"), ("redb", "server/store")];

const MAX_FILE: usize = 1000;
const P90_FILE: usize = 500;
const P90_FUNCTION: usize = 35;
const LONG_FUNCTION: usize = 50;

/// Checks everything and reports every fault.
pub fn run() -> Result<()> {
    let mut faults = Vec::new();
    arrows(&mut faults)?;
    sizes(&mut faults)?;
    for fault in &faults {
        say(&format!("    {fault}"));
    }
    if !faults.is_empty() {
        bail!("{} faults", faults.len());
    }
    Ok(())
}

fn arrows(faults: &mut Vec<String>) -> Result<()> {
    for (folder, allowed) in ARROWS {
        let manifest: toml::Table = fs::read_to_string(Path::new(folder).join("Cargo.toml"))?.parse()?;
        let Some(dependencies) = manifest.get("dependencies").and_then(toml::Value::as_table) else {
            continue;
        };
        for name in dependencies.keys() {
            let ours =
                name.strip_prefix("ketch-").filter(|name| !allowed.contains(name) && !allowed.contains(&"*"));
            if let Some(ours) = ours {
                faults.push(format!("{folder}/Cargo.toml: may not use ketch-{ours}"));
            }
            for (external, sole) in SOLE_USERS {
                if name.starts_with(external) && folder != sole {
                    faults.push(format!("{folder}/Cargo.toml: only {sole} may use {name}"));
                }
            }
        }
    }
    Ok(())
}

fn sizes(faults: &mut Vec<String>) -> Result<()> {
    let (mut lengths, mut functions) = (Vec::new(), Vec::new());
    for (folder, _) in ARROWS {
        for sub in ["src", "."] {
            // `tests` and `benches` keep their sources at their root.
            if sub == "." && !["tests", "benches"].contains(folder) {
                continue;
            }
            for file in files(&Path::new(folder).join(sub)) {
                if file.extension().is_none_or(|extension| extension != "rs") {
                    continue;
                }
                let text = fs::read_to_string(&file)?;
                let production = text.split("#[cfg(test)]\nmod ").next().unwrap_or(&text);
                let lines = text.lines().count();
                if lines > MAX_FILE {
                    faults.push(format!("{}: {lines} lines, the limit is {MAX_FILE}", file.display()));
                }
                if !text.starts_with("//!") {
                    faults.push(format!("{}: starts without a module doc", file.display()));
                }
                lengths.push(lines);
                functions.extend(function_lengths(production));
            }
        }
    }
    budget(faults, "files", &mut lengths, P90_FILE);
    let long = functions.iter().filter(|length| **length > LONG_FUNCTION).count();
    if long * 20 > functions.len() {
        faults.push(format!("{long} of {} functions have over {LONG_FUNCTION} lines", functions.len()));
    }
    budget(faults, "functions", &mut functions, P90_FUNCTION);
    Ok(())
}

fn budget(faults: &mut Vec<String>, what: &str, lengths: &mut [usize], limit: usize) {
    lengths.sort_unstable();
    let p90 = lengths.get(lengths.len() * 9 / 10).copied().unwrap_or_default();
    say(&format!("    {} {what}, nine in ten up to {p90} lines", lengths.len()));
    if p90 > limit {
        faults.push(format!("nine in ten {what} have up to {p90} lines, the limit is {limit}"));
    }
}

/// Lines of each function, found by indentation: rustfmt puts the closing brace where `fn` starts.
fn function_lengths(text: &str) -> Vec<usize> {
    let mut open: BTreeMap<usize, usize> = BTreeMap::new();
    let mut lengths = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let code = line.trim_start();
        if code.trim_end() == "}" {
            if let Some(start) = open.remove(&indent) {
                lengths.push(number - start + 1);
            }
        } else if is_function(code) && !code.ends_with(';') && !code.ends_with('}') {
            open.insert(indent, number);
        }
    }
    lengths
}

fn is_function(code: &str) -> bool {
    let mut words = code.split_whitespace();
    let qualifiers = ["pub", "pub(crate)", "pub(super)", "async", "const", "unsafe", "extern", "\"C\""];
    words.find(|word| !qualifiers.contains(word)) == Some("fn")
}
