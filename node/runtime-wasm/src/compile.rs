//! Wasm to machine code, away from everything else: in a process of its own with limits, because compiling
//! is where hostile input can use time and memory without end.

use std::{
    io,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use async_trait::async_trait;
use wasmtime::Engine;

use crate::engine::{Layout, compile_config};

/// Limits of the worker: bytes of address space, seconds of processor time.
const MEMORY: u64 = 2 << 30;
const CPU: u64 = 60;

/// Longest a worker may take; processor time ends it before unless the host is overloaded.
const PATIENCE: Duration = Duration::from_secs(300);

/// Where the worker is told the layout to compile for.
const LAYOUT_VARIABLE: &str = "KETCH_WASM_LAYOUT";

/// Compiles Wasm binaries.
#[async_trait]
pub trait Compiler: Send + Sync {
    /// Compiles the component or module in `wasm` for `layout` and writes the code to `out`.
    ///
    /// # Errors
    /// Text for people: what is wrong with the binary, or which limit it exceeds.
    async fn compile(&self, wasm: &Path, out: &Path, layout: Layout) -> Result<(), String>;
}

/// Compiles in a child process that calls [`compile_main`].
#[derive(Clone, Debug)]
pub struct ProcessCompiler {
    /// Program to run.
    pub program: PathBuf,
    /// Its first arguments; the paths of the binary and of the result follow.
    pub args: Vec<String>,
}

impl ProcessCompiler {
    /// Runs this executable as `<exe> internal compile-wasm IN OUT`.
    ///
    /// # Errors
    /// When the executable's path cannot be had.
    pub fn current_exe() -> io::Result<Self> {
        let args = ["internal", "compile-wasm"].map(str::to_owned).to_vec();
        Ok(Self { program: std::env::current_exe()?, args })
    }
}

#[async_trait]
impl Compiler for ProcessCompiler {
    async fn compile(&self, wasm: &Path, out: &Path, layout: Layout) -> Result<(), String> {
        let child = tokio::process::Command::new(&self.program)
            .args(&self.args)
            .arg(wasm)
            .arg(out)
            .env_clear()
            .env(LAYOUT_VARIABLE, layout.as_str())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("cannot start the compiler {}: {error}", self.program.display()))?;
        let output = tokio::time::timeout(PATIENCE, child.wait_with_output())
            .await
            .map_err(|_| format!("compiling it took more than {} s", PATIENCE.as_secs()))?
            .map_err(|error| format!("cannot wait for the compiler: {error}"))?;
        verdict(output.status, &String::from_utf8_lossy(&output.stderr))
    }
}

/// What a worker's end means.
fn verdict(status: ExitStatus, stderr: &str) -> Result<(), String> {
    if status.success() {
        return Ok(());
    }
    let text = stderr.trim();
    Err(match status.signal() {
        Some(libc::SIGXCPU | libc::SIGKILL) => {
            format!("compiling it takes more than {CPU} s of processor time")
        }
        Some(libc::SIGABRT) => format!("compiling it takes more than {} GiB of memory", MEMORY >> 30),
        Some(signal) => format!("the compiler crashed with signal {signal} on it"),
        None if text.is_empty() => format!("the compiler failed: {status}"),
        None => text.lines().collect::<Vec<_>>().join(" "),
    })
}

/// The worker: limits itself, compiles `wasm`, writes `out`. To be called by the hidden subcommand, first
/// thing in the process; the text of an error goes to standard error, and the exit code is 1.
///
/// # Errors
/// What is wrong with the binary, in one line.
pub fn compile_main(wasm: &Path, out: &Path) -> Result<(), String> {
    let layout = std::env::var(LAYOUT_VARIABLE).ok();
    let layout = layout.as_deref().map_or(Some(Layout::Roomy), Layout::from_name);
    let layout = layout.ok_or_else(|| format!("{LAYOUT_VARIABLE} is not a layout"))?;
    limit_this_process().map_err(|error| format!("cannot limit the compiler: {error}"))?;
    compile(wasm, out, layout)
}

fn limit_this_process() -> nix::Result<()> {
    use nix::sys::resource::{Resource, setrlimit};
    setrlimit(Resource::RLIMIT_AS, MEMORY, MEMORY)?;
    setrlimit(Resource::RLIMIT_CPU, CPU, CPU + 1)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    setrlimit(Resource::RLIMIT_NOFILE, 64, 64)
}

/// Compiles in this process, without limits.
fn compile(wasm: &Path, out: &Path, layout: Layout) -> Result<(), String> {
    let bytes = std::fs::read(wasm).map_err(|error| format!("cannot read {}: {error}", wasm.display()))?;
    let engine = Engine::new(&compile_config(layout)).map_err(|error| format!("{error:#}"))?;
    let code = if wasmparser::Parser::is_component(&bytes) {
        engine.precompile_component(&bytes)
    } else {
        engine.precompile_module(&bytes)
    };
    let code = code.map_err(|error| format!("{error:#}"))?;
    std::fs::write(out, code).map_err(|error| format!("cannot write {}: {error}", out.display()))
}

/// Compiles in this process, without limits: for trusted binaries and tests.
#[derive(Clone, Copy, Debug, Default)]
pub struct InProcessCompiler;

#[async_trait]
impl Compiler for InProcessCompiler {
    async fn compile(&self, wasm: &Path, out: &Path, layout: Layout) -> Result<(), String> {
        let (wasm, out) = (wasm.to_owned(), out.to_owned());
        let work = tokio::task::spawn_blocking(move || compile(&wasm, &out, layout));
        work.await.map_err(|error| format!("the compiler failed: {error}"))?
    }
}
