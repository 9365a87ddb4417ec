//! Choosing a file, and its upload.

use ketch_ui_core::{format, upload};
use leptos::prelude::*;
use wasm_bindgen::JsCast;

use super::work::{Phase, Work};
use crate::{
    components::icon::{FILE, Icon, UPLOAD, WARNING},
    dom,
    state::console,
};

/// The drop zone: a real file field under a large area.
#[component]
pub(super) fn Choose(work: Work) -> impl IntoView {
    let over = RwSignal::new(false);
    let chosen = move |event: web_sys::Event| {
        let input = event.target().and_then(|t| t.dyn_into::<web_sys::HtmlInputElement>().ok());
        let Some(input) = input else { return };
        if let Some(file) = input.files().and_then(|files| files.get(0)) {
            work.take(file);
        }
        // The same file can then be chosen again.
        input.set_value("");
    };
    view! {
        <div class="zone" class:over=over on:dragenter=move |_| over.set(true) on:dragleave=move |_| over.set(false) on:drop=move |_| over.set(false)>
            <label for="file">
                <Icon d=UPLOAD />
                <strong>"Drop a .wasm file here"</strong>
                <span>"or " <u>"choose a file"</u></span>
            </label>
            <input id="file" type="file" accept=".wasm,.yaml,.yml,.json,application/wasm" aria-describedby="zone-hint" on:change=chosen />
            <p id="zone-hint" class="muted">"WebAssembly components and modules, or Kubernetes manifests in YAML or JSON. The content decides, not the name."</p>
        </div>
        <p class="muted pad">"From a terminal: " <code>"ketch deploy ./app.wasm"</code></p>
    }
}

/// The file that was chosen.
#[component]
pub(super) fn FileRow(work: Work) -> impl IntoView {
    view! {
        <div class="file-row">
            <Icon d=FILE />
            <strong class="truncate">{move || work.file.get().0}</strong>
            <span class="muted num">{move || format::bytes(work.file.get().1)}</span>
            {move || work.inspection.with(|i| i.as_ref().map(|i| view! { <code class="muted truncate">{format::short_digest(&i.digest)}</code> }))}
        </div>
    }
}

/// Progress of the upload, with Cancel and Retry.
#[component]
pub(super) fn Uploading(work: Work) -> impl IntoView {
    let total = move || work.file.get().1;
    let percent = move || match total() {
        0 => 0,
        total => work.sent.get() * 100 / total,
    };
    let console = console();
    let text = move || match work.phase.get() {
        Phase::Hashing => "Reading the file".to_owned(),
        Phase::Inspecting => "Looking at what it imports and exports".to_owned(),
        Phase::Sending => {
            console.now.track();
            let elapsed = dom::ticks() - work.began.get();
            let left = upload::eta(work.sent.get(), total(), elapsed).filter(|_| elapsed > 1500.0);
            let left = left.map(|s| format!(", about {s:.0} s left")).unwrap_or_default();
            format!("{} of {}{left}", format::bytes(work.sent.get()), format::bytes(total()))
        }
    };
    // Only every quarter is spoken.
    let spoken = Memo::new(move |_| match (work.fault.with(Option::is_some), percent() / 25) {
        (true, _) => "The upload stopped".to_owned(),
        (false, quarter) => format!("{} % uploaded", quarter * 25),
    });
    view! {
        <FileRow work=work />
        <div class="progress" role="progressbar" aria-label="Upload" aria-valuemin="0" aria-valuemax="100" aria-valuenow=move || percent().to_string()>
            <i class:busy=move || work.phase.get() != Phase::Sending style=move || format!("transform:scaleX({})", if work.phase.get() == Phase::Sending { percent() as f64 / 100.0 } else { 1.0 })></i>
        </div>
        <div class="progress-foot">
            <span class="muted num">{text}</span>
            <button type="button" class="button small" on:click=move |_| work.reset()>"Cancel"</button>
        </div>
        <span class="sr-only" role="status">{spoken}</span>
        {move || work.fault.get().map(|error| view! {
            <div class="notice bad" role="alert">
                <Icon d=WARNING />
                <div>
                    <strong>"The upload stopped"</strong>
                    <p>{error.message}</p>
                    <div class="actions">
                        <button type="button" class="button primary" on:click=move |_| work.retry()>"Retry"</button>
                    </div>
                </div>
            </div>
        })}
    }
}
