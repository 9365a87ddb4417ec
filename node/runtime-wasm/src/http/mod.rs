//! HTTP components: one service per container, called in process or over its socket.
//!
//! A request becomes a [`Job`](job::Job). With one request per instance (the default of `wasi:http` 0.2) each
//! job gets an instance of its own (`fresh`). Otherwise jobs queue for instances that live on: `reuse` for
//! 0.2, one request at a time, `concurrent` for 0.3.

mod concurrent;
mod fresh;
mod job;
mod server;
mod service;

pub(crate) use server::serve;
pub(crate) use service::{InProcess, Service, ServiceOptions};
