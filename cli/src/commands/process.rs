//! What every daemon does: options, logs, a runtime, signals.

use std::{io::IsTerminal, net::IpAddr, path::Path, process::ExitCode, time::Instant};

use anyhow::Result;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::connect;
use crate::{
    options::{Flags, Options, Role},
    output,
};

/// Resolves the options and runs `serve` to its end; prints the options instead when that was asked for.
pub(crate) fn daemon<F>(
    flags: Flags,
    role: Role,
    serve: impl FnOnce(Options, Instant) -> F,
) -> Result<ExitCode>
where
    F: Future<Output = Result<()>>,
{
    let start = Instant::now();
    let print = flags.print_config;
    let options = flags.resolve(role, nix::unistd::Uid::effective().is_root())?;
    if print {
        output::line(toml::to_string_pretty(&options)?.trim_end());
        return Ok(ExitCode::SUCCESS);
    }
    if role != Role::Node {
        options.keep_clear_of(&own_addresses())?;
    }
    // Logs go to standard error, so that the link on standard output can be read by programs.
    let filter = EnvFilter::try_from_env("KETCH_LOG")
        .unwrap_or_else(|_| EnvFilter::new("warn,ketch=info,ketch::audit=warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    connect::install_crypto();
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .on_thread_start(ketch_runtime::priority::step_forward)
        .build()?;
    runtime.block_on(serve(options, start))?;
    // What is left are threads that own nothing.
    runtime.shutdown_background();
    Ok(ExitCode::SUCCESS)
}

/// This machine's devices and their addresses.
pub(crate) fn own_addresses() -> Vec<(String, IpAddr)> {
    let interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let addresses = interfaces.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        let ip = v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))?;
        Some((interface.interface_name, ip))
    });
    addresses.collect()
}

/// What to type to call this program: its name where the search path leads to it, else its path, from the
/// working directory if it is below that.
pub(crate) fn own_name() -> String {
    let Ok(own) = std::env::current_exe() else { return "ketch".into() };
    let search = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&search).find_map(|dir| dir.join("ketch").canonicalize().ok());
    if found.is_some_and(|found| found == own) {
        return "ketch".into();
    }
    let below =
        std::env::current_dir().ok().and_then(|dir| own.strip_prefix(dir).ok().map(Path::to_path_buf));
    below.map_or(own, |below| Path::new(".").join(below)).display().to_string()
}

/// The first request to end; a second one ends the process at once.
pub(crate) async fn wait_for_the_end() -> Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    one_of(&mut interrupt, &mut terminate).await;
    std::thread::spawn(move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        runtime.block_on(one_of(&mut interrupt, &mut terminate));
        std::process::exit(130);
    });
    Ok(())
}

async fn one_of(interrupt: &mut Signal, terminate: &mut Signal) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// A socket per pod and per connection: the soft limit of 1,024 files is for other programs.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}
