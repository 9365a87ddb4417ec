//! The Wasm runtime with real guests: those of `workloads/`, built when a test first needs one.

mod commands;
mod compiler;
mod conformance;
mod images;
mod network;
mod rig;
mod services;
