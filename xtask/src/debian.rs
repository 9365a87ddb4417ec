//! Programs of other releases of Debian: unpacked into the directory of tools, never installed.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::shell::{output, program, run, say, step, tools_dir};
use crate::tools;

const MIRROR: &str = "https://deb.debian.org/debian";

/// A package of a release, as it was when the tests were made.
struct Package {
    /// Its directory among the tools.
    dir: &'static str,
    name: &'static str,
    release: &'static str,
    /// For amd64.
    file: File<&'static str>,
    /// Has to run with `--version`: a newer one may want a newer C library.
    program: &'static str,
}

/// A file of the mirror.
#[derive(Debug, PartialEq, Eq)]
struct File<T> {
    path: T,
    sha256: T,
}

/// Releases of containerd that people have besides this machine's. The tests know the directories.
const CONTAINERDS: &[Package] = &[
    Package {
        dir: "containerd-1.7",
        name: "containerd",
        release: "trixie",
        file: File {
            path: "pool/main/c/containerd/containerd_1.7.24~ds1-6+deb13u1_amd64.deb",
            sha256: "ed708deb96fe476a3bce4efa5c0538dfbcf717ab9a7c7944ba7260342c25899c",
        },
        program: "usr/bin/containerd",
    },
    Package {
        dir: "containerd-2",
        name: "containerd",
        release: "forky",
        file: File {
            path: "pool/main/c/containerd/containerd_2.1.9+ds1-5_amd64.deb",
            sha256: "2dda86ce7033fd612fc50e136679d8174ccad680eb29cd4611e0d2a1b84cf591",
        },
        program: "usr/bin/containerd",
    },
];

/// Directories with the programs of other releases of containerd. One that cannot be had is left out, with a word.
pub fn containerds() -> Vec<PathBuf> {
    CONTAINERDS.iter().filter_map(Package::programs).collect()
}

impl Package {
    fn programs(&self) -> Option<PathBuf> {
        let program_path = tools_dir().join(self.dir).join(self.program);
        let had = match program_path.is_file() {
            true => Ok(()),
            false => {
                step(&format!("get {} of Debian {}", self.name, self.release), || self.get(&program_path))
            }
        };
        match had {
            Ok(()) => program_path.parent().map(Path::to_path_buf),
            Err(error) => {
                _ = std::fs::remove_dir_all(self.part());
                say(&format!("    {} of Debian {} is not tested: {error:#}", self.name, self.release));
                None
            }
        }
    }

    fn part(&self) -> PathBuf {
        tools_dir().join(format!("{}.part", self.dir))
    }

    fn get(&self, program_path: &Path) -> Result<()> {
        // Moved into place when it is whole and runs.
        let (dir, part) = (tools_dir().join(self.dir), self.part());
        _ = std::fs::remove_dir_all(&part);
        std::fs::create_dir_all(&part)?;
        let deb = part.join("package.deb");
        let architecture =
            output(program("dpkg").arg("--print-architecture")).context("this is no Debian")?;
        let known = (architecture == "amd64").then(|| download(self.file.path, self.file.sha256, &deb));
        // The mirror keeps the newest revision only.
        if !matches!(known, Some(Ok(()))) {
            let file = self.todays(&architecture, &part)?;
            download(&file.path, &file.sha256, &deb)?;
        }
        run(program("dpkg-deb").arg("--extract").args([&deb, &part]))?;
        std::fs::remove_file(&deb)?;
        let unpacked = part.join(self.program);
        let version =
            output(program(&unpacked).arg("--version")).context("it does not run on this machine")?;
        say(&format!("    {version}"));
        _ = std::fs::remove_dir_all(&dir);
        std::fs::rename(&part, &dir)?;
        if !program_path.is_file() {
            bail!("the package has no {}", self.program);
        }
        Ok(())
    }

    /// What the release has now.
    fn todays(&self, architecture: &str, part: &Path) -> Result<File<String>> {
        tools::packages(&[("xz", "xz-utils")])?;
        let list = part.join("Packages.xz");
        fetch(&format!("dists/{}/main/binary-{architecture}/Packages.xz", self.release), &list)?;
        let text = output(program("xz").args(["--decompress", "--stdout"]).arg(&list));
        std::fs::remove_file(&list)?;
        named(&text.context("its list of packages cannot be read")?, self.name)
            .with_context(|| format!("Debian {} has no {}", self.release, self.name))
    }
}

fn download(path: &str, sha256: &str, to: &Path) -> Result<()> {
    fetch(path, to)?;
    let sum = output(program("sha256sum").arg(to)).unwrap_or_default();
    if sum.split_whitespace().next() != Some(sha256) {
        bail!("{path} of {MIRROR} has not the checksum {sha256}");
    }
    Ok(())
}

fn fetch(path: &str, to: &Path) -> Result<()> {
    let options = ["--fail", "--silent", "--location", "--connect-timeout", "15", "--max-time", "300"];
    run(program("curl").args(options).arg(format!("{MIRROR}/{path}")).arg("--output").arg(to))
}

/// The file of package `name` in a list of packages.
fn named(list: &str, name: &str) -> Option<File<String>> {
    let field = |entry: &str, key: &str| {
        let mut lines = entry.lines();
        lines.find_map(|line| Some(line.strip_prefix(key)?.strip_prefix(": ")?.to_owned()))
    };
    let entry = list.split("\n\n").find(|entry| field(entry, "Package").as_deref() == Some(name))?;
    Some(File { path: field(entry, "Filename")?, sha256: field(entry, "SHA256")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_found_in_the_list() {
        let list = "Package: containerd-dev\nFilename: pool/dev.deb\nSHA256: 00\n\n\
                    Package: containerd\nVersion: 2.1.9\nFilename: pool/it.deb\nSize: 1\nSHA256: 01\n\n\
                    Package: containers\nFilename: pool/other.deb\nSHA256: 02\n";
        let file = File { path: "pool/it.deb".to_owned(), sha256: "01".to_owned() };
        assert_eq!(named(list, "containerd"), Some(file));
        assert_eq!(named(list, "container"), None);
    }
}
