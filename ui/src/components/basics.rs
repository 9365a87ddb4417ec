//! Headings, empty and failed states, skeletons, key-value lists, tabs.

use leptos::prelude::*;
use leptos_router::components::A;

use super::icon::{Icon, WARNING};
use crate::api::Error;

/// A page's title line with its actions.
#[component]
pub(crate) fn PageHeader(
    /// Main heading.
    #[prop(into)]
    title: Signal<String>,
    /// What stands under it.
    #[prop(optional, into)]
    lead: Option<String>,
    /// Buttons.
    #[prop(optional)]
    children: Option<Children>,
) -> impl IntoView {
    Effect::new(move |_| {
        if let Some(document) = web_sys::window().and_then(|w| w.document()) {
            document.set_title(&format!("{} · Ketch", title.get()));
        }
    });
    view! {
        <header class="page-header">
            <div>
                <h1 tabindex="-1">{title}</h1>
                {lead.map(|lead| view! { <p class="lead">{lead}</p> })}
            </div>
            {children.map(|children| view! { <div class="actions">{children()}</div> })}
        </header>
    }
}

/// Nothing here, and what to do about it.
#[component]
pub(crate) fn Empty(
    /// What is not there.
    #[prop(into)]
    title: String,
    /// Why, and the next step.
    #[prop(into)]
    text: String,
    /// Buttons.
    #[prop(optional)]
    children: Option<Children>,
) -> impl IntoView {
    view! {
        <div class="empty">
            <h2>{title}</h2>
            <p>{text}</p>
            {children.map(|children| view! { <div class="actions">{children()}</div> })}
        </div>
    }
}

/// Why something could not be shown.
#[component]
pub(crate) fn Failure(
    /// The error.
    error: Error,
) -> impl IntoView {
    let title = match error.code {
        403 => "You may not see this",
        404 => "This does not exist",
        0 => "No answer",
        _ => "This did not work",
    };
    let next = match error.code {
        403 => "Ask an administrator for a role that allows it.",
        404 => "It may have been deleted, or the address is misspelt.",
        _ => "",
    };
    view! {
        <div class="notice bad" role="alert">
            <Icon d=WARNING />
            <div>
                <strong>{title}</strong>
                <p>{error.message} " " {next}</p>
            </div>
        </div>
    }
}

/// Grey lines in the place of what is on its way; they appear only when it takes a while.
#[component]
pub(crate) fn Skeleton(
    /// How many.
    lines: usize,
) -> impl IntoView {
    view! {
        <div class="skeleton" aria-hidden="true">
            {(0..lines).map(|_| view! { <span></span> }).collect_view()}
        </div>
        <span class="sr-only" role="status">"Loading"</span>
    }
}

/// A term and its value in a list of facts.
#[component]
pub(crate) fn Fact(
    /// The term.
    #[prop(into)]
    name: String,
    /// The value.
    children: Children,
) -> impl IntoView {
    view! {
        <div class="fact">
            <dt>{name}</dt>
            <dd>{children()}</dd>
        </div>
    }
}

/// Links between the parts of a page; the address says which is open.
#[component]
pub(crate) fn Tabs(
    /// Address of the page, without a tab.
    base: String,
    /// Address word and label of each; the first is the page itself.
    tabs: Vec<(&'static str, &'static str)>,
    /// The open one.
    #[prop(into)]
    current: Signal<String>,
) -> impl IntoView {
    let first = tabs.first().map(|(id, _)| *id).unwrap_or_default();
    let link = move |(id, label): (&'static str, &'static str)| {
        let href = if id == first { base.clone() } else { format!("{base}/{id}") };
        let is_open = move || current.with(|c| c == id || (c.is_empty() && id == first));
        view! {
            <A href=href attr:class="tab" attr:aria-current=move || if is_open() { "page" } else { "false" } scroll=false>
                {label}
            </A>
        }
    };
    view! { <nav class="tabs" aria-label="Parts of this page">{tabs.into_iter().map(link).collect_view()}</nav> }
}
