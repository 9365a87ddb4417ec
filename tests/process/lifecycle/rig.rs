//! The cluster of the suite and its pods: made from the same words for both kinds, watched from outside.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures::{StreamExt, TryStreamExt};
use ketch_api::k8s::api::core::v1 as core;
use ketch_tests::{Containers, PATIENCE};
use kube::api::{Api, DeleteParams, LogParams, PostParams, WatchEvent, WatchParams};
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinSet};

use super::facts::{self, Facts};

/// What runs in a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Components: the guests `job`, `hello` and `tcp-echo`.
    Wasm,
    /// Containers of the images `busybox` and `etcd`.
    Container,
}

impl Kind {
    pub(super) const ALL: [Self; 2] = [Self::Wasm, Self::Container];

    /// Where [`Pod::server`] serves the file `name` of `/www`.
    pub(super) fn file(self, name: &str) -> String {
        match self {
            Self::Wasm => format!("/file?path=/www/{name}"),
            Self::Container => format!("/{name}"),
        }
    }

    /// How a program ends that is asked to end and has [`Do::OnTerm`]`(143)`: a component cannot be asked, and
    /// says the same.
    pub(super) const TERMINATED: &str = "terminated Error 143";
}

/// Something a program does.
#[derive(Clone, Copy, Debug)]
pub(super) enum Do<'a> {
    Print(&'a str),
    /// So many lines of 100 bytes.
    Flood(u32),
    /// Milliseconds.
    Sleep(u64),
    Forever,
    Exit(u8),
    Cat(&'a str),
    Write(&'a str, &'a str),
    /// So many MiB into a file.
    Fill(&'a str, u32),
    Remove(&'a str),
    /// Until the text is in the file.
    Await(&'a str, &'a str),
    /// Prints the address of a name, once it has one.
    Lookup(&'a str),
    /// Prints a variable of its environment.
    Env(&'a str),
    /// Takes memory without end.
    Grow,
    /// Ends with this code when it is asked to end, from the next thing on that it does. Components cannot be asked.
    OnTerm(u8),
}

impl Do<'_> {
    /// For the guest `job`.
    fn words(self) -> Vec<String> {
        let words = |list: &[&dyn ToString]| list.iter().map(|word| word.to_string()).collect();
        match self {
            Self::Print(text) => words(&[&"print", &text]),
            Self::Flood(lines) => words(&[&"flood", &lines]),
            Self::Sleep(time) => words(&[&"sleep", &time]),
            Self::Forever => words(&[&"sleep", &0]),
            Self::Exit(code) => words(&[&"exit", &code]),
            Self::Cat(file) => words(&[&"cat", &file]),
            Self::Write(file, text) => words(&[&"write", &file, &text]),
            Self::Fill(file, size) => words(&[&"fill", &file, &size]),
            Self::Remove(file) => words(&[&"remove", &file]),
            Self::Await(file, text) => words(&[&"await", &file, &text]),
            Self::Lookup(name) => words(&[&"lookup", &name]),
            Self::Env(name) => words(&[&"env", &name]),
            Self::Grow => words(&[&"grow"]),
            Self::OnTerm(_) => Vec::new(),
        }
    }

    /// For a shell. As the first process of its container it ignores SIGTERM unless it says otherwise.
    fn script(self) -> String {
        match self {
            Self::Print(text) => format!("echo '{text}'"),
            Self::Flood(lines) => format!("yes {} | head -n {lines}", "f".repeat(99)),
            Self::Sleep(time) => format!("usleep {}", time * 1000),
            Self::Forever => "sleep 100000 & wait".to_owned(),
            Self::Exit(code) => format!("exit {code}"),
            Self::Cat(file) => format!("cat {file} || exit 1"),
            Self::Write(file, text) => format!("printf %s '{text}' >{file} || exit 1"),
            Self::Fill(file, size) => format!("dd if=/dev/zero of={file} bs=1M count={size} || exit 1"),
            Self::Remove(file) => format!("rm {file} || exit 1"),
            Self::Await(file, text) => format!("until grep -qs '{text}' {file}; do usleep 20000; done"),
            Self::Lookup(name) => {
                let found =
                    format!("ping -c 1 -w 1 {name} 2>/dev/null | sed -n 's/^PING[^(]*(\\([^)]*\\)).*/\\1/p'");
                format!("until a=$({found}) && [ -n \"$a\" ]; do usleep 100000; done; echo $a")
            }
            Self::Env(name) => format!("echo \"${name}\""),
            Self::Grow => "x=a; while :; do x=$x$x$x$x; done".to_owned(),
            Self::OnTerm(code) => format!("trap 'exit {code}' TERM"),
        }
    }
}

/// `base` with the fields of `more`.
pub(super) fn with(mut base: Value, more: Value) -> Value {
    if let (Some(base), Value::Object(more)) = (base.as_object_mut(), more) {
        base.extend(more);
    }
    base
}

/// What the API has shown, by pod.
#[derive(Default)]
struct Seen {
    history: HashMap<String, Vec<Facts>>,
    latest: HashMap<String, Value>,
    events: HashMap<String, Vec<String>>,
}

struct Shared {
    client: kube::Client,
    seen: Mutex<Seen>,
    changed: watch::Sender<()>,
    dir: PathBuf,
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn watch_pods(self: Arc<Self>) {
        let api: Api<core::Pod> = Api::default_namespaced(self.client.clone());
        let mut events = api.watch(&WatchParams::default(), "0").await.unwrap().boxed();
        while let Some(event) = events.try_next().await.unwrap_or_default() {
            let mut seen = self.seen();
            match event {
                WatchEvent::Added(pod) | WatchEvent::Modified(pod) => {
                    let (name, pod) =
                        (pod.metadata.name.clone().unwrap(), serde_json::to_value(pod).unwrap());
                    let (now, history) = (facts::of(&pod), seen.history.entry(name.clone()).or_default());
                    if history.last() != Some(&now) {
                        history.push(now);
                    }
                    seen.latest.insert(name, pod);
                }
                WatchEvent::Deleted(pod) => drop(seen.latest.remove(&pod.metadata.name.unwrap())),
                WatchEvent::Bookmark(_) | WatchEvent::Error(_) => {}
            }
            drop(seen);
            self.changed.send_replace(());
        }
    }

    async fn watch_events(self: Arc<Self>) {
        let api: Api<core::Event> = Api::default_namespaced(self.client.clone());
        let mut events = api.watch(&WatchParams::default(), "0").await.unwrap().boxed();
        while let Some(event) = events.try_next().await.unwrap_or_default() {
            if let WatchEvent::Added(event) | WatchEvent::Modified(event) = event {
                let text = |value: &Option<String>| value.clone().unwrap_or_default();
                let line = [text(&event.type_), text(&event.reason), text(&event.message)].join(" ");
                self.seen().events.entry(text(&event.involved_object.name)).or_default().push(line);
                self.changed.send_replace(());
            }
        }
    }
}

/// A cluster in which pods of both kinds are made and watched.
pub(super) struct Cluster {
    shared: Arc<Shared>,
    _watches: JoinSet<()>,
}

impl Cluster {
    /// Brings the images in.
    pub(super) fn push(containers: &Containers) {
        containers.push(&["busybox", "etcd"]);
        for guest in ["hello", "hello-p3", "job"] {
            containers.ketch().deploy(guest, &[]);
        }
        // Only its image is wanted: deployed like this it may listen nowhere, and fails.
        let guest = ketch_tests::guest("tcp-echo");
        containers.ketch().ketch(&["deploy", guest.to_str().unwrap(), "--timeout", "60"]);
    }

    /// Begins to watch.
    pub(super) async fn watch(containers: &Containers) -> Self {
        let ketch = containers.ketch();
        let shared = Arc::new(Shared {
            client: ketch.client().await,
            seen: Mutex::default(),
            changed: watch::Sender::new(()),
            dir: ketch.dir.clone(),
        });
        let mut watches = JoinSet::new();
        watches.spawn(Arc::clone(&shared).watch_pods());
        watches.spawn(Arc::clone(&shared).watch_events());
        Self { shared, _watches: watches }
    }

    /// A pod for a scenario; nothing exists yet.
    pub(super) fn pod(&self, scenario: &str, kind: Kind) -> Pod {
        let suffix = if kind == Kind::Wasm { "wasm" } else { "box" };
        let name: String = scenario.replace('_', "-").chars().take(50).collect();
        Pod { kind, name: format!("{name}-{suffix}"), shared: Arc::clone(&self.shared) }
    }
}

/// A pod of one kind, made and watched.
#[derive(Clone)]
pub(super) struct Pod {
    pub(super) kind: Kind,
    pub(super) name: String,
    shared: Arc<Shared>,
}

impl Pod {
    pub(super) fn title(&self) -> String {
        self.name.clone()
    }

    /// Another pod of the scenario.
    pub(super) fn named(&self, suffix: &str) -> Self {
        Self { name: format!("{}-{suffix}", self.name), ..self.clone() }
    }

    /// The same pod with what the other kind of program is made of.
    pub(super) fn of_kind(&self, kind: Kind) -> Self {
        Self { kind, ..self.clone() }
    }

    /// The command line that does `acts`.
    pub(super) fn command(&self, acts: &[Do<'_>]) -> Vec<String> {
        match self.kind {
            Kind::Wasm => {
                std::iter::once("job".to_owned()).chain(acts.iter().flat_map(|act| act.words())).collect()
            }
            Kind::Container => {
                let script: Vec<String> = acts.iter().map(|act| act.script()).collect();
                vec!["sh".to_owned(), "-c".to_owned(), script.join("\n")]
            }
        }
    }

    /// A container whose program does `acts`.
    pub(super) fn container(&self, name: &str, acts: &[Do<'_>]) -> Value {
        let image = if self.kind == Kind::Wasm { "job" } else { "busybox" };
        json!({"name": name, "image": format!("ketch.local/default/{image}:latest"), "imagePullPolicy": "IfNotPresent",
            "command": self.command(acts)})
    }

    /// A container that serves the files of `/www` on port 8080, see [`Kind::file`], and logs what it is asked for.
    pub(super) fn server(&self, name: &str) -> Value {
        self.server_at(name, 8080)
    }

    pub(super) fn server_at(&self, name: &str, port: u16) -> Value {
        let (image, command) = match self.kind {
            Kind::Wasm => ("hello", json!(null)),
            Kind::Container => {
                let serve = format!("mkdir -p /www; exec httpd -f -vv -p {port} -h /www");
                ("busybox", json!(["sh", "-c", serve]))
            }
        };
        json!({"name": name, "image": format!("ketch.local/default/{image}:latest"), "imagePullPolicy": "IfNotPresent",
            "command": command, "ports": [{"containerPort": port}]})
    }

    /// A container that answers gRPC's health checks, and the port where it does.
    pub(super) fn grpc_server(&self, name: &str) -> (Value, u16) {
        match self.kind {
            Kind::Wasm => (self.server(name), 8080),
            Kind::Container => {
                let image = "ketch.local/default/etcd:latest";
                (json!({"name": name, "image": image, "imagePullPolicy": "IfNotPresent"}), 2379)
            }
        }
    }

    pub(super) fn client(&self) -> kube::Client {
        self.shared.client.clone()
    }

    pub(super) fn api(&self) -> Api<core::Pod> {
        Api::default_namespaced(self.client())
    }

    /// Makes the pod. It never restarts anything, and ends within a second, unless `spec` says otherwise.
    pub(super) async fn create(&self, spec: Value) {
        let defaults = json!({"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": false});
        let pod = json!({"metadata": {"name": self.name, "labels": {"app": self.name}}, "spec": with(defaults, spec)});
        let pod = serde_json::from_value(pod).expect("a pod");
        self.api().create(&PostParams::default(), &pod).await.expect("it is created");
    }

    /// Makes a pod of one container, `main`, that does `acts`.
    pub(super) async fn run(&self, acts: &[Do<'_>]) {
        self.create(json!({"containers": [self.container("main", acts)]})).await;
    }

    /// Makes another object of the scenario, named after it.
    pub(super) async fn make<K>(&self, name: &str, object: Value)
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + serde::Serialize
            + serde::de::DeserializeOwned,
        K::DynamicType: Default,
    {
        let object =
            serde_json::from_value(with(object, json!({"metadata": {"name": name}}))).expect("an object");
        Api::<K>::default_namespaced(self.client())
            .create(&PostParams::default(), &object)
            .await
            .expect("it is created");
    }

    /// Waits until all of `expected` hold at once.
    pub(super) async fn becomes(&self, expected: &[&str]) {
        self.until(expected, |seen, name| {
            let latest = seen.latest.get(name).and_then(|_| seen.history.get(name)?.last());
            latest.is_some_and(|facts| expected.iter().all(|one| facts::hold(facts, one)))
        })
        .await;
    }

    /// Waits until all of `expected` have held at once at some time.
    pub(super) async fn passes(&self, expected: &[&str]) {
        self.until(expected, |seen, name| {
            let mut history = seen.history.get(name).into_iter().flatten();
            history.any(|facts| expected.iter().all(|one| facts::hold(facts, one)))
        })
        .await;
    }

    /// Waits for an event whose type, reason and message begin like this.
    pub(super) async fn event(&self, line: &str) {
        self.until(&[line], |seen, name| {
            seen.events.get(name).into_iter().flatten().any(|event| event.starts_with(line))
        })
        .await;
    }

    /// Waits until the object is gone.
    pub(super) async fn gone(&self) {
        self.until(&["gone"], |seen, name| {
            seen.history.contains_key(name) && !seen.latest.contains_key(name)
        })
        .await;
    }

    async fn until(&self, expected: &[&str], holds: impl Fn(&Seen, &str) -> bool) {
        let mut changed = self.shared.changed.subscribe();
        let wait = async {
            while !holds(&self.shared.seen(), &self.name) {
                changed.changed().await.expect("the watches live");
            }
        };
        if tokio::time::timeout(PATIENCE / 2, wait).await.is_err() {
            let seen = self.shared.seen();
            let empty = Facts::new();
            let last = seen.history.get(&self.name).and_then(|all| all.last()).unwrap_or(&empty);
            let missing: Vec<_> = expected.iter().filter(|one| !facts::hold(last, one)).collect();
            panic!(
                "{}: not so: {missing:?}; it is {last:#?}; events: {:#?}",
                self.name,
                seen.events.get(&self.name)
            );
        }
    }

    /// The object as seen last.
    pub(super) fn object(&self) -> Value {
        self.shared.seen().latest.get(&self.name).cloned().unwrap_or_default()
    }

    /// The first fact of `key` in what was seen last.
    pub(super) fn fact(&self, key: &str) -> String {
        let seen = self.shared.seen();
        let facts = seen.history.get(&self.name).and_then(|all| all.last()).into_iter().flatten();
        let found = facts.filter_map(|fact| fact.split_once('=')).find(|(name, _)| *name == key);
        found.map(|(_, value)| value.to_owned()).unwrap_or_default()
    }

    /// A directory of the pod on the node.
    pub(super) fn directory(&self) -> PathBuf {
        let uid = self.object()["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        self.shared.dir.join("node/pods").join(uid)
    }

    /// Where the node keeps the logs of a container of the pod.
    pub(super) fn logs_directory(&self, container: &str) -> PathBuf {
        let uid = self.object()["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        self.shared.dir.join("node/logs").join(format!("default_{}_{uid}", self.name)).join(container)
    }

    /// Deletes it with what its manifest says.
    pub(super) async fn delete(&self) {
        self.api().delete(&self.name, &DeleteParams::default()).await.expect("it is deleted");
    }

    /// What a container has written, but for the greeting of the guest `job`.
    pub(super) async fn logs(&self, container: &str, previous: bool) -> String {
        let params = LogParams { container: Some(container.to_owned()), previous, ..LogParams::default() };
        let text = self.api().logs(&self.name, &params).await.expect("it has logs");
        text.strip_prefix("job starts\n").map(str::to_owned).unwrap_or(text)
    }

    /// Waits for `text` in the logs.
    pub(super) async fn says(&self, container: &str, text: &str) {
        let begun = Instant::now();
        loop {
            let logs = self.logs(container, false).await;
            if logs.contains(text) {
                return;
            }
            assert!(begun.elapsed() < PATIENCE / 2, "{}: {text:?} is not in {logs:?}", self.name);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
