//! What several pages share: the session, the namespace, the theme, the clock, messages, live lists.

mod live;
mod theme;

use jiff::Timestamp;
use leptos::prelude::*;
pub(crate) use live::{Live, live_object, live_objects, live_table};
pub(crate) use theme::Theme;

use crate::{
    api::{self, session::Session, socket::Hub},
    dom,
};

/// Whether someone is logged in.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Access {
    /// The server has not said yet.
    Checking,
    /// Logged in.
    In(Session),
    /// Not logged in.
    Out,
    /// The server does not answer.
    Unreachable,
}

/// A short message at the edge of the page.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Toast {
    /// Unique on the page.
    pub id: u64,
    /// One sentence.
    pub text: String,
    /// Whether something failed.
    pub bad: bool,
}

/// Shared state of the page; every component gets it with [`console`].
#[derive(Clone, Copy)]
pub(crate) struct Console {
    /// Who is logged in.
    pub access: RwSignal<Access>,
    /// Namespace looked at; empty for all.
    pub namespace: RwSignal<String>,
    /// The time, moved on every second.
    pub now: RwSignal<Timestamp>,
    /// Colours.
    pub theme: RwSignal<Theme>,
    /// Messages shown.
    pub toasts: RwSignal<Vec<Toast>>,
    /// Whether the command palette is open.
    pub palette: RwSignal<bool>,
    /// Whether the list of keys is open.
    pub keys: RwSignal<bool>,
    /// A file dropped anywhere, for the Deploy page to take.
    pub dropped: RwSignal<Option<web_sys::File>, LocalStorage>,
    hub: StoredValue<Hub, LocalStorage>,
}

/// The shared state.
#[allow(clippy::expect_used, reason = "provided by App before anything else is drawn")]
pub(crate) fn console() -> Console {
    use_context::<Console>().expect("App provides the console")
}

impl Console {
    /// Makes the state and starts the clock and the watch connection.
    pub(crate) fn provide() -> Self {
        let namespace = dom::query("ns").or_else(|| dom::stored("namespace")).unwrap_or_default();
        let access = RwSignal::new(Access::Checking);
        let admitted = Signal::derive(move || access.with(|access| matches!(access, Access::In(_))));
        let console = Self {
            access,
            namespace: RwSignal::new(namespace),
            now: RwSignal::new(dom::now()),
            theme: RwSignal::new(Theme::stored()),
            toasts: RwSignal::new(Vec::new()),
            palette: RwSignal::new(false),
            keys: RwSignal::new(false),
            dropped: RwSignal::new_local(None),
            hub: StoredValue::new_local(Hub::start(admitted)),
        };
        provide_context(console);
        dom::spawn_scoped(async move {
            loop {
                dom::sleep(1000).await;
                console.now.set(dom::now());
            }
        });
        Effect::new(move |_| console.theme.get().apply());
        Effect::new(move |_| dom::store("namespace", &console.namespace.get()));
        console
    }

    /// Asks the server who is logged in.
    pub(crate) async fn check_session(&self) {
        match api::session::current().await {
            Ok(session) => self.access.set(Access::In(session)),
            Err(e) if e.is_unauthorized() || e.code == 403 => self.access.set(Access::Out),
            Err(_) => self.access.set(Access::Unreachable),
        }
    }

    /// The watch connection.
    pub(crate) fn hub(&self) -> Hub {
        self.hub.get_value()
    }

    /// The session, empty before it is known.
    pub(crate) fn session(&self) -> Session {
        match self.access.get() {
            Access::In(session) => session,
            _ => Session::default(),
        }
    }

    /// The namespace new things go to.
    pub(crate) fn target_namespace(&self) -> String {
        match self.namespace.get() {
            namespace if namespace.is_empty() => "default".to_owned(),
            namespace => namespace,
        }
    }

    /// Shows a message for some seconds.
    pub(crate) fn toast(&self, text: impl Into<String>, bad: bool) {
        let id = dom::ticks().to_bits();
        self.toasts.update(|list| {
            list.push(Toast { id, text: text.into(), bad });
            let excess = list.len().saturating_sub(4);
            list.drain(..excess);
        });
        let toasts = self.toasts;
        leptos::task::spawn_local(async move {
            dom::sleep(if bad { 9000 } else { 4500 }).await;
            // The page may be gone by then.
            toasts.try_update(|list| list.retain(|t| t.id != id));
        });
    }

    /// Shows why something failed, or sends to the login when the session has ended.
    pub(crate) fn report(&self, what: &str, error: &api::Error) {
        if error.is_unauthorized() {
            self.access.set(Access::Out);
        } else {
            self.toast(format!("{what}: {}", error.message), true);
        }
    }
}
