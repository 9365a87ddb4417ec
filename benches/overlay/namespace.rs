//! Network namespaces that are gone at the end.

use std::{
    fs::File,
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    thread::JoinHandle,
};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};

/// A network namespace.
pub(super) struct Namespace {
    pub(super) name: String,
}

impl Namespace {
    pub(super) fn new(role: &str) -> Result<Self> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let ns = Self { name: format!("kob{}-{count}-{role}", std::process::id()) };
        ip(&["netns", "add", &ns.name])?;
        ns.ip("link set lo up")?;
        Ok(ns)
    }

    /// `ip ARGS` in here.
    pub(super) fn ip(&self, args: &str) -> Result<()> {
        let mut all = vec!["-n", &self.name];
        all.extend(args.split(' '));
        ip(&all)
    }

    /// Runs `work` on a thread in here; sockets that it makes stay in here.
    pub(super) fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> JoinHandle<Result<T>> {
        let path = format!("/var/run/netns/{}", self.name);
        std::thread::spawn(move || {
            setns(File::open(path)?, CloneFlags::CLONE_NEWNET)?;
            work()
        })
    }

    pub(super) fn within<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.spawn(work).join().map_err(|_| anyhow::anyhow!("a thread in a namespace has panicked"))?
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

pub(super) fn ip(args: &[&str]) -> Result<()> {
    let status = Command::new("ip").args(args).status().context("start ip")?;
    ensure!(status.success(), "ip {args:?} has failed");
    Ok(())
}
