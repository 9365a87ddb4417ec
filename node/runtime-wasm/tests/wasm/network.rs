//! What guests reach.

use ketch_runtime::{Port, Protocol};

use crate::rig::{Pod, run};

#[test]
fn requests_go_through_the_network() {
    run(async {
        let (from, to) = (Pod::of("hello").await.start().await, Pod::of("hello").await.start().await);
        let name = to.ip.to_string();
        let name = name.strip_prefix("127.42.").unwrap();
        for url in [format!("http://{}:18080/", to.ip), format!("http://{name}.pod:9999/")] {
            let answer = from.get(&format!("/fetch?url={url}")).await.unwrap();
            assert_eq!(answer, (200, "Hello from WebAssembly!\n".into()), "{url}");
        }
        for url in ["http://127.0.0.1:18080/", "http://169.254.169.254/latest/meta-data", "https://10.0.0.1/"]
        {
            let answer = from.get(&format!("/fetch?url={url}")).await.unwrap();
            assert_eq!(answer, (502, "ErrorCode::HttpRequestDenied\n".into()), "{url}");
        }
        from.logged("ketch.dev/outbound").await;
        let unknown = from.get("/fetch?url=http://nowhere.example/").await.unwrap();
        assert!(unknown.1.contains("DnsError"), "{unknown:?}");
        from.remove().await;
        to.remove().await;
    });
}

#[test]
fn requests_share_connections() {
    run(async {
        let listener = tokio::net::TcpListener::bind("127.42.98.1:18080").await.unwrap();
        // Says which connection it answers on, and from where that came.
        let server = async {
            let mut connections = tokio::task::JoinSet::new();
            for number in 0.. {
                let (stream, peer) = listener.accept().await.unwrap();
                let answer = move |_| async move {
                    let text = format!("{number} {}", peer.ip());
                    Ok::<_, std::convert::Infallible>(http::Response::new(text))
                };
                let io = hyper_util::rt::TokioIo::new(stream);
                let service = hyper::service::service_fn(answer);
                let connection = hyper::server::conn::http1::Builder::new().serve_connection(io, service);
                connections.spawn(connection);
            }
        };
        let client = async {
            let pod = Pod::of("hello").await.start().await;
            let mut last = String::new();
            // A connection comes back a moment after its answer: not necessarily in time for the next request.
            loop {
                let (status, text) = pod.get("/fetch?url=http://127.42.98.1:18080/").await.unwrap();
                assert_eq!(status, 200);
                assert!(text.ends_with(&format!(" {}", pod.ip)), "{text}");
                if text == std::mem::replace(&mut last, text.clone()) {
                    break;
                }
            }
            pod.remove().await;
        };
        tokio::select! {
            () = client => {}
            () = server => {}
        }
    });
}

#[test]
fn components_that_call_each_other_for_ever_are_cut() {
    run(async {
        let pod = Pod::of("hello").await.start().await;
        let mut url = format!("http://{}:18080/", pod.ip);
        for _ in 0..20 {
            url = format!("http://{}:18080/fetch?url={url}", pod.ip);
        }
        let answer = pod.get(&format!("/fetch?url={url}")).await.unwrap();
        assert!(answer.1.contains("LoopDetected"), "{answer:?}");
        pod.logged("is it a loop?").await;
        pod.remove().await;
    });
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

fn tcp(number: u16) -> Port {
    Port { number, protocol: Protocol::Tcp }
}

#[test]
fn servers_listen_on_the_pods_address_and_clients_connect_from_theirs() {
    run(async {
        let server = Pod::of("tcp-echo").await.with(|spec| spec.ports = vec![tcp(7000)]).start().await;
        server.logged(&format!("listening on {}:7000", server.ip)).await;
        let name = server.ip.to_string();
        let name = format!("{}.pod", name.strip_prefix("127.42.").unwrap());
        for host in [name, server.ip.to_string()] {
            let arguments = words(&format!("connect {host} 7000 ahoy"));
            let client = Pod::of("tcp-echo").await.with(|spec| spec.args = arguments).start().await;
            assert_eq!(client.end().await.0, 0, "{:?}", client.log());
            let log = client.log();
            assert!(log[0].starts_with(&format!("stdout F connected from {}:", client.ip)), "{log:?}");
            assert_eq!(log[1], "stdout F ahoy");
            server.logged(&format!("connection from {}:", client.ip)).await;
            client.remove().await;
        }
        server.remove().await;
    });
}

#[test]
fn containers_of_a_pod_meet_at_localhost() {
    run(async {
        let server = Pod::of("tcp-echo").await.with(|spec| spec.ports = vec![tcp(7000)]).start().await;
        server.logged("listening on").await;
        let mut other =
            Pod::of("tcp-echo").await.with(|spec| spec.args = words("connect 127.0.0.1 7000 neighbour"));
        other.id = server.id.clone();
        let other = other.start().await;
        assert_eq!(other.end().await.0, 0, "{:?}", other.log());
        assert_eq!(other.log()[1], "stdout F neighbour");
        server.remove().await;
    });
}

#[test]
fn a_service_port_leads_to_its_endpoint() {
    run(async {
        let server = Pod::of("tcp-echo").await;
        let server = server.with(|spec| {
            spec.ports = vec![tcp(18080)];
            spec.env = vec![("PORT".into(), "18080".into())];
        });
        let server = server.start().await;
        server.logged("listening on").await;
        let arguments = words(&format!("connect {} 9999 through", server.ip));
        let client = Pod::of("tcp-echo").await.with(|spec| spec.args = arguments).start().await;
        assert_eq!(client.end().await.0, 0, "{:?}", client.log());
        client.remove().await;
        server.remove().await;
    });
}

#[test]
fn targets_outside_are_refused_and_undeclared_ports_too() {
    run(async {
        for host in ["169.254.169.254", "10.0.0.1", "127.0.0.2", "8.8.8.8"] {
            let arguments = words(&format!("connect {host} 80 hello"));
            let client = Pod::of("tcp-echo").await.with(|spec| spec.args = arguments).start().await;
            assert_eq!(client.end().await.0, 1, "{host}");
            client.logged("ketch.dev/outbound").await;
            client.remove().await;
        }
        let server = Pod::of("tcp-echo").await.with(|spec| spec.ports = vec![tcp(7001)]).start().await;
        assert_eq!(server.end().await.0, 1);
        server.logged("listening on port 7000 refused: declare it in the container's ports").await;
        server.remove().await;
    });
}

#[test]
fn a_pod_has_so_many_sockets() {
    run(async {
        let pod = Pod::of("misbehave").await.start().await;
        for _ in 0..2 {
            assert_eq!(pod.get("/sockets?n=10000").await.unwrap(), (200, "128\n".into()));
            pod.idle().await;
        }
        pod.remove().await;
    });
}

#[test]
fn clients_of_0_3_connect_on_the_same_terms() {
    run(async {
        let server = Pod::of("hello").await.start().await;
        let client = Pod::of("hello-p3").await.start().await;
        let name = server.ip.to_string();
        let name = name.strip_prefix("127.42.").unwrap();
        for target in [format!("{}:18080", server.ip), format!("{name}.pod:9999"), "127.0.0.1:18080".into()] {
            let answer = client.get(&format!("/tcp?to={target}")).await.unwrap();
            assert_eq!(answer, (200, client.ip.to_string()), "{target}");
        }
        for (target, error) in [
            ("169.254.169.254:80", "connect: ErrorCode::AccessDenied"),
            ("127.0.0.2:18080", "connect: ErrorCode::AccessDenied"),
            ("nowhere.example:80", "lookup: ErrorCode::NameUnresolvable"),
        ] {
            assert_eq!(client.get(&format!("/tcp?to={target}")).await.unwrap().1, error);
        }
        client.logged("ketch.dev/outbound").await;
        client.remove().await;
        server.remove().await;
    });
}
