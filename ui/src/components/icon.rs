//! Line icons on a 20 by 20 grid, drawn for this console.

use leptos::prelude::*;

/// Overview.
pub(crate) const GAUGE: &str = "M3.500 13a6.500 6.500 0 1 1 13 0M10 13l3-4M3 16.500h14";
/// Deploy.
pub(crate) const UPLOAD: &str =
    "M10 13V3.500M6.500 7 10 3.500 13.500 7M3.500 12.500v3a1 1 0 0 0 1 1h11a1 1 0 0 0 1-1v-3";
/// Apps.
pub(crate) const GRID: &str =
    "M3.500 3.500h5v5h-5zM11.500 3.500h5v5h-5zM3.500 11.500h5v5h-5zM11.500 11.500h5v5h-5z";
/// Deployments.
pub(crate) const LAYERS: &str = "m10 3 7 3.500-7 3.500-7-3.500zM3 10l7 3.500 7-3.500M3 13.500 10 17l7-3.500";
/// Pods.
pub(crate) const CUBE: &str =
    "m10 2.500 6.500 3.700v7.600L10 17.500l-6.500-3.700V6.200zM3.500 6.200 10 10l6.500-3.800M10 10v7.500";
/// Services.
pub(crate) const NETWORK: &str = "M8 3h4v4H8zM3 13h4v4H3zM13 13h4v4h-4zM10 7v3M5 13v-3h10v3";
/// ConfigMaps.
pub(crate) const SLIDERS: &str = "M3 6h7M14 6h3M12 4v4M3 14h3M10 14h7M8 12v4";
/// Nodes.
pub(crate) const SERVER: &str = "M3.500 4h13v5h-13zM3.500 11h13v5h-13zM6.500 6.500h.01M6.500 13.500h.01";
/// Events.
pub(crate) const PULSE: &str = "M2.500 10h3.500l2.500-6 3.500 12 2.500-6h3";
/// Menu.
pub(crate) const MENU: &str = "M3 6h14M3 10h14M3 14h14";
/// Close.
pub(crate) const CLOSE: &str = "m5 5 10 10M15 5 5 15";
/// Copy.
pub(crate) const COPY: &str = "M7.500 7.500h9v9h-9zM12.500 7.500v-4h-9v9h4";
/// Done.
pub(crate) const CHECK: &str = "m4 10.500 4 4 8-9";
/// Opens elsewhere.
pub(crate) const OPEN: &str =
    "M11.500 3.500h5v5M16.500 3.500 9 11M14.500 11.500v4a1 1 0 0 1-1 1h-9a1 1 0 0 1-1-1v-9a1 1 0 0 1 1-1h4";
/// Search.
pub(crate) const SEARCH: &str = "M9 3.500a5.500 5.500 0 1 0 0 11 5.500 5.500 0 0 0 0-11zM13 13l4 4";
/// Light theme.
pub(crate) const SUN: &str = "M10 6.500a3.500 3.500 0 1 0 0 7 3.500 3.500 0 0 0 0-7zM10 2v1.500M10 16.500V18M2 10h1.500M16.500 10H18M4.300 4.300l1.100 1.100M14.600 14.600l1.100 1.100M4.300 15.700l1.100-1.100M14.600 5.400l1.100-1.100";
/// Dark theme.
pub(crate) const MOON: &str = "M16.500 12A7 7 0 0 1 8 3.500a7 7 0 1 0 8.500 8.500z";
/// System theme.
pub(crate) const SCREEN: &str = "M3 4h14v9H3zM7.500 16.500h5M10 13v3.500";
/// Plus.
pub(crate) const PLUS: &str = "M10 4v12M4 10h12";
/// Remove.
pub(crate) const TRASH: &str =
    "M3.500 5.500h13M8 5.500v-2h4v2M5.500 5.500l.7 11h7.600l.7-11M8.500 8.500v5M11.500 8.500v5";
/// Back in time.
pub(crate) const ROLLBACK: &str = "M4 4v4h4M4.300 8a6.500 6.500 0 1 1-.6 4.500";
/// Start.
pub(crate) const PLAY: &str = "M6 4l10 6-10 6z";
/// Hold.
pub(crate) const PAUSE: &str = "M7 4v12M13 4v12";
/// Save.
pub(crate) const DOWNLOAD: &str = "M10 3.500V13M6.500 9.500 10 13l3.500-3.500M3.500 16.500h13";
/// Keyboard.
pub(crate) const KEYBOARD: &str =
    "M2.500 5h15v10h-15zM5.500 8h.01M8.500 8h.01M11.500 8h.01M14.500 8h.01M6 12h8";
/// Log out.
pub(crate) const EXIT: &str =
    "M8 3.500H4.500a1 1 0 0 0-1 1v11a1 1 0 0 0 1 1H8M12.500 6.500 16 10l-3.500 3.500M16 10H7.500";
/// Attention.
pub(crate) const WARNING: &str = "M10 3 2.500 16.500h15zM10 8v4M10 14.300v.01";
/// A file.
pub(crate) const FILE: &str = "M5 2.500h6.500l4 4v11H5zM11.500 2.500v4h4";
/// Outbound network.
pub(crate) const GLOBE: &str = "M10 2.500a7.500 7.500 0 1 0 0 15 7.500 7.500 0 0 0 0-15zM2.500 10h15M10 2.500c2 2 3 4.500 3 7.500s-1 5.500-3 7.500c-2-2-3-4.500-3-7.500s1-5.500 3-7.500z";

/// Draws an icon; it says nothing to a screen reader, so the button around it needs a label.
#[component]
pub(crate) fn Icon(
    /// One of this module's constants.
    d: &'static str,
) -> impl IntoView {
    view! {
        <svg class="icon" viewBox="0 0 20 20" aria-hidden="true">
            <path d=d></path>
        </svg>
    }
}

/// The mark.
#[component]
pub(crate) fn Mark() -> impl IntoView {
    view! {
        <svg class="mark" viewBox="0 0 32 32" aria-hidden="true">
            <path d="M13 4v17H4.500C8 16 11 10 13 4Z"></path>
            <path d="M16 9c4 3 7 7 8.500 12H16V9Z" opacity=".55"></path>
            <path d="M3 24h26c-1 3-3.500 5-7 5H10c-3.500 0-6-2-7-5Z"></path>
        </svg>
    }
}
