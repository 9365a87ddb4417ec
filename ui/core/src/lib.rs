//! What the console decides, without a browser: reading objects, health, diagnosis, filters, the store
//! behind every live list, log lines, the plan of an upload and the manifests it makes.
//!
//! Nothing here may import a DOM or network crate: all of it is tested natively, and `ketch-ui` only
//! draws what these functions return.

pub mod capability;
pub mod diagnosis;
pub mod diff;
pub mod filter;
pub mod format;
pub mod health;
pub mod invoke;
pub mod logs;
pub mod manifest;
pub mod naming;
pub mod object;
pub mod resource;
pub mod rows;
pub mod sniff;
pub mod table;
pub mod traffic;
pub mod upload;
pub mod watch;

pub use health::{Health, State};
