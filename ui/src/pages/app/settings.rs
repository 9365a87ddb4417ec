//! Environment, limits, and the end.

use ketch_ui_core::{
    format, manifest,
    object::{items, text},
};
use leptos::prelude::*;
use leptos_router::{NavigateOptions, hooks::use_navigate};
use serde_json::json;

use super::App;
use crate::{
    api,
    components::{
        dialog::ConfirmDelete,
        env::{EnvEditor, Variables},
    },
    state::console,
};

/// The settings; saving makes a new revision.
#[component]
pub(super) fn Settings(app: App) -> impl IntoView {
    view! {
        <EditTemplate app=app />
        <DangerZone app=app />
    }
}

#[component]
fn EditTemplate(app: App) -> impl IntoView {
    let console = console();
    // The form starts from what is there and is not overwritten while someone types.
    let function = untrack(|| app.value());
    let (plain, kept) = manifest::split_env(items(&function, "/spec/env"));
    let kept_count = kept.len();
    let variables = Variables::new(plain);
    let memory = RwSignal::new(text(&function, "/spec/resources/limits/memory").to_owned());
    let hosts = {
        let list =
            items(&function, "/spec/permissions/outbound").iter().filter_map(serde_json::Value::as_str);
        RwSignal::new(list.collect::<Vec<_>>().join("\n"))
    };
    let busy = RwSignal::new(false);
    let kept = StoredValue::new(kept);
    let patterns = move || {
        let text = hosts.get();
        if text.trim() == "*" { Ok(vec!["*".to_owned()]) } else { manifest::parse_outbound(&text) }
    };
    let fault = move || {
        let amount = memory.get();
        let bad_memory = !amount.trim().is_empty() && format::memory(amount.trim()).is_none();
        patterns()
            .err()
            .or_else(|| variables.fault())
            .or_else(|| bad_memory.then(|| "Write the memory limit like 64Mi or 1Gi.".to_owned()))
    };
    let save = move |event: web_sys::SubmitEvent| {
        event.prevent_default();
        let (Ok(outbound), None) = untrack(|| (patterns(), fault())) else { return };
        let mut env: Vec<_> = untrack(|| variables.pairs())
            .into_iter()
            .filter(|(name, _)| !name.is_empty())
            .map(|(name, value)| json!({"name": name, "value": value}))
            .collect();
        env.extend(kept.get_value());
        let patch =
            manifest::settings(&untrack(|| app.value()), env, memory.get_untracked().trim(), outbound);
        busy.set(true);
        leptos::task::spawn_local(async move {
            match api::merge(&app.path(), &patch).await {
                Ok(_) => console.toast("Saved. The change is being rolled out as a new revision.", false),
                Err(error) => console.report("The settings were not saved", &error),
            }
            busy.try_set(false);
        });
    };
    view! {
        <form class="panel stack" on:submit=save>
            <h2>"Environment"</h2>
            <EnvEditor variables=variables />
            {(kept_count > 0).then(|| view! { <p class="muted">{format!("{} from ConfigMaps and Secrets stay as they are.", format::count(kept_count, "variable"))}</p> })}
            <div class="field-row">
                <label class="field narrow">
                    <span>"Memory limit"</span>
                    <input class="mono" type="text" placeholder="default" autocomplete="off" prop:value=memory on:input=move |e| memory.set(event_target_value(&e)) />
                </label>
                <label class="field grow">
                    <span>"Outbound hosts, one a line; * for all, empty for none"</span>
                    <textarea class="mono" rows="3" spellcheck="false" prop:value=hosts on:input=move |e| hosts.set(event_target_value(&e))></textarea>
                </label>
            </div>
            <div class="actions end">
                <p class="field-fault" role="status">{fault}</p>
                <button type="submit" class="button primary" disabled=move || busy.get() || fault().is_some()>{move || if busy.get() { "Saving…" } else { "Save as new revision" }}</button>
            </div>
        </form>
    }
}

#[component]
fn DangerZone(app: App) -> impl IntoView {
    let console = console();
    let navigate = use_navigate();
    let open = RwSignal::new(false);
    let name = app.name.get_value();
    let confirm = Callback::new(move |()| {
        let navigate = navigate.clone();
        leptos::task::spawn_local(async move {
            match api::delete(&app.path()).await {
                Ok(()) => {
                    console.toast(format!("{} is being deleted.", app.name.get_value()), false);
                    navigate("/apps", NavigateOptions::default());
                }
                Err(error) => console.report("The app was not deleted", &error),
            }
        });
    });
    view! {
        <section class="panel danger-zone">
            <div>
                <h2>"Delete this app"</h2>
                <p class="muted">"Its URL stops answering at once. Revisions and pods go with it; uploaded files stay in the registry."</p>
            </div>
            <button type="button" class="button danger" on:click=move |_| open.set(true)>"Delete…"</button>
        </section>
        <ConfirmDelete open=open noun="app" name=name confirm=confirm
            consequence="Its URL stops answering at once, and its revisions and pods are deleted. This cannot be undone." />
    }
}
