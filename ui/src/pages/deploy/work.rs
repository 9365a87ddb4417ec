//! The state of one deployment, and the steps until the form is shown.

use js_sys::Uint8Array;
use ketch_api::wasm::Inspection;
use ketch_ui_core::{
    capability,
    manifest::{self, Draft, Outbound},
    naming,
    object::{int, items, text},
    resource::FUNCTIONS,
    sniff::{self, Content},
    upload,
};
use leptos::prelude::*;
use serde_json::Value;
use wasm_bindgen_futures::JsFuture;

use crate::{
    api::{
        self, Error,
        registry::{self, Blob, Progress},
    },
    components::env::Variables,
    dom,
    state::{Console, console},
};

/// What the page shows.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Stage {
    /// Nothing chosen.
    Choose,
    /// Not something to deploy, or unreadable.
    Refused(Result<Content, String>),
    /// A manifest to apply.
    Manifest(Vec<Value>),
    /// Being hashed, pushed and inspected.
    Upload,
    /// Waiting for the user.
    Form,
    /// The object was made; its way to readiness is followed.
    Deployed(Value),
}

/// What an upload is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Reading and hashing.
    Hashing,
    /// Sending.
    Sending,
    /// The server looks at it.
    Inspecting,
}

/// How far outbound access goes, as chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Nowhere.
    Off,
    /// To what is listed.
    List,
    /// Anywhere.
    All,
}

/// The state of one deployment.
#[derive(Clone, Copy)]
pub(super) struct Work {
    console: Console,
    /// What is shown.
    pub stage: RwSignal<Stage>,
    /// Name and size of the file.
    pub file: RwSignal<(String, u64)>,
    /// What the upload is doing.
    pub phase: RwSignal<Phase>,
    /// Bytes the server has.
    pub sent: RwSignal<u64>,
    /// When sending began, in ticks.
    pub began: RwSignal<f64>,
    /// Why the upload stopped.
    pub fault: RwSignal<Option<Error>>,
    /// What the registry read off the file.
    pub inspection: RwSignal<Option<Inspection>>,
    /// The app of the same name, when there is one.
    pub existing: RwSignal<Option<Value>>,
    /// What it runs now.
    pub running: RwSignal<Option<Inspection>>,
    /// Name of the app.
    pub name: RwSignal<String>,
    /// Namespace of the app.
    pub namespace: RwSignal<String>,
    /// Environment.
    pub variables: Variables,
    /// Environment entries kept from the existing app.
    kept_env: RwSignal<Vec<Value>>,
    /// Outbound permission.
    pub reach: RwSignal<Reach>,
    /// Listed outbound patterns, as typed.
    pub hosts: RwSignal<String>,
    /// Memory limit, as typed.
    pub memory: RwSignal<String>,
    /// Arguments, as typed.
    pub args: RwSignal<String>,
    /// Repository and manifest digest of the pushed image.
    pushed: RwSignal<(String, String)>,
    /// Whether the Deploy button is at work.
    pub busy: RwSignal<bool>,
    /// Why the Deploy button failed.
    pub refused: RwSignal<Option<Error>>,
    blob: StoredValue<Option<Blob>, LocalStorage>,
    progress: StoredValue<Progress>,
    cancel: StoredValue<Option<futures::future::AbortHandle>, LocalStorage>,
}

impl Work {
    /// Nothing chosen yet. Must be called in a component.
    pub(super) fn new() -> Self {
        let console = console();
        let work = Self {
            console,
            stage: RwSignal::new(Stage::Choose),
            file: RwSignal::new((String::new(), 0)),
            phase: RwSignal::new(Phase::Hashing),
            sent: RwSignal::new(0),
            began: RwSignal::new(0.0),
            fault: RwSignal::new(None),
            inspection: RwSignal::new(None),
            existing: RwSignal::new(None),
            running: RwSignal::new(None),
            name: RwSignal::new(String::new()),
            namespace: RwSignal::new(console.target_namespace()),
            variables: Variables::new(Vec::new()),
            kept_env: RwSignal::new(Vec::new()),
            reach: RwSignal::new(Reach::Off),
            hosts: RwSignal::new(String::new()),
            memory: RwSignal::new(String::new()),
            args: RwSignal::new(String::new()),
            pushed: RwSignal::new((String::new(), String::new())),
            busy: RwSignal::new(false),
            refused: RwSignal::new(None),
            blob: StoredValue::new_local(None),
            progress: StoredValue::new(Progress::default()),
            cancel: StoredValue::new_local(None),
        };
        on_cleanup(move || work.stop());
        work
    }

    fn run(&self, task: impl Future<Output = ()> + 'static) {
        self.stop();
        let (task, handle) = futures::future::abortable(task);
        self.cancel.set_value(Some(handle));
        leptos::task::spawn_local(async move {
            // Aborted means that the user left or chose another file.
            let _ = task.await;
        });
    }

    fn stop(&self) {
        self.cancel.try_update_value(|handle| {
            if let Some(handle) = handle.take() {
                handle.abort();
            }
        });
    }

    /// Forgets everything.
    pub(super) fn reset(&self) {
        self.stop();
        self.stage.set(Stage::Choose);
        self.fault.set(None);
        self.refused.set(None);
        self.inspection.set(None);
        self.existing.set(None);
        self.running.set(None);
        self.sent.set(0);
        self.pushed.set((String::new(), String::new()));
        self.variables.reset(Vec::new());
        self.kept_env.set(Vec::new());
        self.reach.set(Reach::Off);
        self.hosts.set(String::new());
        self.memory.set(String::new());
        self.args.set(String::new());
        self.progress.set_value(Progress::default());
        self.blob.set_value(None);
    }

    /// Begins with a file.
    pub(super) fn take(&self, file: web_sys::File) {
        self.reset();
        // The size is a float in JavaScript and always a whole number.
        self.file.set((file.name(), file.size() as u64));
        self.name.set(naming::propose(&file.name()));
        self.namespace.set(self.console.target_namespace());
        let work = *self;
        self.run(async move {
            if let Err(error) = work.read(file).await {
                work.stage.set(Stage::Refused(Err(error.message)));
            }
        });
    }

    async fn read(&self, file: web_sys::File) -> api::Result<()> {
        let unreadable =
            || Error::local("The browser cannot read this file. If it is a folder, drop the file inside it.");
        let head = file.slice_with_i32_and_i32(0, sniff::PREFIX as i32).map_err(|_| unreadable())?;
        let head = JsFuture::from(head.array_buffer()).await.map_err(|_| unreadable())?;
        let content = sniff::sniff(&Uint8Array::new(&head).to_vec());
        if !content.is_wasm() && content != Content::Manifest {
            self.stage.set(Stage::Refused(Ok(content)));
            return Ok(());
        }
        let all = JsFuture::from(file.array_buffer()).await.map_err(|_| unreadable())?;
        let bytes = Uint8Array::new(&all);
        if content == Content::Manifest {
            let text = String::from_utf8(bytes.to_vec())
                .map_err(|_| Error::local("The manifest is not UTF-8 text."))?;
            self.stage.set(Stage::Manifest(manifest::parse(&text).map_err(Error::local)?));
            return Ok(());
        }
        self.stage.set(Stage::Upload);
        self.phase.set(Phase::Hashing);
        let digest = registry::hash(&bytes).await?;
        let repository = self.repository();
        self.blob.set_value(Some(Blob { known_in: repository.clone(), repository, bytes, digest }));
        self.send().await;
        Ok(())
    }

    /// `NAMESPACE/NAME`.
    pub(super) fn repository(&self) -> String {
        format!("{}/{}", self.namespace.get_untracked(), self.name.get_untracked())
    }

    /// Goes on with an upload that stopped.
    pub(super) fn retry(&self) {
        let work = *self;
        self.run(async move { work.send().await });
    }

    async fn send(&self) {
        self.fault.set(None);
        match self.try_send().await {
            Ok(()) => self.stage.set(Stage::Form),
            Err(error) => self.fault.set(Some(error)),
        }
    }

    async fn try_send(&self) -> api::Result<()> {
        let Some(blob) = self.blob.get_value() else { return Ok(()) };
        self.phase.set(Phase::Sending);
        self.began.set(dom::ticks());
        let mut progress = self.progress.get_value();
        let sent = self.sent;
        let outcome = registry::push(&blob, &mut progress, move |n| sent.set(n)).await;
        self.progress.set_value(progress);
        outcome.map_err(explain)?;
        self.phase.set(Phase::Inspecting);
        let inspection = registry::inspect(&blob.repository, &blob.digest).await.map_err(explain)?;
        self.look_up().await;
        if capability::blocked(&inspection).is_none() {
            self.push_image(&inspection).await?;
        }
        self.inspection.set(Some(inspection));
        Ok(())
    }

    /// Makes sure that the image is in the repository of the chosen name; its reference.
    pub(super) async fn push_image(&self, inspection: &Inspection) -> api::Result<String> {
        let repository = self.repository();
        if self.pushed.with_untracked(|(pushed, _)| *pushed != repository) {
            let Some(mut blob) = self.blob.get_value() else {
                return Err(Error::local("Choose a file first."));
            };
            if blob.repository != repository {
                blob.known_in = std::mem::replace(&mut blob.repository, repository.clone());
                registry::push(&blob, &mut Progress::default(), |_| ()).await?;
            }
            let digest = registry::tag(&repository, inspection, &self.file.get_untracked().0).await?;
            self.blob.set_value(Some(blob));
            self.pushed.set((repository.clone(), digest));
        }
        Ok(self.image())
    }

    /// The image reference as far as it is known.
    pub(super) fn image(&self) -> String {
        let (namespace, name) = (self.namespace.get(), self.name.get());
        let (pushed, digest) = self.pushed.get();
        if pushed == format!("{namespace}/{name}") {
            return manifest::image(&namespace, &name, &digest);
        }
        let layer = self.inspection.with(|i| i.as_ref().map(|i| upload::tag(&i.digest)).unwrap_or_default());
        format!("{}/{namespace}/{name}:{layer}", ketch_api::names::REGISTRY_HOST)
    }

    /// Finds the app of the same name and takes over its settings.
    pub(super) async fn look_up(&self) {
        let (namespace, name) = (self.namespace.get_untracked(), self.name.get_untracked());
        let found = find(&namespace, &name).await;
        if let Some(function) = &found {
            self.adopt(function);
            if let Some((repository, reference)) = manifest::parse_image(text(function, "/spec/image")) {
                self.running.set(registry::inspect(&repository, &reference).await.ok());
            }
        } else {
            self.running.set(None);
        }
        self.existing.set(found);
    }

    fn adopt(&self, function: &Value) {
        let (plain, kept) = manifest::split_env(items(function, "/spec/env"));
        self.variables.reset(plain);
        self.kept_env.set(kept);
        self.memory.set(text(function, "/spec/resources/limits/memory").to_owned());
        let patterns: Vec<String> = items(function, "/spec/permissions/outbound")
            .iter()
            .filter_map(|p| p.as_str().map(str::to_owned))
            .collect();
        match Outbound::from_patterns(&patterns) {
            Outbound::Off => self.reach.set(Reach::Off),
            Outbound::All => self.reach.set(Reach::All),
            Outbound::List(list) => {
                self.reach.set(Reach::List);
                self.hosts.set(list.join("\n"));
            }
        }
    }

    /// The outbound permission as chosen.
    pub(super) fn outbound(&self) -> Result<Outbound, String> {
        match self.reach.get() {
            Reach::Off => Ok(Outbound::Off),
            Reach::All => Ok(Outbound::All),
            Reach::List => match manifest::parse_outbound(&self.hosts.get())? {
                list if list.is_empty() => {
                    Err("List at least one host, or switch outbound access off.".to_owned())
                }
                list => Ok(Outbound::List(list)),
            },
        }
    }

    /// All choices.
    pub(super) fn draft(&self) -> Draft {
        Draft {
            name: self.name.get(),
            namespace: self.namespace.get(),
            image: self.image(),
            env: self.variables.pairs(),
            kept_env: self.kept_env.get(),
            outbound: self.outbound().unwrap_or_default(),
            memory: self.memory.get().trim().to_owned(),
            args: self.args.get().split_whitespace().map(str::to_owned).collect(),
        }
    }

    /// The object that will be made.
    pub(super) fn object(&self) -> Value {
        let world = self.inspection.with(|i| i.as_ref().map(|i| i.world));
        world.map(|world| self.draft().object(world)).unwrap_or_default()
    }

    /// The first fault in the form.
    pub(super) fn form_fault(&self) -> Option<String> {
        let memory = self.memory.get();
        let memory_fault = match ketch_ui_core::format::memory(memory.trim()) {
            _ if memory.trim().is_empty() => None,
            None => Some("Write the memory limit like 64Mi or 1Gi.".to_owned()),
            Some(bytes) if bytes < 1024.0 * 1024.0 => {
                Some("A memory limit below 1Mi lets nothing start.".to_owned())
            }
            Some(_) => None,
        };
        self.name
            .with(|name| naming::fault(name).map(str::to_owned))
            .or_else(|| self.outbound().err())
            .or_else(|| self.variables.fault())
            .or(memory_fault)
    }

    /// Makes the object, or a new revision of the existing one.
    pub(super) fn deploy(&self) {
        let work = *self;
        self.busy.set(true);
        self.refused.set(None);
        self.run(async move {
            match work.try_deploy().await {
                Ok(object) => work.stage.set(Stage::Deployed(object)),
                Err(error) => work.refused.set(Some(error)),
            }
            work.busy.set(false);
        });
    }

    async fn try_deploy(&self) -> api::Result<Value> {
        let Some(inspection) = self.inspection.get_untracked() else {
            return Err(Error::local("Choose a file first."));
        };
        self.push_image(&inspection).await?;
        let (draft, object) = untrack(|| (self.draft(), self.object()));
        if !inspection.world.is_http() {
            let collection = ketch_ui_core::resource::PODS.collection(Some(&draft.namespace));
            return api::create(&collection, &object).await.map_err(pod_exists);
        }
        if let Some(existing) = find(&draft.namespace, &draft.name).await {
            let path = FUNCTIONS.object(&draft.namespace, &draft.name);
            return api::merge(&path, &draft.patch(&existing)).await;
        }
        api::create(&FUNCTIONS.collection(Some(&draft.namespace)), &object).await
    }
}

/// The Function of this name, when there is one.
async fn find(namespace: &str, name: &str) -> Option<Value> {
    let selector = api::encode(&format!("metadata.name={name}"));
    let list = api::get(&format!("{}?fieldSelector={selector}", FUNCTIONS.collection(Some(namespace))))
        .await
        .ok()?;
    items(&list, "/items").first().cloned()
}

fn pod_exists(error: Error) -> Error {
    match error.code {
        409 => Error {
            message: format!("{} Choose another name, or delete that pod first.", error.message),
            ..error
        },
        _ => error,
    }
}

fn explain(error: Error) -> Error {
    let message = match error.code {
        413 => format!(
            "{} The file is too large for this server; make it smaller (strip it, or build it in release mode).",
            error.message
        ),
        507 => format!("{} The server's disk is full.", error.message),
        0 => "The connection was lost. What has arrived is kept: Retry goes on from there.".to_owned(),
        _ => error.message,
    };
    Error { message, ..error }
}

/// A Function's generation, for telling a new status from an old one.
pub(super) fn generation(object: &Value) -> i64 {
    int(object, "/metadata/generation").unwrap_or(1)
}
