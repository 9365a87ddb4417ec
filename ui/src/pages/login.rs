//! Exchanging the printed token for a session.

use leptos::prelude::*;
use leptos_router::{NavigateOptions, hooks::use_navigate};

use crate::{
    api::session,
    components::{copy::Snippet, icon::Mark},
    dom,
    state::{Access, console},
};

/// `/login`: takes the token of a link at once, else asks for one.
#[component]
pub(crate) fn LoginPage() -> impl IntoView {
    let console = console();
    let navigate = use_navigate();
    let token = RwSignal::new(String::new());
    let busy = RwSignal::new(false);
    let fault = RwSignal::new(None::<String>);
    let submit = Callback::new(move |token: String| {
        let navigate = navigate.clone();
        busy.set(true);
        fault.set(None);
        leptos::task::spawn_local(async move {
            let outcome = session::login(token.trim()).await;
            if let Err(error) = &outcome {
                fault.set(Some(explain(error)));
                busy.set(false);
                return;
            }
            console.check_session().await;
            busy.set(false);
            if console.access.with_untracked(|a| matches!(a, Access::In(_))) {
                navigate("/", NavigateOptions { replace: true, ..NavigateOptions::default() });
            } else {
                fault.set(Some("The login worked, but the browser did not keep the session cookie. Allow cookies for this address.".into()));
            }
        });
    });
    if let Some(given) = dom::query("token").filter(|t| !t.is_empty()) {
        // A token in the history or in a shared screen is a token given away.
        dom::set_query("token", "");
        submit.run(given);
    }
    let on_submit = move |event: web_sys::SubmitEvent| {
        event.prevent_default();
        if token.with_untracked(|t| !t.trim().is_empty()) {
            submit.run(token.get_untracked());
        } else {
            fault.set(Some("Paste a token first.".into()));
        }
    };
    view! {
        <main class="login">
            <form class="card stack" on:submit=on_submit>
                <div class="brand-link"><Mark /><span>"Ketch"</span></div>
                <h1>{move || if busy.get() { "Logging in…" } else { "Log in" }}</h1>
                <p class="muted">"Paste a console token, or open the link that " <code>"ketch up"</code> " printed."</p>
                <label class="field">
                    <span>"Token"</span>
                    <input id="token" type="password" autocomplete="off" spellcheck="false" autofocus
                        aria-invalid=move || fault.with(Option::is_some).to_string() aria-describedby="login-fault"
                        prop:value=token on:input=move |e| token.set(event_target_value(&e)) />
                </label>
                <p id="login-fault" class="field-fault" role="alert">{fault}</p>
                <button type="submit" class="button primary wide" disabled=busy>"Log in"</button>
                <div class="stack tight">
                    <p class="muted">"This prints a new link, on the server:"</p>
                    <Snippet text="ketch token console" />
                </div>
            </form>
        </main>
    }
}

fn explain(error: &crate::api::Error) -> String {
    match error.code {
        401 | 403 => {
            "This token is not valid any more: it was used, or it is too old. Print a new one.".to_owned()
        }
        429 => "Too many attempts. Wait a moment, then try again.".to_owned(),
        _ => error.message.clone(),
    }
}
