//! A cluster to ask about, a server for it, and a client.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use hickory_resolver::proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, Record, RecordType},
};
use ketch_api::k8s::api::{core::v1::Service, discovery::v1::EndpointSlice};
use ketch_dns::{Dns, DnsOptions};
use ketch_net::Table;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
};

/// Longest wait for an answer.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn table() -> Table {
    let services: Vec<Service> = serde_json::from_value(json!([
        {"metadata": {"namespace": "default", "name": "kubernetes"}, "spec": {"clusterIP": "10.43.0.1", "ports": [{"name": "https", "port": 443}]}},
        {"metadata": {"namespace": "shop", "name": "web"}, "spec": {"clusterIP": "10.43.0.20", "clusterIPs": ["10.43.0.20", "fd00::20"],
            "ports": [{"name": "http", "port": 80, "targetPort": 8080}, {"name": "metrics", "port": 9090, "protocol": "UDP"}]}},
        {"metadata": {"namespace": "shop", "name": "db"}, "spec": {"clusterIP": "None", "ports": [{"name": "pg", "port": 5432}]}},
        {"metadata": {"namespace": "shop", "name": "empty"}, "spec": {"clusterIP": "None", "ports": [{"port": 1}]}},
        {"metadata": {"namespace": "shop", "name": "early"}, "spec": {"clusterIP": "None", "publishNotReadyAddresses": true}},
        {"metadata": {"namespace": "shop", "name": "gone"}, "spec": {"clusterIP": "10.43.0.21", "ports": [{"port": 80}]}},
        {"metadata": {"namespace": "shop", "name": "out"}, "spec": {"type": "ExternalName", "externalName": "www.example.test"}},
        {"metadata": {"namespace": "shop", "name": "in"}, "spec": {"type": "ExternalName", "externalName": "web.shop.svc.cluster.local"}},
        {"metadata": {"namespace": "shop", "name": "circle"}, "spec": {"type": "ExternalName", "externalName": "circle.shop.svc.cluster.local"}},
        {"metadata": {"namespace": "shop", "name": "crowd"}, "spec": {"clusterIP": "None"}},
    ]))
    .unwrap();
    let of = |name: &str| json!({"namespace": "shop", "name": name, "labels": {"kubernetes.io/service-name": name}});
    let crowd: Vec<_> = (0..200).map(|n| json!({"addresses": [format!("10.42.9.{n}")]})).collect();
    let slices: Vec<EndpointSlice> = serde_json::from_value(json!([
        {"addressType": "IPv4", "metadata": of("web"), "ports": [{"name": "http", "port": 8080}], "endpoints": [{"addresses": ["10.42.0.2"]}]},
        {"addressType": "IPv4", "metadata": of("db"), "ports": [{"name": "pg", "port": 5433}], "endpoints": [
            {"addresses": ["10.42.0.5"], "hostname": "db-0"}, {"addresses": ["10.42.0.6"]},
            {"addresses": ["10.42.0.7"], "hostname": "db-2", "conditions": {"ready": false}}]},
        {"addressType": "IPv6", "metadata": of("db"), "ports": [{"name": "pg", "port": 5433}], "endpoints": [{"addresses": ["fd00::5"], "hostname": "db-0"}]},
        {"addressType": "IPv4", "metadata": of("early"), "endpoints": [{"addresses": ["10.42.0.8"], "conditions": {"ready": false}}]},
        {"addressType": "IPv4", "metadata": of("crowd"), "endpoints": crowd},
    ]))
    .unwrap();
    Table::build(&services, &slices)
}

/// A server on a port of its own, and its table. Clients are pods of `shop`.
pub async fn start(upstreams: Vec<SocketAddr>) -> (Dns, Arc<ArcSwap<Table>>) {
    let table = Arc::new(ArcSwap::from_pointee(table()));
    let source = Arc::clone(&table);
    let dns = Dns::start(DnsOptions {
        bind: vec!["127.0.0.1:0".parse().unwrap()],
        source: Arc::new(move || source.load_full()),
        upstreams,
        namespaces: Arc::new(|client: IpAddr| client.is_loopback().then(|| "shop".to_owned())),
        pod_cidrs: vec!["10.42.0.0/16".parse().unwrap()],
        service_cidrs: vec!["10.43.0.0/16".parse().unwrap()],
    })
    .await
    .unwrap();
    (dns, table)
}

pub fn question(name: &str, kind: RecordType, edns: Option<u16>) -> Message {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    if let Some(payload) = edns {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    message
}

pub async fn udp(server: SocketAddr, packet: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server).await.unwrap();
    socket.send(packet).await.unwrap();
    let mut buffer = vec![0; 65_535];
    let length = tokio::time::timeout(PATIENCE, socket.recv(&mut buffer)).await.expect("an answer").unwrap();
    buffer.truncate(length);
    buffer
}

pub async fn tcp(server: SocketAddr, packet: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(server).await.unwrap();
    stream.write_u16(packet.len().try_into().unwrap()).await.unwrap();
    stream.write_all(packet).await.unwrap();
    let length = tokio::time::timeout(PATIENCE, stream.read_u16()).await.expect("an answer").unwrap();
    let mut buffer = vec![0; length.into()];
    stream.read_exact(&mut buffer).await.unwrap();
    buffer
}

/// Asks with EDNS, over UDP.
pub async fn ask(server: SocketAddr, name: &str, kind: RecordType) -> Message {
    let packet = question(name, kind, Some(1_232)).to_vec().unwrap();
    let answer = Message::from_vec(&udp(server, &packet).await).unwrap();
    assert_eq!(answer.metadata.id, 4711);
    answer
}

/// `NAME TYPE DATA` of records, sorted.
pub fn lines(records: &[Record]) -> Vec<String> {
    let line = |r: &Record| format!("{} {} {}", r.name, r.record_type(), r.data);
    let mut lines: Vec<String> = records.iter().map(line).collect();
    lines.sort();
    lines
}

pub fn code(message: &Message) -> ResponseCode {
    message.metadata.response_code
}
