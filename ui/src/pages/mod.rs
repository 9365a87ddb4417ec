//! The addresses of the console, a module each.

pub(crate) mod app;
pub(crate) mod apps;
pub(crate) mod deploy;
pub(crate) mod list;
pub(crate) mod login;
pub(crate) mod missing;
pub(crate) mod object;
pub(crate) mod overview;
