//! `/apps/NAMESPACE/NAME`: one app, in tabs.

mod diagnosis;
mod invoke;
mod revisions;
mod settings;
mod summary;

use std::sync::Arc;

pub(crate) use diagnosis::DiagnosisPanel;
use ketch_api::names::FUNCTION_LABEL;
use ketch_ui_core::{
    health,
    object::{created, name, text},
    resource::{FUNCTIONS, PODS, REVISIONS},
    rows::Object,
    table::natural,
};
use leptos::prelude::*;
use leptos_router::components::A;
use serde_json::Value;
pub(crate) use summary::{PodRows, condition};

use crate::{
    api,
    components::{
        basics::{Empty, Failure, PageHeader, Skeleton, Tabs},
        events::{EventList, live_events, newest},
        icon::{Icon, OPEN, UPLOAD},
        logs::{LogViewer, sources_of},
        status::Status,
        yaml::Yaml,
    },
    state::{Live, live_object, live_objects},
};

const TABS: [(&str, &str); 7] = [
    ("overview", "Overview"),
    ("logs", "Logs"),
    ("events", "Events"),
    ("revisions", "Revisions"),
    ("invoke", "Invoke"),
    ("yaml", "YAML"),
    ("settings", "Settings"),
];

/// An app and what belongs to it, live.
#[derive(Clone, Copy)]
pub(super) struct App {
    /// Namespace.
    pub namespace: StoredValue<String>,
    /// Name.
    pub name: StoredValue<String>,
    /// The Function.
    pub function: Memo<Option<Arc<Object>>>,
    /// Its revisions.
    pub revisions: Live<Object>,
    /// Its pods.
    pub pods: Live<Object>,
    /// Events of the namespace.
    pub events: Live<Object>,
}

impl App {
    fn start(live: Live<Object>, namespace: &str, name: &str) -> Self {
        let selector = format!("?labelSelector={}", api::encode(&format!("{FUNCTION_LABEL}={name}")));
        Self {
            namespace: StoredValue::new(namespace.to_owned()),
            name: StoredValue::new(name.to_owned()),
            function: Memo::new(move |_| live.first()),
            revisions: live_objects(format!("{}{selector}", REVISIONS.collection(Some(namespace)))),
            pods: live_objects(format!("{}{selector}", PODS.collection(Some(namespace)))),
            events: live_events(namespace),
        }
    }

    /// The Function as JSON; null while unknown.
    pub(super) fn value(&self) -> Value {
        self.function.with(|f| f.as_ref().map(|f| f.value.clone()).unwrap_or_default())
    }

    /// A string of the Function.
    pub(super) fn text(&self, pointer: &str) -> String {
        self.function.with(|f| f.as_ref().map(|f| text(&f.value, pointer).to_owned()).unwrap_or_default())
    }

    /// API path of the Function.
    pub(super) fn path(&self) -> String {
        FUNCTIONS.object(&self.namespace.get_value(), &self.name.get_value())
    }

    /// Its pods, newest first.
    pub(super) fn sorted_pods(&self) -> Vec<Arc<Object>> {
        let order = |a: &Object, b: &Object| {
            created(&b.value).cmp(&created(&a.value)).then_with(|| natural(name(&a.value), name(&b.value)))
        };
        self.pods.rows.with(|rows| rows.sorted(|_| true, order))
    }

    /// Events about it and what it owns, newest first. Everything it owns begins with its name.
    pub(super) fn related_events(&self) -> Vec<Arc<Object>> {
        self.name.with_value(|app| {
            let owned = format!("{app}-");
            newest(self.events, 200, |e| {
                let about = text(e, "/involvedObject/name");
                about == app || about.starts_with(&owned)
            })
        })
    }
}

/// The page.
#[component]
pub(crate) fn AppPage(
    /// Namespace.
    namespace: String,
    /// Name.
    name: String,
    /// Open tab; empty for the first.
    #[prop(into)]
    tab: Signal<String>,
) -> impl IntoView {
    let live = live_object(&FUNCTIONS.collection(Some(&namespace)), &name);
    let app = App::start(live, &namespace, &name);
    let state = Memo::new(move |_| {
        (live.rows.with(|r| r.is_loaded()), app.function.with(Option::is_some), live.error.get())
    });
    let base = FUNCTIONS.href(&namespace, &name);
    let health = Signal::derive(move || health::of("Function", &app.value()));
    let url = Memo::new(move |_| app.text("/status/url"));
    view! {
        <nav class="crumbs" aria-label="Breadcrumb"><A href="/apps">"Apps"</A><span aria-hidden="true">"/"</span><span>{namespace}</span></nav>
        <PageHeader title=name>
            <Show when=move || app.function.with(Option::is_some)>
                <Status health=health />
            </Show>
            <A href="/deploy" attr:class="button"><Icon d=UPLOAD />"New revision"</A>
            <Show when=move || !url.with(String::is_empty)>
                <a class="button primary" href=url target="_blank" rel="noreferrer"><Icon d=OPEN />"Open"</a>
            </Show>
        </PageHeader>
        <Tabs base=base tabs=TABS.to_vec() current=tab />
        {move || match state.get() {
            (_, true, _) => view! { <Part app=app tab=tab /> }.into_any(),
            (_, false, Some(error)) => view! { <Failure error=error /> }.into_any(),
            (true, false, None) => view! {
                <Empty title="There is no such app" text="It may have been deleted, or the address is misspelt.">
                    <A href="/apps" attr:class="button primary">"See all apps"</A>
                </Empty>
            }.into_any(),
            (false, false, None) => view! { <Skeleton lines=8 /> }.into_any(),
        }}
    }
}

#[component]
fn Part(app: App, #[prop(into)] tab: Signal<String>) -> impl IntoView {
    let tab = Memo::new(move |_| tab.get());
    move || match tab.get().as_str() {
        "" | "overview" => view! { <summary::Summary app=app /> }.into_any(),
        "logs" => {
            let sources =
                Memo::new(move |_| app.sorted_pods().iter().flat_map(|p| sources_of(p)).collect::<Vec<_>>());
            view! { <LogViewer sources=sources /> }.into_any()
        }
        "events" => {
            let events = Signal::derive(move || app.related_events());
            view! { <section class="panel"><EventList events=events named=true /></section> }.into_any()
        }
        "revisions" => view! { <revisions::Revisions app=app /> }.into_any(),
        "invoke" => view! { <invoke::Invoke app=app /> }.into_any(),
        "yaml" => view! { <Yaml object=Signal::derive(move || app.value()) /> }.into_any(),
        "settings" => view! { <settings::Settings app=app /> }.into_any(),
        _ => {
            view! { <Empty title="There is no such part" text="Choose one of the tabs above." /> }.into_any()
        }
    }
}
