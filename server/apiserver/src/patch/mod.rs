//! Patch types that need to know the kind.

pub mod strategic;
