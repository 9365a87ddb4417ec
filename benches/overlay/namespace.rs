//! Network namespaces that are gone at the end.

use std::{
    fs::File,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    thread::JoinHandle,
};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};

/// The file of a network namespace, whoever made it.
#[derive(Clone)]
pub(crate) struct Place(PathBuf);

impl Place {
    /// The network that a process sees.
    pub(crate) fn of_process(pid: u32) -> Self {
        Self(format!("/proc/{pid}/ns/net").into())
    }

    /// Runs `work` on a thread in here; sockets that it makes stay in here.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> JoinHandle<Result<T>> {
        let path = self.0.clone();
        std::thread::spawn(move || {
            setns(File::open(path)?, CloneFlags::CLONE_NEWNET)?;
            work()
        })
    }

    pub(crate) fn within<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.spawn(work).join().map_err(|_| anyhow::anyhow!("a thread in a namespace has panicked"))?
    }
}

/// A network namespace of ours.
pub(crate) struct Namespace {
    pub(crate) name: String,
    pub(crate) place: Place,
}

impl Namespace {
    pub(crate) fn new(role: &str) -> Result<Self> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("kob{}-{count}-{role}", std::process::id());
        let ns = Self { place: Place(format!("/var/run/netns/{name}").into()), name };
        ip(&["netns", "add", &ns.name])?;
        ns.ip("link set lo up")?;
        Ok(ns)
    }

    /// `ip ARGS` in here.
    pub(crate) fn ip(&self, args: &str) -> Result<()> {
        let mut all = vec!["-n", &self.name];
        all.extend(args.split(' '));
        ip(&all)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

pub(crate) fn ip(args: &[&str]) -> Result<()> {
    let status = Command::new("ip").args(args).status().context("start ip")?;
    ensure!(status.success(), "ip {args:?} has failed");
    Ok(())
}
