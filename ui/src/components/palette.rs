//! Everything by keyboard: the command palette, the keys and the list of them.

use ketch_ui_core::{object, resource, rows::Object};
use leptos::{ev, prelude::*};
use leptos_router::{NavigateOptions, hooks::use_navigate};

use super::{chrome::places, dialog::Dialog};
use crate::{
    dom,
    state::{Live, console, live_objects},
};

#[derive(Clone, Debug, PartialEq)]
enum Action {
    Go(String),
    Namespace(String),
    Theme,
    Keys,
}

#[derive(Clone, Debug, PartialEq)]
struct Command {
    title: String,
    kind: &'static str,
    action: Action,
}

/// The palette, opened by Ctrl-K.
#[component]
pub(crate) fn Palette() -> impl IntoView {
    let open = console().palette;
    view! {
        <Dialog open=open title="Go to">
            <PaletteBody />
        </Dialog>
    }
}

fn commands(apps: Live<Object>, namespaces: Live<Object>) -> Vec<Command> {
    let page = |title: &str, href: &str| Command {
        title: title.to_owned(),
        kind: "Page",
        action: Action::Go(href.into()),
    };
    let mut list: Vec<Command> = places().map(|p| page(p.label, p.href)).collect();
    let names = |live: Live<Object>| {
        let pairs = |o: &Object| (object::namespace(&o.value).to_owned(), object::name(&o.value).to_owned());
        let mut names: Vec<_> = live.rows.with(|rows| rows.iter().map(|o| pairs(o)).collect());
        names.sort_unstable();
        names
    };
    list.extend(names(apps).into_iter().map(|(namespace, name)| Command {
        title: format!("{name} in {namespace}"),
        kind: "App",
        action: Action::Go(resource::FUNCTIONS.href(&namespace, &name)),
    }));
    list.extend(names(namespaces).into_iter().map(|(_, name)| Command {
        title: format!("Use namespace {name}"),
        kind: "Namespace",
        action: Action::Namespace(name),
    }));
    list.push(Command {
        title: "Use all namespaces".into(),
        kind: "Namespace",
        action: Action::Namespace(String::new()),
    });
    list.push(Command { title: "Change the theme".into(), kind: "Action", action: Action::Theme });
    list.push(Command { title: "Show keyboard shortcuts".into(), kind: "Action", action: Action::Keys });
    list
}

#[component]
fn PaletteBody() -> impl IntoView {
    let console = console();
    let navigate = use_navigate();
    let apps = live_objects(resource::FUNCTIONS.collection(None));
    let namespaces = live_objects(resource::NAMESPACES.collection(None));
    let text = RwSignal::new(String::new());
    let at = RwSignal::new(0usize);
    let hits = Memo::new(move |_| {
        let words = text.get().to_lowercase();
        let fits = |c: &Command| words.split_whitespace().all(|w| c.title.to_lowercase().contains(w));
        commands(apps, namespaces).into_iter().filter(fits).take(12).collect::<Vec<_>>()
    });
    let run = Callback::new(move |command: Command| {
        console.palette.set(false);
        match command.action {
            Action::Go(href) => navigate(&href, NavigateOptions::default()),
            Action::Namespace(name) => console.namespace.set(name),
            Action::Theme => console.theme.update(|t| *t = t.next()),
            Action::Keys => console.keys.set(true),
        }
    });
    let keys = move |event: web_sys::KeyboardEvent| {
        let count = hits.with(Vec::len).max(1);
        match event.key().as_str() {
            "ArrowDown" => at.update(|a| *a = (*a + 1) % count),
            "ArrowUp" => at.update(|a| *a = (*a + count - 1) % count),
            "Enter" => {
                if let Some(command) = hits.with(|h| h.get(at.get_untracked()).cloned()) {
                    run.run(command);
                }
            }
            _ => return,
        }
        event.prevent_default();
    };
    Effect::new(move |_| dom::focus("palette-input"));
    let option = move |(index, command): (usize, Command)| {
        let chosen = move || at.get() == index;
        let click = command.clone();
        view! {
            <li id=format!("palette-{index}") role="option" aria-selected=move || chosen().to_string() on:click=move |_| run.run(click.clone())>
                <span>{command.title}</span>
                <span class="muted">{command.kind}</span>
            </li>
        }
    };
    view! {
        <div class="palette">
            <input
                id="palette-input" type="text" role="combobox" aria-expanded="true" aria-controls="palette-list"
                aria-label="Search pages, apps and actions" placeholder="Pages, apps, actions" autocomplete="off"
                aria-activedescendant=move || format!("palette-{}", at.get())
                on:input=move |e| { text.set(event_target_value(&e)); at.set(0); }
                on:keydown=keys
            />
            <ul id="palette-list" role="listbox" aria-label="Results">
                {move || hits.get().into_iter().enumerate().map(option).collect_view()}
            </ul>
            <Show when=move || hits.with(Vec::is_empty)><p class="muted pad">"Nothing of that name."</p></Show>
        </div>
    }
}

/// Takes the page's keys: `Ctrl K`, `?`, `/`, and `g` followed by a place's letter.
#[component]
pub(crate) fn Keys() -> impl IntoView {
    let console = console();
    let navigate = use_navigate();
    let go_at = StoredValue::new(f64::MIN);
    let handle = window_event_listener(ev::keydown, move |event| {
        let key = event.key();
        if (event.ctrl_key() || event.meta_key()) && key.eq_ignore_ascii_case("k") {
            event.prevent_default();
            console.palette.update(|open| *open = !*open);
            return;
        }
        if dom::is_typing(&event) || event.ctrl_key() || event.meta_key() || event.alt_key() {
            return;
        }
        let after_g = dom::ticks() - go_at.get_value() < 1500.0;
        go_at.set_value(f64::MIN);
        match key.as_str() {
            "?" => console.keys.set(true),
            "/" if dom::element("filter").is_some() => {
                event.prevent_default();
                dom::focus("filter");
            }
            "g" if !after_g => go_at.set_value(dom::ticks()),
            key if after_g => {
                if let Some(place) = places().find(|p| p.key == key) {
                    event.prevent_default();
                    navigate(place.href, NavigateOptions::default());
                }
            }
            _ => {}
        }
    });
    on_cleanup(move || handle.remove());
    view! {
        <Dialog open=console.keys title="Keyboard shortcuts">
            <KeyList />
        </Dialog>
    }
}

#[component]
fn KeyList() -> impl IntoView {
    let fixed = [
        ("Ctrl K", "Go to a page, an app, an action"),
        ("/", "Filter the list"),
        ("?", "This list"),
        ("Esc", "Close"),
    ];
    let fixed = fixed.into_iter().map(|(keys, what)| (keys.to_owned(), what));
    let pages = places().map(|p| (format!("g {}", p.key), p.label));
    let line = |(keys, what): (String, &'static str)| {
        let keys: Vec<_> = keys.split(' ').map(|k| view! { <kbd>{k.to_owned()}</kbd> }).collect();
        view! { <div class="fact"><dt>{keys}</dt><dd>{what}</dd></div> }
    };
    view! { <dl class="facts keys">{fixed.chain(pages).map(line).collect_view()}</dl> }
}
