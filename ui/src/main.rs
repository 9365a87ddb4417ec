//! The console: a browser application over the Kubernetes API.
//!
//! `api/` speaks to the server, `state/` holds what several pages share, `components/` draws, `pages/`
//! are the addresses. Decisions that need no browser are in `ketch-ui-core`, where they are tested.

#![allow(unreachable_pub, reason = "the component macro makes the types of properties public")]

mod api;
mod app;
mod components;
mod dom;
mod pages;
mod state;

fn main() {
    dom::remove_boot_screen();
    leptos::mount::mount_to_body(app::App);
}
