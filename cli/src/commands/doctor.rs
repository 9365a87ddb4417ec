//! `ketch doctor`: what this machine can do, and the fix for each thing it cannot.

use std::{net::TcpListener, path::Path, process::ExitCode};

use anyhow::Result;

use crate::{
    options::{Flags, Options, Role},
    output,
};

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Good,
    /// Works, with less.
    Limited,
    /// `ketch up` would fail.
    Bad,
}

struct Finding {
    level: Level,
    what: &'static str,
    text: String,
}

fn good(what: &'static str, text: impl Into<String>) -> Finding {
    Finding { level: Level::Good, what, text: text.into() }
}

fn limited(what: &'static str, text: impl Into<String>) -> Finding {
    Finding { level: Level::Limited, what, text: text.into() }
}

fn bad(what: &'static str, text: impl Into<String>) -> Finding {
    Finding { level: Level::Bad, what, text: text.into() }
}

/// Runs the command. Exit code 1 when something would keep `ketch up` from starting.
pub(crate) fn run(flags: Flags) -> Result<ExitCode> {
    let root = nix::unistd::Uid::effective().is_root();
    let options = flags.resolve(Role::Up, root)?;
    let findings = [
        data_dir(&options.data_dir),
        ports(&options),
        memory(),
        disk(&options.data_dir),
        privileges(root),
        address_space(),
        containers(&options),
    ];
    for finding in &findings {
        let mark = match finding.level {
            Level::Good => "ok     ",
            Level::Limited => "limited",
            Level::Bad => "problem",
        };
        output::line(format!("{mark}  {:<14} {}", finding.what, finding.text));
    }
    let fatal = findings.iter().any(|finding| finding.level == Level::Bad);
    Ok(if fatal { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn data_dir(path: &Path) -> Finding {
    let existing = path.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    match nix::unistd::access(existing, nix::unistd::AccessFlags::W_OK) {
        Ok(()) => good("data directory", path.display().to_string()),
        Err(error) => bad(
            "data directory",
            format!("{} cannot be written ({error}): choose another one with --data-dir", existing.display()),
        ),
    }
}

fn ports(options: &Options) -> Finding {
    let flags = [
        ("api-addr", options.api_addr),
        ("ui-addr", options.ui_addr),
        ("http-addr", options.http_addr),
        ("https-addr", options.https_addr),
    ];
    let taken: Vec<String> = flags
        .iter()
        .filter_map(|(flag, address)| {
            Some(format!("{address}: {} (choose with --{flag})", TcpListener::bind(address).err()?))
        })
        .collect();
    match taken.is_empty() {
        true => good("ports", flags.map(|(_, address)| address.to_string()).join(", ")),
        false => bad("ports", taken.join("; ")),
    }
}

fn memory() -> Finding {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key)?.split_whitespace().next()?.parse::<u64>().ok())
            .unwrap_or_default()
    };
    let (total, available) = (kib("MemTotal:") / 1024, kib("MemAvailable:") / 1024);
    match available {
        0..256 => {
            limited("memory", format!("{available} of {total} MiB are available; 256 MiB are comfortable"))
        }
        _ => good("memory", format!("{available} of {total} MiB are available")),
    }
}

fn disk(path: &Path) -> Finding {
    let existing = path.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    match nix::sys::statvfs::statvfs(existing) {
        Ok(stat) => {
            let free = stat.blocks_available().saturating_mul(stat.fragment_size()) >> 20;
            match free {
                0..512 => limited(
                    "disk",
                    format!("{free} MiB are free under {}: images need more", existing.display()),
                ),
                _ => good("disk", format!("{free} MiB are free under {}", existing.display())),
            }
        }
        Err(error) => limited("disk", format!("free space of {} is unknown: {error}", existing.display())),
    }
}

fn privileges(root: bool) -> Finding {
    match root {
        true => good("privileges", "root: pods have addresses of their own, ports below 1024 can be used"),
        false => limited(
            "privileges",
            "ordinary user: pods have loopback addresses of this machine; run as root for more",
        ),
    }
}

fn address_space() -> Finding {
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_AS).map(|(soft, _)| soft);
    match limit {
        Ok(nix::sys::resource::RLIM_INFINITY) | Err(_) => good("address space", "unlimited"),
        Ok(bytes) => limited(
            "address space",
            format!(
                "limited to {} GiB: instances are pooled in less, `ulimit -v unlimited` lifts it",
                bytes >> 30
            ),
        ),
    }
}

fn containers(options: &Options) -> Finding {
    let wanted = ketch_runtime_oci::Options {
        data_dir: options.data_dir.clone(),
        plugin: std::env::current_exe().unwrap_or_default(),
    };
    match ketch_runtime_oci::probe(&options.containerd, &wanted) {
        Ok(how) => good("containers", how),
        Err(why) => {
            limited("containers", format!("WebAssembly only: {}. To have them: {}", why.cause, why.fix))
        }
    }
}
