//! From "created" to "the URL answers".

use gloo_net::http::Method;
use ketch_api::names::{FUNCTION_LABEL, REVISION_LABEL};
use ketch_ui_core::{
    diagnosis::{Diagnosis, diagnose},
    format,
    object::{int, items, name, namespace, text},
    resource::{EVENTS, FUNCTIONS, PODS},
};
use leptos::prelude::*;
use leptos_router::components::A;
use serde_json::Value;

use super::work::{Work, generation};
use crate::{
    api,
    components::{
        copy::CopyButton,
        icon::{CHECK, Icon, OPEN},
    },
    dom,
};

/// Milliseconds between two looks.
const EVERY: u32 = 250;

/// How far it is. The order is that of the steps shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Mark {
    Created,
    Revision,
    Scheduled,
    Started,
    Answers,
}

#[derive(Clone, Copy)]
struct Follower {
    began: f64,
    reached: RwSignal<Vec<(Mark, f64)>>,
    fault: RwSignal<Option<Diagnosis>>,
    url: RwSignal<String>,
}

impl Follower {
    fn reach(&self, mark: Mark) {
        let at = dom::ticks() - self.began;
        self.reached.maybe_update(|list| {
            let new = list.iter().all(|(m, _)| *m != mark);
            if new {
                list.push((mark, at));
            }
            new
        });
    }

    fn at(&self, mark: Mark) -> Option<f64> {
        // A later step implies the earlier ones, which may have passed between two looks.
        self.reached.with(|list| list.iter().filter(|(m, _)| *m >= mark).map(|(_, t)| *t).reduce(f64::min))
    }
}

/// The steps of a deployment, live.
#[component]
pub(super) fn Follow(work: Work, object: Value) -> impl IntoView {
    let is_function = text(&object, "/kind") == "Function";
    let follower = Follower {
        began: dom::ticks(),
        reached: RwSignal::new(Vec::new()),
        fault: RwSignal::new(None),
        url: RwSignal::new(String::new()),
    };
    let (space, app) = (namespace(&object).to_owned(), name(&object).to_owned());
    let page =
        if is_function { FUNCTIONS.href(&space, &app) } else { format!("{}/logs", PODS.href(&space, &app)) };
    dom::spawn_scoped(async move {
        if is_function { follow_function(follower, object).await } else { follow_pod(follower, object).await }
    });
    let labels: &[(Mark, &str)] = if is_function {
        &[
            (Mark::Created, "Created"),
            (Mark::Revision, "Revision made"),
            (Mark::Scheduled, "Placed on a node"),
            (Mark::Started, "Ready"),
            (Mark::Answers, "URL answers"),
        ]
    } else {
        &[
            (Mark::Created, "Created"),
            (Mark::Scheduled, "Placed on a node"),
            (Mark::Started, "Started"),
            (Mark::Answers, "Ended"),
        ]
    };
    let order: Vec<Mark> = labels.iter().map(|(m, _)| *m).collect();
    let row = |(mark, label): &(Mark, &'static str)| {
        let mark = *mark;
        let before = order.iter().rev().find(|m| **m < mark).copied();
        let done = Memo::new(move |_| follower.at(mark));
        let active =
            Memo::new(move |_| done.get().is_none() && before.is_none_or(|b| follower.at(b).is_some()));
        view! { <Step label=*label done=done active=active /> }
    };
    let steps = labels.iter().map(row).collect_view();
    let done = Memo::new(move |_| follower.at(Mark::Answers).is_some());
    let page = StoredValue::new(page);
    let title = move || match (done.get(), is_function) {
        (true, true) => "It runs",
        (true, false) => "It has ended",
        (false, _) => "On its way",
    };
    view! {
        <section class="panel stack follow" class:done=done>
            <h2 role="status">{title} ": " <code>{app}</code></h2>
            <ol class="steps">
                <Step label="Uploaded and inspected" done=Signal::derive(|| Some(0.0)) active=Signal::derive(|| false) />
                {steps}
            </ol>
            <Show when=move || done.get() && is_function>
                <div class="url-card">
                    <a class="mono url" href=follower.url target="_blank" rel="noreferrer">{follower.url}</a>
                    <CopyButton text=follower.url label="Copy URL" wide=true />
                    <a class="button primary" href=follower.url target="_blank" rel="noreferrer"><Icon d=OPEN />"Open"</a>
                </div>
            </Show>
            {move || follower.fault.get().filter(|_| !done.get()).map(|found| view! { <crate::pages::app::DiagnosisPanel found=found /> })}
            <div class="actions">
                <A href=page.get_value() attr:class="button">{if is_function { "Go to the app" } else { "Go to its logs" }}</A>
                <button type="button" class="button" on:click=move |_| work.reset()>"Deploy another"</button>
            </div>
        </section>
    }
}

#[component]
fn Step(
    label: &'static str,
    #[prop(into)] done: Signal<Option<f64>>,
    #[prop(into)] active: Signal<bool>,
) -> impl IntoView {
    let time = move || done.get().filter(|ms| *ms > 0.0).map(format::millis);
    let word = move || match (done.get().is_some(), active.get()) {
        (true, _) => "done",
        (false, true) => "in progress",
        (false, false) => "waiting",
    };
    view! {
        <li class="step" class:done=move || done.get().is_some() class:active=active>
            <i aria-hidden="true"><Icon d=CHECK /></i>
            <span>{label}</span>
            <span class="sr-only">{word}</span>
            <span class="muted num">{time}</span>
        </li>
    }
}

async fn follow_function(follower: Follower, object: Value) {
    follower.reach(Mark::Created);
    let wanted = generation(&object);
    let (space, app) = (namespace(&object).to_owned(), name(&object).to_owned());
    loop {
        // A look that fails is made up for by the next.
        if let Ok(function) = api::get(&FUNCTIONS.object(&space, &app)).await
            && int(&function, "/status/observedGeneration").is_some_and(|seen| seen >= wanted)
            && look(follower, &function, &space, &app).await
        {
            return;
        }
        dom::sleep(EVERY).await;
    }
}

/// Looks once; whether the last step is reached.
async fn look(follower: Follower, function: &Value, space: &str, app: &str) -> bool {
    let revision = text(function, "/status/latestRevision");
    if revision.is_empty() {
        return false;
    }
    follower.reach(Mark::Revision);
    let selector = api::encode(&format!("{FUNCTION_LABEL}={app},{REVISION_LABEL}={revision}"));
    let pods = api::get(&format!("{}?labelSelector={selector}", PODS.collection(Some(space))))
        .await
        .unwrap_or_default();
    let pods: Vec<&Value> = items(&pods, "/items").iter().collect();
    if pods.iter().any(|p| !text(p, "/spec/nodeName").is_empty()) {
        follower.reach(Mark::Scheduled);
    }
    let serves = items(function, "/status/traffic").iter().any(|t| text(t, "/revisionName") == revision);
    if text(function, "/status/readyRevision") == revision && serves {
        follower.reach(Mark::Started);
        follower.url.set(text(function, "/status/url").to_owned());
        return answers(follower, space, app).await;
    }
    let events = match pods.iter().any(|p| ketch_ui_core::health::of("Pod", p).state.is_trouble()) {
        true => api::get(&EVENTS.collection(Some(space))).await.unwrap_or_default(),
        false => Value::Null,
    };
    let about = |e: &&Value| text(e, "/involvedObject/name").starts_with(revision);
    let events: Vec<&Value> = items(&events, "/items").iter().filter(about).collect();
    let found = diagnose("Function", function, &pods, &events);
    if follower.fault.with_untracked(|old| *old != found) {
        follower.fault.set(found);
    }
    false
}

async fn answers(follower: Follower, space: &str, app: &str) -> bool {
    let request = api::request(Method::GET, &format!("/console/invoke/{space}/{app}/"));
    match api::send_any(request, None).await {
        Ok(response) if response.status() != 503 => {
            follower.reach(Mark::Answers);
            true
        }
        _ => false,
    }
}

async fn follow_pod(follower: Follower, object: Value) {
    follower.reach(Mark::Created);
    let (space, app) = (namespace(&object).to_owned(), name(&object).to_owned());
    loop {
        if let Ok(pod) = api::get(&PODS.object(&space, &app)).await {
            if !text(&pod, "/spec/nodeName").is_empty() {
                follower.reach(Mark::Scheduled);
            }
            match text(&pod, "/status/phase") {
                "Running" => follower.reach(Mark::Started),
                "Succeeded" => return follower.reach(Mark::Answers),
                _ => {}
            }
            let found = diagnose("Pod", &pod, &[&pod], &[]);
            if follower.fault.with_untracked(|old| *old != found) {
                follower.fault.set(found);
            }
            if text(&pod, "/status/phase") == "Failed" {
                return follower.reach(Mark::Started);
            }
        }
        dom::sleep(EVERY).await;
    }
}
