//! Light, dark, or as the system says.

use crate::dom;

/// The choice of colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Theme {
    /// As the system says.
    #[default]
    System,
    /// Light.
    Light,
    /// Dark.
    Dark,
}

impl Theme {
    /// The choice kept in this browser.
    pub(crate) fn stored() -> Self {
        match dom::stored("theme").as_deref() {
            Some("light") => Theme::Light,
            Some("dark") => Theme::Dark,
            _ => Theme::System,
        }
    }

    /// The word kept and shown.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Theme::System => "system",
            Theme::Light => "light",
            Theme::Dark => "dark",
        }
    }

    /// The next one in the round of three.
    pub(crate) fn next(self) -> Self {
        match self {
            Theme::System => Theme::Light,
            Theme::Light => Theme::Dark,
            Theme::Dark => Theme::System,
        }
    }

    /// Makes it so, and keeps it.
    pub(crate) fn apply(self) {
        dom::store("theme", self.label());
        let root = dom::window().and_then(|w| w.document()).and_then(|d| d.document_element());
        if let Some(root) = root {
            // Setting a plain attribute does not fail.
            let _ = root.set_attribute("data-theme", self.label());
        }
    }
}
