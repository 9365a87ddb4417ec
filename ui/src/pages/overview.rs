//! `/`: is everything well, what is not, what happened last.

use std::sync::Arc;

use ketch_api::names::FUNCTION_LABEL;
use ketch_ui_core::{
    State,
    health::{self, Health},
    object::{label, name, namespace},
    resource::{DEPLOYMENTS, FUNCTIONS, NODES, PODS, Resource},
    rows::Object,
    table::{TableRow, natural},
};
use leptos::prelude::*;
use leptos_router::components::A;

use crate::{
    components::{
        basics::PageHeader,
        events::{EventList, live_events, newest},
        icon::{Icon, UPLOAD},
        status::{Dot, Status},
    },
    state::{Live, console, live_objects, live_table},
};

/// The first page.
#[component]
pub(crate) fn OverviewPage() -> impl IntoView {
    let console = console();
    view! {
        <PageHeader title="Overview" />
        {move || view! { <Body space=console.namespace.get() /> }}
    }
}

#[component]
fn Body(space: String) -> impl IntoView {
    let functions = live_objects(FUNCTIONS.collection(Some(&space)));
    let deployments = live_objects(DEPLOYMENTS.collection(Some(&space)));
    // Pods are many: their rows, not their objects.
    let pods = live_table(format!("{}?includeObject=Metadata", PODS.collection(Some(&space))));
    let nodes = live_objects(NODES.collection(None));
    let events = live_events(&space);
    let recent = Signal::derive(move || newest(events, 12, |_| true));
    let failing = Memo::new(move |_| {
        let mut all = troubled(functions, FUNCTIONS, |_| true);
        all.extend(troubled(deployments, DEPLOYMENTS, |o| label(&o.value, FUNCTION_LABEL).is_empty()));
        all.extend(troubled_pods(pods));
        all.extend(troubled(nodes, NODES, |_| true));
        all
    });
    view! {
        <A href="/deploy" attr:class="drop-hero">
            <Icon d=UPLOAD />
            <span><strong>"Drop a .wasm file"</strong><small>"anywhere on this page, or choose one. It gets a URL."</small></span>
        </A>
        <div class="tiles">
            <Tile states=states(functions, FUNCTIONS) resource=FUNCTIONS title="Apps" />
            <Tile states=states(deployments, DEPLOYMENTS) resource=DEPLOYMENTS title="Deployments" />
            <Tile states=pod_states(pods) resource=PODS title="Pods" />
            <Tile states=states(nodes, NODES) resource=NODES title="Nodes" />
        </div>
        <div class="columns">
            <section class="panel">
                <h2>"Needs attention"</h2>
                <Show
                    when=move || !failing.with(Vec::is_empty)
                    fallback=move || {
                        let loaded = move || pods.rows.with(|r| r.is_loaded());
                        view! { <p class="calm">{move || if loaded() { "Everything is well." } else { "Looking…" }}</p> }
                    }
                >
                    <ul class="troubles">{move || failing.get().into_iter().take(20).map(trouble).collect_view()}</ul>
                </Show>
            </section>
            <section class="panel">
                <h2>"Recent events"</h2>
                <EventList events=recent named=true />
            </section>
        </div>
    }
}

#[derive(Clone, PartialEq)]
struct Trouble {
    kind: &'static str,
    name: String,
    href: String,
    health: Health,
}

fn troubled(live: Live<Object>, resource: Resource, keep: fn(&Object) -> bool) -> Vec<Trouble> {
    let is_bad = |o: &Object| health::of(resource.kind, &o.value).state.is_trouble();
    let order = |a: &Object, b: &Object| natural(name(&a.value), name(&b.value));
    let rows = live.rows.with(|rows| rows.sorted(|o| keep(o) && is_bad(o), order));
    let line = |o: Arc<Object>| Trouble {
        kind: resource.kind,
        name: name(&o.value).to_owned(),
        href: resource.href(namespace(&o.value), name(&o.value)),
        health: health::of(resource.kind, &o.value),
    };
    rows.into_iter().map(line).collect()
}

fn trouble(trouble: Trouble) -> impl IntoView {
    let message = trouble.health.message.clone();
    view! {
        <li>
            <div class="event-head">
                <A href=trouble.href attr:class="truncate">{trouble.name}</A>
                <span class="muted">{if trouble.kind == "Function" { "App" } else { trouble.kind }}</span>
                <Status health=trouble.health />
            </div>
            {(!message.is_empty()).then(|| view! { <p>{message}</p> })}
        </li>
    }
}

/// Pods that are in trouble and belong to no app: an app in trouble speaks for its own.
fn troubled_pods(live: Live<TableRow>) -> Vec<Trouble> {
    let Some(status) = status_index(live) else { return Vec::new() };
    let is_bad = |r: &TableRow| {
        State::of_word(r.cell(status)).is_trouble() && label(&r.object, FUNCTION_LABEL).is_empty()
    };
    let order = |a: &TableRow, b: &TableRow| natural(name(&a.object), name(&b.object));
    let rows = live.rows.with(|rows| rows.sorted(is_bad, order));
    let line = |r: Arc<TableRow>| Trouble {
        kind: PODS.kind,
        name: name(&r.object).to_owned(),
        href: PODS.href(namespace(&r.object), name(&r.object)),
        health: Health {
            state: State::of_word(r.cell(status)),
            reason: r.cell(status).to_owned(),
            message: String::new(),
        },
    };
    rows.into_iter().map(line).collect()
}

fn status_index(live: Live<TableRow>) -> Option<usize> {
    live.columns.with(|columns| columns.iter().position(|c| c.name == "Status"))
}

/// How many are in each state; `None` until it is known.
type States = Option<Vec<(State, usize)>>;

fn count_by_state(states: &[State]) -> Vec<(State, usize)> {
    let counts = State::ALL.iter().map(|s| (*s, states.iter().filter(|x| *x == s).count()));
    counts.filter(|(_, n)| *n > 0).collect()
}

fn states(live: Live<Object>, resource: Resource) -> Memo<States> {
    Memo::new(move |_| {
        live.rows.with(|rows| {
            let states: Vec<State> = rows.iter().map(|o| health::of(resource.kind, &o.value).state).collect();
            rows.is_loaded().then(|| count_by_state(&states))
        })
    })
}

fn pod_states(live: Live<TableRow>) -> Memo<States> {
    Memo::new(move |_| {
        let status = status_index(live);
        live.rows.with(|rows| {
            let word = |r: &Arc<TableRow>| State::of_word(status.map_or("", |i| r.cell(i)));
            let states: Vec<State> = rows.iter().map(word).collect();
            rows.is_loaded().then(|| count_by_state(&states))
        })
    })
}

/// How many of a kind there are and how they do.
#[component]
fn Tile(states: Memo<States>, resource: Resource, title: &'static str) -> impl IntoView {
    let total = move || match states.get() {
        Some(states) => states.iter().map(|(_, n)| n).sum::<usize>().to_string(),
        None => "–".to_owned(),
    };
    let part = |(state, n): (State, usize)| {
        view! {
            <span class=format!("status {}", state.token()) title=state.label()>
                <Dot state=state />
                <span class="num">{n}</span>
                <span class="sr-only">{state.label()}</span>
            </span>
        }
    };
    view! {
        <A href=resource.page attr:class="tile">
            <span class="tile-title">{title}</span>
            <span class="tile-count num">{total}</span>
            <span class="tile-states">{move || states.get().unwrap_or_default().into_iter().map(part).collect_view()}</span>
        </A>
    }
}
