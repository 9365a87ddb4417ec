//! Running programs, and telling the user about it.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};

/// The workspace's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// Where tools of this workspace are installed; first on the `PATH` of everything run from here.
pub fn tools_dir() -> PathBuf {
    root().join("target/tools")
}

/// A program with the workspace's tools on its `PATH`.
pub fn program(name: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(name);
    find_first(&mut command, &[tools_dir().join("bin")]);
    command
}

/// Puts directories before the `PATH` of a program.
pub fn find_first(command: &mut Command, directories: &[PathBuf]) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all = directories.iter().cloned().chain(std::env::split_paths(&path));
    if let Ok(path) = std::env::join_paths(all) {
        command.env("PATH", path);
    }
}

/// `cargo`, the one that runs us.
pub fn cargo() -> Command {
    program(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Runs a program with its output on the terminal. The error names the command line.
pub fn run(command: &mut Command) -> Result<()> {
    let line = describe(command);
    let status = command.status().with_context(|| format!("cannot start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed ({status})");
    }
    Ok(())
}

/// Runs a program and returns what it printed; `None` when it is missing or fails.
pub fn output(command: &mut Command) -> Option<String> {
    let output = command.stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Whether a program is on the `PATH`.
pub fn has(name: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| {
        std::iter::once(tools_dir().join("bin"))
            .chain(std::env::split_paths(&path))
            .any(|dir| dir.join(name).is_file())
    })
}

/// Says what happens now, does it, and says how long it took when that was long.
pub fn step<T>(what: &str, action: impl FnOnce() -> Result<T>) -> Result<T> {
    say(&format!("==> {what}"));
    let start = Instant::now();
    let result = action().with_context(|| what.to_owned())?;
    let seconds = start.elapsed().as_secs();
    if seconds >= 5 {
        say(&format!("    {what}: {seconds} s"));
    }
    Ok(result)
}

/// A line on the terminal.
#[allow(clippy::print_stderr, reason = "talking to the user is what this program does")]
pub fn say(line: &str) {
    eprintln!("{line}");
}

fn describe(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}
