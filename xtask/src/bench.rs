//! `cargo xtask bench`: a release build, the peers it is measured against, and `ketch-bench`.

use anyhow::Result;

use crate::{
    guests, images,
    shell::{cargo, program, root, run},
    tools, up,
};

/// The engine's own server, of the engine version that is built in.
const WASMTIME: &str = "48.0.8";

/// Runs every measurement, or the ones named in `args`.
pub fn run_all(args: &[String]) -> Result<()> {
    tools::packages(&[
        ("etcd", "etcd-server"),
        ("wrk", "wrk"),
        ("dnsperf", "dnsperf"),
        ("nsd", "nsd"),
        ("kubectl", "kubernetes-client"),
        ("ip", "iproute2"),
        ("wg", "wireguard-tools"),
        ("wireguard-go", "wireguard-go"),
        ("skopeo", "skopeo"),
    ])?;
    tools::container_packages()?;
    tools::install(
        "wasmtime",
        "wasmtime-cli",
        WASMTIME,
        &[
            "--no-default-features",
            "--features",
            "serve,cranelift,pooling-allocator,parallel-compilation,component-model,component-model-async,run,logging,wat",
        ],
        tools::Build::Released,
    )?;
    guests::build()?;
    images::build()?;
    let ketch = up::build_binary(false)?;
    run(cargo().args(["build", "--release", "--package", "ketch-benches"]))?;
    run(program(root().join("target/release/ketch-bench")).env("KETCH", ketch).args(args))
}
