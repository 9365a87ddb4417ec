//! Programs that run to their end: `wasi:cli/run` and `_start`.

use std::sync::Arc;

use ketch_runtime::Error;
use tokio_util::sync::CancellationToken;
use wasmtime::Store;
use wasmtime_wasi::{
    I32Exit,
    p2::bindings::CommandPre,
    p3::bindings::{Command as CommandAsync, CommandPre as CommandAsyncPre},
};

use crate::{
    context::{Ctx, ModuleCtx, Surroundings},
    limits::{Limiter, Meter},
    program::Program,
};

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) code: i32,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl Outcome {
    fn exited(code: i32) -> Self {
        Self { code, reason: if code == 0 { "Completed" } else { "Error" }, message: String::new() }
    }

    /// Ended from outside, as a process is by SIGTERM: WASI has no way to ask.
    pub(crate) fn stopped() -> Self {
        Self { code: 143, reason: "Error", message: "stopped".into() }
    }

    /// What a guest's error means. `limiter` knows whether it was refused memory before.
    fn failed(error: &wasmtime::Error, limiter: &Limiter) -> Self {
        if let Some(I32Exit(code)) = error.downcast_ref() {
            return Self::exited(*code);
        }
        let trace = format!("{error:?}");
        if limiter.exceeded() {
            let message =
                format!("needs more memory than its limit of {} MiB\n{trace}", limiter.limit() >> 20);
            return Self { code: 137, reason: "OOMKilled", message };
        }
        Self { code: 1, reason: "Trapped", message: format!("{}\n{trace}", brief(error)) }
    }
}

/// A guest's error in one line.
pub(crate) fn brief(error: &wasmtime::Error) -> String {
    match error.downcast_ref::<wasmtime::Trap>() {
        Some(trap) => format!("it trapped: {trap}"),
        None => format!("{}", error.root_cause()),
    }
}

/// Runs a program until it ends or `over` is cancelled.
///
/// # Errors
/// When there is no instance to be had for it.
pub(crate) async fn run(
    around: &Surroundings,
    meter: &Meter,
    program: Arc<Program>,
    over: &CancellationToken,
) -> Result<Outcome, Error> {
    let instances = Arc::clone(&around.engine.instances);
    let _instance = instances.try_acquire_owned().map_err(|_| {
        Error::Config(
            "this node runs as many WebAssembly instances as it can: scale down, or add a node".into(),
        )
    })?;
    let guest = async {
        match &*program {
            Program::Command(pre) => command(around.store()?, pre).await,
            Program::CommandAsync(pre) => command_async(around.store()?, pre).await,
            Program::Module(pre) => module(around.module_store()?, pre).await,
            Program::Http(_) | Program::HttpAsync(_) => {
                Err(Error::Internal("an HTTP component does not run as a command".into()))
            }
        }
    };
    tokio::select! {
        biased;
        () = over.cancelled() => Ok(Outcome::stopped()),
        outcome = meter.run(guest) => outcome,
    }
}

async fn command(mut store: Store<Ctx>, pre: &CommandPre<Ctx>) -> Result<Outcome, Error> {
    let result = async {
        let command = pre.instantiate_async(&mut store).await?;
        command.wasi_cli_run().call_run(&mut store).await
    };
    let result = result.await;
    Ok(ended(result, &store.data().limiter))
}

async fn command_async(mut store: Store<Ctx>, pre: &CommandAsyncPre<Ctx>) -> Result<Outcome, Error> {
    let result = async {
        let command: CommandAsync = pre.instantiate_async(&mut store).await?;
        store.run_concurrent(async |accessor| command.wasi_cli_run().call_run(accessor).await).await?
    };
    let result = result.await;
    Ok(ended(result, &store.data().limiter))
}

async fn module(
    mut store: Store<ModuleCtx>,
    pre: &wasmtime::InstancePre<ModuleCtx>,
) -> Result<Outcome, Error> {
    let result = async {
        let instance = pre.instantiate_async(&mut store).await?;
        let start = instance.get_typed_func::<(), ()>(&mut store, "_start")?;
        start.call_async(&mut store, ()).await
    };
    let result = result.await;
    Ok(ended(result.map(Ok), &store.data().limiter))
}

fn ended(result: wasmtime::Result<Result<(), ()>>, limiter: &Limiter) -> Outcome {
    match result {
        Ok(Ok(())) => Outcome::exited(0),
        Ok(Err(())) => Outcome::exited(1),
        Err(error) => Outcome::failed(&error, limiter),
    }
}

#[cfg(test)]
mod tests {
    use wasmtime::{ResourceLimiter, Trap};

    use super::*;

    #[test]
    fn ends_become_codes_and_reasons() {
        let mut limiter = Limiter::new(1 << 20, Arc::default());
        assert_eq!(
            ended(Ok(Ok(())), &limiter),
            Outcome { code: 0, reason: "Completed", message: String::new() }
        );
        assert_eq!(ended(Ok(Err(())), &limiter).code, 1);
        assert_eq!(ended(Err(I32Exit(0).into()), &limiter).reason, "Completed");
        assert_eq!(ended(Err(I32Exit(7).into()), &limiter), Outcome::exited(7));
        let trapped = ended(Err(Trap::UnreachableCodeReached.into()), &limiter);
        assert_eq!((trapped.code, trapped.reason), (1, "Trapped"));
        assert!(
            trapped.message.starts_with("it trapped: wasm trap: wasm `unreachable`"),
            "{}",
            trapped.message
        );
        assert!(!limiter.memory_growing(0, 2 << 20, None).unwrap());
        let killed = ended(Err(Trap::UnreachableCodeReached.into()), &limiter);
        assert_eq!((killed.code, killed.reason), (137, "OOMKilled"));
        assert!(killed.message.starts_with("needs more memory than its limit of 1 MiB"));
    }
}
