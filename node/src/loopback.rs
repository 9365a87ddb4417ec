//! Ports of the node that pods have (`hostPort`) as they are at loopback addresses: sockets of this process, which
//! copy what comes to the pod.
//!
//! Rules of the kernel would go before the programs that listen on loopback, the API of this very process among
//! them, and need `route_localnet`, which opens such programs to pods wherever another rule is missing
//! (CVE-2020-8558). A socket leaves a port to the program that has it, needs no rights, works for pods of both
//! kinds, and is gone with the process however that ends.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::{SocketAddr, SocketAddrV4},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ketch_net::{Transport, forward::HostPort};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Ports that are open at a time.
const PORTS: usize = 1_024;
/// Connections and clients of datagrams at a time, to all ports.
const CLIENTS: usize = 4_096;
/// The same, to one port. More connections wait in the kernel's queue; datagrams of more clients are dropped.
const PORT_CLIENTS: usize = 512;
/// How long a pod may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// A client of datagrams is forgotten when neither it nor the pod has sent one for this time, or up to twice that.
const IDLE: Duration = Duration::from_secs(60);
/// After a failure to accept or to receive.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest datagram.
const DATAGRAM: usize = 65_535;

/// The open ports of all pods of a node.
pub(crate) struct Loopback {
    pods: Mutex<BTreeMap<String, Open>>,
    ports: Arc<Semaphore>,
    clients: Arc<Semaphore>,
    stop: CancellationToken,
}

/// What a pod has.
struct Open {
    ports: Vec<HostPort>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// A port, bound.
enum Bound {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

/// What the clients of a port share.
struct Port {
    target: SocketAddrV4,
    /// Places for clients of this port, and for those of all ports.
    own: Arc<Semaphore>,
    all: Arc<Semaphore>,
    tasks: TaskTracker,
    stop: CancellationToken,
    _place: OwnedSemaphorePermit,
}

// === impl Loopback ===

impl Loopback {
    /// None are open. `stop` closes all that will be.
    pub(crate) fn new(stop: CancellationToken) -> Self {
        let places = |count| Arc::new(Semaphore::new(count));
        Self { pods: Mutex::default(), ports: places(PORTS), clients: places(CLIENTS), stop }
    }

    /// Opens a pod's ports; what keeps one closed, as a text each. Those that are open already stay so, with their
    /// connections. A port that a program has is not waited for: it would be lost to that program when it starts
    /// again.
    pub(crate) async fn open(&self, uid: &str, ports: Vec<(SocketAddrV4, HostPort)>) -> Vec<String> {
        let wanted: Vec<HostPort> = ports.iter().map(|(_, port)| port.clone()).collect();
        if self.pods().get(uid).is_some_and(|open| open.ports == wanted) {
            return Vec::new();
        }
        self.close(uid).await;
        let open = Open { ports: wanted, stop: self.stop.child_token(), tasks: TaskTracker::new() };
        let mut failures = Vec::new();
        for (at, port) in ports {
            match self.bind(at, port.transport).await {
                Ok((bound, place)) => open.serve(bound, &port, place, &self.clients),
                Err(why) => failures.push(format!("{at}: {why}")),
            }
        }
        self.pods().insert(uid.to_owned(), open);
        failures
    }

    /// Closes a pod's ports, and ends their connections. The ports are free afterwards.
    pub(crate) async fn close(&self, uid: &str) {
        let Some(open) = self.pods().remove(uid) else { return };
        open.stop.cancel();
        open.tasks.close();
        open.tasks.wait().await;
    }

    async fn bind(
        &self,
        at: SocketAddrV4,
        transport: Transport,
    ) -> Result<(Bound, OwnedSemaphorePermit), String> {
        let place = Arc::clone(&self.ports).try_acquire_owned();
        let place = place.map_err(|_| format!("pods of this node have {PORTS} ports there already"))?;
        let bound = match transport {
            Transport::Tcp => TcpListener::bind(at).await.map(Bound::Tcp),
            Transport::Udp => UdpSocket::bind(at).await.map(Bound::Udp),
        };
        let bound = bound.map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => {
                "a program of the node has the port and keeps it; stop it and make the pod again".to_owned()
            }
            _ => error.to_string(),
        });
        Ok((bound?, place))
    }

    fn pods(&self) -> MutexGuard<'_, BTreeMap<String, Open>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn serve(&self, bound: Bound, port: &HostPort, place: OwnedSemaphorePermit, all: &Arc<Semaphore>) {
        let port = Port {
            target: SocketAddrV4::new(port.target.0, port.target.1),
            own: Arc::new(Semaphore::new(PORT_CLIENTS)),
            all: Arc::clone(all),
            tasks: self.tasks.clone(),
            stop: self.stop.clone(),
            _place: place,
        };
        let work = async move {
            match bound {
                Bound::Tcp(listener) => port.accept(listener).await,
                Bound::Udp(socket) => port.receive(socket).await,
            }
        };
        self.tasks.spawn(self.stop.clone().run_until_cancelled_owned(work));
    }
}

impl Port {
    async fn accept(self, listener: TcpListener) {
        loop {
            let own = Arc::clone(&self.own).acquire_owned().await;
            let client = match listener.accept().await {
                Ok((client, _)) => client,
                Err(error) => {
                    tracing::debug!(%error, target = %self.target, "a connection could not be accepted");
                    // Out of files: some have to be closed first.
                    sleep(PAUSE).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&self.all).try_acquire_owned() else {
                let _ = client.set_zero_linger();
                continue;
            };
            let target = self.target;
            self.spawn(async move {
                let _places = (own, place);
                pass(client, target).await;
            });
        }
    }

    async fn receive(self, socket: UdpSocket) {
        let socket = Arc::new(socket);
        let mut clients: HashMap<SocketAddr, Weak<Client>> = HashMap::new();
        let mut buffer = vec![0; DATAGRAM];
        loop {
            let (length, from) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(error) => {
                    tracing::debug!(%error, target = %self.target, "a datagram could not be received");
                    sleep(PAUSE).await;
                    continue;
                }
            };
            let client = match clients.get(&from).and_then(Weak::upgrade) {
                Some(client) => client,
                None => {
                    clients.retain(|_, client| client.strong_count() > 0);
                    let Some(client) = self.meet(from, &socket).await else { continue };
                    clients.insert(from, Arc::downgrade(&client));
                    client
                }
            };
            client.sends.store(true, Ordering::Relaxed);
            // Datagrams may be lost.
            if let Some(datagram) = buffer.get(..length) {
                let _ = client.socket.send(datagram).await;
            }
        }
    }

    /// A socket for a client of datagrams, whose answers go back to it; `None`: there is no room.
    async fn meet(&self, from: SocketAddr, answers: &Arc<UdpSocket>) -> Option<Arc<Client>> {
        let own = Arc::clone(&self.own).try_acquire_owned().ok()?;
        let place = Arc::clone(&self.all).try_acquire_owned().ok()?;
        let socket = UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0)).await.ok()?;
        socket.connect(self.target).await.ok()?;
        let client = Arc::new(Client { socket, sends: AtomicBool::new(true) });
        let (of_task, answers) = (Arc::clone(&client), Arc::clone(answers));
        self.spawn(async move {
            let _places = (own, place);
            answer(&of_task, from, &answers).await;
        });
        Some(client)
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(self.stop.clone().run_until_cancelled_owned(work));
    }
}

/// Copies until both sides have ended; what breaks one breaks the other.
async fn pass(mut client: TcpStream, target: SocketAddrV4) {
    let Ok(Ok(mut pod)) = timeout(CONNECT, TcpStream::connect(target)).await else {
        // Reset: an end would be an answer without content.
        let _ = client.set_zero_linger();
        return;
    };
    for side in [&client, &pod] {
        let _ = side.set_nodelay(true);
    }
    if copy_bidirectional(&mut client, &mut pod).await.is_err() {
        for side in [&client, &pod] {
            let _ = side.set_zero_linger();
        }
    }
}

/// A client of datagrams, as the pod sees it.
struct Client {
    socket: UdpSocket,
    /// Whether it has sent something since this was last looked at.
    sends: AtomicBool,
}

/// Passes on what the pod answers, until both have been silent.
async fn answer(client: &Client, to: SocketAddr, through: &UdpSocket) {
    loop {
        match timeout(IDLE, client.socket.readable()).await {
            Err(_) if client.sends.swap(false, Ordering::Relaxed) => {}
            Err(_) | Ok(Err(_)) => return,
            Ok(Ok(())) => {
                let mut datagram = Vec::with_capacity(DATAGRAM);
                match client.socket.try_recv_buf(&mut datagram) {
                    Ok(_) => drop(through.send_to(&datagram, to).await),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    // The pod does not listen; the next datagram tries again.
                    Err(_) => return,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{Ipv4Addr, Shutdown},
    };

    use super::*;

    /// Nobody else's.
    const HERE: Ipv4Addr = Ipv4Addr::new(127, 77, 8, 1);
    const POD: Ipv4Addr = Ipv4Addr::new(127, 77, 8, 2);

    fn port(transport: Transport, port: u16, target: u16) -> (SocketAddrV4, HostPort) {
        let at = SocketAddrV4::new(HERE, port);
        (at, HostPort { transport, host: None, port, target: (POD, target) })
    }

    /// What a connection brings back for `text`.
    async fn ask(at: SocketAddrV4, text: &'static str) -> io::Result<String> {
        let ask = move || {
            let mut stream = std::net::TcpStream::connect(at)?;
            stream.write_all(text.as_bytes())?;
            stream.shutdown(Shutdown::Write)?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        tokio::task::spawn_blocking(ask).await.unwrap()
    }

    /// A pod that says back what it was told, once that has ended.
    fn echo(listener: std::net::TcpListener) {
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let mut text = Vec::new();
                stream.read_to_end(&mut text).unwrap();
                stream.write_all(&text).unwrap();
            }
        });
    }

    #[tokio::test]
    async fn connections_are_the_pods_until_it_is_gone() {
        let pod = std::net::TcpListener::bind((POD, 0)).unwrap();
        let target = pod.local_addr().unwrap().port();
        let loopback = Loopback::new(CancellationToken::new());
        let ports = || vec![port(Transport::Tcp, 2001, target)];
        let at = ports()[0].0;
        assert!(loopback.open("a", ports()).await.is_empty());
        let mut held = tokio::net::TcpStream::connect(at).await.unwrap();
        let accepted = tokio::task::spawn_blocking(move || (pod.accept().unwrap(), pod));
        let ((stream, _), pod) = accepted.await.unwrap();
        echo(pod);
        assert_eq!(ask(at, "hello").await.unwrap(), "hello");
        assert!(loopback.open("a", ports()).await.is_empty(), "it has them");
        assert_eq!(ask(at, "again").await.unwrap(), "again");
        assert_eq!(loopback.ports.available_permits(), PORTS - 1);
        loopback.close("a").await;
        assert_eq!(ask(at, "hello").await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        let mut rest = Vec::new();
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut held, &mut rest).await;
        assert!(rest.is_empty(), "its connections end");
        drop(stream);
        assert_eq!(
            (loopback.ports.available_permits(), loopback.clients.available_permits()),
            (PORTS, CLIENTS)
        );
        // The next one has it at once.
        assert!(loopback.open("b", ports()).await.is_empty());
        assert_eq!(ask(at, "hello").await.unwrap(), "hello");
    }

    #[tokio::test]
    async fn a_port_stays_with_the_program_that_has_it() {
        let program = std::net::TcpListener::bind((HERE, 2002)).unwrap();
        echo(program);
        let loopback = Loopback::new(CancellationToken::new());
        let failures = loopback.open("a", vec![port(Transport::Tcp, 2002, 9)]).await;
        assert!(matches!(&failures[..], [why] if why.starts_with("127.77.8.1:2002: a program of the node")));
        assert_eq!(ask(SocketAddrV4::new(HERE, 2002), "mine").await.unwrap(), "mine");
        assert_eq!(loopback.ports.available_permits(), PORTS);
    }

    #[tokio::test]
    async fn who_meets_no_program_in_the_pod_is_told() {
        let stop = CancellationToken::new();
        let loopback = Loopback::new(stop.clone());
        let ports = vec![port(Transport::Tcp, 2003, 9)];
        let at = ports[0].0;
        loopback.open("a", ports).await;
        let broken = ask(at, "hello").await.unwrap_err().kind();
        // Whether it shows when writing or when reading.
        assert!(matches!(
            broken,
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::NotConnected
        ));
        stop.cancel();
        loopback.close("a").await;
        assert_eq!(ask(at, "hello").await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn answers_to_datagrams_go_to_whom_they_are_for() {
        let pod = UdpSocket::bind((POD, 0)).await.unwrap();
        let loopback = Loopback::new(CancellationToken::new());
        let ports = vec![port(Transport::Udp, 2004, pod.local_addr().unwrap().port())];
        let at = ports[0].0;
        assert!(loopback.open("a", ports).await.is_empty());
        let mut clients = Vec::new();
        for text in ["one", "two"] {
            let client = UdpSocket::bind((HERE, 0)).await.unwrap();
            client.connect(at).await.unwrap();
            client.send(text.as_bytes()).await.unwrap();
            clients.push((text, client));
        }
        let mut buffer = [0; 16];
        let mut asked = Vec::new();
        for _ in 0..2 {
            let (length, from) = pod.recv_from(&mut buffer).await.unwrap();
            asked.push((buffer[..length].to_vec(), from));
        }
        assert_ne!(asked[0].1, asked[1].1);
        for (text, from) in asked.iter().rev() {
            pod.send_to(text, from).await.unwrap();
        }
        for (text, client) in &clients {
            let length = client.recv(&mut buffer).await.unwrap();
            assert_eq!(&buffer[..length], text.as_bytes());
        }
        // A client is known again.
        clients[0].1.send(b"more").await.unwrap();
        let (length, from) = pod.recv_from(&mut buffer).await.unwrap();
        assert!(asked.contains(&(b"one".to_vec(), from)));
        assert_eq!(&buffer[..length], b"more");
        loopback.close("a").await;
        assert_eq!(loopback.clients.available_permits(), CLIENTS);
    }
}
