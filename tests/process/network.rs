//! Names and Services as programs outside the process of the node see them.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream, UdpSocket},
    time::Duration,
};

use ketch_tests::{Ketch, get, until};

/// Asks for the address of a name; `None`: there is none.
fn address(server: &str, name: &str) -> Option<Ipv4Addr> {
    let mut packet = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        packet.push(u8::try_from(label.len()).unwrap());
        packet.extend(label.as_bytes());
    }
    packet.extend([0, 0, 1, 0, 1]);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    socket.send_to(&packet, server).unwrap();
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer).unwrap();
    assert_eq!(answer[..2], packet[..2]);
    let count = u16::from_be_bytes([answer[6], answer[7]]);
    let last: [u8; 4] = answer[length - 4..length].try_into().unwrap();
    (count > 0).then(|| Ipv4Addr::from(last))
}

#[test]
fn cluster_names_are_answered() {
    let ketch = Ketch::start();
    let dns = ketch.address("dns-addr");
    ketch.kubectl_ok(&["create", "service", "clusterip", "web", "--tcp=80:8080"]);
    let ip = |name: &str, namespace: &str| {
        let path = ["get", "service", name, "-n", namespace, "-o", "jsonpath={.spec.clusterIP}"];
        ketch.kubectl_ok(&path).parse::<Ipv4Addr>().unwrap()
    };
    for (service, namespace) in [("web", "default"), ("kubernetes", "default"), ("kube-dns", "kube-system")] {
        let wanted = Some(ip(service, namespace));
        until(service, || match address(&dns, &format!("{service}.{namespace}.svc.cluster.local")) {
            found if found == wanted => Ok(()),
            other => Err(format!("{other:?} instead of {wanted:?}")),
        });
    }
    assert_eq!(address(&dns, "nothing.default.svc.cluster.local"), None);
    ketch.kubectl_ok(&["delete", "service", "web"]);
    until("the end of the name", || match address(&dns, "web.default.svc.cluster.local") {
        None => Ok(()),
        Some(ip) => Err(ip.to_string()),
    });
}

#[test]
fn a_program_that_listens_is_deployed_with_its_port() {
    let ketch = Ketch::start();
    let file = ketch_tests::guest("tcp-echo");
    let deployed = ketch.ketch(&["deploy", file.to_str().unwrap(), "--port", "7000"]);
    let name = ketch_tests::succeeded("deploy", deployed);
    assert_eq!(name.trim(), "tcp-echo.default.svc.cluster.local:7000");
    let ip = ketch.kubectl_ok(&["get", "pods", "-o", "jsonpath={.items[0].status.podIP}"]);
    let mut stream = TcpStream::connect(format!("{ip}:7000")).unwrap();
    stream.write_all(b"hello\n").unwrap();
    let mut answer = [0; 6];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello\n");
    let service = ketch.kubectl_ok(&["get", "service", "tcp-echo", "-o", "jsonpath={.spec.ports[0].port}"]);
    assert_eq!(service, "7000");
}

/// Only the superuser may change the kernel's rules.
#[test]
fn services_reach_wasm_pods_through_the_kernel() {
    let directory = tempfile::tempdir().unwrap();
    if std::os::unix::fs::MetadataExt::uid(&directory.path().metadata().unwrap()) != 0 {
        return;
    }
    // Ranges of its own: one Ketch of a machine has a Service range.
    let ranges = ["--service-cidr", "10.143.0.0/16", "--pod-cidr", "10.142.0.0/16"];
    let ketch = Ketch::start_in(directory.path(), &ranges);
    ketch.deploy("hello", &[]);
    ketch.apply(
        r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "front"}, "spec": {"type": "LoadBalancer",
            "selector": {"ketch.dev/function": "hello"}, "ports": [{"port": 18473, "targetPort": 8080}]}}"#,
    );
    let field =
        |path: &str| ketch.kubectl_ok(&["get", "service", "front", "-o", &format!("jsonpath={{{path}}}")]);
    let node = until("the load balancer's address", || match field(".status.loadBalancer.ingress[0].ip") {
        ip if ip.is_empty() => Err("none".to_owned()),
        ip => Ok(ip),
    });
    let (cluster, node_port) = (field(".spec.clusterIP"), field(".spec.ports[0].nodePort"));
    for address in [format!("{cluster}:18473"), format!("{node}:18473"), format!("{node}:{node_port}")] {
        until(&address, || match get(&address, "front", "/") {
            Ok((200, _)) => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
    ketch.kubectl_ok(&["delete", "function", "hello"]);
    until("refusal without endpoints", || match get(&format!("{cluster}:18473"), "front", "/") {
        Err(error) if error.contains("refused") => Ok(()),
        other => Err(format!("{other:?}")),
    });
}
