//! `cargo xtask up`: from a bare machine to a link.

use anyhow::Result;

use crate::{
    console, guests,
    shell::{cargo, program, say, step},
    tools,
};

/// Builds what is missing, then becomes `ketch up`.
pub fn run(debug: bool, args: &[String]) -> Result<()> {
    tools::build_packages()?;
    tools::container_packages()?;
    console::build()?;
    guests::build()?;
    let binary = build_binary(debug)?;
    say("==> start Ketch; try the samples in workloads/dist, for instance hello.wasm");
    run_forever(&binary, args)
}

/// Builds `ketch` and returns its path.
pub fn build_binary(debug: bool) -> Result<std::path::PathBuf> {
    let profile = if debug { "debug" } else { "release" };
    step(&format!("build ketch ({profile}; some minutes the first time)"), || {
        let mut command = cargo();
        command.args(["build", "--package", "ketch"]);
        if !debug {
            command.arg("--release");
        }
        crate::shell::run(&mut command)
    })?;
    Ok(crate::shell::root().join("target").join(profile).join("ketch"))
}

fn run_forever(binary: &std::path::Path, args: &[String]) -> Result<()> {
    use std::os::unix::process::CommandExt;
    Err(program(binary).arg("up").args(args).exec().into())
}
