//! Lists as the server's `Table` lays them out: filtered, sorted, drawn only where visible.

use std::{cmp::Ordering, sync::Arc};

use ketch_ui_core::{
    filter::Filter,
    object::{created, name, namespace},
    resource::Resource,
    rows::{Keyed, window},
    table::{Column, Filtered, TableRow, compare},
};
use leptos::{html, prelude::*};
use leptos_router::components::A;

use super::{
    basics::{Empty, Failure, Skeleton},
    icon::{Icon, SEARCH},
    status::{Age, StatusWord},
};
use crate::{
    dom,
    state::{Live, console},
};

/// Height of a row; the style sheet says the same.
const ROW: f64 = 37.0;
/// Lists up to this long are drawn whole.
const WHOLE: usize = 200;

/// The filter of the page, kept in its address.
pub(crate) fn page_filter() -> RwSignal<String> {
    let filter = RwSignal::new(dom::query("q").unwrap_or_default());
    Effect::new(move |_| dom::set_query("q", &filter.get()));
    filter
}

/// A field to filter with; `/` moves there.
#[component]
pub(crate) fn FilterBar(
    /// The text.
    filter: RwSignal<String>,
    /// For instance "12 of 40 pods".
    #[prop(into)]
    count: Signal<String>,
) -> impl IntoView {
    let keys = move |event: web_sys::KeyboardEvent| {
        if event.key() == "Escape" {
            filter.set(String::new());
            dom::focus("content");
        }
    };
    view! {
        <div class="filter-bar" role="search">
            <label class="filter">
                <Icon d=SEARCH />
                <span class="sr-only">"Filter"</span>
                <input id="filter" type="search" autocomplete="off" spellcheck="false"
                    placeholder="Filter: name, status:failed, label:app=web, age<1h"
                    prop:value=filter on:input=move |e| filter.set(event_target_value(&e)) on:keydown=keys />
                <kbd>"/"</kbd>
            </label>
            <span class="muted num" role="status">{count}</span>
        </div>
    }
}

/// Rows in order; equal when they are the very same rows.
#[derive(Clone, Default)]
struct Sorted(Vec<Arc<TableRow>>);

impl PartialEq for Sorted {
    fn eq(&self, other: &Self) -> bool {
        self.0.len() == other.0.len() && self.0.iter().zip(&other.0).all(|(a, b)| Arc::ptr_eq(a, b))
    }
}

/// The column that says how a row does.
fn status_column(columns: &[Column]) -> Option<usize> {
    columns.iter().position(|c| matches!(c.name.as_str(), "Status" | "Phase" | "Type"))
}

/// A live list with its filter.
#[component]
pub(crate) fn DataTable(
    /// The rows.
    live: Live<TableRow>,
    /// What they are.
    resource: Resource,
    /// Column sorted by at first, by name.
    #[prop(default = "Name")]
    sort: &'static str,
) -> impl IntoView {
    let filter = page_filter();
    let order =
        RwSignal::new((dom::query("sort").unwrap_or_else(|| sort.to_owned()), dom::query("desc").is_some()));
    let sorted = Memo::new(move |_| {
        let filter = Filter::parse(&filter.get());
        let now = dom::now();
        let (by, descending) = order.get();
        live.columns.with(|columns| {
            let status = status_column(columns);
            let index = columns.iter().position(|c| c.name == by);
            let compare = |a: &TableRow, b: &TableRow| {
                let order = index
                    .and_then(|i| columns.get(i).map(|c| compare(a, b, c, i)))
                    .unwrap_or(Ordering::Equal);
                let order = if descending { order.reverse() } else { order };
                order.then_with(|| namespace(&a.object).cmp(namespace(&b.object)))
            };
            Sorted(live.rows.with(|rows| rows.sorted(|r| filter.matches(&Filtered(r, status), now), compare)))
        })
    });
    let total = move || live.rows.with(|r| r.len());
    let count = move || match (sorted.with(|s| s.0.len()), total()) {
        (_, 0) => String::new(),
        (shown, total) if shown == total => format!("{total}"),
        (shown, total) => format!("{shown} of {total}"),
    };
    let body = move || {
        if let Some(error) = live.error.get().filter(|_| live.rows.with(|r| !r.is_loaded())) {
            return view! { <Failure error=error /> }.into_any();
        }
        if live.rows.with(|r| !r.is_loaded()) {
            return view! { <Skeleton lines=8 /> }.into_any();
        }
        if total() == 0 {
            return view! { <Empty title=format!("No {}", resource.title.to_lowercase()) text=resource.purpose /> }.into_any();
        }
        view! { <Grid live=live resource=resource sorted=sorted order=order /> }.into_any()
    };
    // Only a change of these three draws another body; rows change inside the grid.
    let mode = Memo::new(move |_| {
        (live.rows.with(|r| r.is_loaded()), total() == 0, live.error.with(Option::is_some))
    });
    view! {
        <FilterBar filter=filter count=Signal::derive(count) />
        {move || mode.with(|_| untrack(body))}
    }
}

#[component]
fn Grid(
    live: Live<TableRow>,
    resource: Resource,
    sorted: Memo<Sorted>,
    order: RwSignal<(String, bool)>,
) -> impl IntoView {
    let console = console();
    let node = NodeRef::<html::Div>::new();
    let scroll = RwSignal::new((0.0, 800.0));
    let measure = move |_| {
        if let Some(element) = node.get_untracked() {
            scroll.set((f64::from(element.scroll_top()), f64::from(element.client_height())));
        }
    };
    let window = Memo::new(move |_| {
        let (top, height) = scroll.get();
        window(sorted.with(|s| s.0.len()), top, height, ROW, WHOLE)
    });
    let with_namespace = Memo::new(move |_| resource.namespaced && console.namespace.with(String::is_empty));
    let visible = move || {
        let window = window.get();
        sorted.with(|s| s.0.get(window.start..window.end).map(<[_]>::to_vec).unwrap_or_default())
    };
    let row = move |row: Arc<TableRow>| {
        let key = row.key().to_owned();
        let current = Memo::new(move |_| live.rows.with(|rows| rows.get(&key).map(|r| Same(r.clone()))));
        view! {
            <tr>{move || {
                let row = current.get().map_or_else(|| row.clone(), |same| same.0);
                live.columns.with(|columns| cells(&row, columns, resource, with_namespace.get()))
            }}</tr>
        }
    };
    let space = move |rows: usize| format!("height:{}px", rows as f64 * ROW);
    let headers = move || live.columns.with(|columns| header(columns, order, with_namespace.get()));
    view! {
        <div class="table-scroll" node_ref=node on:scroll=measure>
            <table class="table" aria-rowcount=move || sorted.with(|s| s.0.len().to_string())>
                <caption class="sr-only">{resource.title}</caption>
                <thead><tr>{headers}</tr></thead>
                <tbody>
                    <tr class="spacer" aria-hidden="true" style=move || space(window.get().start)></tr>
                    <For each=visible key=|r| r.key().to_owned() children=row />
                    <tr class="spacer" aria-hidden="true" style=move || space(sorted.with(|s| s.0.len()).saturating_sub(window.get().end))></tr>
                </tbody>
            </table>
        </div>
        <Show when=move || sorted.with(|s| s.0.is_empty())>
            <p class="muted pad">"Nothing matches the filter. Press Escape in it to see everything."</p>
        </Show>
    }
}

/// A row that is equal only to itself.
#[derive(Clone)]
struct Same(Arc<TableRow>);

impl PartialEq for Same {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

fn class_of(column: &Column) -> &'static str {
    match (column.numeric, column.priority > 0) {
        (true, true) => "num wide-only",
        (true, false) => "num",
        (false, true) => "wide-only",
        (false, false) => "",
    }
}

fn header(columns: &[Column], order: RwSignal<(String, bool)>, with_namespace: bool) -> Vec<AnyView> {
    let mut cells = Vec::new();
    for column in columns {
        let sort_name = column.name.clone();
        let sort = move |_| {
            order.update(|(by, descending)| {
                *descending = *by == sort_name && !*descending;
                sort_name.clone_into(by);
            });
            let (by, descending) = order.get_untracked();
            dom::set_query("sort", &by);
            dom::set_query("desc", if descending { "1" } else { "" });
        };
        let mine = column.name.clone();
        let direction = move || {
            order.with(|(by, descending)| match (*by == mine, descending) {
                (false, _) => "none",
                (true, false) => "ascending",
                (true, true) => "descending",
            })
        };
        cells.push(
            view! {
                <th scope="col" class=class_of(column) aria-sort=direction>
                    <button type="button" on:click=sort>{column.name.clone()}</button>
                </th>
            }
            .into_any(),
        );
        if with_namespace && cells.len() == 1 {
            cells.push(view! { <th scope="col"><span>"Namespace"</span></th> }.into_any());
        }
    }
    cells
}

fn cells(row: &TableRow, columns: &[Column], resource: Resource, with_namespace: bool) -> Vec<AnyView> {
    let mut cells = Vec::new();
    for (index, column) in columns.iter().enumerate() {
        cells.push(cell(row, column, index, resource));
        if with_namespace && index == 0 {
            cells.push(view! { <td class="muted">{namespace(&row.object).to_owned()}</td> }.into_any());
        }
    }
    cells
}

fn cell(row: &TableRow, column: &Column, index: usize, resource: Resource) -> AnyView {
    let text = row.cell(index).to_owned();
    let class = class_of(column);
    match column.name.as_str() {
        "Name" => {
            let href = resource.href(namespace(&row.object), name(&row.object));
            view! { <td class="name"><A href=href>{text}</A></td> }.into_any()
        }
        "Status" | "Phase" => view! { <td><StatusWord word=text /></td> }.into_any(),
        "Type" if resource.kind == "Event" => view! { <td><StatusWord word=text /></td> }.into_any(),
        "Age" => view! { <td class="num"><Age since=created(&row.object) /></td> }.into_any(),
        "Ready" if is_short(&text) => view! { <td class="num short">{text}</td> }.into_any(),
        "Ready" => view! { <td class="num">{text}</td> }.into_any(),
        _ => view! { <td class=class title=text.clone()>{text.clone()}</td> }.into_any(),
    }
}

/// `1/2`: fewer than there should be.
fn is_short(ready: &str) -> bool {
    ready.split_once('/').is_some_and(|(have, want)| have != want)
}
