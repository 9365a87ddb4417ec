//! What the file is and wants, before it runs.

use ketch_api::wasm::Inspection;
use ketch_ui_core::{
    capability::{self, Capability},
    diff::{self, Line},
    object::name,
};
use leptos::prelude::*;

use super::work::Work;
use crate::components::icon::{GLOBE, Icon, WARNING};

/// World, imports, exports, problems, and what changes.
#[component]
pub(super) fn Inspector(work: Work) -> impl IntoView {
    view! {
        {move || work.inspection.get().map(|inspection| view! { <Card inspection=inspection /> })}
        {move || work.existing.get().map(|existing| view! { <Changes work=work app=name(&existing).to_owned() /> })}
    }
}

#[component]
fn Card(inspection: Inspection) -> impl IntoView {
    let blocked = capability::blocked(&inspection);
    let groups = capability::group(&inspection.imports);
    let exports = inspection.exports.clone();
    let empty = groups.is_empty();
    view! {
        <section class="panel inspector">
            <h2>{capability::describe(&inspection)}</h2>
            {blocked.map(|why| view! {
                <div class="notice bad" role="alert">
                    <Icon d=WARNING />
                    <div><strong>"It cannot run here"</strong><p>{why}</p></div>
                </div>
            })}
            <div class="columns">
                <div>
                    <h3>"What it asks for"</h3>
                    {empty.then(|| view! { <p class="calm">"Nothing: it imports no interfaces."</p> })}
                    <ul class="capabilities">{groups.into_iter().map(capability_row).collect_view()}</ul>
                </div>
                <div>
                    <h3>"What it offers"</h3>
                    <ul class="interfaces">{exports.into_iter().map(|e| view! { <li><code>{e}</code></li> }).collect_view()}</ul>
                </div>
            </div>
        </section>
    }
}

fn capability_row(group: Capability) -> impl IntoView {
    let list = group.interfaces.into_iter().map(|i| view! { <li><code>{i}</code></li> }).collect_view();
    view! {
        <li class:outbound=group.outbound>
            <details>
                <summary>
                    {group.outbound.then(|| view! { <Icon d=GLOBE /> })}
                    <span>{group.title}</span>
                    {group.outbound.then(|| view! { <span class="tag">"needs permission"</span> })}
                </summary>
                <ul class="interfaces">{list}</ul>
            </details>
        </li>
    }
}

/// What is different from the running revision.
#[component]
fn Changes(work: Work, app: String) -> impl IntoView {
    let lines = move || {
        work.running.with(|old| work.inspection.with(|new| Some(diff::compare(old.as_ref()?, new.as_ref()?))))
    };
    view! {
        <section class="panel">
            <h2>"New revision of " <code>{app}</code></h2>
            {move || match lines() {
                None => view! { <p class="muted">"What runs now cannot be compared: it was not uploaded here, or its file is gone."</p> }.into_any(),
                Some(lines) if lines.is_empty() => view! { <p class="calm">"The same file as the one that runs. Only the settings can differ."</p> }.into_any(),
                Some(lines) => view! { <ul class="diff">{lines.into_iter().map(diff_line).collect_view()}</ul> }.into_any(),
            }}
        </section>
    }
}

fn diff_line(line: Line) -> AnyView {
    match line {
        Line::Added(text) => view! { <li class="plus"><span>"+ "</span><code>{text}</code></li> }.into_any(),
        Line::Removed(text) => {
            view! { <li class="minus"><span>"− "</span><code>{text}</code></li> }.into_any()
        }
        Line::Changed(name, old, new) => {
            view! { <li><span>{name}</span><code>{old}</code>" → "<code>{new}</code></li> }.into_any()
        }
    }
}
