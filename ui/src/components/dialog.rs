//! Dialogs, and the one that makes sure.

use leptos::{html, prelude::*};

use super::icon::{CLOSE, Icon};

/// A modal dialog, in the browser's top layer: focus stays inside, Escape closes.
#[component]
pub(crate) fn Dialog(
    /// Whether it is open.
    open: RwSignal<bool>,
    /// Heading.
    #[prop(into)]
    title: String,
    /// Body; made each time it opens.
    children: ChildrenFn,
) -> impl IntoView {
    let node = NodeRef::<html::Dialog>::new();
    Effect::new(move |_| {
        let (Some(dialog), open) = (node.get(), open.get()) else { return };
        if open && !dialog.open() {
            // Fails only for an element out of the document, which this is not.
            let _ = dialog.show_modal();
        } else if !open && dialog.open() {
            dialog.close();
        }
    });
    let heading = title.clone();
    view! {
        <dialog node_ref=node class="dialog" aria-label=title on:close=move |_| open.set(false)>
            <Show when=move || open.get()>
                <div class="dialog-head">
                    <h2>{heading.clone()}</h2>
                    <button type="button" class="icon-button" aria-label="Close" on:click=move |_| open.set(false)>
                        <Icon d=CLOSE />
                    </button>
                </div>
                <div class="dialog-body">{children()}</div>
            </Show>
        </dialog>
    }
}

/// Asks for the name before something is destroyed.
#[component]
pub(crate) fn ConfirmDelete(
    /// Whether it is open.
    open: RwSignal<bool>,
    /// What is deleted, for instance "app".
    noun: &'static str,
    /// The name to be typed.
    #[prop(into)]
    name: String,
    /// What goes with it.
    #[prop(into)]
    consequence: String,
    /// Called when it was confirmed.
    #[prop(into)]
    confirm: Callback<()>,
) -> impl IntoView {
    let typed = RwSignal::new(String::new());
    let expected = StoredValue::new(name.clone());
    let matches = move || typed.with(|t| expected.with_value(|e| t.trim() == e));
    let submit = move |event: web_sys::SubmitEvent| {
        event.prevent_default();
        if matches() {
            open.set(false);
            confirm.run(());
        }
    };
    let consequence = StoredValue::new(consequence);
    view! {
        <Dialog open=open title=format!("Delete {noun} {name}?")>
            <form on:submit=submit class="stack">
                <p>{consequence.get_value()}</p>
                <label class="field">
                    <span>"Type " <code>{expected.get_value()}</code> " to confirm"</span>
                    <input
                        type="text"
                        autocomplete="off"
                        autofocus
                        spellcheck="false"
                        prop:value=typed
                        on:input=move |e| typed.set(event_target_value(&e))
                    />
                </label>
                <div class="actions end">
                    <button type="button" class="button" on:click=move |_| open.set(false)>"Keep it"</button>
                    <button type="submit" class="button danger" disabled=move || !matches()>"Delete"</button>
                </div>
            </form>
        </Dialog>
    }
}
