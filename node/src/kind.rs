//! Which kind a pod is, decided before anything of it exists. Pure.
//!
//! A pod whose containers are all Wasm has an address of the host and costs next to nothing. A pod with at
//! least one container that needs processes has a network namespace, which its Wasm containers use too.

use ketch_api::wasm;

/// How a pod is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Everything runs in this process, at an address of the host.
    Wasm,
    /// It has a network namespace, made by the runtime for containers.
    Sandboxed,
}

/// What an image is, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// A WebAssembly artifact.
    Wasm,
    /// A file system for processes.
    Container,
    /// It could not be looked at yet.
    Unknown,
}

/// What is known of a pod before its images are looked at.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Known {
    /// Whether the node can run containers at all.
    pub(crate) containers: bool,
    /// The kind that the pod's runtime class names.
    pub(crate) forced: Option<Kind>,
    /// Whether the runtime for containers has one of this pod already: the agent was restarted.
    pub(crate) runs_containers: bool,
    /// The kind its address was given out for.
    pub(crate) held: Option<Kind>,
}

impl Known {
    /// The kind, when the images need not be looked at.
    pub(crate) fn kind(&self) -> Option<Kind> {
        if !self.containers {
            return Some(Kind::Wasm);
        }
        let stays = self.runs_containers || self.held == Some(Kind::Sandboxed);
        self.forced.or(stays.then_some(Kind::Sandboxed))
    }

    /// The kind by the images. One that cannot be looked at may turn out to be anything: only a sandbox takes
    /// both, and a pod that was Wasm before the agent was restarted stays so.
    pub(crate) fn kind_of(&self, images: &[Content]) -> Kind {
        let wasm = |content: &Content| match content {
            Content::Wasm => true,
            Content::Container => false,
            Content::Unknown => self.held == Some(Kind::Wasm),
        };
        if images.iter().all(wasm) { Kind::Wasm } else { Kind::Sandboxed }
    }
}

/// What an image is by its manifest, or by an index of manifests: Wasm, when its config, a layer or a variant
/// says so.
pub(crate) fn content(manifest: &[u8]) -> Content {
    let manifest: serde_json::Value = serde_json::from_slice(manifest).unwrap_or_default();
    let list = |name: &str| manifest.get(name).and_then(|list| list.as_array()).into_iter().flatten();
    let is_wasm = |part: &serde_json::Value| {
        let media_type = part.get("mediaType").and_then(|text| text.as_str()).unwrap_or_default();
        media_type == wasm::LAYER_MEDIA_TYPE
            || media_type == wasm::CONFIG_MEDIA_TYPE
            || wasm::LEGACY_LAYER_MEDIA_TYPES.contains(&media_type)
    };
    let for_wasm = |entry: &serde_json::Value| {
        entry.pointer("/platform/architecture").is_some_and(|architecture| architecture == "wasm")
    };
    let wasm = list("layers").chain(manifest.get("config")).any(is_wasm) || list("manifests").any(for_wasm);
    if wasm { Content::Wasm } else { Content::Container }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wasm_is_told_by_media_types() {
        for (manifest, expected) in [
            (r#"{"layers":[{"mediaType":"application/wasm"}]}"#, Content::Wasm),
            (r#"{"config":{"mediaType":"application/vnd.wasm.config.v0+json"},"layers":[]}"#, Content::Wasm),
            (r#"{"layers":[{"mediaType":"application/vnd.wasm.content.layer.v1+wasm"}]}"#, Content::Wasm),
            (r#"{"manifests":[{"platform":{"architecture":"wasm","os":"wasip1"}}]}"#, Content::Wasm),
            (r#"{"manifests":[{"platform":{"architecture":"amd64","os":"linux"}}]}"#, Content::Container),
            (
                r#"{"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip"}]}"#,
                Content::Container,
            ),
            ("not json", Content::Container),
        ] {
            assert_eq!(content(manifest.as_bytes()), expected, "{manifest}");
        }
    }

    #[test]
    fn some_kinds_are_known_without_a_look_at_the_images() {
        let known = Known { containers: true, ..Known::default() };
        for (known, expected) in [
            (Known::default(), Some(Kind::Wasm)),
            (Known { held: Some(Kind::Sandboxed), ..Known::default() }, Some(Kind::Wasm)),
            (known, None),
            (Known { held: Some(Kind::Wasm), ..known }, None),
            (Known { held: Some(Kind::Sandboxed), ..known }, Some(Kind::Sandboxed)),
            (Known { runs_containers: true, held: Some(Kind::Wasm), ..known }, Some(Kind::Sandboxed)),
            (Known { forced: Some(Kind::Wasm), ..known }, Some(Kind::Wasm)),
            (Known { forced: Some(Kind::Sandboxed), ..known }, Some(Kind::Sandboxed)),
        ] {
            assert_eq!(known.kind(), expected, "{known:?}");
        }
    }

    #[test]
    fn one_container_makes_a_sandbox_and_so_does_doubt() {
        use Content::{Container, Unknown, Wasm};
        let new = Known { containers: true, ..Known::default() };
        let was_wasm = Known { held: Some(Kind::Wasm), ..new };
        for (known, images, expected) in [
            (new, &[Wasm, Wasm][..], Kind::Wasm),
            (new, &[Wasm, Container], Kind::Sandboxed),
            (new, &[Container], Kind::Sandboxed),
            (new, &[Wasm, Unknown], Kind::Sandboxed),
            (was_wasm, &[Unknown, Wasm], Kind::Wasm),
            (was_wasm, &[Unknown, Container], Kind::Sandboxed),
        ] {
            assert_eq!(known.kind_of(images), expected, "{known:?} {images:?}");
        }
    }
}
