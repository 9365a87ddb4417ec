//! A request by hand.

use gloo_net::http::Method;
use ketch_ui_core::{
    format,
    invoke::{self, Request},
};
use leptos::prelude::*;

use super::App;
use crate::{
    api,
    components::{
        copy::CopyButton,
        icon::{Icon, PLAY},
    },
    dom,
};

const METHODS: [&str; 7] = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"];

/// What came back.
#[derive(Clone, PartialEq)]
struct Answer {
    status: u16,
    phrase: String,
    headers: Vec<(String, String)>,
    body: String,
    bytes: usize,
    /// As the server measured it, else as the browser did.
    duration: f64,
    round_trip: f64,
}

#[derive(Clone, Copy)]
struct Form {
    method: RwSignal<String>,
    path: RwSignal<String>,
    headers: RwSignal<String>,
    body: RwSignal<String>,
    busy: RwSignal<bool>,
    fault: RwSignal<Option<String>>,
    answer: RwSignal<Option<Answer>>,
}

impl Form {
    fn request(&self) -> Request {
        let path = self.path.get();
        let path = if path.starts_with('/') { path } else { format!("/{path}") };
        Request { method: self.method.get(), path, headers: self.headers.get(), body: self.body.get() }
    }
}

/// The form and the answer.
#[component]
pub(super) fn Invoke(app: App) -> impl IntoView {
    let form = Form {
        method: RwSignal::new("GET".to_owned()),
        path: RwSignal::new("/".to_owned()),
        headers: RwSignal::new(String::new()),
        body: RwSignal::new(String::new()),
        busy: RwSignal::new(false),
        fault: RwSignal::new(None),
        answer: RwSignal::new(None),
    };
    let send = move |event: web_sys::SubmitEvent| {
        event.prevent_default();
        form.busy.set(true);
        form.fault.set(None);
        leptos::task::spawn_local(async move {
            let request = untrack(|| form.request());
            let outcome = call(&app.namespace.get_value(), &app.name.get_value(), &request).await;
            form.busy.try_set(false);
            match outcome {
                Ok(answer) => drop(form.answer.try_set(Some(answer))),
                Err(error) => drop(form.fault.try_set(Some(error.message))),
            }
        });
    };
    let curl = Signal::derive(move || invoke::curl(&app.text("/status/url"), &form.request()));
    let with_body = Memo::new(move |_| form.method.with(|m| invoke::takes_body(m)));
    view! {
        <form class="panel stack" on:submit=send>
            <div class="invoke-line">
                <label>
                    <span class="sr-only">"Method"</span>
                    <select class="mono" on:change=move |e| form.method.set(event_target_value(&e))>
                        {METHODS.map(|m| view! { <option value=m>{m}</option> }).collect_view()}
                    </select>
                </label>
                <label class="grow">
                    <span class="sr-only">"Path"</span>
                    <input class="mono" type="text" autocomplete="off" spellcheck="false" prop:value=form.path on:input=move |e| form.path.set(event_target_value(&e)) />
                </label>
                <button type="submit" class="button primary" disabled=form.busy><Icon d=PLAY />{move || if form.busy.get() { "Sending…" } else { "Send" }}</button>
            </div>
            <label class="field">
                <span>"Headers, one a line"</span>
                <textarea class="mono" rows="2" spellcheck="false" placeholder="content-type: application/json" on:input=move |e| form.headers.set(event_target_value(&e))></textarea>
            </label>
            <Show when=move || with_body.get()>
                <label class="field">
                    <span>"Body"</span>
                    <textarea class="mono" rows="6" spellcheck="false" prop:value=form.body on:input=move |e| form.body.set(event_target_value(&e))></textarea>
                </label>
            </Show>
            <div class="actions"><CopyButton text=curl label="Copy as curl" wide=true /></div>
            <p class="field-fault" role="alert">{form.fault}</p>
        </form>
        <div role="status">{move || form.answer.get().map(|answer| view! { <Result answer=answer /> })}</div>
    }
}

#[component]
fn Result(answer: Answer) -> impl IntoView {
    let class = match answer.status {
        200..=399 => "tag good num",
        _ => "tag poor num",
    };
    let pretty = serde_json::from_str::<serde_json::Value>(&answer.body)
        .ok()
        .filter(|v| v.is_object() || v.is_array())
        .and_then(|v| serde_json::to_string_pretty(&v).ok());
    let body = pretty.unwrap_or(answer.body);
    let copied = body.clone();
    view! {
        <section class="panel stack">
            <div class="event-head">
                <span class=class>{answer.status} " " {answer.phrase}</span>
                <span class="num">{format::millis(answer.duration)}</span>
                <span class="muted num">{format::bytes(answer.bytes as u64)}</span>
                <span class="muted num">{format!("{} to this browser", format::millis(answer.round_trip))}</span>
            </div>
            <details>
                <summary>{format::count(answer.headers.len(), "header")}</summary>
                <dl class="facts mono">{answer.headers.into_iter().map(|(name, value)| view! { <div class="fact"><dt>{name}</dt><dd class="break">{value}</dd></div> }).collect_view()}</dl>
            </details>
            <div class="code">
                <div class="code-tools"><CopyButton text=Signal::derive(move || copied.clone()) label="Copy body" /></div>
                <pre tabindex="0" aria-label="Body">{if body.is_empty() { "(no body)".to_owned() } else { body }}</pre>
            </div>
        </section>
    }
}

async fn call(namespace: &str, app: &str, request: &Request) -> api::Result<Answer> {
    let method = Method::from_bytes(request.method.as_bytes()).unwrap_or_default();
    let mut builder = api::request(method, &format!("/console/invoke/{namespace}/{app}{}", request.path));
    for (name, value) in invoke::headers(&request.headers).map_err(api::Error::local)? {
        builder = builder.header(&name, &value);
    }
    let with_body = invoke::takes_body(&request.method) && !request.body.is_empty();
    let began = dom::ticks();
    let response = api::send_any(builder, with_body.then(|| request.body.as_str().into())).await?;
    let headers: Vec<(String, String)> = response.headers().entries().collect();
    let bytes = response.binary().await.unwrap_or_default();
    let round_trip = dom::ticks() - began;
    let measured =
        headers.iter().find(|(name, _)| name == "x-ketch-duration-ms").and_then(|(_, v)| v.parse().ok());
    let body = match String::from_utf8(bytes) {
        Ok(text) => (text.len(), text),
        Err(error) => (
            error.as_bytes().len(),
            format!("({} of binary data)", format::bytes(error.as_bytes().len() as u64)),
        ),
    };
    Ok(Answer {
        status: response.status(),
        phrase: response.status_text(),
        headers: headers.into_iter().filter(|(name, _)| !name.starts_with("x-ketch-")).collect(),
        bytes: body.0,
        body: body.1,
        duration: measured.unwrap_or(round_trip),
        round_trip,
    })
}
