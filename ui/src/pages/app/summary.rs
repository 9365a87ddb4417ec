//! The first tab: does it run, where, as what.

use std::sync::Arc;

use ketch_ui_core::{
    diagnosis::diagnose,
    format, health,
    object::{created, int, items, name, namespace, text},
    resource::PODS,
    rows::{Keyed, Object},
    traffic,
};
use leptos::prelude::*;
use leptos_router::components::A;
use serde_json::Value;

use super::{App, DiagnosisPanel};
use crate::components::{
    basics::{Empty, Fact},
    copy::Snippet,
    status::{Age, Status, StatusWord},
};

/// Diagnosis, facts, pods, conditions.
#[component]
pub(super) fn Summary(app: App) -> impl IntoView {
    let found = Memo::new(move |_| {
        let (pods, events) = (app.sorted_pods(), app.related_events());
        let pods: Vec<&Value> = pods.iter().map(|p| &p.value).collect();
        let events: Vec<&Value> = events.iter().map(|e| &e.value).collect();
        app.function.with(|f| diagnose("Function", &f.as_ref()?.value, &pods, &events))
    });
    let url = Memo::new(move |_| app.text("/status/url"));
    let serving = Memo::new(move |_| {
        let function = app.value();
        app.revisions.rows.with(|rows| {
            let revisions = rows.sorted(|_| true, |_, _| std::cmp::Ordering::Equal);
            traffic::serving(&function, revisions.iter().map(|one| &one.value))
        })
    });
    let images = move || {
        let shown = serving.get();
        let image = |one: &traffic::Serving| view! { <code class="break">{one.image.clone()}</code> };
        shown.iter().map(image).collect_view()
    };
    let outbound = Memo::new(move |_| {
        let list = app.function.with(|f| {
            f.as_ref().map(|f| items(&f.value, "/spec/permissions/outbound").to_vec()).unwrap_or_default()
        });
        let list: Vec<&str> = list.iter().filter_map(Value::as_str).collect();
        match list.as_slice() {
            [] => "Nothing outside the cluster".to_owned(),
            ["*"] => "Everything".to_owned(),
            list => list.join(", "),
        }
    });
    let since = Memo::new(move |_| app.function.with(|f| f.as_ref().and_then(|f| created(&f.value))));
    view! {
        {move || found.get().map(|found| view! { <DiagnosisPanel found=found /> })}
        <div class="columns wide-first">
            <section class="panel">
                <h2>"Where it answers"</h2>
                <Show when=move || !url.with(String::is_empty) fallback=|| view! { <p class="muted">"The URL comes with the first ready revision."</p> }>
                    <Snippet text=url />
                </Show>
                <dl class="facts">
                    <Fact name="Revision">{move || serving.with(|shown| traffic::in_words(shown))}</Fact>
                    <Fact name="Image">{images}</Fact>
                    <Fact name="Outbound">{outbound}</Fact>
                    <Fact name="Created">{move || view! { <Age since=since.get() /> }}</Fact>
                </dl>
            </section>
            <section class="panel">
                <h2>"Conditions"</h2>
                <ul class="conditions">{move || items(&app.value(), "/status/conditions").iter().map(condition).collect_view()}</ul>
            </section>
        </div>
        <section class="panel">
            <h2>"Pods"</h2>
            <PodRows pods=Signal::derive(move || app.sorted_pods()) />
        </section>
    }
}

/// One condition of any object.
pub(crate) fn condition(condition: &Value) -> impl IntoView + use<> {
    let word = text(condition, "/status").to_owned();
    let (reason, message) = (text(condition, "/reason").to_owned(), text(condition, "/message").to_owned());
    let since = text(condition, "/lastTransitionTime").parse().ok();
    view! {
        <li>
            <div class="event-head">
                <strong>{text(condition, "/type").to_owned()}</strong>
                <StatusWord word=word />
                <span class="muted">{reason}</span>
                <Age since=since />
            </div>
            {(!message.is_empty()).then(|| view! { <p>{message}</p> })}
        </li>
    }
}

/// Pods in short.
#[component]
pub(crate) fn PodRows(
    /// The pods.
    #[prop(into)]
    pods: Signal<Vec<Arc<Object>>>,
) -> impl IntoView {
    view! {
        <Show
            when=move || !pods.with(Vec::is_empty)
            fallback=|| view! { <Empty title="No pods" text="None is wanted now, or the first is about to be made." /> }
        >
            <ul class="pod-rows">
                <For each=move || pods.get() key=|p| (p.key().to_owned(), p.version().to_owned()) children=pod />
            </ul>
        </Show>
    }
}

fn pod(pod: Arc<Object>) -> impl IntoView {
    let object = &pod.value;
    let restarts: i64 =
        items(object, "/status/containerStatuses").iter().filter_map(|s| int(s, "/restartCount")).sum();
    let restarts = usize::try_from(restarts).unwrap_or_default();
    let (title, href) = (name(object).to_owned(), PODS.href(namespace(object), name(object)));
    view! {
        <li>
            <A href=href attr:class="mono truncate">{title}</A>
            <Status health=health::of("Pod", object) />
            <span class="muted truncate">{text(object, "/spec/nodeName").to_owned()}</span>
            <span class="muted num">{(restarts > 0).then(|| format::count(restarts, "restart"))}</span>
            <Age since=created(object) />
        </li>
    }
}
