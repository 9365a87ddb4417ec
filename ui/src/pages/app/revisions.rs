//! What ran before, and the way back.

use std::sync::Arc;

use ketch_ui_core::{
    format, health, manifest,
    object::{created, int, items, name, text},
    rows::{Keyed, Object},
};
use leptos::prelude::*;

use super::App;
use crate::{
    api,
    components::{
        basics::{Empty, Skeleton},
        icon::{Icon, ROLLBACK},
        status::{Age, Status},
    },
    state::console,
};

/// The revisions, newest first.
#[component]
pub(super) fn Revisions(app: App) -> impl IntoView {
    let console = console();
    let busy = RwSignal::new(false);
    let pinned = Memo::new(move |_| {
        app.function.with(|f| f.as_ref().is_some_and(|f| !items(&f.value, "/spec/traffic").is_empty()))
    });
    let route = Callback::new(move |revision: Option<String>| {
        busy.set(true);
        leptos::task::spawn_local(async move {
            let patch = manifest::traffic(revision.as_deref());
            match (api::merge(&app.path(), &patch).await, revision) {
                (Ok(_), Some(name)) => {
                    console.toast(format!("Traffic goes to {name} as soon as it is ready."), false)
                }
                (Ok(_), None) => console.toast("Traffic follows the newest revision.", false),
                (Err(error), _) => console.report("The traffic was not changed", &error),
            }
            busy.try_set(false);
        });
    });
    let rows = Signal::derive(move || {
        let number = |o: &Object| int(&o.value, "/spec/revision").unwrap_or(0);
        app.revisions.rows.with(|rows| rows.sorted(|_| true, |a, b| number(b).cmp(&number(a))))
    });
    let loaded = Memo::new(move |_| app.revisions.rows.with(|r| r.is_loaded()));
    view! {
        <Show when=move || pinned.get()>
            <div class="notice" role="status">
                <div>
                    <strong>"Traffic is held on a chosen revision"</strong>
                    <p>"A new revision does not take over until you let go."</p>
                </div>
                <button type="button" class="button" disabled=busy on:click=move |_| route.run(None)>"Follow the newest"</button>
            </div>
        </Show>
        <section class="panel">
            <Show when=move || loaded.get() fallback=|| view! { <Skeleton lines=4 /> }>
                <Show when=move || !rows.with(Vec::is_empty) fallback=|| view! { <Empty title="No revisions yet" text="The first is being made." /> }>
                    <ul class="revisions">
                        <For each=move || rows.get() key=|o| (o.key().to_owned(), o.version().to_owned()) children=move |o| view! { <Row app=app revision=o busy=busy route=route /> } />
                    </ul>
                </Show>
            </Show>
        </section>
    }
}

#[component]
fn Row(
    app: App,
    revision: Arc<Object>,
    busy: RwSignal<bool>,
    route: Callback<Option<String>>,
) -> impl IntoView {
    let title = name(&revision.value).to_owned();
    let image = text(&revision.value, "/spec/template/image").to_owned();
    let digest = manifest::parse_image(&image)
        .map_or_else(|| image.clone(), |(_, reference)| format::short_digest(&reference));
    let (mine, again) = (title.clone(), title.clone());
    let share = Memo::new(move |_| {
        app.function.with(|f| {
            let targets = f.as_ref().map(|f| items(&f.value, "/status/traffic").to_vec()).unwrap_or_default();
            let mine = targets.iter().find(|t| text(t, "/revisionName") == mine);
            mine.and_then(|t| int(t, "/percent")).unwrap_or(0)
        })
    });
    let other = title.clone();
    // Names end in five digits, so their order is the revisions' order.
    let is_newer = Memo::new(move |_| {
        app.function.with(|f| {
            let current =
                f.as_ref().map(|f| text(&f.value, "/status/traffic/0/revisionName") < other.as_str());
            current.unwrap_or(false)
        })
    });
    view! {
        <li class:current=move || { share.get() > 0 }>
            <strong class="mono">{title}</strong>
            <Status health=health::of("FunctionRevision", &revision.value) />
            <code class="muted truncate" title=image>{digest}</code>
            <Age since=created(&revision.value) />
            <span class="share">
                {move || (share.get() > 0).then(|| view! { <span class="tag good num">{share.get()} " % of traffic"</span> })}
            </span>
            <button type="button" class="button small" disabled=move || busy.get() || share.get() == 100 on:click=move |_| route.run(Some(again.clone()))>
                <Icon d=ROLLBACK />
                {move || if is_newer.get() { "Move to this" } else { "Roll back to this" }}
            </button>
        </li>
    }
}
