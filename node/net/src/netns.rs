//! Sockets in a network namespace that is not this process's.
//!
//! A socket belongs to the namespace of the thread that made it, for good, and works on every thread. So a
//! thread of its own enters the namespace, makes the socket, and is thrown away: no thread that does anything
//! else ever changes its namespace, and none has to find its way back.

use std::{
    fs::File,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    thread,
};

use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Socket, Type};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream, UdpSocket},
    runtime::Handle,
};

/// Connections that wait to be accepted (the kernel's own limit is lower on most machines).
const BACKLOG: u32 = 4096;
/// What a thread that only makes a socket needs.
const STACK: usize = 256 << 10;

/// Runs `work` on a thread in the namespace at `path`, such as `/var/run/netns/NAME` or `/proc/PID/ns/net`.
/// Blocks for the tens of microseconds that a thread takes. What `work` makes with tokio belongs to the
/// caller's tokio runtime.
///
/// # Errors
/// When there is no such namespace, or without CAP_SYS_ADMIN.
pub fn run<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let named = |error: io::Error| {
        io::Error::new(error.kind(), format!("network namespace {}: {error}", path.display()))
    };
    let file = File::open(path).map_err(named)?;
    let runtime = Handle::try_current().ok();
    let inside = move || {
        setns(&file, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
        let _entered = runtime.as_ref().map(Handle::enter);
        Ok(work())
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("netns".to_owned()).stack_size(STACK);
        let ended = thread.spawn_scoped(scope, inside)?.join();
        ended.map_err(|_| io::Error::other("the thread in it failed"))?
    })
    .map_err(named)
}

/// Connects to `target` from the namespace. Cancel-safe.
///
/// # Errors
/// As [`run`], and those of the connection.
pub async fn connect(path: &Path, target: SocketAddr) -> io::Result<TcpStream> {
    let new = || if target.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    run(path, new)??.connect(target).await
}

/// Listens at `address` in the namespace. Call it in a tokio runtime.
///
/// # Errors
/// As [`run`], and those of the bind.
pub fn listen(path: &Path, address: SocketAddr) -> io::Result<TcpListener> {
    run(path, || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    })?
}

/// Listens on `port` at all addresses in the namespace, of both families where it has both.
///
/// # Errors
/// As [`listen`].
pub fn listen_everywhere(path: &Path, port: u16) -> io::Result<TcpListener> {
    let both = || -> io::Result<TcpListener> {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
        socket.set_only_v6(false)?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
        socket.listen(BACKLOG.cast_signed())?;
        TcpListener::from_std(socket.into())
    };
    match run(path, both)? {
        Ok(listener) => Ok(listener),
        // A host may have no IPv6.
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
            listen(path, (Ipv4Addr::UNSPECIFIED, port).into())
        }
        Err(error) => Err(error),
    }
}

/// A UDP socket bound to `address` in the namespace. Call it in a tokio runtime.
///
/// # Errors
/// As [`run`], and those of the bind.
pub fn bind_udp(path: &Path, address: SocketAddr) -> io::Result<UdpSocket> {
    run(path, || {
        let socket = std::net::UdpSocket::bind(address)?;
        socket.set_nonblocking(true)?;
        UdpSocket::from_std(socket)
    })?
}

#[cfg(test)]
mod tests {
    use std::{path::PathBuf, process::Command};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// A namespace with its loopback up, for one test.
    struct Namespace(String);

    impl Namespace {
        fn new(name: &str) -> Option<Self> {
            let name = format!("ketch-netns-{}-{name}", std::process::id());
            let ip = |arguments: &[&str]| {
                Command::new("ip").args(arguments).status().is_ok_and(|status| status.success())
            };
            if !nix::unistd::Uid::effective().is_root() || !ip(&["netns", "add", &name]) {
                println!("skipped: network namespaces need root and iproute2");
                return None;
            }
            let namespace = Self(name);
            assert!(ip(&["-n", &namespace.0, "link", "set", "lo", "up"]));
            Some(namespace)
        }

        fn path(&self) -> PathBuf {
            Path::new("/var/run/netns").join(&self.0)
        }
    }

    impl Drop for Namespace {
        fn drop(&mut self) {
            let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
        }
    }

    #[tokio::test]
    async fn a_listener_inside_is_reached_inside_and_nowhere_else() {
        let Some(namespace) = Namespace::new("tcp") else { return };
        let listener = listen_everywhere(&namespace.path(), 0).unwrap();
        let port = listener.local_addr().unwrap().port();
        let target = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"inside").await.unwrap();
        };
        let ask = async {
            let mut text = String::new();
            connect(&namespace.path(), target).await.unwrap().read_to_string(&mut text).await.unwrap();
            text
        };
        assert_eq!(tokio::join!(serve, ask).1, "inside");
        assert!(TcpStream::connect(target).await.is_err(), "the host has no such listener");
        let taken = listen(&namespace.path(), (Ipv4Addr::LOCALHOST, port).into()).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        // The thread that asked stayed where it was.
        std::net::TcpListener::bind(target).unwrap();
    }

    #[tokio::test]
    async fn datagrams_stay_inside() {
        let Some(namespace) = Namespace::new("udp") else { return };
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let (one, two) =
            (bind_udp(&namespace.path(), local).unwrap(), bind_udp(&namespace.path(), local).unwrap());
        one.send_to(b"hi", two.local_addr().unwrap()).await.unwrap();
        let mut buffer = [0; 8];
        let (length, from) = two.recv_from(&mut buffer).await.unwrap();
        assert_eq!((&buffer[..length], from), (&b"hi"[..], one.local_addr().unwrap()));
    }

    #[tokio::test]
    async fn a_missing_namespace_is_named() {
        let error = connect(Path::new("/var/run/netns/none"), ([127, 0, 0, 1], 1).into()).await.unwrap_err();
        assert!(error.to_string().starts_with("network namespace /var/run/netns/none: "), "{error}");
    }
}
