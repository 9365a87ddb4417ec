//! `kill -9`: what was acknowledged is there afterwards, and functions answer again soon.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use ketch_tests::{Ketch, until};

/// Rounds of writing, killing and checking.
const ROUNDS: usize = 8;
const WRITERS: usize = 4;

#[test]
fn acknowledged_writes_survive_kill_9() {
    ketch_tests::install_crypto();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut ketch = Ketch::start();
    let acknowledged: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());
    let mut revision = 0;
    for round in 0..ROUNDS {
        let client = runtime.block_on(ketch.client());
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for writer in 0..WRITERS {
                let (client, stop, acknowledged) = (&client, &stop, &acknowledged);
                let handle = runtime.handle().clone();
                scope.spawn(move || handle.block_on(write(client, writer, round, stop, acknowledged)));
            }
            // Let some writes through, whatever the machine's pace, then cut the power.
            let floor = acknowledged.lock().unwrap().len();
            until("writes", || match acknowledged.lock().unwrap().len() - floor {
                0..=20 => Err("too few writes".into()),
                _ => Ok(()),
            });
            ketch.kill();
            stop.store(true, Ordering::SeqCst);
        });
        ketch = ketch.crash_and_restart();
        let client = runtime.block_on(ketch.client());
        revision = runtime.block_on(check(&client, &acknowledged.lock().unwrap(), revision));
    }
}

type ConfigMaps = kube::Api<ketch_api::k8s::api::core::v1::ConfigMap>;

async fn write(
    client: &kube::Client,
    writer: usize,
    round: usize,
    stop: &AtomicBool,
    acknowledged: &Mutex<BTreeMap<String, String>>,
) {
    let api: ConfigMaps = kube::Api::namespaced(client.clone(), "default");
    for step in 0.. {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        let name = format!("w{writer}-r{round}-{step}");
        let object = serde_json::from_value(
            serde_json::json!({"metadata": {"name": name}, "data": {"step": step.to_string()}}),
        );
        match api.create(&Default::default(), &object.unwrap()).await {
            Ok(created) => acknowledged.lock().unwrap().insert(name, created.metadata.uid.unwrap()),
            Err(_) => return,
        };
    }
}

/// Every acknowledged object is there with its identity, and the store's revision has not gone back.
async fn check(client: &kube::Client, acknowledged: &BTreeMap<String, String>, before: u64) -> u64 {
    let api: ConfigMaps = kube::Api::namespaced(client.clone(), "default");
    let list = api.list(&Default::default()).await.unwrap();
    let revision: u64 = list.metadata.resource_version.unwrap().parse().unwrap();
    assert!(revision > before, "the revision went from {before} to {revision}");
    let found: BTreeMap<_, _> =
        list.items.into_iter().map(|c| (c.metadata.name.unwrap(), c.metadata.uid.unwrap())).collect();
    for (name, uid) in acknowledged {
        assert_eq!(found.get(name), Some(uid), "{name} was acknowledged");
    }
    revision
}

#[test]
fn functions_answer_again_after_kill_9() {
    let ketch = Ketch::start();
    ketch.deploy("hello", &[]);
    let ketch = ketch.crash_and_restart();
    let start = Instant::now();
    until("the function", || match ketch.call("hello", "/") {
        Ok((200, _)) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    eprintln!("answered {:?} after readiness", start.elapsed());
}
