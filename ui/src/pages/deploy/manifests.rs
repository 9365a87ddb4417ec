//! Applying a dropped manifest.

use ketch_ui_core::{
    object::{name, text},
    resource::{Resource, create_path},
};
use leptos::prelude::*;
use leptos_router::components::A;
use serde_json::Value;

use crate::{
    api::{self, Error},
    components::{status::StatusWord, yaml::Yaml},
    state::console,
};

#[derive(Clone, PartialEq)]
enum Outcome {
    Waiting,
    Created,
    Configured,
    Failed(String),
}

/// The objects of a manifest and what became of each.
#[component]
pub(super) fn Apply(objects: Vec<Value>) -> impl IntoView {
    let console = console();
    let namespace = console.target_namespace();
    let rows: Vec<(Value, RwSignal<Outcome>)> =
        objects.into_iter().map(|object| (object, RwSignal::new(Outcome::Waiting))).collect();
    let busy = RwSignal::new(false);
    let list = StoredValue::new(rows.clone());
    let target = StoredValue::new(namespace.clone());
    let apply = move |_| {
        busy.set(true);
        leptos::task::spawn_local(async move {
            for (object, outcome) in list.get_value() {
                let result = apply_one(&object, &target.get_value()).await;
                outcome.try_set(result.unwrap_or_else(|e| Outcome::Failed(e.message)));
            }
            busy.try_set(false);
        });
    };
    let row =
        move |(object, outcome): (Value, RwSignal<Outcome>)| view! { <Row object=object outcome=outcome /> };
    view! {
        <section class="panel stack">
            <h2>"Manifest"</h2>
            <p class="muted">"What names no namespace goes to " <code>{namespace}</code> "."</p>
            <ul class="steps">{rows.into_iter().map(row).collect_view()}</ul>
            <div class="actions end">
                <button type="button" class="button primary" disabled=busy on:click=apply>
                    {move || if busy.get() { "Applying…" } else { "Apply" }}
                </button>
            </div>
        </section>
    }
}

#[component]
fn Row(object: Value, outcome: RwSignal<Outcome>) -> impl IntoView {
    let (kind, title) = (text(&object, "/kind").to_owned(), name(&object).to_owned());
    let namespace = text(&object, "/metadata/namespace").to_owned();
    let href = Resource::of(text(&object, "/apiVersion"), &kind)
        .map(|r| r.href(if namespace.is_empty() { "default" } else { &namespace }, &title));
    let link = move || match (outcome.get(), href.clone()) {
        (Outcome::Created | Outcome::Configured, Some(href)) => {
            let title = title.clone();
            view! { <A href=href>{title}</A> }.into_any()
        }
        _ => view! { <span>{title.clone()}</span> }.into_any(),
    };
    let state = move || match outcome.get() {
        Outcome::Waiting => view! { <span class="muted">"not applied yet"</span> }.into_any(),
        Outcome::Created => view! { <StatusWord word="Ready" /> <span>"created"</span> }.into_any(),
        Outcome::Configured => view! { <StatusWord word="Ready" /> <span>"configured"</span> }.into_any(),
        Outcome::Failed(why) => view! { <span class="field-fault" role="alert">{why}</span> }.into_any(),
    };
    let shown = Signal::stored(object);
    view! {
        <li class="manifest-row">
            <details>
                <summary><span class="tag">{kind}</span>{link}{state}</summary>
                <Yaml object=shown />
            </details>
        </li>
    }
}

async fn apply_one(object: &Value, namespace: &str) -> api::Result<Outcome> {
    let path =
        create_path(object, namespace).ok_or_else(|| Error::local("apiVersion or kind is missing."))?;
    match api::create(&path, object).await {
        Ok(_) => Ok(Outcome::Created),
        Err(error) if error.code == 409 && error.reason == "AlreadyExists" => {
            let path = format!("{path}/{}", name(object));
            api::merge(&path, object).await.map(|_| Outcome::Configured)
        }
        Err(error) => Err(error),
    }
}
