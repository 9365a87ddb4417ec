//! Name, permissions, environment, and the manifest they make.

use ketch_ui_core::{capability, naming};
use leptos::prelude::*;

use super::work::{Reach, Work};
use crate::components::{basics::Failure, env::EnvEditor, yaml::Yaml};

/// The choices and the Deploy button.
#[component]
pub(super) fn Form(work: Work) -> impl IntoView {
    let is_http = Memo::new(move |_| work.inspection.with(|i| i.as_ref().is_some_and(|i| i.world.is_http())));
    let blocked = Memo::new(move |_| {
        work.inspection.with(|i| i.as_ref().is_none_or(|i| capability::blocked(i).is_some()))
    });
    let label = move || match (work.busy.get(), work.existing.with(Option::is_some), is_http.get()) {
        (true, ..) => "Deploying…".to_owned(),
        (false, true, true) => "Deploy new revision".to_owned(),
        (false, _, true) => "Deploy".to_owned(),
        (false, _, false) => "Run".to_owned(),
    };
    let submit = move |event: web_sys::SubmitEvent| {
        event.prevent_default();
        if work.form_fault().is_none() && !work.busy.get_untracked() {
            work.deploy();
        }
    };
    let object = Signal::derive(move || work.object());
    view! {
        <Show when=move || !blocked.get()>
            <form class="deploy-form" on:submit=submit>
                <section class="panel stack">
                    <Identity work=work />
                    <Show when=move || !is_http.get()>
                        <p class="notice">"It answers no requests, so it runs once as a Pod until it ends. Its output is in the logs."</p>
                        <label class="field">
                            <span>"Arguments"</span>
                            <input class="mono" type="text" autocomplete="off" spellcheck="false" prop:value=work.args
                                on:input=move |e| work.args.set(event_target_value(&e)) />
                        </label>
                    </Show>
                </section>
                <section class="panel stack"><Permissions work=work /></section>
                <section class="panel stack">
                    <h2>"Environment"</h2>
                    <EnvEditor variables=work.variables />
                    <label class="field narrow">
                        <span>"Memory limit"</span>
                        <input class="mono" type="text" placeholder="default" autocomplete="off" aria-describedby="memory-hint"
                            prop:value=work.memory on:input=move |e| work.memory.set(event_target_value(&e)) />
                        <small id="memory-hint">"For instance 64Mi. Empty: the server's default."</small>
                    </label>
                </section>
                <details class="panel">
                    <summary><h2>"Manifest"</h2></summary>
                    <Yaml object=object />
                </details>
                {move || work.refused.get().map(|error| view! { <Failure error=error /> })}
                <div class="deploy-bar">
                    <p class="field-fault" role="status">{move || work.form_fault()}</p>
                    <button type="submit" class="button primary large" disabled=move || work.busy.get() || work.form_fault().is_some()>{label}</button>
                </div>
            </form>
        </Show>
    }
}

#[component]
fn Identity(work: Work) -> impl IntoView {
    let typed = move |event: web_sys::Event| {
        work.name.set(event_target_value(&event));
        leptos::task::spawn_local(async move { work.look_up().await });
    };
    view! {
        <h2>"Name"</h2>
        <div class="field-row">
            <label class="field">
                <span>"App"</span>
                <input id="app-name" class="mono" type="text" autocomplete="off" spellcheck="false"
                    aria-invalid=move || work.name.with(|n| naming::fault(n).is_some()).to_string() aria-describedby="name-fault"
                    prop:value=work.name on:change=typed />
                <small id="name-fault" class="field-fault">{move || work.name.with(|n| naming::fault(n))}</small>
            </label>
            <label class="field">
                <span>"Namespace"</span>
                <input class="mono" type="text" autocomplete="off" spellcheck="false" prop:value=work.namespace
                    on:change=move |e| {
                        work.namespace.set(event_target_value(&e).trim().to_owned());
                        leptos::task::spawn_local(async move { work.look_up().await });
                    } />
            </label>
        </div>
    }
}

#[component]
fn Permissions(work: Work) -> impl IntoView {
    let wants = Memo::new(move |_| {
        work.inspection.with(|i| i.as_ref().is_some_and(|i| capability::wants_network(&i.imports)))
    });
    let option = move |reach: Reach, title: &'static str, text: &'static str| {
        view! {
            <label class="option">
                <input type="radio" name="reach" prop:checked=move || work.reach.get() == reach on:change=move |_| work.reach.set(reach) />
                <span><strong>{title}</strong><small>{text}</small></span>
            </label>
        }
    };
    let fault = move || work.outbound().err();
    view! {
        <fieldset class="stack tight">
            <legend><h2>"Outbound network"</h2></legend>
            <p class="muted">
                {move || if wants.get() {
                    "It imports interfaces that reach the network. It always reaches Services of its cluster; decide what else."
                } else {
                    "It imports nothing that reaches the network, so it needs no permission."
                }}
            </p>
            <div class="options">
                {option(Reach::Off, "Off", "Nothing outside the cluster")}
                {option(Reach::List, "Listed hosts", "Only the hosts below")}
                {option(Reach::All, "Everything", "Any host but metadata services, the node and the control plane")}
            </div>
            <Show when=move || work.reach.get() == Reach::List>
                <label class="field">
                    <span>"Hosts, one a line"</span>
                    <textarea class="mono" rows="3" spellcheck="false" placeholder="api.example.com:443\n*.example.org:443" prop:value=work.hosts
                        on:input=move |e| work.hosts.set(event_target_value(&e))></textarea>
                    <small class="field-fault">{fault}</small>
                </label>
            </Show>
        </fieldset>
    }
}
