//! What happened to an object.

use std::sync::Arc;

use jiff::Timestamp;
use ketch_ui_core::{
    object::{event_count, event_time, namespace, text},
    resource::{EVENTS, Resource},
    rows::Object,
};
use leptos::prelude::*;
use leptos_router::components::A;
use serde_json::Value;

use super::{
    basics::Empty,
    status::{Age, Dot},
};
use crate::state::{Live, live_objects};

/// Events of a namespace (all when empty), newest first.
pub(crate) fn live_events(namespace: &str) -> Live<Object> {
    live_objects(EVENTS.collection(Some(namespace)))
}

/// Events of `live` that pass, newest first, at most `max`.
pub(crate) fn newest(live: Live<Object>, max: usize, keep: impl Fn(&Value) -> bool) -> Vec<Arc<Object>> {
    live.rows.with(|rows| {
        let time = |o: &Object| event_time(&o.value).unwrap_or(Timestamp::UNIX_EPOCH);
        let mut events = rows.sorted(|o| keep(&o.value), |a, b| time(b).cmp(&time(a)));
        events.truncate(max);
        events
    })
}

/// A list of events.
#[component]
pub(crate) fn EventList(
    /// The events.
    #[prop(into)]
    events: Signal<Vec<Arc<Object>>>,
    /// Whether each names its object.
    #[prop(optional)]
    named: bool,
) -> impl IntoView {
    view! {
        <Show
            when=move || !events.with(Vec::is_empty)
            fallback=|| view! { <Empty title="No events" text="Nothing was reported in the last hour. Events are kept for an hour." /> }
        >
            <ol class="events">
                <For
                    each=move || events.get()
                    key=|o| (text(&o.value, "/metadata/uid").to_owned(), text(&o.value, "/metadata/resourceVersion").to_owned())
                    children=move |o| event(&o.value, named)
                />
            </ol>
        </Show>
    }
}

fn event(event: &Value, named: bool) -> impl IntoView + use<> {
    let about = if event.get("regarding").is_some() { "/regarding" } else { "/involvedObject" };
    let (kind, name) = (text(event, &format!("{about}/kind")), text(event, &format!("{about}/name")));
    let link = Resource::of_kind(kind).map(|r| r.href(namespace(event), name));
    let subject = format!("{kind} {name}");
    let state = ketch_ui_core::State::of_word(text(event, "/type"));
    let times = match event_count(event) {
        1 => String::new(),
        n => format!("×{n}"),
    };
    let message =
        if text(event, "/message").is_empty() { text(event, "/note") } else { text(event, "/message") };
    view! {
        <li class="event">
            <Dot state=state />
            <div>
                <div class="event-head">
                    <strong>{text(event, "/reason").to_owned()}</strong>
                    {named.then(|| match link {
                        Some(href) => view! { <A href=href attr:class="truncate">{subject}</A> }.into_any(),
                        None => view! { <span class="truncate">{subject}</span> }.into_any(),
                    })}
                    <span class="muted num">{times}</span>
                    <Age since=event_time(event) />
                </div>
                <p>{message.to_owned()}</p>
            </div>
        </li>
    }
}
