//! The list of a kind.

use ketch_ui_core::resource::{self, Resource};
use leptos::prelude::*;
use leptos_router::components::A;

use crate::{
    components::{basics::PageHeader, table::DataTable},
    state::{console, live_table},
};

/// A live table of one kind in the chosen namespace.
#[component]
pub(crate) fn ListPage(
    /// The kind.
    resource: Resource,
) -> impl IntoView {
    let console = console();
    let sort = if resource == resource::EVENTS { "Last Seen" } else { "Name" };
    let table = move || {
        let namespace = if resource.namespaced { console.namespace.get() } else { String::new() };
        let live = live_table(format!("{}?includeObject=Metadata", resource.collection(Some(&namespace))));
        view! { <DataTable live=live resource=resource sort=sort /> }
    };
    let can_deploy = matches!(resource.kind, "Deployment" | "Pod");
    view! {
        <PageHeader title=resource.title lead=resource.purpose>
            {can_deploy.then(|| view! { <A href="/deploy" attr:class="button primary">"Deploy"</A> })}
        </PageHeader>
        {table}
    }
}
