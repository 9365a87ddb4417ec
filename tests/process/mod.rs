//! The real binary, driven by real clients.

mod access;
mod bad_input;
mod containers;
mod crash;
mod credentials;
mod first_light;
mod fleet;
mod full_disk;
mod images;
mod isolation;
mod join;
mod kubectl;
mod lifecycle;
mod machines;
mod nat;
mod network;
mod ordinary_user;
mod policies;
mod pressure;
mod python;
mod registries;
mod registry;
mod streams;
mod traces;
mod volumes;
