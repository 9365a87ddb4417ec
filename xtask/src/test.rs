//! `cargo xtask test`: everything continuous integration runs, in the order in which failures are cheap.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::{
    console, debian, guests, images,
    shell::{cargo, find_first, output, program, root, run as run_command, say, step, tools_dir},
    suites::{self, Suite},
    tidy, tools,
};

type Step = (&'static str, fn() -> Result<()>);

const STEPS: &[Step] = &[
    ("format", format),
    ("tidy", tidy::run),
    ("console", console::build),
    ("console size", console_size),
    ("workloads", guests::build),
    ("container images", images::build),
    ("foreign workloads", guests::build_foreign),
    ("build", || suites::build().map(drop)),
    ("unit tests", unit),
    ("other containerds", other_containerds),
    ("integration tests", integration),
    ("clippy", clippy),
    ("browser tests", browser),
];

/// What a first visit to the console may download, in bytes of Brotli.
const WIRE_BUDGET: u64 = 650_000;

/// Runs the steps whose name contains `filter`.
pub fn run(filter: Option<&str>) -> Result<()> {
    let chosen: Vec<&Step> =
        STEPS.iter().filter(|(name, _)| filter.is_none_or(|text| name.contains(text))).collect();
    if chosen.is_empty() {
        let names: Vec<&str> = STEPS.iter().map(|(name, _)| *name).collect();
        bail!("no step has that in its name; steps: {}", names.join(", "));
    }
    tools::build_packages()?;
    tools::container_packages()?;
    tools::test_packages()?;
    for (name, action) in chosen {
        step(name, action)?;
    }
    say("==> all passed");
    Ok(())
}

fn format() -> Result<()> {
    crate::shell::run(cargo().args(["fmt", "--all", "--check"]))
}

fn console_size() -> Result<()> {
    let size = console::wire_size()?;
    say(&format!("    {} kB of {} kB", size / 1000, WIRE_BUDGET / 1000));
    if size > WIRE_BUDGET {
        bail!("the console's wasm is {size} bytes compressed, over its budget of {WIRE_BUDGET}");
    }
    Ok(())
}

fn unit() -> Result<()> {
    suites::build()?.iter().filter(|suite| !suite.is_integration()).try_for_each(Suite::run)
}

fn integration() -> Result<()> {
    if tools::registry().is_none() {
        say("    Debian's docker-registry cannot be had here: registries with passwords are not tested");
    }
    let kubectl = tools::oldest_kubectl();
    if kubectl.is_none() {
        say("    Debian's kubectl cannot be had here: only this machine's is tested");
    }
    for suite in suites::build()?.iter().filter(|suite| suite.is_integration()) {
        // What was waited for is in the panic's message; a backtrace would bury it.
        run_command(suite.command().env("RUST_BACKTRACE", "0"))?;
        if let Some(kubectl) = &kubectl {
            run_command(suite.command().args(["--quiet", "process::kubectl"]).env("KUBECTL", kubectl))?;
        }
    }
    Ok(())
}

/// The container runtime's own suite with other releases of containerd, beside each other: they wait more than they
/// work. The integration tests find them, too.
fn other_containerds() -> Result<()> {
    let containerds = debian::containerds();
    let suites = suites::build()?;
    let run = |programs: &PathBuf| {
        for suite in suites.iter().filter(|suite| suite.name == "oci") {
            let mut command = suite.command();
            find_first(&mut command, &[programs.clone(), tools_dir().join("bin")]);
            command.arg("--quiet").env("RUST_TEST_THREADS", "4").env("RUST_BACKTRACE", "0");
            run_command(&mut command).with_context(|| format!("with {}", programs.display()))?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let suites: Vec<_> = containerds.iter().map(|programs| scope.spawn(|| run(programs))).collect();
        suites.into_iter().try_for_each(|suite| suite.join().unwrap_or_else(|_| bail!("a suite panicked")))
    })
}

fn clippy() -> Result<()> {
    crate::shell::run(cargo().args([
        "clippy",
        "--quiet",
        "--workspace",
        "--exclude",
        "ketch-ui",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))?;
    let wasm = ["clippy", "--quiet", "--package", "ketch-ui", "--target", "wasm32-unknown-unknown"];
    crate::shell::run(cargo().args(wasm).args(["--", "-D", "warnings"]))
}

/// Playwright against Debian's Chromium and the debug binary.
fn browser() -> Result<()> {
    tools::packages(&[("chromium", "chromium"), ("node", "nodejs"), ("npm", "npm")])?;
    let tests = root().join("tests/browser");
    if !tests.join("node_modules/.bin/playwright").is_file() {
        step("install Playwright", || {
            crate::shell::run(
                program("npm")
                    .args(["ci", "--silent", "--no-fund", "--no-audit"])
                    .env("PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD", "1")
                    .current_dir(&tests),
            )
        })?;
    }
    let chromium = output(program("which").arg("chromium")).unwrap_or_else(|| "/usr/bin/chromium".into());
    crate::shell::run(
        program(tests.join("node_modules/.bin/playwright"))
            .arg("test")
            .env("CHROMIUM", chromium)
            .current_dir(&tests),
    )
}
