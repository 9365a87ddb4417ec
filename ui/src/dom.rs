//! Small things the browser does for us. Everything here tolerates a missing window or element: the
//! console degrades, it does not stop.

use jiff::Timestamp;
use leptos::prelude::*;
use wasm_bindgen::JsCast;
use web_sys::{HtmlElement, Storage, Window};

/// The window, when there is one.
pub(crate) fn window() -> Option<Window> {
    web_sys::window()
}

/// Takes away the static screen shown while the program loads.
pub(crate) fn remove_boot_screen() {
    if let Some(boot) = element("boot") {
        boot.remove();
    }
}

/// The element with this id.
pub(crate) fn element(id: &str) -> Option<HtmlElement> {
    window()?.document()?.get_element_by_id(id)?.dyn_into().ok()
}

/// Moves the keyboard focus.
pub(crate) fn focus(id: &str) {
    if let Some(element) = element(id) {
        // Fails only for elements that cannot be focused.
        let _ = element.focus();
    }
}

fn storage() -> Option<Storage> {
    window()?.local_storage().ok()?
}

/// A setting kept in this browser.
pub(crate) fn stored(key: &str) -> Option<String> {
    storage()?.get_item(&format!("ketch.{key}")).ok()?
}

/// Keeps a setting; private windows may refuse, then it holds for this page only.
pub(crate) fn store(key: &str, value: &str) {
    if let Some(storage) = storage() {
        let _ = storage.set_item(&format!("ketch.{key}"), value);
    }
}

/// A parameter of the current address.
pub(crate) fn query(name: &str) -> Option<String> {
    let search = window()?.location().search().ok()?;
    web_sys::UrlSearchParams::new_with_str(&search).ok()?.get(name)
}

/// Writes a parameter into the current address without navigating; an empty value removes it.
pub(crate) fn set_query(name: &str, value: &str) {
    let Some(window) = window() else { return };
    let location = window.location();
    let (Ok(path), Ok(search)) = (location.pathname(), location.search()) else { return };
    let Ok(params) = web_sys::UrlSearchParams::new_with_str(&search) else { return };
    if value.is_empty() {
        params.delete(name);
    } else {
        params.set(name, value);
    }
    let query = String::from(params.to_string());
    let url = if query.is_empty() { path } else { format!("{path}?{query}") };
    replace_url(&url);
}

/// Replaces the address shown, without a new history entry.
pub(crate) fn replace_url(url: &str) {
    if let Some(history) = window().and_then(|w| w.history().ok()) {
        let state = history.state().unwrap_or_default();
        let _ = history.replace_state_with_url(&state, "", Some(url));
    }
}

/// `http://host:port` of this page, and the same as WebSocket address.
pub(crate) fn origins() -> (String, String) {
    let origin = window().and_then(|w| w.location().origin().ok()).unwrap_or_default();
    let socket = origin.replacen("http", "ws", 1);
    (origin, socket)
}

/// Text to the clipboard; `false` when the browser refuses (an insecure origin).
pub(crate) async fn copy(text: &str) -> bool {
    let Some(window) = window() else { return false };
    let promise = window.navigator().clipboard().write_text(text);
    wasm_bindgen_futures::JsFuture::from(promise).await.is_ok()
}

/// Offers text as a file to save.
pub(crate) fn download(name: &str, text: &str) {
    let save = || -> Option<()> {
        let parts = js_sys::Array::of1(&text.into());
        let blob = web_sys::Blob::new_with_str_sequence(&parts).ok()?;
        let url = web_sys::Url::create_object_url_with_blob(&blob).ok()?;
        let link =
            window()?.document()?.create_element("a").ok()?.dyn_into::<web_sys::HtmlAnchorElement>().ok()?;
        link.set_href(&url);
        link.set_download(name);
        link.click();
        web_sys::Url::revoke_object_url(&url).ok()
    };
    let _ = save();
}

/// SHA-256 of `bytes` as `sha256:…`; `None` where the browser has no WebCrypto (an insecure origin).
pub(crate) async fn sha256(bytes: &js_sys::Uint8Array) -> Option<String> {
    let subtle = window()?.crypto().ok()?.subtle();
    let promise = subtle.digest_with_str_and_buffer_source("SHA-256", bytes.as_ref()).ok()?;
    let hash = wasm_bindgen_futures::JsFuture::from(promise).await.ok()?;
    Some(ketch_ui_core::upload::digest(&js_sys::Uint8Array::new(&hash).to_vec()))
}

/// Milliseconds on a clock that only goes forward.
pub(crate) fn ticks() -> f64 {
    window().and_then(|w| w.performance()).map_or_else(js_sys::Date::now, |p| p.now())
}

/// The time of day.
pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}

/// Whether a key press belongs to a text field and is not ours to take.
pub(crate) fn is_typing(event: &web_sys::KeyboardEvent) -> bool {
    let target = event.target().and_then(|t| t.dyn_into::<HtmlElement>().ok());
    target.is_some_and(|e| {
        matches!(e.tag_name().as_str(), "INPUT" | "TEXTAREA" | "SELECT") || e.is_content_editable()
    })
}

/// Waits.
pub(crate) async fn sleep(ms: u32) {
    gloo_timers::future::TimeoutFuture::new(ms).await;
}

/// Runs `work` until it ends or the owner (component) that calls this goes away.
pub(crate) fn spawn_scoped(work: impl Future<Output = ()> + 'static) {
    let (work, handle) = futures::future::abortable(work);
    on_cleanup(move || handle.abort());
    leptos::task::spawn_local(async move {
        // Aborted means that nobody wants the result any more.
        let _ = work.await;
    });
}
