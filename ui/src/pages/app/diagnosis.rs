//! The cause of trouble, first thing on the page.

use ketch_ui_core::diagnosis::Diagnosis;
use leptos::prelude::*;

use crate::components::icon::{Icon, WARNING};

/// Cause, evidence, next step.
#[component]
pub(crate) fn DiagnosisPanel(
    /// What was found.
    found: Diagnosis,
) -> impl IntoView {
    let evidence =
        found.evidence.into_iter().filter(|e| !e.is_empty()).map(|e| view! { <li>{e}</li> }).collect_view();
    view! {
        <section class="notice bad diagnosis" aria-label="What is wrong">
            <Icon d=WARNING />
            <div>
                <strong>{found.cause}</strong>
                <ul>{evidence}</ul>
                <p>{found.advice}</p>
            </div>
        </section>
    }
}
