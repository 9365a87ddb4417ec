//! [`OciRuntime`]: the [`Runtime`] of containers. What exists is asked of containerd each time; nothing is
//! remembered here but what cannot change any more.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, stream};
use k8s_cri::v1::{
    self as cri, ContainerFilter, ContainerStatsRequest, ContainerStatusRequest, CreateContainerRequest,
    ListContainersRequest, ListPodSandboxRequest, PodSandboxFilter, PodSandboxState, PodSandboxStatusRequest,
    RemoveContainerRequest, RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest,
    StopContainerRequest, StopPodSandboxRequest,
};
use ketch_runtime::{
    Capabilities, ContainerId, ContainerSpec, ContainerState, ContainerStatus, CreatedPod, Error, Image,
    ImageSource, PodId, PodSandbox, Runtime, Session, Streams, Usage, log::LogLimits,
};
use tokio::{process::Child, sync::watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    attach, cgroup,
    client::{Client, QUICK, SLOW, or_gone},
    container, exec, existing,
    image::Images,
    managed::Managed,
    pod::{self, CONTAINER_ID, CONTAINER_NAME, Kept, OWNER, POD_UID},
    rotation, security,
    watcher::Watcher,
};

/// Statuses asked for at a time.
const PARALLEL: usize = 8;
/// How long the reason of a SIGKILL is waited for.
const OOM_DELAY: Duration = Duration::from_millis(100);
/// How long after its streams a container may end.
const STREAMS_END: Duration = Duration::from_secs(3);

/// What a runtime is made of.
pub(crate) struct Parts {
    pub(crate) client: Client,
    pub(crate) images: Arc<Images>,
    pub(crate) version: String,
    pub(crate) owner: String,
    pub(crate) work: PathBuf,
    /// Whether the processes of pods can be limited together.
    pub(crate) limits_pods: bool,
    pub(crate) managed: Option<(Managed, Option<Child>)>,
}

/// Containers through containerd. Made by [`crate::connect`].
pub struct OciRuntime {
    client: Client,
    images: Arc<Images>,
    version: String,
    owner: String,
    work: PathBuf,
    limits_pods: bool,
    managed: Option<Managed>,
    /// Whether containerd answered when it was asked last.
    answers: Arc<AtomicBool>,
    changes: watch::Receiver<u64>,
    /// States that CRI confirmed, by its own id: those of one that runs or ended do not change but by ending.
    states: Mutex<HashMap<String, (i32, ContainerState)>>,
    tasks: TaskTracker,
    end: CancellationToken,
}

impl std::fmt::Debug for OciRuntime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OciRuntime").field("version", &self.version).finish_non_exhaustive()
    }
}

impl OciRuntime {
    /// Starts what goes on in the background: watching, rotating logs, keeping containerd up.
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { client, images, version, owner, work, limits_pods, managed } = parts;
        let (sender, changes) = watch::channel(0);
        let (tasks, end) = (TaskTracker::new(), CancellationToken::new());
        let answers = Arc::new(AtomicBool::new(true));
        let watcher = Watcher::new(client.clone(), owner.clone(), sender, Arc::clone(&answers));
        tasks.spawn(watcher.run(end.clone()));
        let limits = LogLimits::default();
        tasks.spawn(rotation::rotate(client.clone(), owner.clone(), limits, end.clone()));
        let managed = managed.map(|(managed, child)| {
            tasks.spawn(managed.clone().supervise(child, end.clone()));
            managed
        });
        let states = Mutex::new(HashMap::new());
        Self {
            client,
            images,
            version,
            owner,
            work,
            limits_pods,
            managed,
            answers,
            changes,
            states,
            tasks,
            end,
        }
    }

    /// Ends what goes on in the background. Containers stay, and so does a containerd of our own while there
    /// are any; whether that is so.
    pub async fn shutdown(&self) -> bool {
        self.images.shutdown().await;
        let idle = matches!(self.sandboxes(HashMap::new()).await.as_deref(), Ok([]));
        self.end.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        if let Some(managed) = self.managed.as_ref().filter(|_| idle) {
            managed.stop().await;
        }
        !idle
    }

    /// Whether its containerd is our own.
    pub(crate) fn is_managed(&self) -> bool {
        self.managed.is_some()
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Ends and removes every pod.
    pub(crate) async fn remove_all(&self) -> Result<(), Error> {
        for sandbox in self.sandboxes(HashMap::new()).await? {
            match sandbox.labels.get(POD_UID) {
                Some(uid) => self.remove_pod(&PodId(uid.clone())).await?,
                None => self.remove_sandbox(&sandbox.id).await?,
            }
        }
        Ok(())
    }

    fn states(&self) -> MutexGuard<'_, HashMap<String, (i32, ContainerState)>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn sandboxes(&self, labels: HashMap<String, String>) -> Result<Vec<cri::PodSandbox>, Error> {
        let mut label_selector = labels;
        label_selector.insert(OWNER.to_owned(), self.owner.clone());
        let filter = PodSandboxFilter { label_selector, ..PodSandboxFilter::default() };
        let mut runtime = self.client.runtime();
        let request = ListPodSandboxRequest { filter: Some(filter) };
        Ok(self.client.call("list pods", QUICK, runtime.list_pod_sandbox(request)).await?.items)
    }

    async fn sandboxes_of(&self, pod: &PodId) -> Result<Vec<cri::PodSandbox>, Error> {
        self.sandboxes(HashMap::from([(POD_UID.to_owned(), pod.0.clone())])).await
    }

    async fn find(&self, id: &ContainerId) -> Result<Option<cri::Container>, Error> {
        let label = (CONTAINER_ID.to_owned(), id.0.clone());
        Ok(owned(&self.client, &self.owner, [label]).await?.pop())
    }

    async fn running(&self, id: &ContainerId) -> Result<String, Error> {
        let running = cri::ContainerState::ContainerRunning as i32;
        match self.find(id).await? {
            Some(container) if container.state == running => Ok(container.id),
            _ => Err(Error::NotFound(format!("running container {}", id.0))),
        }
    }

    async fn status(&self, id: &str) -> Result<cri::ContainerStatus, Error> {
        status(&self.client, id).await
    }

    /// Makes a sandbox. When containerd lacks the image that it runs in each, that one is ours from then on.
    async fn run_sandbox(&self, config: cri::PodSandboxConfig) -> Result<String, Error> {
        let request = RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
        let run = || async {
            let mut runtime = self.client.runtime();
            let made = runtime.run_pod_sandbox(request.clone());
            let made = self.client.call("make the pod's sandbox", SLOW, made).await;
            made.map(|reply| reply.pod_sandbox_id)
        };
        let error = match run().await {
            Err(error) => error,
            made => return made,
        };
        match existing::lacking_sandbox_image(&error.to_string()) {
            Some(image) => {
                tracing::info!(
                    image,
                    "containerd lacks the image of every pod's own program; it gets Ketch's"
                );
                self.images.pull_pause(Some(image)).await?;
                run().await
            }
            None => Err(error),
        }
    }

    async fn remove_sandbox(&self, id: &str) -> Result<(), Error> {
        let id = id.to_owned();
        let mut runtime = self.client.runtime();
        let stopped = runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: id.clone() });
        or_gone(self.client.call("stop the pod", SLOW, stopped).await.map(drop))?;
        let mut runtime = self.client.runtime();
        let removed = runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id });
        or_gone(self.client.call("remove the pod", SLOW, removed).await.map(drop))
    }

    async fn remove_container(&self, id: String) -> Result<(), Error> {
        let mut runtime = self.client.runtime();
        let removed = runtime.remove_container(RemoveContainerRequest { container_id: id });
        or_gone(self.client.call("remove the container", SLOW, removed).await.map(drop))
    }

    /// What a sandbox gave its pod.
    async fn created(&self, id: &str) -> Result<CreatedPod, Error> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
        let mut runtime = self.client.runtime();
        let status = self.client.call("look at the pod", QUICK, runtime.pod_sandbox_status(request)).await?;
        let text = status.info.get("info").map(String::as_str).unwrap_or_default();
        let info: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
        Ok(CreatedPod { network_namespace: network_namespace(&info) })
    }

    async fn create_container(
        &self,
        sandbox: &cri::PodSandbox,
        spec: &ContainerSpec,
    ) -> Result<String, Error> {
        let kept = Kept::read(&sandbox.annotations)?;
        let image = self.images.status(&spec.image.id).await?;
        let image = image.ok_or_else(|| Error::NotFound(format!("image {}", spec.image.id)))?;
        security::check_non_root(&kept, spec, image.uid.map(|uid| uid.value), &image.username)?;
        let directory = container::log_directory(spec);
        std::fs::create_dir_all(directory).map_err(|error| {
            Error::Internal(format!("make the log directory {}: {error}", directory.display()))
        })?;
        let privileged = spec.security.privileged.unwrap_or(false);
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.id.clone(),
            config: Some(container::config(spec, &kept, &self.owner)?),
            sandbox_config: Some(kept.config(directory, privileged)),
        };
        let mut runtime = self.client.runtime();
        let created = self.client.call("create the container", SLOW, runtime.create_container(request)).await;
        created.map(|reply| reply.container_id)
    }

    /// Starts a created container. One that cannot be started has also ended, with its state saying so.
    async fn run(&self, id: String) -> Result<(), Error> {
        let mut runtime = self.client.runtime();
        let request = StartContainerRequest { container_id: id };
        self.client.call("start the container", SLOW, runtime.start_container(request)).await.map(drop)
    }

    /// The state of a listed container, asked for once.
    async fn state(&self, container: &cri::Container) -> Result<Option<ContainerState>, Error> {
        let known = self.states().get(&container.id).cloned();
        if let Some((state, known)) = known
            && state == container.state
        {
            return Ok(Some(known));
        }
        let mut status = match self.status(&container.id).await {
            Ok(status) => status,
            Err(Error::NotFound(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        if status.exit_code == KILLED && status.reason.is_empty() {
            // That it was for memory is told by another event, which may come a moment later.
            tokio::time::sleep(OOM_DELAY).await;
            status = self.status(&container.id).await.unwrap_or(status);
        }
        let state = container::state(&status);
        if state != ContainerState::Created {
            self.states().insert(container.id.clone(), (status.state, state.clone()));
        }
        Ok(Some(state))
    }
}

/// Exit code of a process that SIGKILL ended.
const KILLED: i32 = 137;

/// The containers of `owner` that have `labels`.
pub(crate) async fn owned(
    client: &Client,
    owner: &str,
    labels: impl IntoIterator<Item = (String, String)>,
) -> Result<Vec<cri::Container>, Error> {
    let label_selector = labels.into_iter().chain([(OWNER.to_owned(), owner.to_owned())]).collect();
    let filter = ContainerFilter { label_selector, ..ContainerFilter::default() };
    let mut runtime = client.runtime();
    let request = ListContainersRequest { filter: Some(filter) };
    Ok(client.call("list containers", QUICK, runtime.list_containers(request)).await?.containers)
}

async fn status(client: &Client, id: &str) -> Result<cri::ContainerStatus, Error> {
    let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
    let mut runtime = client.runtime();
    let reply = client.call("look at the container", QUICK, runtime.container_status(request)).await?;
    reply.status.ok_or_else(|| Error::NotFound(format!("status of container {id}")))
}

/// The network namespace in CRI's description of a sandbox, unless it is the host's.
fn network_namespace(info: &serde_json::Value) -> Option<PathBuf> {
    let namespaces = info.get("runtimeSpec")?.get("linux")?.get("namespaces")?.as_array()?;
    let network = namespaces.iter().find(|one| one.get("type").is_some_and(|kind| kind == "network"))?;
    let path = network.get("path")?.as_str()?;
    (!path.is_empty()).then(|| PathBuf::from(path))
}

#[async_trait]
impl Runtime for OciRuntime {
    fn capabilities(&self) -> Capabilities {
        let unlimited = "this containerd places containers in control groups of systemd: the number of \
                         processes of a pod is not limited; --containerd managed limits it";
        let limitations = if self.limits_pods { Vec::new() } else { vec![unlimited.to_owned()] };
        let away = "containerd does not answer: containers go on, but none is started, ended or looked into \
                    until it is back";
        let unavailable = (!self.answers.load(Relaxed)).then(|| away.to_owned());
        Capabilities { version: self.version.clone(), limitations, unavailable }
    }

    async fn pull(&self, reference: &str, source: Arc<dyn ImageSource>) -> Result<Image, Error> {
        self.images.pull(reference, source).await
    }

    async fn remove_image(&self, reference: &str, digest: &str) -> Result<(), Error> {
        self.images.remove(reference, digest).await
    }

    fn image_root(&self) -> Option<PathBuf> {
        self.images.root()
    }

    async fn create_pod(&self, pod: PodSandbox) -> Result<CreatedPod, Error> {
        let mut attempt = 0;
        for old in self.sandboxes_of(&pod.id).await? {
            if old.state == PodSandboxState::SandboxReady as i32 {
                return self.created(&old.id).await;
            }
            attempt = attempt.max(old.metadata.unwrap_or_default().attempt.saturating_add(1));
            self.remove_sandbox(&old.id).await?;
        }
        let cgroup = match self.limits_pods {
            true => cgroup::path(&self.owner, &pod.id.0),
            false => String::new(),
        };
        let config = pod::sandbox(&pod, &self.owner, &Kept::new(&pod, attempt, &cgroup))?;
        if self.limits_pods {
            cgroup::create(&cgroup);
        }
        match self.run_sandbox(config).await {
            Ok(id) => self.created(&id).await,
            Err(error) => {
                cgroup::remove(&cgroup);
                Err(error)
            }
        }
    }

    async fn start(&self, pod: &PodId, container: ContainerSpec) -> Result<Option<Arc<str>>, Error> {
        if let Some(old) = self.find(&container.id).await? {
            match cri::ContainerState::try_from(old.state) {
                Ok(cri::ContainerState::ContainerRunning | cri::ContainerState::ContainerExited) => {
                    return Ok(Some(old.id.into()));
                }
                // Made by an attempt that was interrupted.
                _ => self.remove_container(old.id).await?,
            }
        }
        let ready = PodSandboxState::SandboxReady as i32;
        let sandbox = self.sandboxes_of(pod).await?.into_iter().find(|sandbox| sandbox.state == ready);
        let sandbox = sandbox.ok_or_else(|| Error::NotFound(format!("pod {}", pod.0)))?;
        let id = self.create_container(&sandbox, &container).await?;
        self.run(id.clone()).await?;
        Ok(Some(id.into()))
    }

    async fn stop(&self, container: &ContainerId, grace: Duration) -> Result<(), Error> {
        let Some(found) = self.find(container).await? else { return Ok(()) };
        // CRI counts in seconds.
        let seconds = grace.as_secs().saturating_add(u64::from(grace.subsec_nanos() > 0));
        let timeout = i64::try_from(seconds).unwrap_or(i64::MAX);
        let request = StopContainerRequest { container_id: found.id, timeout };
        let mut runtime = self.client.runtime();
        let limit = Duration::from_secs(seconds).saturating_add(SLOW);
        or_gone(
            self.client.call("stop the container", limit, runtime.stop_container(request)).await.map(drop),
        )
    }

    async fn remove(&self, container: &ContainerId) -> Result<(), Error> {
        let Some(found) = self.find(container).await? else { return Ok(()) };
        self.states().remove(&found.id);
        self.remove_container(found.id).await
    }

    async fn remove_pod(&self, pod: &PodId) -> Result<(), Error> {
        for sandbox in self.sandboxes_of(pod).await? {
            self.remove_sandbox(&sandbox.id).await?;
        }
        if self.limits_pods {
            cgroup::remove(&cgroup::path(&self.owner, &pod.0));
        }
        Ok(())
    }

    async fn list(&self) -> Result<Vec<ContainerStatus>, Error> {
        let all = owned(&self.client, &self.owner, []).await?;
        self.states().retain(|id, _| all.iter().any(|container| container.id == *id));
        let statuses = stream::iter(all.into_iter().map(|container| async move {
            let label = |key: &str| container.labels.get(key).cloned().unwrap_or_default();
            let state = self.state(&container).await?;
            Ok::<_, Error>(state.map(|state| ContainerStatus {
                id: ContainerId(label(CONTAINER_ID)),
                pod: PodId(label(POD_UID)),
                name: label(CONTAINER_NAME),
                handle: Some(container.id.as_str().into()),
                state,
            }))
        }));
        let found: Vec<_> = statuses.buffer_unordered(PARALLEL).try_collect().await?;
        Ok(found.into_iter().flatten().collect())
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    async fn usage(&self, container: &ContainerId) -> Result<Usage, Error> {
        let id = self.running(container).await?;
        let mut runtime = self.client.runtime();
        let stats = runtime.container_stats(ContainerStatsRequest { container_id: id });
        let stats = self.client.call("measure the container", QUICK, stats).await?.stats.unwrap_or_default();
        let cpu = stats.cpu.and_then(|cpu| cpu.usage_core_nano_seconds).map_or(0, |value| value.value);
        let memory = stats.memory.and_then(|memory| memory.working_set_bytes).map_or(0, |value| value.value);
        // Without overlays a container's files are a copy of its image's: what it wrote cannot be told.
        let layer = stats.writable_layer.filter(|_| self.images.has_overlays()).unwrap_or_default();
        let [disk, files] =
            [layer.used_bytes, layer.inodes_used].map(|used| used.map_or(0, |used| used.value));
        Ok(Usage { cpu: Duration::from_nanos(cpu), memory, disk, files, ..Usage::default() })
    }

    async fn exec(
        &self,
        container: &ContainerId,
        command: Vec<String>,
        streams: Streams,
    ) -> Result<Session, Error> {
        let id = self.running(container).await?;
        exec::exec(&self.client, &self.tasks, &self.work, &id, command, streams).await
    }

    async fn attach(&self, container: &ContainerId, streams: Streams) -> Result<Session, Error> {
        let id = self.running(container).await?;
        let (client, asked) = (self.client.clone(), id.clone());
        let code = async move {
            let begun = tokio::time::Instant::now();
            loop {
                if let ContainerState::Exited { code, .. } = container::state(&status(&client, &asked).await?)
                {
                    return Ok(code);
                }
                // The streams end a moment before the container is over.
                if begun.elapsed() > STREAMS_END {
                    let text = "the connection to the container's streams ended";
                    return Err(Error::Internal(text.to_owned()));
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        attach::attach(&self.client, &self.tasks, &id, streams, code).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_network_namespace_is_in_the_specification() {
        let info = |namespaces: serde_json::Value| serde_json::json!({"runtimeSpec": {"linux": {"namespaces": namespaces}}});
        let own = info(serde_json::json!([{"type": "pid"}, {"type": "network", "path": "/run/netns/x"}]));
        assert_eq!(network_namespace(&own), Some(PathBuf::from("/run/netns/x")));
        assert_eq!(network_namespace(&info(serde_json::json!([{"type": "pid"}]))), None);
        assert_eq!(network_namespace(&serde_json::Value::Null), None);
    }
}
