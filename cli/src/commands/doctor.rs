//! `ketch doctor`: what this machine can do, and the fix for each thing it cannot.

use std::{
    net::{SocketAddr, TcpListener},
    path::Path,
    process::ExitCode,
};

use anyhow::Result;
use ketch_server::DataDir;
use serde_json::Value;

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
    let process = DataDir::owner(&options.data_dir);
    let running = process.map(|_| run_file(&options.data_dir)).unwrap_or_default();
    let (mut own, mut taken) = (Vec::new(), Vec::new());
    for (flag, address) in flags {
        match TcpListener::bind(address) {
            Ok(_) => {}
            Err(_) if listens(&running[flag], address) => own.push(address.to_string()),
            Err(error) => taken.push(format!("{address}: {error} (choose with --{flag})")),
        }
    }
    let all = flags.map(|(_, address)| address.to_string()).join(", ");
    match (taken.is_empty(), process.filter(|_| !own.is_empty())) {
        (true, None) => good("ports", all),
        (true, Some(process)) => {
            let which = if own.len() == flags.len() { "them".to_owned() } else { own.join(", ") };
            good("ports", format!("{all}: the Ketch of this data directory, process {process}, has {which}"))
        }
        (false, _) => bad("ports", taken.join("; ")),
    }
}

/// What the Ketch that runs from a data directory has written about itself.
fn run_file(data_dir: &Path) -> Value {
    let text = std::fs::read_to_string(data_dir.join("run.json")).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

/// Whether a server at `own` is what keeps others from `address`.
fn listens(own: &Value, address: SocketAddr) -> bool {
    let own: Option<SocketAddr> = own.as_str().and_then(|own| own.parse().ok());
    own.is_some_and(|own| {
        let is_any = own.ip().is_unspecified() || address.ip().is_unspecified();
        own.port() == address.port() && (own.ip() == address.ip() || is_any)
    })
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn options(dir: &Path, api: SocketAddr, ui: SocketAddr) -> Options {
        let free = "127.0.0.1:0";
        let flags =
            json!({"data-dir": dir, "api-addr": api, "ui-addr": ui, "http-addr": free, "https-addr": free});
        let flags: Flags = serde_json::from_value(flags).unwrap();
        flags.resolve(Role::Up, false).unwrap()
    }

    #[test]
    fn ports_of_the_ketch_that_runs_are_not_taken() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temporary.path()).unwrap();
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [own, other] = listeners.each_ref().map(|one| one.local_addr().unwrap());
        dir.write("run.json", &json!({"api-addr": own}).to_string()).unwrap();
        let free = "127.0.0.1:0".parse().unwrap();
        let finding = ports(&options(temporary.path(), own, free));
        let process = format!("process {}", std::process::id());
        assert_eq!(finding.level, Level::Good, "{}", finding.text);
        assert!(
            finding.text.contains(&process) && finding.text.contains(&own.to_string()),
            "{}",
            finding.text
        );
        // One that something else has is still a problem, and the only one that is named.
        let finding = ports(&options(temporary.path(), own, other));
        assert_eq!(finding.level, Level::Bad, "{}", finding.text);
        assert!(
            finding.text.contains("--ui-addr") && !finding.text.contains("--api-addr"),
            "{}",
            finding.text
        );
        // Once this Ketch has ended, nothing is its own.
        drop(dir);
        let finding = ports(&options(temporary.path(), own, free));
        assert_eq!(finding.level, Level::Bad, "{}", finding.text);
        assert!(finding.text.contains("--api-addr"), "{}", finding.text);
    }

    #[test]
    fn an_address_of_all_is_kept_from_everybody() {
        for (own, address, expected) in [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "127.0.0.1:81", false),
            ("127.0.0.1:80", "127.0.0.2:80", false),
            ("0.0.0.0:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "0.0.0.0:80", true),
            ("nowhere", "127.0.0.1:80", false),
        ] {
            assert_eq!(listens(&json!(own), address.parse().unwrap()), expected, "{own} {address}");
        }
        assert!(!listens(&Value::Null, "127.0.0.1:80".parse().unwrap()));
    }
}
