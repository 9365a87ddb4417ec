//! The real binary, driven by real clients.

mod bad_input;
mod crash;
mod first_light;
mod isolation;
mod kubectl;
mod python;
mod streams;
