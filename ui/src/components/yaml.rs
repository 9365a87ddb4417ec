//! Objects as text.

use ketch_ui_core::manifest;
use leptos::prelude::*;
use serde_json::Value;

use super::copy::CopyButton;

/// A manifest, coloured and to be copied.
#[component]
pub(crate) fn Yaml(
    /// The object.
    #[prop(into)]
    object: Signal<Value>,
) -> impl IntoView {
    let text = Memo::new(move |_| object.with(manifest::to_yaml));
    view! {
        <div class="code">
            <div class="code-tools"><CopyButton text=text label="Copy YAML" wide=true /></div>
            <pre tabindex="0" aria-label="Manifest"><code>{move || text.with(|t| t.lines().map(line).collect_view())}</code></pre>
        </div>
    }
}

/// One line: the key apart from its value.
fn line(text: &str) -> impl IntoView + use<> {
    let body = text.trim_start_matches([' ', '-']);
    let indent = text.get(..text.len() - body.len()).unwrap_or_default().to_owned();
    let key_end = body.find(": ").or_else(|| body.ends_with(':').then(|| body.len() - 1));
    let is_key = |k: &str| !k.is_empty() && !k.starts_with(['"', '\'', '#']) && !k.contains(' ');
    match key_end.and_then(|at| body.split_at_checked(at)).filter(|(key, _)| is_key(key)) {
        Some((key, rest)) => view! {
            {indent}<span class="y-key">{key.to_owned()}</span>{rest.to_owned()}"\n"
        }
        .into_any(),
        None => view! { {format!("{indent}{body}\n")} }.into_any(),
    }
}
