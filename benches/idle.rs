//! What an idle cluster of one machine costs.

use std::time::Duration;

use anyhow::Result;

use crate::{
    Row,
    cluster::{Cluster, guest},
};

/// How long CPU time is counted.
const WINDOW: Duration = Duration::from_secs(20);

/// Measures memory and CPU with one idle function.
pub(crate) fn run() -> Result<Vec<Row>> {
    let cluster = Cluster::start()?;
    cluster.deploy(&guest("hello"))?;
    // Lets what follows a deploy come to an end; the window after it is what is measured.
    std::thread::sleep(Duration::from_secs(5));
    let before = cluster.process.cpu()?;
    std::thread::sleep(WINDOW);
    let share = (cluster.process.cpu()? - before) / WINDOW.as_secs_f64();
    Ok(vec![
        Row::alone(
            "server and node idle, one function: resident memory",
            format!("{:.0} MiB", cluster.process.memory()? / 1048576.0),
        ),
        Row::alone("server and node idle, one function: CPU", format!("{:.2} % of a core", share * 100.0)),
    ])
}
