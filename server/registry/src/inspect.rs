//! Reads off a Wasm binary what it is, what it asks for and whether it can run here. Pure: no IO, nothing
//! is executed.

mod looks;

use crate::Digest;
use ketch_api::wasm::{Encoding, Inspection, World};
use looks::looks_like;
use std::collections::BTreeSet;
use wasmparser::{
    BinaryReader, BinaryReaderError, ComponentExternalKind, ComponentTypeRef, Parser, Payload, TypeBounds,
    Validator, WasmFeatures,
};

/// Packages of the `wasi` namespace that the runtime provides.
const WASI_PACKAGES: &[&str] =
    &["cli", "clocks", "config", "filesystem", "http", "io", "keyvalue", "random", "sockets"];
/// Core module imports that the runtime provides.
const WASI_PREVIEW1: &str = "wasi_snapshot_preview1";

/// Why a file cannot be inspected.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InspectError {
    /// No bytes at all.
    #[error("the file is empty")]
    Empty,
    /// Something else.
    #[error("this is not WebAssembly, it looks like {looks_like}")]
    NotWasm {
        /// What it looks like, and what to do about it when that is known.
        looks_like: &'static str,
    },
    /// Wasm, but of a version nothing here reads.
    #[error(
        "this is WebAssembly of version {version}, which is not supported: it was built by an old or experimental tool"
    )]
    Version {
        /// The version field.
        version: u16,
    },
    /// The end is missing.
    #[error("the file ends too early, after {size} bytes: it was probably cut off while copying")]
    Truncated {
        /// Bytes there are.
        size: u64,
    },
    /// Does not validate.
    #[error("this is not valid WebAssembly: {reason} (at byte {offset})")]
    Invalid {
        /// What the validator says.
        reason: String,
        /// Where.
        offset: u64,
    },
    /// Too large to be inspected.
    #[error(
        "the file has {size} bytes; a Wasm file may have at most {limit}: build it optimised for size, or strip it (`wasm-tools strip`)"
    )]
    TooLarge {
        /// Bytes there are.
        size: u64,
        /// Most bytes.
        limit: u64,
    },
    /// A manifest without a layer that could be inspected.
    #[error("the image has no WebAssembly layer, there is nothing to inspect")]
    NoWasmLayer,
}

/// Inspects a whole binary. Every function body is validated.
///
/// # Errors
/// When it is not Wasm, or not whole. A valid binary that cannot run here is no error:
/// [`Inspection::problems`] says why.
pub fn inspect(bytes: &[u8]) -> Result<Inspection, InspectError> {
    check_header(bytes)?;
    check_end(bytes)?;
    let broken = |error: BinaryReaderError| broken(&error, bytes.len() as u64);
    let mut features = WasmFeatures::default();
    features.insert(WasmFeatures::CM_ASYNC | WasmFeatures::CM_MORE_ASYNC_BUILTINS);
    Validator::new_with_features(features).validate_all(bytes).map_err(broken)?;
    let surface = Surface::read(bytes).map_err(broken)?;
    let world = surface.world();
    Ok(Inspection {
        encoding: surface.encoding,
        world,
        problems: surface.problems(world),
        imports: surface
            .imports
            .into_iter()
            .map(|import| import.name)
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect(),
        exports: surface.exports.into_iter().collect(),
        size: bytes.len() as u64,
        digest: Digest::of(bytes).to_string(),
    })
}

fn check_header(bytes: &[u8]) -> Result<(), InspectError> {
    if bytes.is_empty() {
        return Err(InspectError::Empty);
    }
    if Parser::is_component(bytes) || Parser::is_core_wasm(bytes) {
        return Ok(());
    }
    let Some(version) = bytes.strip_prefix(b"\0asm") else {
        return Err(InspectError::NotWasm { looks_like: looks_like(bytes) });
    };
    match version.first_chunk() {
        // The other half says whether it is a module or a component.
        Some([low, high, _, _]) => Err(InspectError::Version { version: u16::from_le_bytes([*low, *high]) }),
        None => Err(InspectError::Truncated { size: bytes.len() as u64 }),
    }
}

/// Checks that the last section ends where the file does. The parser is content with a nested module that
/// the file ends in the middle of.
fn check_end(bytes: &[u8]) -> Result<(), InspectError> {
    let truncated = || InspectError::Truncated { size: bytes.len() as u64 };
    let mut rest = bytes.get(8..).unwrap_or_default();
    while let Some((_id, section)) = rest.split_first() {
        let mut reader = BinaryReader::new(section, 0);
        // A length that is no number is for the validator to explain.
        let length = match reader.read_var_u32() {
            Ok(length) => length as usize,
            Err(_) if reader.eof() => return Err(truncated()),
            Err(_) => return Ok(()),
        };
        let body = section.get(reader.original_position()..).unwrap_or_default();
        rest = body.get(length..).ok_or_else(truncated)?;
    }
    Ok(())
}

fn broken(error: &BinaryReaderError, size: u64) -> InspectError {
    let reason = error.message().to_owned();
    // An error at the very end is about something that should have come after it.
    if reason.contains("unexpected end") || error.offset() as u64 >= size {
        return InspectError::Truncated { size };
    }
    InspectError::Invalid { reason, offset: error.offset() as u64 }
}

/// What a binary shows to the outside.
struct Surface {
    encoding: Encoding,
    imports: Vec<Import>,
    exports: BTreeSet<String>,
}

struct Import {
    /// As it is shown.
    name: String,
    kind: ImportKind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ImportKind {
    /// An interface: a component's usual import.
    Interface,
    /// A function, resource or component of the world itself.
    Loose(&'static str),
    /// Says what something is; needs no one to provide it.
    Alias,
    /// Of a core module.
    Core,
}

impl Surface {
    fn read(bytes: &[u8]) -> Result<Self, BinaryReaderError> {
        let encoding = if Parser::is_component(bytes) { Encoding::Component } else { Encoding::Module };
        let mut surface = Surface { encoding, imports: Vec::new(), exports: BTreeSet::new() };
        // Nested modules and components have imports too, which their surroundings satisfy.
        let mut depth = 0_usize;
        for payload in Parser::new(0).parse_all(bytes) {
            match payload? {
                Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
                Payload::End(_) => depth = depth.saturating_sub(1),
                payload if depth == 0 => surface.note(payload)?,
                _ => {}
            }
        }
        Ok(surface)
    }

    fn note(&mut self, payload: Payload<'_>) -> Result<(), BinaryReaderError> {
        match payload {
            Payload::ImportSection(imports) => {
                for import in imports.into_imports() {
                    let import = import?;
                    let name = format!("{}::{}", import.module, import.name);
                    self.imports.push(Import { name, kind: ImportKind::Core });
                }
            }
            Payload::ExportSection(exports) => {
                for export in exports {
                    self.exports.insert(export?.name.to_owned());
                }
            }
            Payload::ComponentImportSection(imports) => {
                for import in imports {
                    let import = import?;
                    self.imports.push(Import { name: import.name.name.to_owned(), kind: kind_of(import.ty) });
                }
            }
            Payload::ComponentExportSection(exports) => {
                for export in exports {
                    let export = export?;
                    if export.kind != ComponentExternalKind::Type {
                        self.exports.insert(export.name.name.to_owned());
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn world(&self) -> World {
        let exports = |prefix: &str| self.exports.iter().any(|export| export.starts_with(prefix));
        match self.encoding {
            Encoding::Component if exports("wasi:http/incoming-handler@0.2") => World::Http,
            Encoding::Component if exports("wasi:http/handler@0.3") => World::HttpAsync,
            Encoding::Component if exports("wasi:cli/run@0.2") || exports("wasi:cli/run@0.3") => {
                World::Command
            }
            Encoding::Module if self.exports.contains("_start") => World::Command,
            _ => World::Library,
        }
    }

    fn problems(&self, world: World) -> Vec<String> {
        let imports: BTreeSet<_> = self.imports.iter().filter_map(problem).collect();
        let library = (world == World::Library).then(|| self.nothing_to_run());
        imports.into_iter().chain(library).collect()
    }

    fn nothing_to_run(&self) -> String {
        match self.encoding {
            Encoding::Component => {
                "it exports none of wasi:http/incoming-handler@0.2, wasi:http/handler@0.3 \
                                    and wasi:cli/run, so there is nothing to start"
                    .to_owned()
            }
            Encoding::Module => {
                "it does not export `_start`, so there is nothing to start: build a program, \
                                 not a library, for wasm32-wasip1 or wasm32-wasip2"
                    .to_owned()
            }
        }
    }
}

fn kind_of(ty: ComponentTypeRef) -> ImportKind {
    match ty {
        ComponentTypeRef::Instance(_) => ImportKind::Interface,
        ComponentTypeRef::Type(TypeBounds::Eq(_)) => ImportKind::Alias,
        ComponentTypeRef::Type(TypeBounds::SubResource) => ImportKind::Loose("resource"),
        ComponentTypeRef::Func(_) => ImportKind::Loose("function"),
        ComponentTypeRef::Value(_) => ImportKind::Loose("value"),
        ComponentTypeRef::Module(_) => ImportKind::Loose("module"),
        ComponentTypeRef::Component(_) => ImportKind::Loose("component"),
    }
}

/// Why nothing here satisfies an import.
fn problem(import: &Import) -> Option<String> {
    match import.kind {
        ImportKind::Alias => None,
        ImportKind::Loose(kind) => Some(format!(
            "it imports the {kind} `{}` of its own world, which nothing here provides",
            import.name
        )),
        ImportKind::Interface => interface_problem(&import.name),
        ImportKind::Core => module_problem(&import.name),
    }
}

fn interface_problem(name: &str) -> Option<String> {
    let (path, version) = name.split_once('@').map_or((name, None), |(path, version)| (path, Some(version)));
    let package =
        path.strip_prefix("wasi:").and_then(|rest| rest.split_once('/')).map(|(package, _)| package);
    if !package.is_some_and(|package| WASI_PACKAGES.contains(&package)) {
        return Some(format!("it imports `{name}`, which nothing here provides"));
    }
    let supported = version.is_some_and(|version| version.starts_with("0.2.") || version.starts_with("0.3."));
    (!supported).then(|| format!("it imports `{name}`: of this interface, versions 0.2 and 0.3 are provided"))
}

fn module_problem(name: &str) -> Option<String> {
    let module = name.split_once("::").map_or(name, |(module, _)| module);
    let why = match module {
        WASI_PREVIEW1 => return None,
        "wasi_unstable" => "an old preview of WASI: build with a current toolchain",
        "wbg" | "__wbindgen_placeholder__" => {
            "a browser through wasm-bindgen: build for wasm32-wasip2 instead of wasm32-unknown-unknown"
        }
        "go" | "gojs" => "a browser through Go: build with GOOS=wasip1",
        "env" => "a host of its own, or Emscripten's: build for wasm32-wasip1 or wasm32-wasip2",
        _ => "a host that provides that, which this one does not",
    };
    Some(format!("it imports `{name}`, so it was built for {why}"))
}

#[cfg(test)]
mod tests;
