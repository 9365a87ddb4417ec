//! Logs of one or more pods, merged by time, followed.

use std::sync::Arc;

use futures::{FutureExt, StreamExt, pin_mut, stream::FuturesUnordered};
use gloo_net::http::Method;
use jiff::Timestamp;
use ketch_ui_core::{
    format,
    logs::{Buffer, Line, Splitter, matches},
    object::{items, name, text},
    resource::PODS,
    rows::{Object, window},
};
use leptos::{html, prelude::*};
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::JsFuture;

use super::{
    basics::Empty,
    icon::{DOWNLOAD, Icon, PAUSE, PLAY, SEARCH},
};
use crate::{api, dom};

/// Lines kept.
const CAPACITY: usize = 20_000;
/// Lines drawn when long ones are wrapped, for their heights are not known.
const WRAPPED: usize = 1_500;
/// Milliseconds between redraws while lines pour in.
const DRAW_EVERY: u32 = 80;
/// Height of a line that is not wrapped; the style sheet says the same.
const LINE: f64 = 20.0;

/// A container to read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    /// Namespace.
    pub namespace: String,
    /// Pod.
    pub pod: String,
    /// Container.
    pub container: String,
}

/// The containers of a pod.
pub(crate) fn sources_of(pod: &Object) -> Vec<Source> {
    let of = |c| Source {
        namespace: text(&pod.value, "/metadata/namespace").to_owned(),
        pod: name(&pod.value).to_owned(),
        container: text(c, "/name").to_owned(),
    };
    items(&pod.value, "/spec/initContainers")
        .iter()
        .chain(items(&pod.value, "/spec/containers"))
        .map(of)
        .collect()
}

#[derive(Clone, Copy)]
struct View {
    buffer: StoredValue<Buffer>,
    names: RwSignal<Vec<Source>>,
    tick: RwSignal<u64>,
    /// Whether a redraw is under way.
    due: StoredValue<bool>,
    error: RwSignal<Option<String>>,
    previous: RwSignal<bool>,
}

/// A viewer for the logs of `sources`.
#[component]
pub(crate) fn LogViewer(
    /// The containers; those that come later are added.
    #[prop(into)]
    sources: Signal<Vec<Source>>,
) -> impl IntoView {
    let view = View {
        buffer: StoredValue::new(Buffer::new(CAPACITY)),
        names: RwSignal::new(Vec::new()),
        tick: RwSignal::new(0),
        due: StoredValue::new(false),
        error: RwSignal::new(None),
        previous: RwSignal::new(false),
    };
    let (search, wrap, paused) = (RwSignal::new(String::new()), RwSignal::new(false), RwSignal::new(false));
    // A pod that goes keeps its lines; one that comes is read from then on.
    let (sender, arrivals) = futures::channel::mpsc::unbounded::<(usize, Source)>();
    Effect::new(move |_| {
        for source in sources.get() {
            if view.names.with_untracked(|n| !n.contains(&source)) {
                let index = view.names.with_untracked(Vec::len);
                view.names.update(|n| n.push(source.clone()));
                // The reader lives as long as this component.
                let _ = sender.unbounded_send((index, source));
            }
        }
    });
    dom::spawn_scoped(read_all(view, arrivals));
    Effect::new(move |previous: Option<bool>| {
        let now = view.previous.get();
        if previous.is_some_and(|p| p != now) {
            view.buffer.update_value(Buffer::clear);
            view.tick.update(|t| *t += 1);
        }
        now
    });
    view! {
        <div class="logs">
            <Tools view=view search=search wrap=wrap paused=paused />
            <Lines view=view search=search wrap=wrap paused=paused />
        </div>
    }
}

#[component]
fn Tools(
    view: View,
    search: RwSignal<String>,
    wrap: RwSignal<bool>,
    paused: RwSignal<bool>,
) -> impl IntoView {
    let save = move |_| {
        let text: String = view.buffer.with_value(|b| {
            let line =
                |l: &Arc<Line>| format!("{} {}\n", l.time.map(|t| t.to_string()).unwrap_or_default(), l.text);
            b.iter().map(line).collect()
        });
        dom::download("logs.txt", &text);
    };
    let toggle = |label: &'static str, signal: RwSignal<bool>| {
        view! {
            <button type="button" class="button small" aria-pressed=move || signal.get().to_string() on:click=move |_| signal.update(|s| *s = !*s)>
                {label}
            </button>
        }
    };
    view! {
        <div class="log-tools">
            <label class="filter">
                <Icon d=SEARCH />
                <span class="sr-only">"Search the logs"</span>
                <input id="filter" type="search" placeholder="Search, level:error" autocomplete="off" spellcheck="false"
                    on:input=move |e| search.set(event_target_value(&e).to_lowercase()) />
            </label>
            <button type="button" class="button small" on:click=move |_| paused.update(|p| *p = !*p)>
                {move || if paused.get() { view! { <Icon d=PLAY /> } } else { view! { <Icon d=PAUSE /> } }}
                {move || if paused.get() { "Follow" } else { "Pause" }}
            </button>
            {toggle("Wrap", wrap)}
            {toggle("Previous run", view.previous)}
            <button type="button" class="button small" on:click=save><Icon d=DOWNLOAD />"Download"</button>
        </div>
    }
}

#[component]
fn Lines(
    view: View,
    search: RwSignal<String>,
    wrap: RwSignal<bool>,
    paused: RwSignal<bool>,
) -> impl IntoView {
    let node = NodeRef::<html::Div>::new();
    let scroll = RwSignal::new((0.0, 500.0));
    let shown = RwSignal::new(Vec::<Arc<Line>>::new());
    Effect::new(move |_| {
        view.tick.track();
        let words = search.get();
        if !paused.get() {
            let pick = |b: &Buffer| b.iter().filter(|l| matches(l, &words)).cloned().collect();
            shown.set(view.buffer.with_value(pick));
        }
    });
    Effect::new(move |_| {
        shown.track();
        wrap.track();
        if let Some(element) = node.get().filter(|_| !paused.get_untracked()) {
            request_animation_frame(move || element.set_scroll_top(element.scroll_height()));
        }
    });
    let on_scroll = move |_| {
        if let Some(element) = node.get_untracked() {
            scroll.set((f64::from(element.scroll_top()), f64::from(element.client_height())));
            let from_end = element.scroll_height() - element.scroll_top() - element.client_height();
            // Looking back holds the view; returning to the end follows again.
            if from_end > 60 && shown.with_untracked(Vec::len) > 20 {
                paused.set(true);
            } else if from_end < 4 {
                paused.set(false);
            }
        }
    };
    let range = Memo::new(move |_| {
        let total = shown.with(Vec::len);
        if wrap.get() {
            return ketch_ui_core::rows::Window { start: total.saturating_sub(WRAPPED), end: total };
        }
        let (top, height) = scroll.get();
        window(total, top, height, LINE, 400)
    });
    let visible = move || {
        let range = range.get();
        shown.with(|s| s.get(range.start..range.end).map(<[_]>::to_vec).unwrap_or_default())
    };
    let many = Memo::new(move |_| view.names.with(|n| n.len() > 1));
    let space = move |rows: usize| {
        if wrap.get() { String::new() } else { format!("height:{}px", rows as f64 * LINE) }
    };
    let empty = move || match (view.error.get(), search.with(String::is_empty)) {
        (_, false) => ("No line matches", "Change the search, or clear it.".to_owned()),
        (Some(error), _) => ("No logs yet", error),
        (None, _) => {
            ("No logs yet", "Lines appear here as soon as the program writes to its output.".to_owned())
        }
    };
    view! {
        <div class="log-lines" class:wrap=wrap node_ref=node on:scroll=on_scroll tabindex="0" role="log" aria-label="Log lines" aria-live="off">
            <div style=move || space(range.get().start)></div>
            <For each=visible key=|l| l.id children=move |l| row(l, view, many) />
            <div style=move || space(shown.with(Vec::len).saturating_sub(range.get().end))></div>
            <Show when=move || shown.with(Vec::is_empty)>
                {move || { let (title, text) = empty(); view! { <Empty title=title text=text /> } }}
            </Show>
        </div>
    }
}

fn row(line: Arc<Line>, view: View, many: Memo<bool>) -> impl IntoView {
    let source = line.source;
    let time =
        line.time.map(|t| t.to_string().get(11..23).unwrap_or_default().trim_end_matches('Z').to_owned());
    let pod =
        move || view.names.with(|n| n.get(source).map(|s| format::middle(&s.pod, 18)).unwrap_or_default());
    let text = match line.fields() {
        None => view! { {line.text.clone()} }.into_any(),
        Some(fields) => fields.into_iter().map(field).collect_view().into_any(),
    };
    view! {
        <div class=format!("log-line {}", line.level.token())>
            <span class="log-time">{time}</span>
            <Show when=move || many.get()><span class=format!("log-pod hue-{}", source % 6)>{pod}</span></Show>
            <span class="log-text">{text}</span>
        </div>
    }
}

fn field((key, value): (String, String)) -> AnyView {
    match key.as_str() {
        "msg" | "message" => view! { <span>{value}</span> }.into_any(),
        _ => view! { <span class="log-field"><i>{key}"="</i>{value}</span> }.into_any(),
    }
}

type Arrivals = futures::channel::mpsc::UnboundedReceiver<(usize, Source)>;

/// Reads every source that arrives, side by side.
async fn read_all(view: View, mut arrivals: Arrivals) {
    let mut readers = FuturesUnordered::new();
    loop {
        futures::select! {
            arrival = arrivals.next() => match arrival {
                Some((index, source)) => readers.push(follow(view, index, source)),
                None => return,
            },
            // An empty set is done at once; select then waits for the other branch.
            _ = readers.select_next_some() => {}
        }
    }
}

async fn follow(view: View, index: usize, source: Source) {
    let mut last: Option<Timestamp> = None;
    let mut previous = view.previous.get_untracked();
    loop {
        if let Err(error) = read(view, index, &source, previous, &mut last).await {
            view.error.set(Some(error.message.clone()));
            if error.is_not_found() || error.code == 403 {
                return;
            }
        }
        // A log of a former run has an end; that of a running one goes on after a pause.
        let mut waited = 0;
        while waited < 2000 || (previous && view.previous.get_untracked()) {
            dom::sleep(250).await;
            waited += 250;
            if view.previous.get_untracked() != previous {
                (previous, last) = (!previous, None);
                break;
            }
        }
    }
}

async fn read(
    view: View,
    index: usize,
    source: &Source,
    previous: bool,
    last: &mut Option<Timestamp>,
) -> api::Result<()> {
    let path = log_path(source, previous, *last);
    let response = api::send(api::request(Method::GET, &path), None).await?;
    view.error.set(None);
    let Some(body) = response.body() else { return Ok(()) };
    let Ok(reader) = body.get_reader().dyn_into::<web_sys::ReadableStreamDefaultReader>() else {
        return Ok(());
    };
    let guard = CancelOnDrop(reader.clone());
    let mut splitter = Splitter::default();
    let since = *last;
    loop {
        let chunk = JsFuture::from(reader.read()).fuse();
        let switch = changed(view.previous, previous).fuse();
        pin_mut!(chunk, switch);
        let chunk = futures::select! {
            chunk = chunk => chunk,
            () = switch => return Ok(()),
        };
        let Ok(chunk) = chunk else { return Ok(()) };
        let get = |key: &str| js_sys::Reflect::get(&chunk, &JsValue::from_str(key)).unwrap_or_default();
        if get("done").is_truthy() {
            break;
        }
        let bytes = js_sys::Uint8Array::new(&get("value")).to_vec();
        push(view, index, splitter.push(&bytes), since, last);
    }
    push(view, index, splitter.finish().into_iter().collect(), since, last);
    drop(guard);
    Ok(())
}

/// Waits until the switch between runs is turned.
async fn changed(signal: RwSignal<bool>, from: bool) {
    while signal.get_untracked() == from {
        dom::sleep(250).await;
    }
}

/// Ends the request when its reader is given up.
struct CancelOnDrop(web_sys::ReadableStreamDefaultReader);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        // Cancelling a stream that has ended does nothing.
        drop(self.0.cancel());
    }
}

fn log_path(source: &Source, previous: bool, last: Option<Timestamp>) -> String {
    let pod = PODS.object(&source.namespace, &source.pod);
    let mut path = format!("{pod}/log?container={}&timestamps=true", source.container);
    match (previous, last) {
        (true, _) => path.push_str("&previous=true&tailLines=5000"),
        (false, None) => path.push_str("&follow=true&tailLines=1000"),
        (false, Some(time)) => {
            path.push_str(&format!("&follow=true&sinceTime={}", api::encode(&time.to_string())))
        }
    }
    path
}

fn push(
    view: View,
    index: usize,
    lines: Vec<String>,
    since: Option<Timestamp>,
    last: &mut Option<Timestamp>,
) {
    if lines.is_empty() {
        return;
    }
    view.buffer.update_value(|buffer| {
        for raw in lines {
            let line = Line::parse(index, &raw);
            // A resumed log begins with what was read already.
            if since.is_some() && line.time.is_some() && line.time <= since {
                continue;
            }
            *last = line.time.or(*last);
            buffer.push(line);
        }
    });
    if !view.due.get_value() {
        view.due.set_value(true);
        leptos::task::spawn_local(async move {
            dom::sleep(DRAW_EVERY).await;
            // The viewer may be gone by then.
            view.due.try_set_value(false);
            view.tick.try_update(|t| *t += 1);
        });
    }
}
