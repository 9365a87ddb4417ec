//! The gateway as a whole: start, addresses, shutdown.

use std::{
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use kube::Client;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    LocalServices, Routes,
    proxy::{Proxy, upstream::Upstreams},
    server::Server,
    watch,
};

/// Connections served at a time.
const CONNECTIONS: usize = 8192;
/// How long a request waits for a pod that should be there.
const HOLD: Duration = Duration::from_secs(5);

/// Where to listen.
#[derive(Debug)]
pub enum Bind {
    /// An address to bind; port 0 picks one.
    Address(SocketAddr),
    /// A socket that is bound already.
    Listener(TcpListener),
}

/// How the gateway is set up.
pub struct GatewayOptions {
    /// Plain HTTP/1.1 and HTTP/2.
    pub http: Bind,
    /// The same over TLS.
    pub https: Option<(Bind, Arc<rustls::ServerConfig>)>,
    /// Domain of default function hosts: `NAME.NAMESPACE.SUFFIX`.
    pub suffix: String,
    /// In-process services of this node.
    pub local: Arc<dyn LocalServices>,
    /// Connections served at a time; more wait in the listener's queue.
    pub connections: usize,
    /// How long a request for a function waits while none of its pods is ready.
    pub hold: Duration,
}

impl GatewayOptions {
    /// Plain HTTP at `http`, suffix `localhost`, no local services.
    pub fn new(http: Bind) -> Self {
        Self {
            http,
            https: None,
            suffix: "localhost".to_owned(),
            local: Arc::new(()),
            connections: CONNECTIONS,
            hold: HOLD,
        }
    }
}

/// Why the gateway cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be bound.
    #[error("cannot listen on {address}: {source}; choose another address with --http-addr or --https-addr")]
    Bind {
        /// What was asked for.
        address: String,
        /// Why not.
        source: std::io::Error,
    },
    /// The certificate cannot be made.
    #[error("cannot make a certificate: {0}")]
    Tls(String),
}

/// A running gateway. Dropping it ends everything at once; [`Gateway::shutdown`] lets requests finish.
pub struct Gateway {
    routes: Routes,
    tasks: TaskTracker,
    /// Idle connections to upstreams, which end when the proxy is gone.
    pooled: TaskTracker,
    stop: CancellationToken,
    kill: CancellationToken,
    http: SocketAddr,
    https: Option<SocketAddr>,
}

impl Gateway {
    /// Listens, and follows the cluster through `client`. Requests get 503 until every kind has been
    /// listed once.
    ///
    /// # Errors
    /// An address cannot be bound.
    pub fn start(client: Client, options: GatewayOptions) -> Result<Self, Error> {
        let suffix = options.suffix.clone();
        let gateway = Self::serve(Routes::default(), options)?;
        watch::start(client, suffix, gateway.routes.clone(), &gateway.tasks, &gateway.stop);
        Ok(gateway)
    }

    /// Listens and serves by `routes`, which somebody else keeps up to date. Must be called in a tokio
    /// runtime.
    ///
    /// # Errors
    /// An address cannot be bound.
    pub fn serve(routes: Routes, options: GatewayOptions) -> Result<Self, Error> {
        let (tasks, pooled) = (TaskTracker::new(), TaskTracker::new());
        let (stop, kill) = (CancellationToken::new(), CancellationToken::new());
        let upstreams = Upstreams::new(&pooled);
        let proxy = Proxy {
            routes: routes.clone(),
            local: options.local,
            upstreams,
            hold: options.hold,
            tasks: tasks.clone(),
            kill: kill.clone(),
        };
        let server = Server {
            proxy: Arc::new(proxy),
            tasks: tasks.clone(),
            stop: stop.clone(),
            kill: kill.clone(),
            connections: Arc::new(Semaphore::new(options.connections)),
        };
        let (listener, http) = bind(options.http)?;
        let https = match options.https {
            Some((at, config)) => Some((bind(at)?, config)),
            None => None,
        };
        tasks.spawn(server.clone().listen(listener, None));
        let https = https.map(|((listener, address), config)| {
            tasks.spawn(server.listen(listener, Some(TlsAcceptor::from(config))));
            address
        });
        Ok(Self { routes, tasks, pooled, stop, kill, http, https })
    }

    /// Address of the plain listener.
    pub fn http_addr(&self) -> SocketAddr {
        self.http
    }

    /// Address of the TLS listener.
    pub fn https_addr(&self) -> Option<SocketAddr> {
        self.https
    }

    /// The routes in force.
    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    /// Stops accepting, lets requests in flight finish for up to `drain`, then ends the rest. Returns
    /// whether all finished in time.
    pub async fn shutdown(self, drain: Duration) -> bool {
        self.stop.cancel();
        self.tasks.close();
        let finished = tokio::time::timeout(drain, self.tasks.wait()).await.is_ok();
        self.kill.cancel();
        self.tasks.wait().await;
        self.pooled.close();
        self.pooled.wait().await;
        finished
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.stop.cancel();
        self.kill.cancel();
    }
}

fn bind(at: Bind) -> Result<(tokio::net::TcpListener, SocketAddr), Error> {
    let name = match &at {
        Bind::Address(address) => address.to_string(),
        Bind::Listener(listener) => {
            listener.local_addr().map_or_else(|_| "a given socket".to_owned(), |a| a.to_string())
        }
    };
    let listen = || {
        let listener = match at {
            Bind::Address(address) => TcpListener::bind(address)?,
            Bind::Listener(listener) => listener,
        };
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok((tokio::net::TcpListener::from_std(listener)?, address))
    };
    listen().map_err(|source| Error::Bind { address: name, source })
}
