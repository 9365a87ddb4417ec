//! Rules in a real kernel: a node, pods and a client as network namespaces.
//!
//! Needs root, `nft`, `ip` and `socat`; without root there is nothing to test here.

mod lab;
mod services;
