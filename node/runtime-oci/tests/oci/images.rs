//! Images that are not as they should be, and those that are there already.

use std::sync::Arc;

use ketch_runtime::{Error, ImageSource, Runtime};
use serde_json::json;

use crate::rig::{BUSYBOX, Images, Rig, busybox_layer, host, images, layer};

async fn pull(rig: &Rig, reference: &str, images: Images) -> Result<ketch_runtime::Image, Error> {
    rig.runtime.pull(reference, Arc::new(images) as Arc<dyn ImageSource>).await
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_images_are_errors_of_the_pull() {
    let Some(rig) = Rig::new().await else { return };
    let other = if host() == "amd64" { "arm64" } else { "amd64" };
    // For another machine: alone, and as an index.
    let mut images = Images::default();
    let entry = images.image("registry.test/other:1", other, vec![layer(&[("a", b"a", 0o644)])], json!({}));
    let error = pull(&rig, "registry.test/other:1", images).await.unwrap_err();
    assert!(
        matches!(&error, Error::Image(text) if text.contains(other) && text.contains(host())),
        "{error:?}"
    );
    let mut images = Images::default();
    let mut entry = entry;
    entry["platform"] = json!({"os": "linux", "architecture": other});
    images.document("registry.test/index:1", &json!({"manifests": [entry]}));
    let error = pull(&rig, "registry.test/index:1", images).await.unwrap_err();
    assert!(matches!(&error, Error::Image(text) if text.contains("it offers linux")), "{error:?}");
    // Bytes that changed on the way.
    let mut images = Images::default();
    let (bytes, id) = layer(&[("a", b"some contents", 0o644)]);
    let name = crate::rig::digest(&bytes);
    images.image("registry.test/changed:1", host(), vec![(bytes.clone(), id)], json!({}));
    let mut changed = bytes.clone();
    let last = changed.len() - 1;
    changed[last] ^= 1;
    images.corrupt(&name, &changed);
    let error = pull(&rig, "registry.test/changed:1", images).await.unwrap_err();
    assert!(matches!(&error, Error::Pull(text) if text.contains(&name)), "{error:?}");
    // A frame of zstd that refers 2 GiB back.
    let mut images = Images::default();
    let frame = b"\x28\xb5\x2f\xfd\x00\xa8\x01\x00\x00".to_vec();
    images.image("registry.test/window:1", host(), vec![(frame, format!("sha256:{:064}", 3))], json!({}));
    let error = pull(&rig, "registry.test/window:1", images).await.unwrap_err();
    assert!(matches!(&error, Error::Image(text) if text.contains("2147483648 bytes of memory")), "{error:?}");
    // Bytes that were pushed like this, and a content that is not what the image says.
    for (bytes, id) in
        [(b"no archive".to_vec(), format!("sha256:{:064}", 1)), (bytes, format!("sha256:{:064}", 2))]
    {
        let mut images = Images::default();
        images.image("registry.test/bad:1", host(), vec![(bytes, id)], json!({}));
        let error = pull(&rig, "registry.test/bad:1", images).await.unwrap_err();
        assert!(matches!(&error, Error::Pull(text) if text.contains("corrupt")), "{error:?}");
    }
    rig.done().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_can_replace_the_program_of_every_pod() {
    let Some(rig) = Rig::new().await else { return };
    for reference in ["ketch.local/system/pause:1", "ketch.local/system/pause:1@sha256:0"] {
        let mut images = Images { always: true, ..Images::default() };
        images.image("ketch.local/system/pause:1", host(), vec![busybox_layer()], json!({}));
        let pulled = pull(&rig, reference, images).await;
        assert!(matches!(&pulled, Err(Error::Config(_) | Error::Pull(_))), "{reference}: {pulled:?}");
    }
    let pod = rig.made("pause", 2).await;
    assert_eq!(rig.run(&pod, "main", "echo works").await.2, "works");
    rig.done().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_leads_to_the_image_for_this_host() {
    let Some(rig) = Rig::new().await else { return };
    let mut images = Images { always: true, ..Images::default() };
    let config = json!({"Cmd": ["sh", "-c", "echo from the index"], "Env": ["PATH=/bin"]});
    let mut entry = images.image("registry.test/multi:amd", host(), vec![busybox_layer()], config);
    entry["platform"] = json!({"os": "linux", "architecture": host()});
    let foreign = json!({"digest": format!("sha256:{:064}", 9), "size": 1,
        "platform": {"os": "linux", "architecture": "riscv64"}});
    let index = images.document(
        "registry.test/multi:1",
        &json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [foreign, entry]}),
    );
    let images = Arc::new(images);
    let image = rig.runtime.pull("registry.test/multi:1", images.clone()).await.unwrap();
    assert_eq!(image.digest, index["digest"].as_str().unwrap());
    assert_eq!(rig.runtime.pull("registry.test/multi:1", images).await.unwrap(), image);
    let pod = rig.made("index", 2).await;
    let mut spec = rig.script(&pod, "main", "").await;
    (spec.image, spec.command) = (image, Vec::new());
    assert_eq!(rig.run_spec(&pod, spec).await, (0, "Completed".to_owned(), "from the index".to_owned()));
    rig.done().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_somebody_imported_is_used() {
    let Some(rig) = Rig::new().await else { return };
    let socket = rig.dir.path().join("node/containerd/containerd.sock");
    let archive = rig.dir.path().join("image.tar");
    let ctr = |arguments: &[&str]| {
        let status = std::process::Command::new("ctr")
            .arg("-a")
            .arg(&socket)
            .args(["-n", "k8s.io"])
            .args(arguments)
            .stdout(std::process::Stdio::null())
            .status();
        assert!(status.unwrap().success(), "ctr {arguments:?}");
    };
    rig.runtime.pull(BUSYBOX, Arc::new(images())).await.unwrap();
    let path = archive.to_str().unwrap();
    ctr(&["images", "export", path, BUSYBOX]);
    for name in String::from_utf8(
        std::process::Command::new("ctr")
            .arg("-a")
            .arg(&socket)
            .args(["-n", "k8s.io", "images", "ls", "-q"])
            .output()
            .unwrap()
            .stdout,
    )
    .unwrap()
    .lines()
    .filter(|name| name.contains("busybox") || name.starts_with("sha256:"))
    {
        _ = std::process::Command::new("ctr")
            .arg("-a")
            .arg(&socket)
            .args(["-n", "k8s.io", "images", "rm", name])
            .output();
    }
    ctr(&["images", "import", path]);
    // No registry knows it.
    let image = async {
        loop {
            match rig.runtime.pull(BUSYBOX, Arc::new(Images::default())).await {
                Ok(image) => return image,
                Err(Error::Pull(_)) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    };
    let image = tokio::time::timeout(crate::rig::PATIENCE, image).await.expect("it is noticed");
    assert!(image.id.ends_with(&image.digest));
    let always = Images { always: true, ..Images::default() };
    assert!(matches!(pull(&rig, BUSYBOX, always).await, Err(Error::Pull(_))), "Always asks the registry");
    let pod = rig.made("imported", 2).await;
    assert_eq!(rig.run(&pod, "main", "echo works").await.2, "works");
    rig.done().await;
}
