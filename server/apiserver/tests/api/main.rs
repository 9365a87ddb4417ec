//! The API over the memory store: every kind through one conformance loop, and the pipeline's own rules.

// Clippy sees test helpers as production code.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

mod conformance;
mod deletion;
mod discovery;
mod harness;
mod metrics;
mod patches;
mod reads;
mod samples;
mod security;
mod services;
mod streams;
mod subresources;
mod watches;
mod writes;
