//! The server over real sockets: the specification name by name, forwarding, limits.

mod cluster;
mod forwarding;
mod specification;
mod wire;
