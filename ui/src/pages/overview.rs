//! `/`: is everything well, what is not, what happened last.

use std::sync::Arc;

use ketch_ui_core::{
    State,
    health::{self, Health},
    object::{label, name, namespace},
    resource::{DEPLOYMENTS, FUNCTIONS, NODES, PODS, Resource},
    rows::Object,
    table::natural,
};
use ketch_api::names::FUNCTION_LABEL;
use leptos::prelude::*;
use leptos_router::components::A;

use crate::{
    components::{
        basics::PageHeader,
        events::{EventList, live_events, newest},
        icon::{Icon, UPLOAD},
        status::{Dot, Status},
    },
    state::{Live, console, live_objects},
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
    let pods = live_objects(PODS.collection(Some(&space)));
    let nodes = live_objects(NODES.collection(None));
    let events = live_events(&space);
    let recent = Signal::derive(move || newest(events, 12, |_| true));
    let failing = Memo::new(move |_| {
        let mut all = troubled(functions, FUNCTIONS, |_| true);
        all.extend(troubled(deployments, DEPLOYMENTS, |o| label(&o.value, FUNCTION_LABEL).is_empty()));
        all.extend(troubled(pods, PODS, |o| label(&o.value, FUNCTION_LABEL).is_empty()));
        all.extend(troubled(nodes, NODES, |_| true));
        all
    });
    view! {
        <A href="/deploy" attr:class="drop-hero">
            <Icon d=UPLOAD />
            <span><strong>"Drop a .wasm file"</strong><small>"anywhere on this page, or choose one. It gets a URL."</small></span>
        </A>
        <div class="tiles">
            <Tile live=functions resource=FUNCTIONS title="Apps" />
            <Tile live=deployments resource=DEPLOYMENTS title="Deployments" />
            <Tile live=pods resource=PODS title="Pods" />
            <Tile live=nodes resource=NODES title="Nodes" />
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

/// How many of a kind there are and how they do.
#[component]
fn Tile(live: Live<Object>, resource: Resource, title: &'static str) -> impl IntoView {
    let states = Memo::new(move |_| {
        let states = live.rows.with(|rows| {
            rows.iter().map(|o| health::of(resource.kind, &o.value).state).collect::<Vec<_>>()
        });
        let counts = State::ALL.iter().map(|s| (*s, states.iter().filter(|x| *x == s).count()));
        counts.filter(|(_, n)| *n > 0).collect::<Vec<_>>()
    });
    let total = move || states.with(|s| s.iter().map(|(_, n)| n).sum::<usize>());
    let loaded = move || live.rows.with(|r| r.is_loaded());
    let part = |(state, n): (State, usize)| {
        view! { <span class=format!("status {}", state.token()) title=state.label()><Dot state=state /><span class="num">{n}</span><span class="sr-only">{state.label()}</span></span> }
    };
    view! {
        <A href=resource.page attr:class="tile">
            <span class="tile-title">{title}</span>
            <span class="tile-count num">{move || if loaded() { total().to_string() } else { "–".to_owned() }}</span>
            <span class="tile-states">{move || states.get().into_iter().map(part).collect_view()}</span>
        </A>
    }
}
