//! Making an image present, and finding the runtime for it.

use std::{sync::Arc, time::Instant};

use ketch_api::{k8s::api::core::v1 as core, names::WASM_RUNTIME_CLASS};
use ketch_runtime::{Error, Image};

use super::{Done, reference};
use crate::{
    context::{Context, Report, WASM},
    images::{NEVER_PULL, Wanted},
    kind::{Content, Kind, content},
    machine::{Failure, Unit},
    placement::Placement,
};

/// Reason of an image that is not there and may not be pulled.
const NEVER: &str = "ErrImageNeverPull";

/// Makes a container's image present.
pub(crate) async fn pull(
    context: Arc<Context>,
    pod: Arc<core::Pod>,
    unit: Unit,
    placement: Arc<Placement>,
) -> Done {
    let name = unit.name.clone();
    match try_pull(&context, &pod, &unit, &placement).await {
        Ok((runtime, image)) => Done::Pulled { name, runtime: Some(runtime), result: Ok(image) },
        Err(failure) => {
            placement.forget();
            let image = unit.container.image.as_deref().unwrap_or_default();
            let first = match failure.reason {
                NEVER => Report::warning(NEVER, failure.message.clone()),
                _ => Report::warning(
                    "Failed",
                    format!("Failed to pull image \"{image}\": {}", failure.message),
                ),
            };
            context.event(&pod, reference(&unit), first);
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

async fn try_pull(
    context: &Context,
    pod: &core::Pod,
    unit: &Unit,
    placement: &Placement,
) -> Result<(usize, Image), Failure> {
    let image = unit.container.image.as_deref().unwrap_or_default();
    let policy = unit.container.image_pull_policy.as_deref().unwrap_or("IfNotPresent");
    let begun = Instant::now();
    let (keyring, missing) = context.sources.keyring(pod).await;
    let forced = context.forced_runtime(pod).await?;
    let wanted = Wanted { keyring, native: forced.is_some_and(|runtime| runtime != WASM) };
    let source = context.images.source(policy, &wanted);
    let present = placement.is_present(&source, image);
    if !missing.is_empty() {
        let text = format!(
            "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
            missing.join(", ")
        );
        context.event(pod, None, Report::warning("FailedToRetrieveImagePullSecret", text));
    }
    if !present && policy != "Never" {
        context.event(pod, reference(unit), Report::normal("Pulling", format!("Pulling image \"{image}\"")));
    }
    let manifest = placement.manifest(&source, image).await;
    let choice =
        Choice { forced, class: class(pod), kind: placement.kind(), containers: context.containers() };
    let runtime = match &manifest {
        Ok(manifest) => choice.runtime(image, content(&manifest.bytes)).map_err(|message| Failure {
            reason: "ErrImageNotRunnable",
            message: message.unwrap_or_else(|| context.no_containers()),
        })?,
        // The runtime for containers may have it all the same, from elsewhere.
        Err(error) => choice.elsewhere().ok_or_else(|| failure(error.clone()))?,
    };
    let Some(chosen) = context.runtime(runtime) else {
        return Err(Failure { reason: "ErrImagePull", message: "the node has no runtime".to_owned() });
    };
    let source = match manifest {
        Ok(manifest) => source.knowing(image, manifest),
        Err(_) => source,
    };
    let pulled = chosen.pull(image, Arc::new(source)).await.map_err(|error| {
        if matches!(error, Error::NoRoom(_)) {
            context.no_room.notify_one();
        }
        failure(error)
    })?;
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

fn class(pod: &core::Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.runtime_class_name.as_deref()).unwrap_or_default()
}

/// What decides which runtime an image is for.
#[derive(Clone, Copy, Debug)]
struct Choice<'a> {
    /// The runtime that the pod's class names.
    forced: Option<usize>,
    /// That class.
    class: &'a str,
    /// The pod's kind, once it is decided.
    kind: Option<Kind>,
    /// The runtime for containers.
    containers: Option<usize>,
}

impl Choice<'_> {
    /// The runtime for an image. `Err`: why it cannot run; without a text when the node lacks the runtime.
    fn runtime(&self, image: &str, content: Content) -> Result<usize, Option<String>> {
        let class = self.class;
        match (self.forced, content) {
            (Some(WASM), Content::Container) => Err(Some(format!(
                "{image} is a container image, but runtimeClassName {class:?} runs WebAssembly: take runtimeClassName \
                 away, or build the workload for wasm32-wasip2"
            ))),
            (Some(runtime), Content::Wasm) if runtime != WASM => Err(Some(format!(
                "{image} is a WebAssembly image, but runtimeClassName {class:?} runs containers: take \
                 runtimeClassName away, or set it to {WASM_RUNTIME_CLASS}"
            ))),
            (Some(runtime), _) => Ok(runtime),
            (None, Content::Container) => {
                let runtime = self.containers.ok_or(None)?;
                if self.kind == Some(Kind::Wasm) {
                    return Err(Some(format!(
                        "{image} is a container image now, and the pod was set up for WebAssembly: delete the pod, \
                         so that it is made again with a network namespace"
                    )));
                }
                Ok(runtime)
            }
            (None, _) => Ok(WASM),
        }
    }

    /// The runtime that may have an image whose manifest could not be read.
    fn elsewhere(&self) -> Option<usize> {
        let sandboxed = self.kind != Some(Kind::Wasm);
        self.containers.filter(|_| sandboxed && self.forced != Some(WASM))
    }
}

/// How a runtime's error shows in a container's waiting state.
fn failure(error: Error) -> Failure {
    let text = error.to_string();
    let (reason, message) = match (&error, text.split_once(NEVER_PULL)) {
        (Error::Image(_) | Error::Unsupported(_), _) => ("ErrImageNotRunnable", text),
        (Error::Config(_), _) => ("InvalidImageName", text),
        (_, Some((_, message))) => (NEVER, message.to_owned()),
        _ => ("ErrImagePull", text),
    };
    Failure { reason, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runtime_follows_class_and_image() {
        let both = Choice { forced: None, class: "", kind: Some(Kind::Sandboxed), containers: Some(1) };
        let wasm_only = Choice { containers: None, kind: Some(Kind::Wasm), ..both };
        let wasm_class = Choice { forced: Some(0), class: "ketch-wasm", ..both };
        let runc = Choice { forced: Some(1), class: "runc", ..both };
        for (choice, content, expected) in [
            (both, Content::Wasm, Ok(0)),
            (both, Content::Container, Ok(1)),
            (Choice { kind: None, ..both }, Content::Container, Ok(1)),
            (Choice { kind: Some(Kind::Wasm), ..both }, Content::Container, Err("delete the pod")),
            (wasm_only, Content::Wasm, Ok(0)),
            (wasm_only, Content::Container, Err("")),
            (wasm_class, Content::Wasm, Ok(0)),
            (
                wasm_class,
                Content::Container,
                Err("x is a container image, but runtimeClassName \"ketch-wasm\""),
            ),
            (runc, Content::Container, Ok(1)),
            (runc, Content::Wasm, Err("x is a WebAssembly image, but runtimeClassName \"runc\"")),
        ] {
            match (choice.runtime("x", content), expected) {
                (Ok(runtime), Ok(wanted)) => assert_eq!(runtime, wanted, "{choice:?}"),
                (Err(text), Err(part)) => assert!(text.unwrap_or_default().contains(part), "{choice:?}"),
                (got, _) => panic!("{choice:?} {content:?}: {got:?}"),
            }
        }
        assert_eq!((both.elsewhere(), runc.elsewhere()), (Some(1), Some(1)));
        assert_eq!((wasm_only.elsewhere(), wasm_class.elsewhere()), (None, None));
    }
}
