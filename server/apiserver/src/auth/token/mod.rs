//! Bearer tokens: of service accounts, and of nodes that join.

pub(crate) mod bootstrap;
mod service_account;

pub use service_account::{Bound, Claims, Reference, ServiceAccountTokens, TokenError};
pub(crate) use service_account::{Identity, service_account_groups};
