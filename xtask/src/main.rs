//! Builds, checks and starts Ketch.

fn main() {}
