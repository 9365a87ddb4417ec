//! One object of any kind: what it is, its logs, its events, its manifest.

use std::sync::Arc;

use ketch_ui_core::{
    diagnosis::diagnose,
    format, health,
    object::{self, created, items, text},
    resource::{PODS, Resource},
    rows::Object,
};
use leptos::prelude::*;
use leptos_router::{NavigateOptions, components::A, hooks::use_navigate};
use serde_json::Value;

use super::app::{DiagnosisPanel, PodRows, condition};
use crate::{
    api,
    components::{
        basics::{Empty, Fact, Failure, PageHeader, Skeleton, Tabs},
        dialog::ConfirmDelete,
        events::{EventList, live_events, newest},
        logs::{LogViewer, Source, sources_of},
        status::{Age, Status},
        yaml::Yaml,
    },
    state::{Live, console, live_object, live_objects},
};

/// An object and what is around it.
#[derive(Clone, Copy)]
struct Subject {
    resource: Resource,
    namespace: StoredValue<String>,
    name: StoredValue<String>,
    object: Memo<Option<Arc<Object>>>,
}

impl Subject {
    fn value(&self) -> Value {
        self.object.with(|o| o.as_ref().map(|o| o.value.clone()).unwrap_or_default())
    }

    fn events(&self, live: Live<Object>) -> Vec<Arc<Object>> {
        let name = self.name.get_value();
        newest(live, 100, |e| {
            text(e, "/involvedObject/name") == name && text(e, "/involvedObject/kind") == self.resource.kind
        })
    }
}

/// The page.
#[component]
pub(crate) fn ObjectPage(
    /// The kind.
    resource: Resource,
    /// Namespace; empty when it has none.
    namespace: String,
    /// Name.
    name: String,
    /// Open tab; empty for the first.
    #[prop(into)]
    tab: Signal<String>,
) -> impl IntoView {
    let live = live_object(&resource.collection(Some(&namespace)), &name);
    let subject = Subject {
        resource,
        namespace: StoredValue::new(namespace.clone()),
        name: StoredValue::new(name.clone()),
        object: Memo::new(move |_| live.first()),
    };
    let state = Memo::new(move |_| {
        (live.rows.with(|r| r.is_loaded()), subject.object.with(Option::is_some), live.error.get())
    });
    let health = Signal::derive(move || health::of(resource.kind, &subject.value()));
    let has_health = matches!(resource.kind, "Pod" | "Deployment" | "Node" | "FunctionRevision");
    let mut tabs = vec![("overview", "Overview")];
    if matches!(resource.kind, "Pod" | "Deployment") {
        tabs.push(("logs", "Logs"));
    }
    tabs.extend([("events", "Events"), ("yaml", "YAML")]);
    view! {
        <nav class="crumbs" aria-label="Breadcrumb">
            <A href=resource.page>{resource.title}</A>
            <span aria-hidden="true">"/"</span>
            <span>{namespace.clone()}</span>
        </nav>
        <PageHeader title=name.clone()>
            <Show when=move || has_health && subject.object.with(Option::is_some)><Status health=health /></Show>
            <DeleteButton subject=subject />
        </PageHeader>
        <Tabs base=resource.href(&namespace, &name) tabs=tabs current=tab />
        {move || match state.get() {
            (_, true, _) => view! { <Part subject=subject tab=tab /> }.into_any(),
            (_, false, Some(error)) => view! { <Failure error=error /> }.into_any(),
            (true, false, None) => view! { <Empty title="This does not exist" text="It may have been deleted, or the address is misspelt." /> }.into_any(),
            (false, false, None) => view! { <Skeleton lines=8 /> }.into_any(),
        }}
    }
}

#[component]
fn DeleteButton(subject: Subject) -> impl IntoView {
    let console = console();
    let navigate = use_navigate();
    let open = RwSignal::new(false);
    let confirm = Callback::new(move |()| {
        let navigate = navigate.clone();
        leptos::task::spawn_local(async move {
            let (namespace, name) = (subject.namespace.get_value(), subject.name.get_value());
            match api::delete(&subject.resource.object(&namespace, &name)).await {
                Ok(()) => {
                    console.toast(format!("{name} is being deleted."), false);
                    navigate(subject.resource.page, NavigateOptions::default());
                }
                Err(error) => console.report("It was not deleted", &error),
            }
        });
    });
    let name = subject.name.get_value();
    view! {
        <button type="button" class="button" on:click=move |_| open.set(true)>"Delete…"</button>
        <ConfirmDelete open=open noun=subject.resource.kind name=name confirm=confirm
            consequence="What it owns is deleted with it. This cannot be undone." />
    }
}

#[component]
fn Part(subject: Subject, #[prop(into)] tab: Signal<String>) -> impl IntoView {
    let tab = Memo::new(move |_| tab.get());
    move || match tab.get().as_str() {
        "" | "overview" => view! { <Summary subject=subject /> }.into_any(),
        "logs" => view! { <Logs subject=subject /> }.into_any(),
        "events" => {
            let live = live_events(&subject.namespace.get_value());
            let events = Signal::derive(move || subject.events(live));
            view! { <section class="panel"><EventList events=events /></section> }.into_any()
        }
        "yaml" => view! { <Yaml object=Signal::derive(move || subject.value()) /> }.into_any(),
        _ => {
            view! { <Empty title="There is no such part" text="Choose one of the tabs above." /> }.into_any()
        }
    }
}

/// The pods a Deployment selects, or none for other kinds.
fn selected_pods(subject: Subject) -> Option<Live<Object>> {
    let labels = object::pairs(&untrack(|| subject.value()), "/spec/selector/matchLabels");
    if labels.is_empty() || !matches!(subject.resource.kind, "Deployment" | "ReplicaSet") {
        return None;
    }
    let selector = labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",");
    let collection = PODS.collection(Some(&subject.namespace.get_value()));
    Some(live_objects(format!("{collection}?labelSelector={}", api::encode(&selector))))
}

#[component]
fn Logs(subject: Subject) -> impl IntoView {
    let pods = selected_pods(subject);
    let sources = Memo::new(move |_| -> Vec<Source> {
        match pods {
            Some(pods) => pods.rows.with(|rows| rows.iter().flat_map(|p| sources_of(p)).collect()),
            None => subject.object.with(|o| o.as_ref().map(|o| sources_of(o)).unwrap_or_default()),
        }
    });
    view! { <LogViewer sources=sources /> }
}

#[component]
fn Summary(subject: Subject) -> impl IntoView {
    let pods = selected_pods(subject);
    let events = live_events(&subject.namespace.get_value());
    let list = Signal::derive(move || match pods {
        Some(pods) => {
            pods.rows.with(|rows| rows.sorted(|_| true, |a, b| created(&b.value).cmp(&created(&a.value))))
        }
        None => subject.object.with(|o| o.iter().cloned().collect::<Vec<_>>()),
    });
    let found = Memo::new(move |_| {
        let (list, events) = (list.get(), subject.events(events));
        let list: Vec<&Value> = list.iter().map(|p| &p.value).collect();
        let events: Vec<&Value> = events.iter().map(|e| &e.value).collect();
        diagnose(subject.resource.kind, &subject.value(), &list, &events)
    });
    let conditions =
        move || items(&subject.value(), "/status/conditions").iter().map(condition).collect_view();
    let has_conditions = Memo::new(move |_| !items(&subject.value(), "/status/conditions").is_empty());
    let chips = move |pointer: &'static str| {
        let pairs = object::pairs(&subject.value(), pointer);
        let chip = |(key, value): (String, String)| view! { <span class="chip"><b>{key}</b>{value}</span> };
        pairs.into_iter().map(chip).collect_view()
    };
    view! {
        {move || found.get().map(|found| view! { <DiagnosisPanel found=found /> })}
        <div class="columns wide-first">
            <section class="panel">
                <h2>"Facts"</h2>
                <dl class="facts">
                    {move || facts(&subject.value()).into_iter().map(|(name, value)| view! { <Fact name=name><span class="break">{value}</span></Fact> }).collect_view()}
                    <Fact name="Labels"><span class="chips">{move || chips("/metadata/labels")}</span></Fact>
                    <Fact name="Created">{move || view! { <Age since=created(&subject.value()) /> }}</Fact>
                </dl>
            </section>
            <Show when=move || has_conditions.get()>
                <section class="panel">
                    <h2>"Conditions"</h2>
                    <ul class="conditions">{conditions}</ul>
                </section>
            </Show>
        </div>
        {pods.is_some().then(|| view! { <section class="panel"><h2>"Pods"</h2><PodRows pods=list /></section> })}
        <Data subject=subject />
    }
}

/// The entries of a ConfigMap.
#[component]
fn Data(subject: Subject) -> impl IntoView {
    let entries = move || {
        if subject.resource.kind == "ConfigMap" {
            object::pairs(&subject.value(), "/data")
        } else {
            Vec::new()
        }
    };
    let entry = |(key, value): (String, String)| {
        view! { <section class="panel"><h2><code>{key}</code></h2><div class="code"><pre tabindex="0">{value}</pre></div></section> }
    };
    move || entries().into_iter().map(entry).collect_view()
}

/// What is worth knowing of each kind, in words.
fn facts(object: &Value) -> Vec<(&'static str, String)> {
    let at = |pointer: &str| {
        let value = object.pointer(pointer);
        value.map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned)).unwrap_or_default()
    };
    let containers = |pointer: &str| {
        let line = |c: &Value| format!("{}: {}", text(c, "/name"), text(c, "/image"));
        items(object, pointer).iter().map(line).collect::<Vec<_>>().join("\n")
    };
    let ports = || {
        let line = |p: &Value| {
            let number =
                p.get("port").or_else(|| p.get("containerPort")).map(Value::to_string).unwrap_or_default();
            format!("{number}/{}", if text(p, "/protocol").is_empty() { "TCP" } else { text(p, "/protocol") })
        };
        items(object, "/spec/ports").iter().map(line).collect::<Vec<_>>().join(", ")
    };
    let all = [
        ("Node", at("/spec/nodeName")),
        ("Address", at("/status/podIP")),
        ("Runtime", at("/spec/runtimeClassName")),
        ("Restart policy", at("/spec/restartPolicy")),
        ("Containers", containers("/spec/containers")),
        ("Template", containers("/spec/template/spec/containers")),
        ("Replicas", at("/spec/replicas")),
        ("Strategy", at("/spec/strategy/type")),
        ("Type", at("/spec/type")),
        ("Cluster IP", at("/spec/clusterIP")),
        ("Ports", ports()),
        ("System", at("/status/nodeInfo/osImage")),
        ("Kernel", at("/status/nodeInfo/kernelVersion")),
        ("Version", at("/status/nodeInfo/kubeletVersion")),
        ("CPU", at("/status/allocatable/cpu")),
        (
            "Memory",
            format::memory(&at("/status/allocatable/memory"))
                .map(|b| format::bytes(b as u64))
                .unwrap_or_default(),
        ),
        ("Pods", at("/status/allocatable/pods")),
        ("Reason", at("/reason")),
        ("Message", at("/message")),
        ("Image", at("/spec/template/image")),
    ];
    all.into_iter().filter(|(_, value)| !value.is_empty()).collect()
}
