//! `/apps`: what people deployed, with its state and address.

use std::sync::Arc;

use ketch_api::names::FUNCTION_LABEL;
use ketch_ui_core::{
    filter::{self, Filter},
    format,
    health::{self, Health},
    manifest,
    object::{created, label, name, namespace, text},
    resource::{DEPLOYMENTS, FUNCTIONS, Resource},
    rows::{Keyed, Object},
    table::natural,
};
use leptos::prelude::*;
use leptos_router::components::A;

use crate::{
    components::{
        basics::{Empty, Failure, PageHeader, Skeleton},
        copy::CopyButton,
        icon::{Icon, UPLOAD},
        status::{Age, Status},
        table::{FilterBar, page_filter},
    },
    dom,
    state::{Live, console, live_objects},
};

/// An object as the filter sees it.
struct Row<'a> {
    object: &'a Object,
    haystack: String,
    health: Health,
}

impl<'a> Row<'a> {
    fn new(object: &'a Object) -> Self {
        let health = health::of(text(&object.value, "/kind"), &object.value);
        let haystack = format!(
            "{} {} {}",
            name(&object.value),
            namespace(&object.value),
            text(&object.value, "/spec/image")
        );
        Self { object, haystack: haystack.to_lowercase(), health }
    }
}

impl filter::Row for Row<'_> {
    fn haystack(&self) -> &str {
        &self.haystack
    }
    fn status(&self) -> Vec<String> {
        vec![self.health.state.token().to_owned(), self.health.reason.to_lowercase()]
    }
    fn namespace(&self) -> &str {
        namespace(&self.object.value)
    }
    fn label(&self, key: &str) -> Option<&str> {
        Some(label(&self.object.value, key)).filter(|v| !v.is_empty())
    }
    fn created(&self) -> Option<jiff::Timestamp> {
        created(&self.object.value)
    }
}

/// Whether a Deployment belongs to no app of ours.
fn stands_alone(object: &Object) -> bool {
    label(&object.value, FUNCTION_LABEL).is_empty()
        && object.value.pointer("/metadata/ownerReferences/0/kind").is_none_or(|k| k != "FunctionRevision")
}

fn matching(live: Live<Object>, filter: &str, keep: fn(&Object) -> bool) -> Vec<Arc<Object>> {
    let filter = Filter::parse(filter);
    let now = dom::now();
    let order = |a: &Object, b: &Object| natural(name(&a.value), name(&b.value));
    live.rows.with(|rows| rows.sorted(|o| keep(o) && filter.matches(&Row::new(o), now), order))
}

/// The list of apps, and of Deployments that are no apps.
#[component]
pub(crate) fn AppsPage() -> impl IntoView {
    let console = console();
    view! {
        <PageHeader title="Apps" lead="Programs with a URL, and Deployments that run without one.">
            <A href="/deploy" attr:class="button primary"><Icon d=UPLOAD />"Deploy"</A>
        </PageHeader>
        {move || view! { <AppList namespace=console.namespace.get() /> }}
    }
}

#[component]
fn AppList(namespace: String) -> impl IntoView {
    let functions = live_objects(FUNCTIONS.collection(Some(&namespace)));
    let deployments = live_objects(DEPLOYMENTS.collection(Some(&namespace)));
    let filter = page_filter();
    let apps = Signal::derive(move || matching(functions, &filter.get(), |_| true));
    let others = Signal::derive(move || matching(deployments, &filter.get(), stands_alone));
    let total = move || {
        functions.rows.with(|r| r.len())
            + deployments.rows.with(|r| r.iter().filter(|o| stands_alone(o)).count())
    };
    let count = move || match total() {
        0 => String::new(),
        _ => format::count(apps.with(Vec::len) + others.with(Vec::len), "app"),
    };
    let loaded = Memo::new(move |_| {
        functions.rows.with(|r| r.is_loaded()) && deployments.rows.with(|r| r.is_loaded())
    });
    let nothing = Memo::new(move |_| total() == 0);
    let error = move || functions.error.get().or_else(|| deployments.error.get());
    view! {
        {move || error().map(|error| view! { <Failure error=error /> })}
        <Show when=move || loaded.get() fallback=move || (error().is_none()).then(|| view! { <Skeleton lines=6 /> })>
            <Show
                when=move || !nothing.get()
                fallback=|| view! {
                    <Empty title="No apps yet" text="Drop a .wasm file anywhere on this page, and it gets a URL.">
                        <A href="/deploy" attr:class="button primary">"Deploy the first one"</A>
                    </Empty>
                }
            >
                <FilterBar filter=filter count=Signal::derive(count) />
                <ul class="apps">
                    <For each=move || apps.get() key=|o| o.key().to_owned() children=move |o| view! { <AppRow live=functions object=o resource=FUNCTIONS /> } />
                    <For each=move || others.get() key=|o| o.key().to_owned() children=move |o| view! { <AppRow live=deployments object=o resource=DEPLOYMENTS /> } />
                </ul>
            </Show>
        </Show>
    }
}

#[component]
fn AppRow(live: Live<Object>, object: Arc<Object>, resource: Resource) -> impl IntoView {
    let console = console();
    let key = object.key().to_owned();
    let (app, space) = (name(&object.value).to_owned(), namespace(&object.value).to_owned());
    let since = created(&object.value);
    let read = move |pick: fn(&Object) -> String| {
        let (key, first) = (key.clone(), object.clone());
        Memo::new(move |_| live.rows.with(|rows| pick(rows.get(&key).unwrap_or(&first))))
    };
    let health = {
        let (key, kind) = (read(|o| o.key().to_owned()), resource.kind);
        Signal::derive(move || {
            let of = |o: &Arc<Object>| health::of(kind, &o.value);
            live.rows
                .with(|rows| key.with(|k| rows.get(k).map(of)))
                .unwrap_or_else(|| health::of("", &serde_json::Value::Null))
        })
    };
    let url = read(|o| text(&o.value, "/status/url").to_owned());
    let revision = read(revision_line);
    let problem =
        move || health.with(|h| h.state.is_trouble().then(|| h.message.clone())).filter(|m| !m.is_empty());
    view! {
        <li class="app-row">
            <div class="app-main">
                <A href=resource.href(&space, &app) attr:class="app-name">{app}</A>
                <Status health=health />
                {(resource.kind != "Function").then(|| view! { <span class="tag">"Deployment"</span> })}
            </div>
            <div class="app-url">
                <Show when=move || !url.with(String::is_empty)>
                    <a class="mono truncate" href=url target="_blank" rel="noreferrer">{move || url.get().trim_start_matches("http://").to_owned()}</a>
                    <CopyButton text=url label="Copy the URL" />
                </Show>
            </div>
            <div class="app-meta muted">
                <Show when=move || console.namespace.with(String::is_empty)><span>{space.clone()}</span></Show>
                <span class="mono truncate">{revision}</span>
                <Age since=since />
            </div>
            {move || problem().map(|text| view! { <p class="app-problem">{text}</p> })}
        </li>
    }
}

/// Revision or image, whichever says what runs.
fn revision_line(object: &Object) -> String {
    match text(&object.value, "/status/readyRevision") {
        "" => {}
        revision => return revision.to_owned(),
    }
    let image = match text(&object.value, "/spec/image") {
        "" => text(&object.value, "/spec/template/spec/containers/0/image"),
        image => image,
    };
    match manifest::parse_image(image) {
        Some((repository, reference)) => format!("{repository} {}", format::short_digest(&reference)),
        None => image.to_owned(),
    }
}
