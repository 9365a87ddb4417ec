//! Compiled binaries, linked: loaded when needed, shared by every container of the same image, unmapped when
//! the last one lets go.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use ketch_api::wasm::World;
use ketch_runtime::Error;
use wasmtime::{
    Module,
    component::{Component, Linker},
};
use wasmtime_wasi::{p2::bindings::CommandPre, p3::bindings::CommandPre as CommandAsyncPre};
use wasmtime_wasi_http::{p2::bindings::ProxyPre, p3::bindings::ServicePre};

use crate::{
    cache::Cache,
    context::{self, Ctx, ModuleCtx},
    engine::EngineHost,
    images::{Images, Stored},
};

/// A binary ready to be instantiated.
pub(crate) enum Program {
    /// Exports `wasi:http/incoming-handler@0.2`.
    Http(ProxyPre<Ctx>),
    /// Exports `wasi:http/handler@0.3`.
    HttpAsync(ServicePre<Ctx>),
    /// Exports `wasi:cli/run@0.2`.
    Command(CommandPre<Ctx>),
    /// Exports `wasi:cli/run@0.3`.
    CommandAsync(CommandAsyncPre<Ctx>),
    /// A core module that exports `_start`.
    Module(wasmtime::InstancePre<ModuleCtx>),
}

impl Program {
    /// What it can be run as.
    pub(crate) fn world(&self) -> World {
        match self {
            Self::Http(_) => World::Http,
            Self::HttpAsync(_) => World::HttpAsync,
            Self::Command(_) | Self::CommandAsync(_) | Self::Module(_) => World::Command,
        }
    }

    /// Whether it is a core module.
    pub(crate) fn is_module(&self) -> bool {
        matches!(self, Self::Module(_))
    }
}

/// Loads programs.
pub(crate) struct Programs {
    engine: Arc<EngineHost>,
    linker: Linker<Ctx>,
    modules: wasmtime::Linker<ModuleCtx>,
    cache: Cache,
    loaded: Mutex<HashMap<String, Weak<Program>>>,
}

impl Programs {
    pub(crate) fn new(engine: Arc<EngineHost>, cache: Cache) -> wasmtime::Result<Self> {
        let linker = context::linker(&engine.engine)?;
        let modules = context::module_linker(&engine.engine)?;
        Ok(Self { engine, linker, modules, cache, loaded: Mutex::default() })
    }

    /// The program of a stored image.
    pub(crate) async fn get(
        self: &Arc<Self>,
        images: &Images,
        stored: &Stored,
    ) -> Result<Arc<Program>, Error> {
        self.load(&stored.wasm, &images.blob(&stored.wasm)).await
    }

    /// Removes what was compiled from a binary that is not needed any more.
    pub(crate) fn forget(&self, digest: &str) {
        self.cache.forget(digest);
    }

    /// The program compiled from `wasm`, whose hexadecimal SHA-256 is `digest`.
    pub(crate) async fn load(self: &Arc<Self>, digest: &str, wasm: &Path) -> Result<Arc<Program>, Error> {
        if let Some(program) = self.loaded().get(digest).and_then(Weak::upgrade) {
            return Ok(program);
        }
        let program = match self.load_code(digest, wasm).await {
            // Code that checks out and still does not load: from an engine that hashes alike but is not.
            Err(Failure::Code(first)) => {
                tracing::warn!(digest, error = first, "compiled code does not load; compiling again");
                self.load_code(digest, wasm).await
            }
            other => other,
        };
        let program = Arc::new(program.map_err(Failure::into_error)?);
        let mut loaded = self.loaded();
        loaded.retain(|_, program| program.strong_count() > 0);
        loaded.insert(digest.to_owned(), Arc::downgrade(&program));
        Ok(program)
    }

    fn loaded(&self) -> std::sync::MutexGuard<'_, HashMap<String, Weak<Program>>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn load_code(self: &Arc<Self>, digest: &str, wasm: &Path) -> Result<Program, Failure> {
        let code = self.cache.code(digest, wasm).await.map_err(|text| Failure::Image(Error::Image(text)))?;
        let this = Arc::clone(self);
        let work = tokio::task::spawn_blocking(move || {
            let result = this.link(&code);
            if let Err(Failure::Code(_)) = &result {
                this.cache.discard(&code);
            }
            result
        });
        work.await
            .map_err(|error| Failure::Image(Error::Internal(format!("loading code failed: {error}"))))?
    }

    /// Maps compiled code and links it.
    fn link(&self, code: &Path) -> Result<Program, Failure> {
        let kind = wasmtime::Engine::detect_precompiled_file(code);
        match kind.map_err(|error| Failure::Code(format!("{error:#}")))? {
            Some(wasmtime::Precompiled::Component) => self.link_component(&self.map_component(code)?),
            Some(wasmtime::Precompiled::Module) => self.link_module(&self.map_module(code)?),
            None => Err(Failure::Code("not compiled code".into())),
        }
    }

    #[allow(unsafe_code)]
    fn map_component(&self, code: &Path) -> Result<Component, Failure> {
        // SAFETY: `Cache::code` has checked the MAC of this file: it is what our compiler wrote for this
        // engine, is replaced only as a whole, and lies in a directory that only this user can write.
        unsafe { Component::deserialize_file(&self.engine.engine, code) }
            .map_err(|error| Failure::Code(format!("{error:#}")))
    }

    #[allow(unsafe_code)]
    fn map_module(&self, code: &Path) -> Result<Module, Failure> {
        // SAFETY: as in `map_component`.
        unsafe { Module::deserialize_file(&self.engine.engine, code) }
            .map_err(|error| Failure::Code(format!("{error:#}")))
    }

    fn link_component(&self, component: &Component) -> Result<Program, Failure> {
        let ty = component.component_type();
        let engine = &self.engine.engine;
        check_imports(ty.imports(engine).map(|(name, _)| name))?;
        let exports: Vec<&str> = ty.exports(engine).map(|(name, _)| name).collect();
        let pre = self.linker.instantiate_pre(component).map_err(not_linkable)?;
        let kind =
            exported_world(&exports).ok_or_else(|| Failure::Image(Error::Image(nothing_to_run(&exports))))?;
        match kind {
            Kind::HttpAsync => ServicePre::new(pre).map(Program::HttpAsync),
            Kind::Http => ProxyPre::new(pre).map(Program::Http),
            Kind::CommandAsync => CommandAsyncPre::new(pre).map(Program::CommandAsync),
            Kind::Command => CommandPre::new(pre).map(Program::Command),
        }
        .map_err(not_linkable)
    }

    fn link_module(&self, module: &Module) -> Result<Program, Failure> {
        let unknown: Vec<String> = module
            .imports()
            .filter(|import| !matches!(import.module(), "wasi_snapshot_preview1" | "wasi_unstable"))
            .map(|import| format!("\"{}\" \"{}\"", import.module(), import.name()))
            .collect();
        if !unknown.is_empty() {
            return Err(Failure::Image(Error::Image(not_provided(&unknown))));
        }
        if module.get_export("_start").and_then(|export| export.func().cloned()).is_none() {
            return Err(Failure::Image(Error::Image(
                "the module has no _start function: build a command, or a component with wasi:http".into(),
            )));
        }
        self.modules.instantiate_pre(module).map(Program::Module).map_err(not_linkable)
    }
}

/// Why a binary did not become a program.
enum Failure {
    /// The compiled code is bad: compile again.
    Code(String),
    /// The binary is.
    Image(Error),
}

impl Failure {
    fn into_error(self) -> Error {
        match self {
            Self::Code(text) => Error::Internal(format!("compiled code does not load: {text}")),
            Self::Image(error) => error,
        }
    }
}

fn not_linkable(error: wasmtime::Error) -> Failure {
    Failure::Image(Error::Image(format!("the component does not fit this host: {error:#}")))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    HttpAsync,
    Http,
    CommandAsync,
    Command,
}

/// What to run a component as, by its exports: serving before running, the newer interface first. Pure.
fn exported_world(exports: &[&str]) -> Option<Kind> {
    let worlds = [
        ("wasi:http/handler@0.3", Kind::HttpAsync),
        ("wasi:http/incoming-handler@0.2", Kind::Http),
        ("wasi:cli/run@0.3", Kind::CommandAsync),
        ("wasi:cli/run@0.2", Kind::Command),
    ];
    let has = |prefix: &str| exports.iter().any(|export| export.starts_with(prefix));
    worlds.into_iter().find_map(|(prefix, kind)| has(prefix).then_some(kind))
}

fn nothing_to_run(exports: &[&str]) -> String {
    let found = if exports.is_empty() { "nothing".to_owned() } else { exports.join(", ") };
    format!(
        "nothing to run: it exports {found}, but neither wasi:http/incoming-handler, wasi:http/handler nor wasi:cli/run"
    )
}

/// Interfaces provided, without patch version. The linker has the last word; this list is there to name
/// everything that is missing at once.
const PROVIDED: &[(&str, &[&str])] = &[
    ("wasi:io", &["error@0.2", "poll@0.2", "streams@0.2"]),
    (
        "wasi:random",
        &[
            "random@0.2",
            "insecure@0.2",
            "insecure-seed@0.2",
            "random@0.3",
            "insecure@0.3",
            "insecure-seed@0.3",
        ],
    ),
    (
        "wasi:clocks",
        &["wall-clock@0.2", "monotonic-clock@0.2", "monotonic-clock@0.3", "system-clock@0.3", "types@0.3"],
    ),
    ("wasi:filesystem", &["types@0.2", "preopens@0.2", "types@0.3", "preopens@0.3"]),
    (
        "wasi:cli",
        &[
            "environment@0.2",
            "exit@0.2",
            "stdin@0.2",
            "stdout@0.2",
            "stderr@0.2",
            "terminal-input@0.2",
            "terminal-output@0.2",
            "terminal-stdin@0.2",
            "terminal-stdout@0.2",
            "terminal-stderr@0.2",
            "environment@0.3",
            "exit@0.3",
            "stdin@0.3",
            "stdout@0.3",
            "stderr@0.3",
            "terminal-input@0.3",
            "terminal-output@0.3",
            "terminal-stdin@0.3",
            "terminal-stdout@0.3",
            "terminal-stderr@0.3",
            "types@0.3",
        ],
    ),
    (
        "wasi:sockets",
        &[
            "network@0.2",
            "instance-network@0.2",
            "ip-name-lookup@0.2",
            "tcp@0.2",
            "tcp-create-socket@0.2",
            "udp@0.2",
            "udp-create-socket@0.2",
            "types@0.3",
            "ip-name-lookup@0.3",
        ],
    ),
    ("wasi:http", &["types@0.2", "outgoing-handler@0.2", "types@0.3", "client@0.3"]),
    ("wasi:config", &["store@0.2.0-rc.1"]),
    (
        "wasi:keyvalue",
        &[
            "store@0.2.0-draft",
            "atomics@0.2.0-draft",
            "batch@0.2.0-draft",
            "store@0.2.0-draft2",
            "atomics@0.2.0-draft2",
            "batch@0.2.0-draft2",
        ],
    ),
];

/// Whether an import's name is one that [`PROVIDED`] covers.
fn provided(import: &str) -> bool {
    let Some((package, rest)) = import.split_once('/') else { return false };
    let interfaces =
        PROVIDED.iter().find(|(name, _)| *name == package).map_or(&[][..], |(_, interfaces)| interfaces);
    interfaces.iter().any(|interface| match rest.strip_prefix(interface) {
        Some("") => true,
        // Any patch of a release; a draft is only itself.
        Some(patch) => patch.starts_with('.') && !interface.contains(".0-"),
        None => false,
    })
}

fn check_imports<'a>(imports: impl Iterator<Item = &'a str>) -> Result<(), Failure> {
    let missing: Vec<String> =
        imports.filter(|name| !provided(name)).map(|name| format!("\"{name}\"")).collect();
    if missing.is_empty() { Ok(()) } else { Err(Failure::Image(Error::Image(not_provided(&missing)))) }
}

fn not_provided(missing: &[String]) -> String {
    format!("it imports {}, which nothing here provides", missing.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worlds_are_told_by_exports() {
        assert_eq!(exported_world(&["wasi:http/incoming-handler@0.2.3"]), Some(Kind::Http));
        assert_eq!(exported_world(&["wasi:cli/run@0.2.0", "wasi:http/handler@0.3.0"]), Some(Kind::HttpAsync));
        assert_eq!(exported_world(&["wasi:cli/run@0.2.12"]), Some(Kind::Command));
        assert_eq!(exported_world(&["my:own/api"]), None);
        assert!(nothing_to_run(&["my:own/api"]).contains("it exports my:own/api, but"));
    }

    #[test]
    fn what_is_provided_is_known_by_name() {
        for import in [
            "wasi:io/streams@0.2.0",
            "wasi:io/streams@0.2",
            "wasi:cli/terminal-stdin@0.2.12",
            "wasi:http/types@0.3.2",
            "wasi:config/store@0.2.0-rc.1",
            "wasi:keyvalue/store@0.2.0-draft2",
        ] {
            assert!(provided(import), "{import}");
        }
        for import in [
            "wasi:io/streams@0.20.0",
            "wasi:io/streams@0.3.0",
            "wasi:keyvalue/store@0.2.0-draft3",
            "foo:bar/baz@1.0.0",
            "free-function",
        ] {
            assert!(!provided(import), "{import}");
        }
    }

    #[test]
    fn every_missing_import_is_named() {
        let Err(Failure::Image(error)) =
            check_imports(["foo:bar/baz@1.0.0", "wasi:io/poll@0.2.0", "a"].into_iter())
        else {
            panic!("it should not link")
        };
        assert_eq!(error.to_string(), "it imports \"foo:bar/baz@1.0.0\", \"a\", which nothing here provides");
    }
}
