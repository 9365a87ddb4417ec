//! A state as shape, colour and word; ages that move.

use jiff::Timestamp;
use ketch_ui_core::{Health, State, format};
use leptos::prelude::*;

use crate::state::console;

fn shape(state: State) -> &'static str {
    match state {
        State::Running => "M6 1.500a4.500 4.500 0 1 0 0 9 4.500 4.500 0 0 0 0-9z",
        State::Succeeded => "m2 6.300 2.700 2.700L10 3.300",
        State::ScaledToZero => "M9.800 7.300A4.300 4.300 0 0 1 4.700 2.200a4.300 4.300 0 1 0 5.100 5.100z",
        State::Pending => "M6 2a4 4 0 1 0 0 8 4 4 0 0 0 0-8z",
        State::Progressing => "M6 2a4 4 0 1 0 0 8 4 4 0 0 0 0-8z",
        State::Degraded => "M6 1.500 11 10.300H1z",
        State::Failed => "M2 2h8v8H2z",
        State::Terminating => "M6 2a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM3.200 8.800l5.600-5.600",
        State::Unknown => "M6 2a4 4 0 1 0 0 8 4 4 0 0 0 0-8z",
    }
}

/// The shape and colour alone; the word must stand beside it.
#[component]
pub(crate) fn Dot(
    /// What to show.
    state: State,
) -> impl IntoView {
    view! {
        <svg class=format!("dot {}", state.token()) viewBox="0 0 12 12" aria-hidden="true">
            <path d=shape(state)></path>
        </svg>
    }
}

/// Shape, colour and word.
#[component]
pub(crate) fn Status(
    /// What to show; its message is the tooltip.
    #[prop(into)]
    health: Signal<Health>,
) -> impl IntoView {
    view! {
        <span class=move || format!("status {}", health.get().state.token()) title=move || health.get().message>
            {move || view! { <Dot state=health.get().state /> }}
            <span>{move || health.get().label().to_owned()}</span>
        </span>
    }
}

/// A word of the API with the shape of the state it stands for.
#[component]
pub(crate) fn StatusWord(
    /// As in a table's status column.
    #[prop(into)]
    word: String,
) -> impl IntoView {
    let state = State::of_word(&word);
    view! {
        <span class=format!("status {}", state.token())>
            <Dot state=state />
            <span>{word}</span>
        </span>
    }
}

/// Time since then, moving, with the exact time as tooltip.
#[component]
pub(crate) fn Age(
    /// When it began.
    since: Option<Timestamp>,
) -> impl IntoView {
    let console = console();
    let age = Memo::new(move |_| format::age(since, console.now.get()));
    let exact = since.map(|t| t.to_string()).unwrap_or_default();
    view! { <time class="age num" datetime=exact.clone() title=exact>{age}</time> }
}
