//! `/deploy`: from a file to a URL.
//!
//! A dropped file is recognised by its content, hashed, pushed to the built-in registry and inspected
//! there; what it wants and may do is shown before anything runs.

mod choose;
mod follow;
mod form;
mod inspector;
mod manifests;
mod work;

use ketch_ui_core::sniff::Content;
use leptos::prelude::*;

use crate::{
    components::{basics::PageHeader, icon::*},
    state::console,
};
use work::{Stage, Work};

/// The page.
#[component]
pub(crate) fn DeployPage() -> impl IntoView {
    let console = console();
    let work = Work::new();
    Effect::new(move |_| {
        if let Some(file) = console.dropped.get() {
            console.dropped.set(None);
            work.take(file);
        }
    });
    view! {
        <PageHeader title="Deploy" lead="Drop what your build put out. Nothing runs before you have seen what it may do.">
            <Show when=move || work.stage.with(|s| !matches!(s, Stage::Choose))>
                <button type="button" class="button" on:click=move |_| work.reset()>"Start over"</button>
            </Show>
        </PageHeader>
        <div class="deploy">
            {move || stage_view(work)}
        </div>
    }
}

fn stage_view(work: Work) -> AnyView {
    match work.stage.get() {
        Stage::Choose => view! { <choose::Choose work=work /> }.into_any(),
        Stage::Refused(content) => view! { <Refused work=work content=content /> }.into_any(),
        Stage::Manifest(objects) => view! { <manifests::Apply objects=objects /> }.into_any(),
        Stage::Upload => view! { <choose::Uploading work=work /> }.into_any(),
        Stage::Form => view! {
            <choose::FileRow work=work />
            <inspector::Inspector work=work />
            <form::Form work=work />
        }
        .into_any(),
        Stage::Deployed(object) => view! { <follow::Follow work=work object=object /> }.into_any(),
    }
}

#[component]
fn Refused(work: Work, content: Result<Content, String>) -> impl IntoView {
    let text = match content {
        Ok(content) => content.advice().unwrap_or_default().to_owned(),
        Err(text) => text,
    };
    view! {
        <choose::FileRow work=work />
        <div class="notice bad" role="alert">
            <Icon d=WARNING />
            <div>
                <strong>"This file cannot be deployed"</strong>
                <p>{text}</p>
            </div>
        </div>
        <choose::Choose work=work />
    }
}
