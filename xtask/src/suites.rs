//! The workspace's tests as programs. One command builds them all, and the binary that they start: each further
//! selection of packages would have features of its own, and build the same crates again.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::shell::{cargo, program, root, run};

/// A program of tests.
pub struct Suite {
    /// The crate whose unit tests they are, or a file or directory of its `tests/`.
    pub name: String,
    /// Directory of its package, relative to the workspace's.
    package: PathBuf,
    executable: PathBuf,
}

/// A line of what cargo says, as far as it is of interest.
#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    manifest_path: PathBuf,
    executable: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<Profile>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

/// Builds everything but the console, unless it is built. Returns all tests.
///
/// # Errors
/// When something does not compile.
pub fn build() -> Result<Vec<Suite>> {
    let selection = ["build", "--workspace", "--exclude", "ketch-ui", "--tests", "--bins"];
    let format = "--message-format=json-render-diagnostics";
    let output = cargo().args(selection).arg(format).stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        bail!("the workspace does not build ({})", output.status);
    }
    Ok(suites(&String::from_utf8_lossy(&output.stdout), &root()))
}

fn suites(messages: &str, root: &Path) -> Vec<Suite> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Message>(line).ok());
    let tests = messages.filter(|message| message.profile.as_ref().is_some_and(|profile| profile.test));
    let suite = |message: Message| {
        let package = message.manifest_path.parent()?.strip_prefix(root).ok()?.to_path_buf();
        Some(Suite { name: message.target?.name, package, executable: message.executable? })
    };
    tests.filter_map(suite).collect()
}

impl Suite {
    /// Whether it belongs to the tests of the whole, which stand in `tests/`.
    pub fn is_integration(&self) -> bool {
        self.package == Path::new("tests")
    }

    /// Its program, to be run where cargo would.
    pub fn command(&self) -> Command {
        let mut command = program(&self.executable);
        command.current_dir(root().join(&self.package));
        command
    }

    /// Runs it.
    ///
    /// # Errors
    /// When a test fails.
    pub fn run(&self) -> Result<()> {
        let place = format!("{} of {}", self.name, self.package.display());
        run(self.command().arg("--quiet")).with_context(|| format!("the tests {place}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_found_in_what_cargo_says() {
        let messages = r#"{"reason":"compiler-artifact","manifest_path":"/w/api/Cargo.toml","target":{"name":"ketch_api"},"profile":{"test":false},"executable":null}
{"reason":"compiler-artifact","manifest_path":"/w/cli/Cargo.toml","target":{"name":"ketch"},"profile":{"test":false},"executable":"/w/target/debug/ketch"}
{"reason":"compiler-artifact","manifest_path":"/w/node/net/Cargo.toml","target":{"name":"net"},"profile":{"test":true},"executable":"/w/target/debug/deps/net-1"}
{"reason":"compiler-artifact","manifest_path":"/w/tests/Cargo.toml","target":{"name":"all"},"profile":{"test":true},"executable":"/w/target/debug/deps/all-1"}
{"reason":"build-finished","success":true}
"#;
        let found = suites(messages, Path::new("/w"));
        let names: Vec<(&str, &Path)> =
            found.iter().map(|suite| (suite.name.as_str(), suite.package.as_path())).collect();
        assert_eq!(names, [("net", Path::new("node/net")), ("all", Path::new("tests"))]);
        assert_eq!(found[1].executable, Path::new("/w/target/debug/deps/all-1"));
        assert!(found[1].is_integration() && !found[0].is_integration());
    }
}
