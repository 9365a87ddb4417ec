//! A DNS server for a made-up cluster, to measure: `ketch-dns ADDRESS SERVICES`. Services are
//! `service-N.bench.svc.cluster.local`.

use std::sync::Arc;

use ketch_api::k8s::api::core::v1::Service;
use ketch_dns::{Dns, DnsOptions, system_upstreams};
use ketch_net::Table;
use serde_json::json;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let mut args = std::env::args().skip(1);
    let address = args.next().unwrap_or_else(|| "127.0.0.1:0".to_owned()).parse()?;
    let count: u32 = args.next().unwrap_or_else(|| "1000".to_owned()).parse()?;
    let services: Vec<Service> = (0..count)
        .map(|n| {
            let ip = format!("10.43.{}.{}", n / 250, n % 250 + 1);
            serde_json::from_value(json!({"metadata": {"namespace": "bench", "name": format!("service-{n}")},
                "spec": {"clusterIP": ip, "ports": [{"name": "http", "port": 80}]}}))
        })
        .collect::<Result<_, _>>()?;
    let table = Arc::new(Table::build(&services, []));
    let dns = Dns::start(DnsOptions {
        bind: vec![address],
        source: Arc::new(move || Arc::clone(&table)),
        upstreams: system_upstreams(),
        namespaces: Arc::new(|_| None),
        pod_cidrs: vec!["10.42.0.0/16".parse()?],
        service_cidrs: vec!["10.43.0.0/16".parse()?],
    })
    .await?;
    tracing::info!("answering at {:?}", dns.addresses());
    tokio::signal::ctrl_c().await?;
    dns.shutdown().await;
    Ok(())
}
