//! Watches beyond what every kind's conformance covers.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{CONFIG_MAPS, Harness, version};

#[tokio::test]
async fn objects_enter_and_leave_a_selector() {
    let harness = Harness::new().await;
    let start = version(&harness.get(CONFIG_MAPS).await.expect(200)).to_owned();
    let uri = format!("{CONFIG_MAPS}?watch=1&resourceVersion={start}&labelSelector=app%3Dweb");
    let mut events = harness.watch(&uri).await;
    harness.config_map("a", json!({"app": "db"})).await;
    let one = format!("{CONFIG_MAPS}/a");
    let label = |value: &str| json!({"metadata": {"labels": {"app": value}}});
    harness.patch(&one, "merge", &label("web")).await.expect(200);
    assert_eq!(events.next_of().await, ("ADDED".into(), "a".into()));
    let left = harness.patch(&one, "merge", &label("db")).await.expect(200);
    let event = events.next().await.unwrap();
    assert_eq!(event["type"], "DELETED");
    assert_eq!(event["object"]["metadata"]["labels"]["app"], "web", "the state the watcher knew");
    assert_eq!(version(&event["object"]), version(&left), "as of the change");
    harness.delete(&one).await.expect(200);
    harness.config_map("b", json!({"app": "web"})).await;
    assert_eq!(events.next_of().await, ("ADDED".into(), "b".into()), "nothing in between was its business");
}

#[tokio::test]
async fn without_a_revision_the_present_comes_first() {
    let harness = Harness::new().await;
    harness.config_map("a", json!({})).await;
    for query in ["watch=1", "watch=1&resourceVersion=0"] {
        let mut events = harness.watch(&format!("{CONFIG_MAPS}?{query}")).await;
        assert_eq!(events.next_of().await, ("ADDED".into(), "a".into()));
    }
    let mut events = harness.watch("/api/v1/watch/namespaces/default/configmaps/a").await;
    assert_eq!(events.next_of().await, ("ADDED".into(), "a".into()));
    harness.config_map("b", json!({})).await;
    harness.delete(&format!("{CONFIG_MAPS}/a")).await.expect(200);
    assert_eq!(events.next_of().await, ("DELETED".into(), "a".into()));
}

#[tokio::test]
async fn watch_lists_end_with_a_bookmark() {
    let harness = Harness::new().await;
    harness.config_map("a", json!({})).await;
    let query = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    for table in [false, true] {
        let accept = if table { "application/json;as=Table;v=v1;g=meta.k8s.io" } else { "application/json" };
        let mut events = harness.watch_as(&format!("{CONFIG_MAPS}?{query}"), accept).await;
        assert_eq!(events.next().await.unwrap()["type"], "ADDED");
        let end = events.next().await.unwrap();
        assert_eq!(end["type"], "BOOKMARK");
        let object = if table { &end["object"]["rows"][0]["object"] } else { &end["object"] };
        assert_eq!(object["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
        assert!(version(&end["object"]).parse::<u64>().unwrap() > 0);
    }
    let mut empty = harness.watch(&format!("/api/v1/namespaces/kube-system/configmaps?{query}")).await;
    assert_eq!(empty.next().await.unwrap()["type"], "BOOKMARK");

    for (query, part) in [
        ("watch=1&sendInitialEvents=true", "requires setting resourceVersionMatch"),
        ("watch=1&resourceVersionMatch=NotOlderThan", "forbidden for watch unless sendInitialEvents"),
        ("watch=1&sendInitialEvents=true&resourceVersionMatch=Exact", "supported values: \"NotOlderThan\""),
        ("watch=1&continue=x", "continue is forbidden"),
    ] {
        harness.get(&format!("{CONFIG_MAPS}?{query}")).await.refused(422, "Invalid", part);
    }
}

#[tokio::test]
async fn too_old_a_revision_is_told_in_the_stream() {
    let harness = Harness::new().await;
    let first = version(&harness.config_map("a", json!({})).await).to_owned();
    harness.config_map("b", json!({})).await;
    harness.config_map("c", json!({})).await;
    let storage = harness.server.storage();
    storage.compact(storage.revision().await.unwrap()).await.unwrap();
    let mut events = harness.watch(&format!("{CONFIG_MAPS}?watch=1&resourceVersion={first}")).await;
    let event = events.next().await.unwrap();
    assert_eq!(event["type"], "ERROR");
    assert_eq!((&event["object"]["code"], &event["object"]["reason"]), (&json!(410), &json!("Expired")));
    assert_eq!(events.next().await, None);
}

#[tokio::test]
async fn a_watch_ends_in_time_with_a_last_bookmark() {
    let harness = Harness::new().await;
    harness.config_map("a", json!({})).await;
    let uri = format!("{CONFIG_MAPS}?watch=1&timeoutSeconds=1&allowWatchBookmarks=true");
    let mut events = harness.watch(&uri).await;
    assert_eq!(events.next().await.unwrap()["type"], "ADDED");
    let last = loop {
        let event = events.next().await.unwrap();
        if event["type"] == "BOOKMARK" {
            break event;
        }
    };
    assert!(last["object"].get("data").is_none());
    assert_eq!(events.next().await, None);
}

#[tokio::test]
async fn stopping_ends_watches() {
    let harness = Harness::new().await;
    let mut events = harness.watch(&format!("{CONFIG_MAPS}?watch=1")).await;
    harness.server.stop();
    assert_eq!(events.next().await, None);
    let ready = harness.get("/readyz").await;
    assert_eq!(ready.code, 500);
    assert!(ready.text.contains("[-]shutdown failed"), "{}", ready.text);
    assert_eq!(harness.get("/livez").await.text, "ok");
}

/// Reads one short text frame of a WebSocket.
async fn frame(socket: &mut tokio::net::TcpStream) -> Value {
    let mut head = [0; 2];
    socket.read_exact(&mut head).await.unwrap();
    assert_eq!(head[0], 0x81, "a whole text frame");
    let length = match head[1] {
        126 => usize::from(socket.read_u16().await.unwrap()),
        short => usize::from(short),
    };
    let mut text = vec![0; length];
    socket.read_exact(&mut text).await.unwrap();
    serde_json::from_slice(&text).unwrap()
}

/// A watch of ConfigMaps over a WebSocket, and the task that serves it.
async fn over_web_socket(harness: &Harness) -> (tokio::net::TcpStream, tokio::task::JoinSet<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut serving = tokio::task::JoinSet::new();
    let server = axum::serve(listener, harness.server.router()).into_future();
    serving.spawn(async { server.await.unwrap() });
    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!(
        "GET {CONFIG_MAPS}?watch=1 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer admin\r\nconnection: upgrade\r\n\
         upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("HTTP/1.1 101") && head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
    (socket, serving)
}

#[tokio::test]
async fn watches_work_over_web_sockets() {
    let harness = Harness::new().await;
    harness.config_map("a", json!({})).await;
    let (mut socket, _serving) = over_web_socket(&harness).await;
    let first = frame(&mut socket).await;
    assert_eq!((&first["type"], &first["object"]["metadata"]["name"]), (&json!("ADDED"), &json!("a")));
    harness.config_map("b", json!({})).await;
    assert_eq!(frame(&mut socket).await["object"]["metadata"]["name"], "b");
    harness.server.stop();
    assert_eq!(socket.read_u8().await.unwrap(), 0x88, "a close frame");
}

#[tokio::test]
async fn a_web_socket_does_not_gather_what_its_client_sends() {
    let harness = Harness::new().await;
    let (mut socket, _serving) = over_web_socket(&harness).await;
    // The head of a message of a mebibyte.
    socket.write_all(&[0x82, 0xff, 0, 0, 0, 0, 0, 0x10, 0, 0, 1, 2, 3, 4]).await.unwrap();
    let end = tokio::time::timeout(Duration::from_secs(30), socket.read_u8()).await;
    assert!(end.expect("the server waits for the rest").is_err(), "the connection is over");
}

#[tokio::test]
async fn tables_name_their_columns_once() {
    let harness = Harness::new().await;
    harness.config_map("a", json!({})).await;
    harness.config_map("b", json!({})).await;
    let accept = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let mut events = harness.watch_as(&format!("{CONFIG_MAPS}?watch=1"), accept).await;
    let columns = |event: &Value| event["object"]["columnDefinitions"].as_array().map_or(0, Vec::len);
    let first = events.next().await.unwrap();
    assert_eq!(first["object"]["rows"][0]["cells"][0], "a");
    assert!(columns(&first) > 0);
    assert_eq!(columns(&events.next().await.unwrap()), 0);
}

#[tokio::test]
async fn watchers_that_only_listen_see_all_of_a_burst_in_order() {
    let harness = Harness::new().await;
    let mut events = harness.watch(&format!("{CONFIG_MAPS}?watch=1")).await;
    for n in 0..300 {
        harness.config_map(&format!("c{n}"), json!({})).await;
    }
    for n in 0..300 {
        assert_eq!(events.next_of().await, ("ADDED".into(), format!("c{n}")));
    }
}
