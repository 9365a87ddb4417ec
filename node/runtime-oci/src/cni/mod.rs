//! Pod networking: this project's own CNI plugin.
//!
//! containerd starts the plugin for each sandbox it makes or removes. The plugin is this very program under
//! another name ([`invoked`], [`main`]); all it needs is in its input, the pod's address in an annotation that
//! [`crate::OciRuntime`] put there. So it does not depend on a daemon that may be restarting: removing a pod
//! works, and leaks nothing, whether Ketch runs or not.
//!
//! A pod has a veth pair: `eth0` with its address, a default route by way of a link-local gateway that no
//! interface has (its link-layer address is a permanent neighbour entry), and on the host a route for this one
//! address. No bridge, no ARP, nothing shared with another pod.
//!
//! Protocol: <https://www.cni.dev/docs/spec/>

mod link;
mod protocol;

use std::{
    fs,
    io::{self, Read, Write},
    path::Path,
    process::ExitCode,
};

pub use protocol::{Command, Config, Environment, Problem, Request, parse};

/// The plugin's name in configurations and in the plugin directory.
const PLUGIN: &str = "ketch-cni";
/// What containerd calls to bring a pod's loopback interface up.
const LOOPBACK: &str = "loopback";
/// Most bytes of input.
const MAX_INPUT: u64 = 1 << 20;
/// Name of our configuration in containerd's directory.
pub(crate) const CONFIGURATION: &str = "10-ketch.conflist";

/// Whether this program was started as the plugin, by its name.
pub fn invoked(argv0: Option<&std::ffi::OsStr>) -> bool {
    let name = argv0.map(Path::new).and_then(Path::file_name);
    name.is_some_and(|name| name == PLUGIN || name == LOOPBACK)
}

/// Runs as the plugin: environment and standard input in, standard output out.
pub fn main() -> ExitCode {
    let mut input = Vec::new();
    let read = io::stdin().lock().take(MAX_INPUT).read_to_end(&mut input);
    let environment = Environment::from_variables(|name| std::env::var(name).ok());
    let answer = match read {
        Ok(_) => parse(&environment, &input).and_then(|request| run(&request)),
        Err(error) => Err(Problem::io(&format!("read the configuration: {error}"))),
    };
    let (text, code) = match answer {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(problem) => (problem.to_json(), ExitCode::FAILURE),
    };
    match io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

/// What a call would do: its address, and how its answer looks.
#[cfg(fuzzing)]
pub(crate) fn fuzz(request: &Request) {
    if let Ok(address) = request.address() {
        let (host, mac) = (link::host_name(&request.container), "02:00:00:00:00:01".to_owned());
        assert!(host.len() <= 15, "the kernel's limit");
        let made = protocol::Made { host, host_mac: mac.clone(), pod_mac: mac, address };
        let _ = protocol::added(request, &made);
    }
    let _ = (protocol::loopback(request), protocol::versions(&request.config.cni_version));
}

fn run(request: &Request) -> Result<String, Problem> {
    if request.command == Command::Version {
        return Ok(protocol::versions(&request.config.cni_version));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Problem::io(&error.to_string()))?;
    if request.config.kind == LOOPBACK {
        return match request.command {
            Command::Add => {
                runtime.block_on(link::loopback(request))?;
                Ok(protocol::loopback(request))
            }
            _ => Ok(String::new()),
        };
    }
    match request.command {
        Command::Add => {
            let made = runtime.block_on(link::add(request))?;
            Ok(protocol::added(request, &made))
        }
        Command::Del => runtime.block_on(link::remove(request)).map(|()| String::new()),
        Command::Check => runtime.block_on(link::check(request)).map(|()| String::new()),
        Command::Version => Ok(String::new()),
    }
}

/// Puts our configuration and the plugin, which is the program at `executable`, where containerd looks.
///
/// # Errors
/// When the directories cannot be written.
pub(crate) fn install(configurations: &Path, plugins: &Path, executable: &Path) -> io::Result<()> {
    fs::create_dir_all(configurations)?;
    fs::create_dir_all(plugins)?;
    let path = configurations.join(CONFIGURATION);
    let text = protocol::configuration(PLUGIN);
    // containerd watches the directory: unchanged is left alone.
    if fs::read_to_string(&path).ok().as_deref() != Some(text.as_str()) {
        let temporary = path.with_extension("tmp");
        fs::write(&temporary, text)?;
        fs::rename(&temporary, &path)?;
    }
    for name in [PLUGIN, LOOPBACK] {
        let link = plugins.join(name);
        let ours = fs::read_link(&link).ok();
        // A loopback plugin of the host's own does as well.
        if ours.as_deref() == Some(executable) || (name == LOOPBACK && ours.is_none() && link.exists()) {
            continue;
        }
        match fs::remove_file(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => std::os::unix::fs::symlink(executable, &link)?,
        }
    }
    Ok(())
}

/// Takes back what [`install`] put there; what is another program's stays.
pub(crate) fn uninstall(configurations: &Path, plugins: &Path, executable: &Path) {
    for name in [PLUGIN, LOOPBACK] {
        let link = plugins.join(name);
        if fs::read_link(&link).is_ok_and(|target| target == executable) {
            _ = fs::remove_file(link);
        }
    }
    let path = configurations.join(CONFIGURATION);
    if fs::read_to_string(&path).is_ok_and(|text| text == protocol::configuration(PLUGIN)) {
        _ = fs::remove_file(path);
    }
}
