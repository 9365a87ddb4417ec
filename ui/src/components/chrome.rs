//! The frame around every page: navigation, namespace, theme, messages, the state of the connection.

use ketch_ui_core::{object, resource};
use leptos::prelude::*;
use leptos_router::{components::A, hooks::use_location};

use super::icon::{
    CLOSE, CUBE, EXIT, GAUGE, GRID, Icon, KEYBOARD, LAYERS, MENU, MOON, Mark, NETWORK, PULSE, SCREEN, SEARCH,
    SERVER, SLIDERS, SUN, UPLOAD,
};
use crate::{
    api,
    api::socket::Link,
    dom,
    state::{Access, Theme, console, live_objects},
};

/// A place of the navigation: address, label, icon, key after `g`.
pub(crate) struct Place {
    /// Address.
    pub href: &'static str,
    /// Label.
    pub label: &'static str,
    /// Icon.
    pub icon: &'static str,
    /// Key pressed after `g`.
    pub key: &'static str,
}

const fn place(href: &'static str, label: &'static str, icon: &'static str, key: &'static str) -> Place {
    Place { href, label, icon, key }
}

/// Everything in the navigation, in groups.
pub(crate) const PLACES: [(&str, &[Place]); 4] = [
    (
        "",
        &[
            place("/", "Overview", GAUGE, "o"),
            place("/deploy", "Deploy", UPLOAD, "d"),
            place("/apps", "Apps", GRID, "a"),
        ],
    ),
    (
        "Workloads",
        &[
            place("/workloads/deployments", "Deployments", LAYERS, "w"),
            place("/workloads/pods", "Pods", CUBE, "p"),
        ],
    ),
    (
        "Network and settings",
        &[
            place("/network/services", "Services", NETWORK, "s"),
            place("/config/configmaps", "ConfigMaps", SLIDERS, "c"),
        ],
    ),
    ("Cluster", &[place("/nodes", "Nodes", SERVER, "n"), place("/events", "Events", PULSE, "e")]),
];

/// Every place, without the groups.
pub(crate) fn places() -> impl Iterator<Item = &'static Place> {
    PLACES.iter().flat_map(|(_, places)| places.iter())
}

fn is_under(path: &str, href: &str) -> bool {
    if href == "/" {
        path == "/"
    } else {
        path == href || path.strip_prefix(href).is_some_and(|r| r.starts_with('/'))
    }
}

#[component]
fn NavLink(place: &'static Place) -> impl IntoView {
    let path = use_location().pathname;
    let current = move || if path.with(|p| is_under(p, place.href)) { "page" } else { "false" };
    view! {
        <A href=place.href attr:class="nav-link" attr:aria-current=current>
            <Icon d=place.icon />
            <span>{place.label}</span>
        </A>
    }
}

/// The column at the side, a drawer on small screens.
#[component]
pub(crate) fn SideNav(
    /// Whether the drawer is open; without meaning on wide screens.
    open: RwSignal<bool>,
) -> impl IntoView {
    let console = console();
    let path = use_location().pathname;
    Effect::new(move |_| {
        path.with(|_| ());
        open.set(false);
    });
    let group = |(title, places): &'static (&'static str, &'static [Place])| {
        view! {
            <div class="nav-group">
                {(!title.is_empty()).then(|| view! { <h2>{*title}</h2> })}
                {places.iter().map(|place| view! { <NavLink place=place /> }).collect_view()}
            </div>
        }
    };
    view! {
        <div class="scrim" class:open=open on:click=move |_| open.set(false)></div>
        <nav id="side" class="side" class:open=open aria-label="Main">
            <div class="brand">
                <A href="/" attr:class="brand-link"><Mark /><span>"Ketch"</span></A>
                <button type="button" class="icon-button only-small" aria-label="Close the menu" on:click=move |_| open.set(false)>
                    <Icon d=CLOSE />
                </button>
            </div>
            <NamespacePicker />
            <button type="button" class="search-button" on:click=move |_| console.palette.set(true)>
                <Icon d=SEARCH />
                <span>"Go to…"</span>
                <kbd>"Ctrl K"</kbd>
            </button>
            <div class="nav-groups">{PLACES.iter().map(group).collect_view()}</div>
            <SideFoot />
        </nav>
    }
}

#[component]
fn SideFoot() -> impl IntoView {
    let console = console();
    let icon = move || match console.theme.get() {
        Theme::System => SCREEN,
        Theme::Light => SUN,
        Theme::Dark => MOON,
    };
    let theme = move || format!("Theme: {}", console.theme.get().label());
    let leave = move |_| {
        leptos::task::spawn_local(async move {
            // Whatever the server says, this page is done with the session.
            let _ = api::session::logout().await;
            console.access.set(Access::Out);
        });
    };
    view! {
        <div class="side-foot">
            <Connection />
            <div class="side-user">
                <span class="truncate" title=move || console.session().user>{move || console.session().user}</span>
                <button type="button" class="icon-button" aria-label=theme title=theme on:click=move |_| console.theme.update(|t| *t = t.next())>
                    {move || view! { <Icon d=icon() /> }}
                </button>
                <button type="button" class="icon-button" aria-label="Keyboard shortcuts" title="Keyboard shortcuts (?)" on:click=move |_| console.keys.set(true)>
                    <Icon d=KEYBOARD />
                </button>
                <button type="button" class="icon-button" aria-label="Log out" title="Log out" on:click=leave>
                    <Icon d=EXIT />
                </button>
            </div>
        </div>
    }
}

#[component]
fn Connection() -> impl IntoView {
    let console = console();
    let link = console.hub().link;
    let text = move || match link.get() {
        Link::Online => "Live",
        Link::Connecting => "Connecting",
        Link::Offline => "Reconnecting",
    };
    view! {
        <div class="connection" class:online=move || link.get() == Link::Online>
            <i aria-hidden="true"></i>
            <span>{text}</span>
            <span class="muted truncate">{move || console.session().version}</span>
        </div>
    }
}

/// Which namespace lists show.
#[component]
fn NamespacePicker() -> impl IntoView {
    let console = console();
    let live = live_objects(resource::NAMESPACES.collection(None));
    let names = Memo::new(move |_| {
        let chosen = console.namespace.get();
        let mut names: Vec<String> =
            live.rows.with(|rows| rows.iter().map(|o| object::name(&o.value).to_owned()).collect());
        if !chosen.is_empty() && !names.contains(&chosen) {
            names.push(chosen);
        }
        names.sort_unstable();
        names
    });
    let choose = move |event: web_sys::Event| {
        let value = event_target_value(&event);
        dom::set_query("ns", &value);
        console.namespace.set(value);
    };
    view! {
        <label class="namespace">
            <span>"Namespace"</span>
            <select on:change=choose prop:value=move || names.with(|_| console.namespace.get())>
                <option value="" selected=move || console.namespace.with(String::is_empty)>"All namespaces"</option>
                <For each=move || names.get() key=Clone::clone let:name>
                    <option value=name.clone() selected={let name = name.clone(); move || console.namespace.with(|n| *n == name)}>{name.clone()}</option>
                </For>
            </select>
        </label>
    }
}

/// The line at the top of small screens.
#[component]
pub(crate) fn TopBar(
    /// Whether the drawer is open.
    open: RwSignal<bool>,
) -> impl IntoView {
    let console = console();
    view! {
        <header class="top-bar">
            <button type="button" class="icon-button" aria-label="Menu" aria-controls="side" aria-expanded=move || open.get().to_string() on:click=move |_| open.set(true)>
                <Icon d=MENU />
            </button>
            <A href="/" attr:class="brand-link"><Mark /><span>"Ketch"</span></A>
            <button type="button" class="icon-button" aria-label="Search" on:click=move |_| console.palette.set(true)>
                <Icon d=SEARCH />
            </button>
        </header>
    }
}

/// The four places a thumb needs.
#[component]
pub(crate) fn BottomBar() -> impl IntoView {
    let wanted = ["/", "/deploy", "/apps", "/workloads/pods"];
    let links = places().filter(|p| wanted.contains(&p.href)).map(|place| view! { <NavLink place=place /> });
    view! { <nav class="bottom-bar" aria-label="Quick">{links.collect_view()}</nav> }
}

/// Says when what is shown may be old.
#[component]
pub(crate) fn OfflineBanner() -> impl IntoView {
    let console = console();
    let link = console.hub().link;
    let since = RwSignal::new(None);
    Effect::new(move |_| match link.get() {
        Link::Offline => since.update(|s| *s = s.or_else(|| Some(dom::now()))),
        Link::Online => since.set(None),
        Link::Connecting => {}
    });
    let seconds = move || since.get().map(|s| console.now.get().duration_since(s).as_secs());
    let shown = move || seconds().is_some_and(|s| s >= 3);
    view! {
        <Show when=shown>
            <div class="banner" role="status">
                "No live connection for " <span class="num">{move || seconds().unwrap_or_default()}</span>
                " s. What you see may be old; the console keeps trying."
            </div>
        </Show>
    }
}

/// Messages at the edge.
#[component]
pub(crate) fn Toasts() -> impl IntoView {
    let console = console();
    let close = move |id: u64| console.toasts.update(|list| list.retain(|t| t.id != id));
    view! {
        <div class="toasts" role="status" aria-live="polite">
            <For each=move || console.toasts.get() key=|t| t.id let:toast>
                <div class="toast" class:bad=toast.bad>
                    <span>{toast.text.clone()}</span>
                    <button type="button" class="icon-button" aria-label="Dismiss" on:click=move |_| close(toast.id)>
                        <Icon d=CLOSE />
                    </button>
                </div>
            </For>
        </div>
    }
}
