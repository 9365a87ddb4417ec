//! What guests reach.

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
