//! An editor for environment variables.

use ketch_ui_core::naming;
use leptos::prelude::*;

use super::icon::{Icon, PLUS, TRASH};

/// One variable being edited.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Variable {
    id: u64,
    /// Name.
    pub name: RwSignal<String>,
    /// Value.
    pub value: RwSignal<String>,
}

/// The variables being edited.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Variables {
    rows: RwSignal<Vec<Variable>>,
    next: StoredValue<u64>,
}

impl Variables {
    /// Starts from what is there.
    pub(crate) fn new(pairs: Vec<(String, String)>) -> Self {
        let variables = Self { rows: RwSignal::new(Vec::new()), next: StoredValue::new(0) };
        variables.reset(pairs);
        variables
    }

    /// Replaces all of them.
    pub(crate) fn reset(&self, pairs: Vec<(String, String)>) {
        self.rows.update(Vec::clear);
        for (name, value) in pairs {
            self.add(name, value);
        }
    }

    fn add(&self, name: String, value: String) {
        let id = self.next.get_value();
        self.next.set_value(id + 1);
        let variable = Variable { id, name: RwSignal::new(name), value: RwSignal::new(value) };
        self.rows.update(|rows| rows.push(variable));
    }

    /// Names and values as they are now.
    pub(crate) fn pairs(&self) -> Vec<(String, String)> {
        self.rows.with(|rows| rows.iter().map(|v| (v.name.get().trim().to_owned(), v.value.get())).collect())
    }

    /// The first fault, as a sentence.
    pub(crate) fn fault(&self) -> Option<String> {
        let names: Vec<String> =
            self.pairs().into_iter().map(|(name, _)| name).filter(|n| !n.is_empty()).collect();
        let bad = names.iter().find_map(|n| naming::env_fault(n).map(|why| format!("{n}: {why}")));
        let twice = || {
            let (index, name) =
                names.iter().enumerate().find(|(i, n)| names.iter().skip(i + 1).any(|m| m == *n))?;
            let _ = index;
            Some(format!("{name} is set twice."))
        };
        bad.or_else(twice)
    }
}

/// Rows of name and value. Pasting lines of `NAME=value` into a name field fills several.
#[component]
pub(crate) fn EnvEditor(
    /// What is edited.
    variables: Variables,
) -> impl IntoView {
    let remove = move |id: u64| variables.rows.update(|rows| rows.retain(|v| v.id != id));
    let typed = move |variable: Variable, text: String| {
        if !text.contains('=') {
            variable.name.set(text);
            return;
        }
        let mut lines = text.split(['\n', '\r']).filter_map(|l| l.trim().split_once('='));
        if let Some((name, value)) = lines.next() {
            variable.name.set(name.trim().to_owned());
            variable.value.set(value.to_owned());
        }
        lines.for_each(|(name, value)| variables.add(name.trim().to_owned(), value.to_owned()));
    };
    let row = move |variable: Variable| {
        view! {
            <div class="env-row">
                <input class="mono" type="text" placeholder="NAME" aria-label="Variable name" autocomplete="off" spellcheck="false"
                    prop:value=variable.name on:input=move |e| typed(variable, event_target_value(&e)) />
                <input class="mono" type="text" placeholder="value" aria-label="Variable value" autocomplete="off" spellcheck="false"
                    prop:value=variable.value on:input=move |e| variable.value.set(event_target_value(&e)) />
                <button type="button" class="icon-button" aria-label="Remove this variable" on:click=move |_| remove(variable.id)>
                    <Icon d=TRASH />
                </button>
            </div>
        }
    };
    view! {
        <div class="env">
            <For each=move || variables.rows.get() key=|v| v.id children=row />
            <button type="button" class="button small" on:click=move |_| variables.add(String::new(), String::new())>
                <Icon d=PLUS />
                "Add variable"
            </button>
            {move || variables.fault().map(|fault| view! { <p class="field-fault" role="alert">{fault}</p> })}
        </div>
    }
}
