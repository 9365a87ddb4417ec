//! Copying.

use leptos::prelude::*;

use super::icon::{CHECK, COPY, Icon};
use crate::{dom, state::console};

/// A button that copies.
#[component]
pub(crate) fn CopyButton(
    /// What is copied.
    #[prop(into)]
    text: Signal<String>,
    /// What the button says, for instance "Copy URL".
    #[prop(into)]
    label: String,
    /// Whether the label is written on it; else it is for screen readers.
    #[prop(optional)]
    wide: bool,
) -> impl IntoView {
    let console = console();
    let done = RwSignal::new(false);
    let copy = move |_| {
        let text = text.get_untracked();
        leptos::task::spawn_local(async move {
            if dom::copy(&text).await {
                done.try_set(true);
                dom::sleep(1600).await;
                done.try_set(false);
            } else {
                console
                    .toast("The browser did not allow copying. Select the text and copy it by hand.", true);
            }
        });
    };
    let shown = label.clone();
    view! {
        <button type="button" class=if wide { "button small" } else { "icon-button" } on:click=copy aria-label=label.clone() title=label>
            {move || if done.get() { view! { <Icon d=CHECK /> } } else { view! { <Icon d=COPY /> } }}
            {wide.then(|| view! { <span>{move || if done.get() { "Copied".to_owned() } else { shown.clone() }}</span> })}
        </button>
    }
}

/// A line to be copied: a command or an address.
#[component]
pub(crate) fn Snippet(
    /// The line.
    #[prop(into)]
    text: Signal<String>,
) -> impl IntoView {
    view! {
        <div class="snippet">
            <code>{move || text.get()}</code>
            <CopyButton text=text label="Copy" />
        </div>
    }
}
