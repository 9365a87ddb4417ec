//! The frame and the addresses.

use ketch_ui_core::resource::{self, Resource};
use leptos::prelude::*;
use leptos_router::{
    NavigateOptions,
    components::{FlatRoutes, Route, Router},
    hooks::{use_location, use_navigate, use_params_map},
    path,
};

use crate::{
    components::{
        chrome::{BottomBar, OfflineBanner, SideNav, Toasts, TopBar},
        drop::WindowDrop,
        palette::{Keys, Palette},
    },
    dom,
    pages::{
        app::AppPage, apps::AppsPage, deploy::DeployPage, list::ListPage, login::LoginPage,
        missing::MissingPage, object::ObjectPage, overview::OverviewPage,
    },
    state::{Access, Console},
};

/// The whole page.
#[component]
pub(crate) fn App() -> impl IntoView {
    Console::provide();
    view! {
        <Router>
            <Gate />
        </Router>
    }
}

/// Shows the console to those who are logged in, and the login to the rest.
#[component]
fn Gate() -> impl IntoView {
    let console = crate::state::console();
    let location = use_location();
    let navigate = use_navigate();
    let is_login = Memo::new(move |_| location.pathname.with(|p| p == "/login"));
    dom::spawn_scoped(async move {
        if is_login.get_untracked() {
            return;
        }
        console.check_session().await;
        while console.access.with_untracked(|a| *a == Access::Unreachable) {
            dom::sleep(2000).await;
            console.check_session().await;
        }
    });
    Effect::new(move |_| {
        if !is_login.get() && console.access.with(|a| *a == Access::Out) {
            navigate("/login", NavigateOptions { replace: true, ..NavigateOptions::default() });
        }
    });
    let inside = Memo::new(move |_| console.access.with(|a| matches!(a, Access::In(_))) && !is_login.get());
    let unreachable = move || console.access.with(|a| *a == Access::Unreachable) && !is_login.get();
    view! {
        <Show when=move || is_login.get()><LoginPage /></Show>
        <Show when=unreachable>
            <div class="boot" role="status">
                <p>"The server does not answer. Check that ketch is running; this page goes on by itself."</p>
            </div>
        </Show>
        <Show when=move || inside.get()><Frame /></Show>
    }
}

#[component]
fn Frame() -> impl IntoView {
    let drawer = RwSignal::new(false);
    view! {
        <a class="skip" href="#content">"Skip to the content"</a>
        <div class="frame">
            <SideNav open=drawer />
            <div class="main">
                <TopBar open=drawer />
                <OfflineBanner />
                <main id="content" tabindex="-1"><Pages /></main>
            </div>
        </div>
        <BottomBar />
        <Palette />
        <Keys />
        <WindowDrop />
        <Toasts />
    }
}

fn list(resource: Resource) -> AnyView {
    view! { <ListPage resource=resource /> }.into_any()
}

/// The page of an object, made anew for each name.
fn object(resource: Resource) -> AnyView {
    let params = use_params_map();
    let name = Memo::new(move |_| {
        params.with(|p| (p.get("ns").unwrap_or_default(), p.get("name").unwrap_or_default()))
    });
    let tab = Memo::new(move |_| params.with(|p| p.get("tab").unwrap_or_default()));
    (move || {
        let (namespace, name) = name.get();
        view! { <ObjectPage resource=resource namespace=namespace name=name tab=tab /> }
    })
    .into_any()
}

fn app() -> AnyView {
    let params = use_params_map();
    let name = Memo::new(move |_| {
        params.with(|p| (p.get("ns").unwrap_or_default(), p.get("name").unwrap_or_default()))
    });
    let tab = Memo::new(move |_| params.with(|p| p.get("tab").unwrap_or_default()));
    (move || {
        let (namespace, name) = name.get();
        view! { <AppPage namespace=namespace name=name tab=tab /> }
    })
    .into_any()
}

#[component]
fn Pages() -> impl IntoView {
    view! {
        <FlatRoutes fallback=|| view! { <MissingPage /> }.into_any()>
            <Route path=path!("/") view=|| view! { <OverviewPage /> }.into_any() />
            <Route path=path!("/deploy") view=|| view! { <DeployPage /> }.into_any() />
            <Route path=path!("/apps") view=|| view! { <AppsPage /> }.into_any() />
            <Route path=path!("/apps/:ns/:name/:tab?") view=app />
            <Route path=path!("/workloads/deployments") view=|| list(resource::DEPLOYMENTS) />
            <Route path=path!("/workloads/deployments/:ns/:name/:tab?") view=|| object(resource::DEPLOYMENTS) />
            <Route path=path!("/workloads/pods") view=|| list(resource::PODS) />
            <Route path=path!("/workloads/pods/:ns/:name/:tab?") view=|| object(resource::PODS) />
            <Route path=path!("/workloads/replicasets/:ns/:name/:tab?") view=|| object(resource::REPLICASETS) />
            <Route path=path!("/workloads/revisions/:ns/:name/:tab?") view=|| object(resource::REVISIONS) />
            <Route path=path!("/network/services") view=|| list(resource::SERVICES) />
            <Route path=path!("/network/services/:ns/:name/:tab?") view=|| object(resource::SERVICES) />
            <Route path=path!("/config/configmaps") view=|| list(resource::CONFIGMAPS) />
            <Route path=path!("/config/configmaps/:ns/:name/:tab?") view=|| object(resource::CONFIGMAPS) />
            <Route path=path!("/nodes") view=|| list(resource::NODES) />
            <Route path=path!("/nodes/:name/:tab?") view=|| object(resource::NODES) />
            <Route path=path!("/events") view=|| list(resource::EVENTS) />
            <Route path=path!("/events/:ns/:name/:tab?") view=|| object(resource::EVENTS) />
            <Route path=path!("/login") view=|| ().into_any() />
        </FlatRoutes>
    }
}
