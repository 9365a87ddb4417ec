//! [`Server`]: the control plane put together, and its end.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use ketch_api::{join::Relay, names::ADMIN_GROUP};
use ketch_apiserver::{ApiServer, admission::cluster_ip::ServiceCidr, auth, pki::Pki, serve};
use ketch_client::{TaskError, Tasks, kubeconfig::Credentials};
use ketch_registry::Registry;
use ketch_store::{RedbOptions, RedbStore, Retention, Storage};
use tokio_util::sync::CancellationToken;

use crate::{
    console::{self, Console},
    data_dir::{DataDir, DataDirError},
    front::Front,
    images::Images,
    join::{Joins, Open},
    listeners::{BindError, bind, bind_udp},
    meter::{self, Meter},
    nodes::Nodes,
    options::Options,
    own_service,
    tunnel::Tunnel,
};

/// Why the control plane could not be started. The texts are for the person who started it.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// A port.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The store.
    #[error("cannot open the store: {0}")]
    Store(String),
    /// The certificate authority.
    #[error("cannot open the certificate authority")]
    Pki(#[from] ketch_apiserver::pki::PkiError),
    /// The registry.
    #[error("cannot open the registry: {0}")]
    Registry(String),
    /// Authentication or the first objects.
    #[error("cannot prepare the API: {0}")]
    Api(String),
    /// The kubeconfig or `run.json`.
    #[error("cannot write {what}: {source}")]
    Write {
        /// Which file.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

/// A running control plane.
pub struct Server {
    api: Arc<ApiServer>,
    auth: Arc<auth::Auth>,
    store: Arc<RedbStore>,
    nodes: Arc<Nodes>,
    front: Front,
    gateway: Arc<OnceLock<SocketAddr>>,
    tasks: Tasks,
    roles: Option<Roles>,
    listeners: (tokio::task::JoinSet<()>, CancellationToken),
    tunnel: Tunnel,
    pki: Arc<Pki>,
    data_dir: DataDir,
    /// TLS listener.
    pub api_addr: SocketAddr,
    /// Plain listener.
    pub ui_addr: SocketAddr,
    /// Where nodes connect (UDP).
    pub quic_addr: SocketAddr,
}

/// What acts on the API from inside this process.
struct Roles {
    /// Watches the roles share; they end with the owner's tasks.
    #[allow(dead_code, reason = "held for as long as the controllers run")]
    informers: ketch_client::Informers,
    controllers: ketch_controllers::Controllers,
    scheduler: ketch_scheduler::Scheduler,
}

// === impl Server ===

impl Server {
    /// Starts everything. Ports are bound first, so that what is wrong with the configuration is said before
    /// anything is written; the API is served when this returns.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(
        options: Options,
        on_push: Option<ketch_registry::PushHook>,
    ) -> Result<Self, StartError> {
        let data_dir = DataDir::open(&options.data_dir)?;
        let (tls, plain) = (bind(options.api_addr, "api-addr")?, bind(options.ui_addr, "ui-addr")?);
        let quic = bind_udp(options.quic_addr, "quic-addr")?;
        let quic_addr = quic.local_addr().unwrap_or(options.quic_addr);
        let local = |listener: &std::net::TcpListener, asked| listener.local_addr().unwrap_or(asked);
        let (api_addr, ui_addr) = (local(&tls, options.api_addr), local(&plain, options.ui_addr));
        let root = data_dir.path().join("server");
        let pki = Arc::new(Pki::open(root.join("pki"), &subject_names(&options)?)?);
        let store = {
            let path = root.join("store");
            let opened =
                tokio::task::spawn_blocking(move || RedbStore::open(path, RedbOptions::default())).await;
            let store = opened.map_err(|error| StartError::Store(error.to_string()))?;
            Arc::new(store.map_err(|error| StartError::Store(error.to_string()))?)
        };
        let storage: Arc<dyn Storage> = store.clone();
        let auth = auth::Auth::start(storage.clone(), pki.service_account_key()).await;
        let auth = auth.map_err(|error| StartError::Api(error.to_string()))?;
        let (nodes, gateway) = (Arc::new(Nodes::default()), Arc::new(OnceLock::new()));
        let meter = Arc::new(Meter::default());
        let api = api_server(&options, &storage, &auth, (&nodes, &meter))?;
        api.bootstrap(api_addr.port()).await.map_err(|status| StartError::Api(status.message))?;
        let images = registry(&root, on_push)?;
        let router = api.router();
        let front = Front {
            api: router.clone(),
            images: Images { registry: images.router(), auth: auth.clone() },
            console: Console {
                api: router,
                auth: auth.clone(),
                invoker: Console::invoker(),
                gateway: gateway.clone(),
                ui: ui_addr,
            },
            joins: Arc::new(joins(&options, &api, &auth, &pki, quic_addr.port())?),
        };
        write_kubeconfig(&data_dir, &pki, api_addr)?;
        let tasks = Tasks::default();
        tasks.periodic("collect unused image data", IMAGE_GRACE, move || {
            let images = images.clone();
            async move { images.collect_garbage(IMAGE_GRACE).await.map(drop).map_err(TaskError::new) }
        });
        let measured = nodes.clone();
        tasks.periodic("measure nodes", meter::INTERVAL, move || {
            let (meter, nodes) = (meter.clone(), measured.clone());
            async move {
                meter.look(&nodes).await;
                Ok(())
            }
        });
        let listeners = listen(&front, tls, plain, &pki)?;
        let tunnel = Tunnel::listen(quic, &pki, nodes.clone())?;
        let mut server = Self {
            api,
            auth,
            store,
            nodes,
            front,
            gateway,
            tasks,
            roles: None,
            listeners,
            tunnel,
            pki: pki.clone(),
            data_dir,
            api_addr,
            ui_addr,
            quic_addr,
        };
        server.roles = Some(server.run_background(&options, pki.ca_pem()));
        Ok(server)
    }
}

impl Server {
    /// A client in this process with the identity of `user`: for the API and for the registry.
    pub fn client(&self, user: auth::User) -> kube::Client {
        ketch_client::in_process(self.front.clone().router(false), move |extensions| {
            extensions.insert(user.clone());
        })
    }

    /// The ways to the nodes.
    pub fn nodes(&self) -> &Arc<Nodes> {
        &self.nodes
    }

    /// Lets nodes on other machines in from now on. `reserved`: pod addresses of the node in this process;
    /// `relay`: what in this process carries packets between nodes.
    pub async fn admit_nodes(&self, reserved: &[String], relay: Option<Relay>) {
        let reserved = reserved.iter().filter_map(|range| range.parse().ok()).collect();
        self.front.joins.open(Open { reserved, relay }).await;
    }

    /// The cluster's authority: what is beside the server in its process gets its certificates here.
    pub fn pki(&self) -> &Arc<Pki> {
        &self.pki
    }

    /// Answers on `listener` too, as on the address of the API.
    ///
    /// # Errors
    /// When the listener or the certificate cannot be used.
    pub fn listen_too(&mut self, listener: std::net::TcpListener) -> Result<(), StartError> {
        let failed = |error: std::io::Error| StartError::Api(error.to_string());
        let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
        let config = Some(Arc::new(self.pki.server_config()?));
        let (set, stop) = &mut self.listeners;
        let router = self.front.clone().router(true);
        set.spawn(serve::serve(listener, config, router, serve::Limits::default(), stop.clone()));
        Ok(())
    }

    /// Makes `endpoint` the one where pods reach the API by the Service `kubernetes`, and keeps it so.
    pub fn publish_api(&self, endpoint: SocketAddr) {
        let (api, client) =
            (self.api.clone(), self.client(auth::User::new("system:apiserver", &[ADMIN_GROUP])));
        self.tasks.periodic("keep the Service kubernetes", OWN_SERVICE_INTERVAL, move || {
            let (api, client) = (api.clone(), client.clone());
            async move { own_service::keep(&api, &client, endpoint).await }
        });
    }

    /// Tells the console where Functions answer.
    pub fn set_gateway(&self, address: SocketAddr) {
        // A second gateway in one process does not happen; the first one counts.
        let _ = self.gateway.set(address);
    }

    /// A new login link for an administrator.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn login_link(&self) -> Result<String, ketch_api::Status> {
        let token = self.auth.console().create_token("admin", &[ADMIN_GROUP], console::LINK_LIFE).await?;
        Ok(console::link(self.ui_addr, &token))
    }

    /// The data directory, for files of other roles in this process.
    pub fn data_dir(&self) -> &DataDir {
        &self.data_dir
    }

    fn run_background(&self, options: &Options, ca: &str) -> Roles {
        let auth = self.auth.clone();
        self.tasks.spawn("follow access rules", move || {
            let auth = auth.clone();
            async move {
                auth.run().await;
                Ok(())
            }
        });
        let storage: Arc<dyn Storage> = self.store.clone();
        self.tasks.spawn("compact history", move || {
            let storage = storage.clone();
            async move {
                ketch_store::keep_compacted(storage, Retention::default(), COMPACTION_INTERVAL).await;
                Ok(())
            }
        });
        let client = self.client(auth::User::new("system:ketch-controllers", &[ADMIN_GROUP]));
        let informers = ketch_client::Informers::new(client.clone(), &self.tasks);
        let settings = ketch_controllers::Options {
            function_domain: options.function_domain.clone(),
            ca: ca.to_owned(),
            ..ketch_controllers::Options::default()
        };
        let controllers = ketch_controllers::run_all(client.clone(), &informers, settings);
        let scheduler = ketch_scheduler::Scheduler::start(client, &informers);
        Roles { informers, controllers, scheduler }
    }

    /// Ends everything in order: no new work, watches closed, requests drained, the store last.
    pub async fn shutdown(mut self) {
        if let Some(roles) = self.roles.take() {
            roles.scheduler.shutdown().await;
            roles.controllers.shutdown().await;
        }
        self.tasks.shutdown().await;
        self.api.stop();
        self.tunnel.shutdown().await;
        self.listeners.1.cancel();
        while self.listeners.0.join_next().await.is_some() {}
        self.store.close().await;
    }
}

/// How long what is missing of the Service `kubernetes` is missing.
const OWN_SERVICE_INTERVAL: Duration = Duration::from_secs(8);
/// How often it is asked what history is due.
const COMPACTION_INTERVAL: Duration = Duration::from_secs(30);
/// How long image data that nothing names is kept: an upload's parts arrive before what names them.
const IMAGE_GRACE: Duration = Duration::from_secs(3600);
/// Life of the administrator's certificate; a new one is made at each start.
const ADMIN_LIFE: Duration = Duration::from_secs(365 * 86_400);

/// Names the certificate is for besides those every server has: the ones that were asked for, and the address
/// of the Service `kubernetes`.
fn subject_names(options: &Options) -> Result<Vec<String>, StartError> {
    let range: ServiceCidr = options.service_cidr.parse().map_err(StartError::Api)?;
    let service = range.first().to_string();
    Ok(options.subject_names.iter().cloned().chain([service]).collect())
}

fn api_server(
    options: &Options,
    storage: &Arc<dyn Storage>,
    auth: &Arc<auth::Auth>,
    (nodes, meter): (&Arc<Nodes>, &Arc<Meter>),
) -> Result<Arc<ApiServer>, StartError> {
    let service_cidr = options.service_cidr.parse().map_err(StartError::Api)?;
    let config = ketch_apiserver::Config {
        reviews: Some(auth.clone()),
        admission: auth.admission(),
        nodes: Some(nodes.clone()),
        metrics: Some(meter.clone()),
        paths: vec![auth.clone()],
        service_cidr,
        ..ketch_apiserver::Config::new(auth.clone(), auth.clone())
    };
    Ok(ApiServer::new(storage.clone(), config))
}

fn joins(
    options: &Options,
    api: &Arc<ApiServer>,
    auth: &Arc<auth::Auth>,
    pki: &Arc<Pki>,
    quic_port: u16,
) -> Result<Joins, StartError> {
    let user = auth::User::new("system:ketch-join", &[ADMIN_GROUP]);
    let pods = options.pod_cidr.parse();
    Ok(Joins {
        auth: auth.clone(),
        pki: pki.clone(),
        client: ketch_client::in_process(api.router(), move |extensions| {
            extensions.insert(user.clone());
        }),
        cluster: ketch_api::join::Cluster {
            pod_cidr: options.pod_cidr.clone(),
            service_cidr: options.service_cidr.clone(),
            quic_port,
            function_domain: options.function_domain.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            relay: None,
        },
        pods: pods.map_err(|_| StartError::Api(format!("{} is no range of addresses", options.pod_cidr)))?,
        life: options.node_cert_life,
        open: Default::default(),
    })
}

fn registry(
    root: &std::path::Path,
    on_push: Option<ketch_registry::PushHook>,
) -> Result<Registry, StartError> {
    let options = ketch_registry::RegistryOptions { on_push, ..Default::default() };
    let registry = Registry::open(root.join("registry"), options);
    registry.map_err(|error| StartError::Registry(error.to_string()))
}

fn write_kubeconfig(data_dir: &DataDir, pki: &Pki, api: SocketAddr) -> Result<(), StartError> {
    let certificate = pki.client_cert("admin", &[ADMIN_GROUP], ADMIN_LIFE)?;
    let reached =
        if api.ip().is_unspecified() { SocketAddr::from(([127, 0, 0, 1], api.port())) } else { api };
    let entry = ketch_client::kubeconfig::Entry {
        name: "ketch".into(),
        server: format!("https://{reached}"),
        ca: pki.ca_pem().to_owned(),
        credentials: Credentials::Certificate {
            certificate: certificate.certificate,
            key: certificate.key.to_string(),
        },
        namespace: None,
    };
    let text =
        ketch_client::kubeconfig::render(&entry).map_err(|error| StartError::Api(error.to_string()))?;
    data_dir
        .write("admin.kubeconfig", &text)
        .map_err(|source| StartError::Write { what: "admin.kubeconfig", source })
}

fn listen(
    front: &Front,
    tls: std::net::TcpListener,
    plain: std::net::TcpListener,
    pki: &Pki,
) -> Result<(tokio::task::JoinSet<()>, CancellationToken), StartError> {
    let failed = |error: std::io::Error| StartError::Api(error.to_string());
    let (mut set, stop) = (tokio::task::JoinSet::new(), CancellationToken::new());
    let config = Arc::new(pki.server_config()?);
    let tls = tokio::net::TcpListener::from_std(tls).map_err(failed)?;
    let plain = tokio::net::TcpListener::from_std(plain).map_err(failed)?;
    let limits = serve::Limits::default();
    set.spawn(serve::serve(tls, Some(config), front.clone().router(true), limits.clone(), stop.clone()));
    set.spawn(serve::serve(plain, None, front.clone().router(false), limits, stop.clone()));
    Ok((set, stop))
}
