//! Compiles the pause program with the compiler that builds this crate: a static executable of some hundred
//! bytes that needs nothing but `core`.

#![allow(clippy::expect_used, clippy::print_stdout, reason = "how a build script fails and speaks")]

use std::{env, path::PathBuf, process::Command};

fn main() {
    println!("cargo::rerun-if-changed=pause/pause.rs");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo")).join("pause");
    let mut rustc = Command::new(env::var_os("RUSTC").expect("set by cargo"));
    rustc.args(["--edition=2024", "--crate-name=pause", "--crate-type=bin", "pause/pause.rs"]);
    rustc.arg("--target").arg(env::var_os("TARGET").expect("set by cargo")).arg("-o").arg(&out);
    for option in [
        "opt-level=s",
        "panic=abort",
        "strip=symbols",
        "relocation-model=static",
        "target-feature=+crt-static",
    ] {
        rustc.arg("-C").arg(option);
    }
    for argument in ["-nostartfiles", "-nostdlib", "-static", "-Wl,--build-id=none", "-Wl,-z,norelro"] {
        rustc.arg("-C").arg(format!("link-arg={argument}"));
    }
    if let Some(linker) = env::var_os("RUSTC_LINKER") {
        let mut option = std::ffi::OsString::from("linker=");
        option.push(linker);
        rustc.arg("-C").arg(option);
    }
    let status = rustc.status().expect("the compiler starts");
    assert!(status.success(), "the pause program does not compile");
}
