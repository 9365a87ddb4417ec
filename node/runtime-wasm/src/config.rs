//! `wasi:config`: the container's environment.

use std::sync::Arc;

use wasmtime::component::{HasData, Linker};

use crate::context::Ctx;

#[allow(missing_docs, unreachable_pub, reason = "generated")]
mod bindings {
    wasmtime::component::bindgen!({
        path: "wit/config",
        world: "wasi:config/imports",
        imports: { default: trappable },
    });
}

use bindings::wasi::config::store;

/// The view of a store that the interface works on.
struct Config(Arc<Vec<(String, String)>>);

impl HasData for Config {
    type Data<'a> = Config;
}

impl store::Host for Config {
    fn get(&mut self, key: String) -> wasmtime::Result<Result<Option<String>, store::Error>> {
        Ok(Ok(self.0.iter().find(|(name, _)| *name == key).map(|(_, value)| value.clone())))
    }

    fn get_all(&mut self) -> wasmtime::Result<Result<Vec<(String, String)>, store::Error>> {
        Ok(Ok(self.0.to_vec()))
    }
}

pub(crate) fn add_to_linker(linker: &mut Linker<Ctx>) -> wasmtime::Result<()> {
    store::add_to_linker::<_, Config>(linker, |ctx| Config(Arc::clone(&ctx.env)))
}
