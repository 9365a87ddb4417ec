//! Taking back what Ketch has made in containerd and on the host.

use crate::{
    cgroup, cni,
    connect::{Choice, Options, Unavailable, connect, owner},
    existing,
};

/// Ends and removes every pod that the Ketch at this data directory has made, then its containerd, if that is
/// our own, or our network plugin out of the host's. Idempotent. Images in a containerd of the host stay there.
///
/// # Errors
/// What is in the way, and what to do.
pub async fn remove(choice: &Choice, options: &Options) -> Result<(), Unavailable> {
    if *choice == Choice::Off || !options.data_dir.join("node/containerd").exists() {
        return Ok(());
    }
    let runtime = connect(choice, options).await?;
    let host = existing::plugin_directories(&runtime).await;
    let removed = runtime.remove_all().await;
    let stay = runtime.shutdown().await;
    if let (true, _) | (_, Err(_)) = (stay, &removed) {
        let cause = removed.err().map_or_else(|| "pods are left".to_owned(), |error| error.to_string());
        return Err(Unavailable {
            cause: format!("containers cannot be removed: {cause}"),
            fix: "try again; node/containerd/containerd.log in the data directory says more".to_owned(),
        });
    }
    if let Some((configurations, plugins)) = host {
        cni::uninstall(&configurations, &plugins, &options.plugin);
    }
    cgroup::remove(&cgroup::parent(&owner(&options.data_dir)));
    Ok(())
}
