//! The real binary, driven by real clients.

mod bad_input;
mod containers;
mod crash;
mod first_light;
mod full_disk;
mod isolation;
mod join;
mod kubectl;
mod lifecycle;
mod machines;
mod network;
mod ordinary_user;
mod python;
mod registry;
mod streams;
