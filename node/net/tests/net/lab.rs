//! Namespaces that are a node, its pods and a client in another network.

use std::{
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// Address of the node in the client's network, and the client's.
pub const NODE: &str = "192.0.2.1";
pub const CLIENT: &str = "192.0.2.2";
/// An address of the node that is a Wasm pod's.
pub const WASM: &str = "10.42.8.5";

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A node (`node`), two pods (`pod1` 10.42.0.2, `pod2` 10.42.0.3) and a client (`client`).
pub struct Lab {
    prefix: String,
    servers: Vec<Child>,
}

impl Lab {
    /// `None` without the rights to make one.
    pub fn new() -> Option<Self> {
        if !nix::unistd::Uid::effective().is_root() {
            return None;
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let lab = Self { prefix: format!("knet{}x{number}", std::process::id()), servers: Vec::new() };
        for name in ["node", "pod1", "pod2", "client"] {
            ip(&format!("netns add {}", lab.namespace(name)));
            lab.ip(name, "link set lo up");
        }
        lab.run("node", &["sysctl", "-qw", "net.ipv4.ip_forward=1"]);
        lab.pod("pod1", "10.42.0.2");
        lab.pod("pod2", "10.42.0.3");
        lab.wire("client", "out");
        lab.ip("node", &format!("addr add {NODE}/24 dev out"));
        lab.ip("client", &format!("addr add {CLIENT}/24 dev eth0"));
        lab.ip("client", &format!("route add 10.43.0.0/16 via {NODE}"));
        lab.ip("node", &format!("route add default via {CLIENT}"));
        lab.ip("node", "route add local 10.42.8.0/24 dev lo");
        Some(lab)
    }

    pub fn namespace(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// File of the node's namespace.
    pub fn node(&self) -> String {
        format!("/run/netns/{}", self.namespace("node"))
    }

    /// A cable from `name`'s eth0 to the node's `end`.
    fn wire(&self, name: &str, end: &str) {
        let (ours, theirs) = (self.namespace("node"), self.namespace(name));
        ip(&format!("link add {end} netns {ours} type veth peer name eth0 netns {theirs}"));
        self.ip("node", &format!("link set {end} up"));
        self.ip(name, "link set eth0 up");
    }

    fn pod(&self, name: &str, address: &str) {
        // As the network plugin names them.
        let end = format!("kt{name}");
        self.wire(name, &end);
        self.ip("node", &format!("addr add 10.42.0.1/32 dev {end}"));
        self.ip("node", &format!("route add {address}/32 dev {end}"));
        self.ip(name, &format!("addr add {address}/32 dev eth0"));
        self.ip(name, "route add 10.42.0.1 dev eth0");
        self.ip(name, "route add default via 10.42.0.1");
    }

    pub fn ip(&self, name: &str, command: &str) {
        ip(&format!("-n {} {command}", self.namespace(name)));
    }

    pub fn run(&self, name: &str, command: &[&str]) -> Output {
        let namespace = self.namespace(name);
        Command::new("ip").args(["netns", "exec", &namespace]).args(command).output().unwrap()
    }

    /// A server in `name` that answers each connection with `word` and the address it came from.
    pub fn serve(&mut self, name: &str, listen: &str, word: &str) {
        let answer = format!("SYSTEM:echo {word} $SOCAT_PEERADDR");
        let namespace = self.namespace(name);
        let server = Command::new("ip")
            .args(["netns", "exec", &namespace, "socat", listen, &answer])
            .stderr(Stdio::null())
            .spawn();
        self.servers.push(server.unwrap());
        let port = listen.split([':', ',']).nth(1).unwrap();
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(20) {
            let sockets = self.run(name, &["ss", "-tlnH"]);
            if String::from_utf8_lossy(&sockets.stdout).contains(&format!(":{port} ")) {
                return;
            }
            std::thread::yield_now();
        }
        panic!("{word} does not listen on {listen}");
    }

    /// The same for datagrams. socat's server, which makes a process for each, loses some that come in a row.
    pub fn serve_udp(&self, name: &str, port: u16, word: &'static str) {
        let path = format!("/run/netns/{}", self.namespace(name));
        let socket = || std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, port));
        let socket = ketch_net::netns::run(path.as_ref(), socket).unwrap().unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(format!("{word} {}\n", from.ip()).as_bytes(), from);
            }
        });
    }

    /// Runs a program in `name` until the end of the test.
    pub fn spawn(&mut self, name: &str, command: &[&str]) {
        let namespace = self.namespace(name);
        let mut program = Command::new("ip");
        self.servers.push(program.args(["netns", "exec", &namespace]).args(command).spawn().unwrap());
    }

    /// What a server answers to a connection from `name`; the error when there is none.
    pub fn ask(&self, name: &str, target: &str) -> Result<String, String> {
        let target = format!("{target},connect-timeout=3");
        let output = self.run(name, &["socat", "-T3", "-u", &target, "-"]);
        let (out, error) = (output.stdout, output.stderr);
        let answer = String::from_utf8_lossy(&out).trim().to_owned();
        if answer.is_empty() { Err(String::from_utf8_lossy(&error).into_owned()) } else { Ok(answer) }
    }

    /// The same with a datagram.
    pub fn ask_udp(&self, name: &str, target: &str) -> Result<String, String> {
        let script = format!("exec 3<>/dev/udp/{target}; echo hello >&3; timeout 10 head -n1 <&3");
        let output = self.run(name, &["bash", "-c", &script]);
        let answer = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if answer.is_empty() { Err(String::from_utf8_lossy(&output.stderr).into_owned()) } else { Ok(answer) }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for server in &mut self.servers {
            let _ = server.kill();
            let _ = server.wait();
        }
        for name in ["node", "pod1", "pod2", "client"] {
            let _ = Command::new("ip").args(["netns", "del", &self.namespace(name)]).output();
        }
    }
}

fn ip(command: &str) {
    let output = Command::new("ip").args(command.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {command}: {}", String::from_utf8_lossy(&output.stderr));
}
