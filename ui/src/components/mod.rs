//! What pages are made of. A component here knows nothing of a particular page.

pub(crate) mod basics;
pub(crate) mod chrome;
pub(crate) mod copy;
pub(crate) mod dialog;
pub(crate) mod drop;
pub(crate) mod env;
pub(crate) mod events;
pub(crate) mod icon;
pub(crate) mod logs;
pub(crate) mod palette;
pub(crate) mod status;
pub(crate) mod table;
pub(crate) mod yaml;
