//! A file dropped anywhere on the page is caught and taken to Deploy.

use leptos::{ev, prelude::*};
use leptos_router::{NavigateOptions, hooks::use_navigate};

use crate::state::console;

fn first_file(event: &web_sys::DragEvent) -> Option<web_sys::File> {
    event.data_transfer()?.files()?.get(0)
}

fn has_files(event: &web_sys::DragEvent) -> bool {
    event
        .data_transfer()
        .is_some_and(|data| data.types().iter().any(|t| t.as_string().as_deref() == Some("Files")))
}

/// Catches drags over the whole window, so that a missed drop never leaves the page.
#[component]
pub(crate) fn WindowDrop() -> impl IntoView {
    let console = console();
    let navigate = use_navigate();
    let over = RwSignal::new(false);
    let listeners = [
        window_event_listener(ev::dragover, move |event| {
            if has_files(&event) {
                event.prevent_default();
                over.set(true);
            }
        }),
        window_event_listener(ev::dragleave, move |event| {
            // Leaving for another element has a related target, leaving the window has none.
            if event.related_target().is_none() {
                over.set(false);
            }
        }),
        window_event_listener(ev::drop, move |event| {
            if !has_files(&event) {
                return;
            }
            event.prevent_default();
            over.set(false);
            if let Some(file) = first_file(&event) {
                console.dropped.set(Some(file));
                navigate("/deploy", NavigateOptions { scroll: false, ..NavigateOptions::default() });
            }
        }),
    ];
    on_cleanup(move || listeners.into_iter().for_each(|l| l.remove()));
    view! {
        <div class="drop-overlay" class:open=over aria-hidden="true">
            <div>"Drop to deploy"</div>
        </div>
    }
}
