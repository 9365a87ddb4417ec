//! `ketch top`: what nodes and pods use now, as `kubectl top` prints it.

use std::collections::HashMap;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use ketch_api::quantity::Quantity;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::{Cluster, Connection};
use crate::output;

const METRICS: &str = "/apis/metrics.k8s.io/v1beta1";

/// Whose use.
#[derive(Args)]
pub(crate) struct Arguments {
    /// nodes or pods.
    what: What,
    /// Only this one.
    name: Option<String>,
    /// Label selector.
    #[arg(short = 'l', long)]
    selector: Option<String>,
    /// All namespaces.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// A line per container.
    #[arg(long)]
    containers: bool,
    /// Without the header.
    #[arg(long)]
    no_headers: bool,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    #[value(alias = "node", alias = "no")]
    Nodes,
    #[value(alias = "pod", alias = "po")]
    Pods,
}

/// Cores and bytes.
#[derive(Clone, Copy, Debug)]
struct Usage {
    cpu: Quantity,
    memory: Quantity,
}

impl Usage {
    const NONE: Self = Self { cpu: Quantity::ZERO, memory: Quantity::ZERO };
}

/// Runs the command.
pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let cluster = arguments.connection.open().await?;
    let items = measured(&cluster, &arguments).await?;
    if items.is_empty() {
        bail!("no metrics yet: they take two looks at a node, 15 seconds apart");
    }
    let (header, rows) = match arguments.what {
        What::Nodes => nodes(&items, &capacities(&cluster).await?),
        What::Pods => pods(&items, &arguments),
    };
    let header: Vec<String> = header.into_iter().map(str::to_owned).collect();
    let text = output::table(&header, &rows);
    let text = if arguments.no_headers { text.split_once('\n').map_or("", |(_, rest)| rest) } else { &text };
    output::line(text.trim_end());
    Ok(())
}

async fn measured(cluster: &Cluster, arguments: &Arguments) -> Result<Vec<Value>> {
    let mut path = match arguments.what {
        What::Nodes => format!("{METRICS}/nodes"),
        What::Pods if arguments.all_namespaces => format!("{METRICS}/pods"),
        What::Pods => format!("{METRICS}/namespaces/{}/pods", cluster.namespace),
    };
    if let Some(name) = &arguments.name {
        path = format!("{path}/{}", utf8_percent_encode(name, NON_ALPHANUMERIC));
    }
    if let Some(selector) = &arguments.selector {
        path = format!("{path}?labelSelector={}", utf8_percent_encode(selector, NON_ALPHANUMERIC));
    }
    let answer = cluster.get(&path).await?;
    Ok(match (answer, &arguments.name) {
        (None, Some(name)) => bail!("nothing is known of \"{name}\": there is none, or it has just started"),
        (None, None) => bail!("this cluster does not serve metrics.k8s.io"),
        (Some(one), Some(_)) => vec![one],
        (Some(list), None) => list["items"].as_array().cloned().unwrap_or_default(),
    })
}

/// What nodes have for pods, by name.
async fn capacities(cluster: &Cluster) -> Result<HashMap<String, Usage>> {
    let list = cluster.get("/api/v1/nodes").await?.unwrap_or_default();
    let nodes = list["items"].as_array().cloned().unwrap_or_default();
    Ok(nodes.iter().map(|node| (name(node), usage(&node["status"]["allocatable"]))).collect())
}

type Rows = (Vec<&'static str>, Vec<Vec<String>>);

fn nodes(items: &[Value], capacities: &HashMap<String, Usage>) -> Rows {
    let row = |item: &Value| {
        let (name, used) = (name(item), usage(&item["usage"]));
        let all = capacities.get(&name).copied().unwrap_or(Usage::NONE);
        let share = |used: i64, all: i64| match all {
            0 => "<unknown>".to_owned(),
            all => format!("{}%", i128::from(used) * 100 / i128::from(all)),
        };
        let [cpu, memory] = cells(used);
        let cpu_share = share(used.cpu.millis(), all.cpu.millis());
        vec![name, cpu, cpu_share, memory, share(used.memory.value(), all.memory.value())]
    };
    let header = vec!["NAME", "CPU(cores)", "CPU(%)", "MEMORY(bytes)", "MEMORY(%)"];
    (header, items.iter().map(row).collect())
}

fn pods(items: &[Value], arguments: &Arguments) -> Rows {
    let mut header = vec!["NAME", "CPU(cores)", "MEMORY(bytes)"];
    let mut rows = Vec::new();
    if arguments.containers {
        header.insert(0, "POD");
    }
    if arguments.all_namespaces {
        header.insert(0, "NAMESPACE");
    }
    for item in items {
        let containers: Vec<(String, Usage)> = (item["containers"].as_array().into_iter().flatten())
            .map(|one| (one["name"].as_str().unwrap_or_default().to_owned(), usage(&one["usage"])))
            .collect();
        let mut start = Vec::new();
        if arguments.all_namespaces {
            start.push(item["metadata"]["namespace"].as_str().unwrap_or_default().to_owned());
        }
        start.push(name(item));
        if arguments.containers {
            let row = |(name, used): &(String, Usage)| {
                [&start[..], std::slice::from_ref(name), &cells(*used)].concat()
            };
            rows.extend(containers.iter().map(row));
        } else {
            let total = containers.iter().fold(Usage::NONE, |sum, (_, one)| Usage {
                cpu: sum.cpu + one.cpu,
                memory: sum.memory + one.memory,
            });
            rows.push([&start[..], &cells(total)].concat());
        }
    }
    (header, rows)
}

fn name(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

/// `cpu` and `memory` of a list of resources; what cannot be read is nothing.
fn usage(resources: &Value) -> Usage {
    let quantity =
        |field: &str| resources[field].as_str().and_then(|text| text.parse().ok()).unwrap_or(Quantity::ZERO);
    Usage { cpu: quantity("cpu"), memory: quantity("memory") }
}

/// Thousandths of a core, rounded up, and MiB, rounded down, as `kubectl` does.
fn cells(usage: Usage) -> [String; 2] {
    [format!("{}m", usage.cpu.millis()), format!("{}Mi", usage.memory.value() >> 20)]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_are_the_sum_of_their_containers() {
        let container = |name: &str| json!({"name": name, "usage": {"cpu": "1500000n", "memory": "3072Ki"}});
        let pod = json!({"metadata": {"name": "web", "namespace": "dev"}, "containers": [container("a"), container("b")]});
        let rows = |all_namespaces, containers| {
            let arguments = Arguments {
                what: What::Pods,
                name: None,
                selector: None,
                all_namespaces,
                containers,
                no_headers: false,
                connection: Connection::default(),
            };
            pods(std::slice::from_ref(&pod), &arguments).1
        };
        assert_eq!(rows(false, false), [["web", "3m", "6Mi"]]);
        assert_eq!(rows(true, true), [["dev", "web", "a", "2m", "3Mi"], ["dev", "web", "b", "2m", "3Mi"]]);
    }

    #[test]
    fn nodes_have_shares_where_their_size_is_known() {
        let node =
            |name: &str| json!({"metadata": {"name": name}, "usage": {"cpu": "500m", "memory": "1Gi"}});
        let size = usage(&json!({"cpu": "2", "memory": "4Gi", "pods": "9"}));
        let (_, rows) = nodes(&[node("n1"), node("n2")], &HashMap::from([("n1".to_owned(), size)]));
        assert_eq!(rows[0], ["n1", "500m", "25%", "1024Mi", "25%"]);
        assert_eq!(rows[1][2], "<unknown>");
    }
}
