//! Making an image present, and finding the runtime for it.

use std::{sync::Arc, time::Instant};

use ketch_api::{k8s::api::core::v1 as core, wasm};
use ketch_runtime::{Error, Image, ImageSource};

use super::{Done, reference};
use crate::{
    context::{Context, Report},
    machine::{Failure, Unit},
};

/// Makes a container's image present.
pub(crate) async fn pull(context: Arc<Context>, pod: Arc<core::Pod>, unit: Unit) -> Done {
    let name = unit.name.clone();
    match try_pull(&context, &pod, &unit).await {
        Ok((runtime, image)) => Done::Pulled { name, runtime: Some(runtime), result: Ok(image) },
        Err(failure) => {
            let image = unit.container.image.as_deref().unwrap_or_default();
            let text = format!("Failed to pull image \"{image}\": {}", failure.message);
            context.event(&pod, reference(&unit), Report::warning("Failed", text));
            context.event(
                &pod,
                reference(&unit),
                Report::warning("Failed", format!("Error: {}", failure.reason)),
            );
            if failure.reason == "ErrImagePull" {
                let text = format!("Back-off pulling image \"{image}\"");
                context.event(&pod, reference(&unit), Report::normal("BackOff", text));
            }
            Done::Pulled { name, runtime: None, result: Err(failure) }
        }
    }
}

async fn try_pull(context: &Context, pod: &core::Pod, unit: &Unit) -> Result<(usize, Image), Failure> {
    let image = unit.container.image.as_deref().unwrap_or_default();
    let policy = unit.container.image_pull_policy.as_deref().unwrap_or("IfNotPresent");
    let begun = Instant::now();
    let source = context.images.with_policy(policy);
    let present = source.is_present(image);
    if !present {
        context.event(pod, reference(unit), Report::normal("Pulling", format!("Pulling image \"{image}\"")));
    }
    let runtime = match context.forced_runtime(pod)? {
        Some(index) => index,
        None => choose(context, &source.manifest(image).await.map_err(failure)?.bytes)?,
    };
    let Some(chosen) = context.runtime(runtime) else {
        return Err(Failure { reason: "ErrImagePull", message: "the node has no runtime".to_owned() });
    };
    let pulled = chosen.pull(image, Arc::new(source)).await.map_err(failure)?;
    let text = if present {
        format!("Container image \"{image}\" already present on machine")
    } else {
        let took = begun.elapsed().as_millis();
        format!(
            "Successfully pulled image \"{image}\" in {took}ms ({took}ms including waiting). Image size: {} bytes.",
            pulled.size
        )
    };
    context.event(pod, reference(unit), Report::normal("Pulled", text));
    Ok((runtime, pulled))
}

/// The runtime for an image: Wasm layers or config go to the first one, anything else to one for containers.
fn choose(context: &Context, manifest: &[u8]) -> Result<usize, Failure> {
    if is_wasm(manifest) {
        return Ok(0);
    }
    if context.runtimes.len() > 1 {
        return Ok(1);
    }
    let message = "containers are not available on this node: the image is an OCI container image and the node \
                   runs WebAssembly only; build the workload for wasm32-wasip2, or join a node with containerd";
    Err(Failure { reason: "ErrImageNotRunnable", message: message.to_owned() })
}

/// Whether a manifest's config or one of its layers is of a Wasm media type.
fn is_wasm(manifest: &[u8]) -> bool {
    let manifest: serde_json::Value = serde_json::from_slice(manifest).unwrap_or_default();
    let layers = manifest.get("layers").and_then(|layers| layers.as_array()).cloned().unwrap_or_default();
    let config = manifest.get("config").cloned().unwrap_or_default();
    let types =
        layers.into_iter().chain([config]).filter_map(|one| Some(one.get("mediaType")?.as_str()?.to_owned()));
    types.into_iter().any(|one| {
        one == wasm::LAYER_MEDIA_TYPE
            || one == wasm::CONFIG_MEDIA_TYPE
            || wasm::LEGACY_LAYER_MEDIA_TYPES.contains(&one.as_str())
    })
}

/// How a runtime's error shows in a container's waiting state.
fn failure(error: Error) -> Failure {
    let reason = match &error {
        Error::Image(_) | Error::Unsupported(_) => "ErrImageNotRunnable",
        Error::Config(_) => "InvalidImageName",
        _ if error.to_string().contains("ErrImageNeverPull") => "ErrImageNeverPull",
        _ => "ErrImagePull",
    };
    Failure { reason, message: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wasm_is_told_by_media_types() {
        for (manifest, wasm) in [
            (r#"{"layers":[{"mediaType":"application/wasm"}]}"#, true),
            (r#"{"config":{"mediaType":"application/vnd.wasm.config.v0+json"},"layers":[]}"#, true),
            (r#"{"layers":[{"mediaType":"application/vnd.wasm.content.layer.v1+wasm"}]}"#, true),
            (r#"{"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip"}]}"#, false),
            ("not json", false),
        ] {
            assert_eq!(is_wasm(manifest.as_bytes()), wasm, "{manifest}");
        }
    }
}
