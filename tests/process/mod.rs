//! The real binary, driven by real clients.

mod bad_input;
mod crash;
mod first_light;
mod isolation;
mod join;
mod kubectl;
mod machines;
mod python;
