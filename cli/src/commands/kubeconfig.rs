//! `ketch kubeconfig`.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, anyhow};
use base64::{Engine, prelude::BASE64_STANDARD};
use clap::Args;
use ketch_client::kubeconfig::{self, Credentials, Entry};
use serde_json::Value;

use super::connect::local_kubeconfig;
use crate::output;

/// Where to.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Merge into this file, or into ~/.kube/config without a value; entries of other clusters stay.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "")]
    write: Option<String>,
    /// Data directory of the Ketch on this machine.
    #[arg(long, env = "KETCH_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let source = local_kubeconfig(arguments.data_dir.clone())
        .ok_or_else(|| anyhow!("no Ketch has run on this machine as this user; start one with `ketch up`"))?;
    let text = std::fs::read_to_string(&source).with_context(|| format!("read {}", source.display()))?;
    let Some(target) = &arguments.write else {
        output::line(text.trim_end());
        return Ok(ExitCode::SUCCESS);
    };
    let target = match target.as_str() {
        "" => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".kube/config"),
        path => PathBuf::from(path),
    };
    if let Some(dir) = target.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    }
    kubeconfig::write_into(&target, &entry(&text).with_context(|| format!("read {}", source.display()))?)?;
    output::line(format!("context ketch is in {}", target.display()));
    Ok(ExitCode::SUCCESS)
}

/// The one entry of the administrator's kubeconfig.
fn entry(text: &str) -> Result<Entry> {
    let file: Value = serde_saphyr::from_str(text)?;
    let field = |pointer: &str| {
        file.pointer(pointer)
            .and_then(Value::as_str)
            .map(str::to_owned)
            .with_context(|| format!("{pointer} is missing"))
    };
    let pem = |pointer: &str| anyhow::Ok(String::from_utf8(BASE64_STANDARD.decode(field(pointer)?)?)?);
    Ok(Entry {
        name: field("/contexts/0/name")?,
        server: field("/clusters/0/cluster/server")?,
        ca: pem("/clusters/0/cluster/certificate-authority-data")?,
        credentials: Credentials::Certificate {
            certificate: pem("/users/0/user/client-certificate-data")?,
            key: pem("/users/0/user/client-key-data")?,
        },
        namespace: None,
    })
}
