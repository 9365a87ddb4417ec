//! Addresses of pods, and that nothing is left when pods go.

use std::{
    io::{Read, Write},
    net::TcpStream,
    process::Command,
};

use ketch_runtime::{ContainerState, Runtime};

use crate::rig::{PATIENCE, Rig, digest, leftovers};

fn ip(arguments: &[&str]) -> String {
    let output = Command::new("ip").args(arguments).output().expect("iproute2 is installed");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_have_their_address_and_reach_each_other() {
    let Some(rig) = Rig::new().await else { return };
    let (one, two) = (rig.pod("one", 2), rig.pod("two", 3));
    // As on a node: the range as a whole is local to the host, for servers that are no containers.
    let range = format!("{}/28", rig.ip(0));
    ip(&["route", "replace", "local", &range, "dev", "lo"]);
    let made = rig.runtime.create_pod(one.clone()).await.unwrap();
    let namespace = made.network_namespace.clone().expect("a pod has a network namespace");
    assert!(namespace.exists(), "{}", namespace.display());
    assert_eq!(rig.runtime.create_pod(one.clone()).await.unwrap(), made, "create_pod is idempotent");
    rig.runtime.create_pod(two.clone()).await.unwrap();
    let server = rig
        .script(&one, "web", "mkdir /tmp/w; echo hello >/tmp/w/index.html; exec httpd -f -p 80 -h /tmp/w")
        .await;
    rig.runtime.start(&one.id, server.clone()).await.unwrap();
    rig.until(&server.id, |state| matches!(state, ContainerState::Running { .. })).await;
    // Between pods, on the pod's own loopback, and from the host.
    let script = format!(
        "for i in 1 2 3 4 5 6 7 8 9; do wget -qO- http://{}/ && exit 0; sleep 0.2; done; exit 1",
        rig.ip(2)
    );
    assert_eq!(rig.run(&two, "client", &script).await, (0, "Completed".into(), "hello".into()));
    assert_eq!(rig.run(&one, "local", "wget -qO- http://127.0.0.1/; ip addr show eth0").await.0, 0);
    let mut stream = TcpStream::connect((rig.ip(2), 80)).expect("the host reaches the pod");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.ends_with("hello\n"), "{text}");
    let route = ip(&["-o", "route", "get", &rig.ip(2).to_string()]);
    let cable = route.split_whitespace().skip_while(|word| *word != "dev").nth(1).expect("a device");
    assert_eq!(ip(&["-6", "addr", "show", "dev", cable]), "", "nothing of the host listens there");
    // A pod on the host's network has none of its own.
    let mut hosted = rig.pod("hosted", 4);
    hosted.namespaces.host_network = true;
    assert_eq!(rig.runtime.create_pod(hosted.clone()).await.unwrap().network_namespace, None);
    let (code, _, text) = rig.run(&hosted, "main", "ip addr show lo").await;
    assert!(code == 0 && text.contains("127.0.0.1"), "{text}");
    for pod in [&one, &two, &hosted] {
        rig.runtime.remove_pod(&pod.id).await.unwrap();
    }
    ip(&["route", "del", "local", &range, "dev", "lo"]);
    assert!(!namespace.exists(), "the namespace goes with the pod");
    rig.done().await;
}

/// What a pod could leave behind.
fn traces(rig: &Rig) -> (Vec<String>, Vec<String>, usize) {
    let address = rig.ip(9).to_string();
    let routes = ip(&["route", "show", "table", "local"]);
    let routes = routes.lines().filter(|line| line.contains(&address)).map(str::to_owned).collect();
    let left = leftovers(rig.dir.path());
    let left = left.into_iter().filter(|line| !line.contains("--config")).collect();
    let namespaces = rig.dir.path().join("node/containerd/state/io.containerd.grpc.v1.cri/netns");
    (routes, left, std::fs::read_dir(namespaces).map_or(0, Iterator::count))
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_pods_leave_nothing() {
    let Some(rig) = Rig::new().await else { return };
    let before = traces(&rig);
    // Its own: other suites may be at work beside this one.
    let data = std::fs::canonicalize(&rig.options.data_dir).unwrap();
    let owner = digest(data.as_os_str().as_encoded_bytes())[7..17].to_owned();
    let groups = || {
        let pattern = format!("*ketch/{owner}/poduid-round*");
        let find = Command::new("find").args(["/sys/fs/cgroup", "-type", "d", "-path", &pattern]).output();
        String::from_utf8(find.unwrap().stdout).unwrap()
    };
    for round in 0..20 {
        let pod = rig.made(&format!("round-{round}"), 9).await;
        let spec = rig.script(&pod, "main", "exec sleep 100000").await;
        rig.runtime.start(&pod.id, spec.clone()).await.unwrap();
        if round == 0 {
            assert_ne!(traces(&rig), before, "a pod that runs can be seen");
            assert_ne!(groups(), "", "and its control groups");
        }
        rig.runtime.remove_pod(&pod.id).await.unwrap();
    }
    assert_eq!(traces(&rig), before);
    assert_eq!(groups(), "");
    rig.done().await;
}
