//! No such address.

use leptos::prelude::*;
use leptos_router::components::A;

use crate::components::basics::{Empty, PageHeader};

/// Says so, with a way out.
#[component]
pub(crate) fn MissingPage() -> impl IntoView {
    view! {
        <PageHeader title="Not found" />
        <Empty title="There is no page here" text="The address may be misspelt, or from another version of the console.">
            <A href="/" attr:class="button primary">"Go to the overview"</A>
        </Empty>
    }
}
