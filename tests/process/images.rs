//! Images as nobody should push them, and disks that are too small for them, with a real containerd.

use std::{
    os::unix::fs::MetadataExt,
    path::Path,
    process::Command,
    sync::{Mutex, PoisonError},
};

use ketch_tests::{
    Containers, Ketch, SmallDisk,
    image::{Archive, Layer, Pusher, architectures, digest, stored},
    succeeded, until,
};
use serde_json::json;
use tar::EntryType;

fn create(ketch: &Ketch, name: &str, image: &str, policy: &str, command: &[&str]) {
    let container = json!({"name": "main", "image": image, "imagePullPolicy": policy, "command": command});
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "containers": [container]}});
    ketch.apply(&pod.to_string());
}

fn field(ketch: &Ketch, pod: &str, path: &str) -> String {
    ketch.kubectl_ok(&["get", "pod", pod, "-o", &format!("jsonpath={{.status.{path}}}")])
}

/// Waits until the pod's container waits with `reason`, now or backing off; its message.
fn refused(ketch: &Ketch, pod: &str, reason: &str, parts: &[&str]) -> String {
    let text = until(&format!("{pod} to wait with {reason}"), || {
        match field(ketch, pod, "containerStatuses[0].state.waiting") {
            text if text.contains(reason) => Ok(text),
            text => Err(text),
        }
    });
    assert!(parts.iter().all(|part| text.contains(part)), "{pod}: {parts:?} in {text}");
    until(&format!("an event about {pod}"), || {
        let filter = format!("involvedObject.name={pod},reason=Failed,type=Warning");
        let events = ketch.kubectl_ok(&["get", "events", "--field-selector", &filter]);
        let all = [&["Failed to pull image"], parts].concat().iter().all(|part| events.contains(part));
        if all { Ok(()) } else { Err(events) }
    });
    text
}

fn ends(ketch: &Ketch, pod: &str) {
    until(&format!("{pod} to succeed"), || match field(ketch, pod, "phase") {
        phase if phase == "Succeeded" => Ok(()),
        phase if phase == "Failed" => {
            panic!("{pod} failed: {}", field(ketch, pod, "containerStatuses[0].state"))
        }
        phase => Err(format!("{phase} {}", field(ketch, pod, "containerStatuses[0].state"))),
    });
}

/// A pod that runs whatever becomes of others.
struct Neighbour(String);

impl Neighbour {
    fn start(ketch: &Ketch, image: &str) -> Self {
        create(ketch, "neighbour", image, "IfNotPresent", &["sleep", "3600"]);
        ketch.kubectl_ok(&["wait", "--for=condition=Ready", "pod/neighbour", "--timeout=60s"]);
        Self(field(ketch, "neighbour", "containerStatuses[0].containerID"))
    }

    fn still_runs(&self, ketch: &Ketch) {
        assert_eq!(field(ketch, "neighbour", "containerStatuses[0].containerID"), self.0);
        assert_eq!(
            ketch.kubectl_ok(&["exec", "neighbour", "--", "cat", "/etc/hostname"]).trim(),
            "neighbour"
        );
    }
}

#[test]
fn bad_images_say_what_is_wrong_and_harm_nobody() {
    let Some(containers) = Containers::start(190, 191) else { return };
    let ketch = containers.ketch();
    let (pusher, good) = (Pusher::new(ketch), Archive::busybox().pack());
    let neighbour = Neighbour::start(ketch, &pusher.push("good:1", std::slice::from_ref(&good)));
    let outside = tempfile::tempdir().unwrap();
    let escapes = push_escapes(&pusher, outside.path());

    let (own, other) = architectures();
    let mut entry = pusher.push_for(other, "other:1", std::slice::from_ref(&good));
    create(ketch, "other", "ketch.local/default/other:1", "Always", &["true"]);
    entry["platform"]["architecture"] = json!(other);
    create(ketch, "index", &pusher.push_index("other:index", &[entry]), "Always", &["true"]);
    let file = |text: &str| Archive::default().file("file", text.as_bytes()).pack();
    let cut = file("cut");
    let cut = Layer { bytes: cut.bytes[..cut.bytes.len() / 2].to_vec(), ..cut };
    create(ketch, "cut", &pusher.push("cut:1", &[good.clone(), cut]), "Always", &["true"]);
    let lie = Layer { diff_id: digest(b"an honest content"), ..file("another content") };
    create(ketch, "lie", &pusher.push("lie:1", &[lie]), "Always", &["true"]);
    let rotten = file("rotten");
    let image = pusher.push("rotten:1", std::slice::from_ref(&rotten));
    rot(&stored(&containers.dir, &rotten));
    create(ketch, "rotten", &image, "Always", &["true"]);
    for (name, image) in &escapes {
        create(ketch, name, image, "Always", &["sh", "-c", "cat /etc/hostname"]);
    }

    let this = format!("linux/{own}");
    refused(ketch, "other", "ErrImageNotRunnable", &["other:1", &format!("linux/{other}"), &this]);
    refused(ketch, "index", "ErrImageNotRunnable", &["other:index", "no variant for Wasm or", &this]);
    refused(ketch, "cut", "ErrImagePull", &["cut:1", "corrupt"]);
    refused(ketch, "lie", "ErrImagePull", &["lie:1", "corrupt", &digest(b"an honest content")]);
    refused(ketch, "rotten", "ErrImagePull", &["rotten:1", "its content has digest sha256:"]);
    for pod in ["climbs", "absolute", "through"] {
        ends(ketch, pod);
        assert_eq!(ketch.kubectl_ok(&["logs", pod]).trim(), pod);
    }
    for pod in ["hard", "hard-up"] {
        refused(ketch, pod, "ErrImagePull", &["corrupt", "passwd"]);
    }
    let found: Vec<_> = std::fs::read_dir(outside.path()).unwrap().flatten().map(|one| one.path()).collect();
    assert!(found.is_empty(), "outside of every container: {found:?}");
    assert_eq!(std::fs::metadata("/etc/passwd").unwrap().nlink(), 1);
    neighbour.still_runs(ketch);
}

/// Images that try to write to the directory `outside` of the host, or to get hold of its files.
fn push_escapes(pusher: &Pusher, outside: &Path) -> [(&'static str, String); 5] {
    let outside = outside.to_str().unwrap();
    let up = "../".repeat(12);
    let busybox = Archive::busybox().pack();
    let push = |name: &'static str, layers: &[Layer]| {
        let layers = [std::slice::from_ref(&busybox), layers].concat();
        (name, pusher.push(&format!("{name}:1"), &layers))
    };
    let file = |path: &str| Archive::default().file(path, b"escaped").pack();
    let link = |kind: EntryType, path: &str, target: &str| Archive::default().link(kind, path, target);
    let symlink = || link(EntryType::Symlink, "out", outside);
    [
        push("climbs", &[file(&format!("{up}{outside}/climbed"))]),
        push("absolute", &[file(&format!("{outside}/absolute"))]),
        // In the layer of the link, and in the next one.
        push("through", &[symlink().file("out/through", b"escaped").pack(), file("out/later")]),
        push("hard", &[link(EntryType::Link, "stolen", "/etc/passwd").pack()]),
        push("hard-up", &[link(EntryType::Link, "stolen", &format!("{up}etc/passwd")).pack()]),
    ]
}

/// Changes the last byte of a file.
fn rot(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_tag_that_moved_is_followed_by_pods_that_say_always() {
    let Some(containers) = Containers::start(192, 193) else { return };
    let ketch = containers.ketch();
    let pusher = Pusher::new(ketch);
    let version =
        |text: &str| [Archive::busybox().pack(), Archive::default().file("version", text.as_bytes()).pack()];
    let says = |pod: &str, policy: &str| {
        create(ketch, pod, "ketch.local/default/moving:1", policy, &["cat", "/version"]);
        ends(ketch, pod);
        ketch.kubectl_ok(&["logs", pod])
    };
    pusher.push("moving:1", &version("one"));
    assert_eq!(says("first", "IfNotPresent"), "one");
    pusher.push("moving:1", &version("two"));
    assert_eq!(says("second", "IfNotPresent"), "one", "what is there will do");
    assert_eq!(says("third", "Always"), "two");
    assert_eq!(says("fourth", "IfNotPresent"), "two", "the tag means the new one now");
    let image = |pod: &str| field(ketch, pod, "containerStatuses[0].imageID");
    assert_eq!((image("first"), image("third")), (image("second"), image("fourth")));
    assert_ne!(image("first"), image("third"));
}

/// Two disks of a GiB that are written to at once are slow for both.
static ONE_DISK: Mutex<()> = Mutex::new(());

const MIB: u64 = 1 << 20;

#[test]
fn an_image_that_unpacks_to_more_than_there_is_leaves_nothing_behind() {
    let _one = ONE_DISK.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(disk) = SmallDisk::ext4(1024) else { return };
    let Some(mut containers) = Containers::start_in(disk.path(), 194, 195) else { return };
    let pusher = Pusher::new(containers.ketch());
    let neighbour =
        Neighbour::start(containers.ketch(), &pusher.push("good:1", &[Archive::busybox().pack()]));
    let zeros = pusher.push("zeros:1", &[Archive::busybox().pack_with_zeros("zeros", 7 << 10, false)]);
    let hole = pusher.push("hole:1", &[Archive::busybox().hole("hole", 1 << 40).pack()]);
    let before = disk.free();
    let comes_back = |what: &str| {
        until(what, || match disk.free() {
            free if free + 16 * MIB > before => Ok(()),
            free => Err(format!("{free} of {before} bytes are free")),
        });
    };
    let unpacks = || {
        until("the image to be unpacked", || match disk.free() {
            free if free + 200 * MIB < before => Ok(()),
            free => Err(format!("{free} of {before} bytes are free")),
        });
    };

    // It is stopped while there is room for others, and says so.
    create(containers.ketch(), "zeros", &zeros, "Always", &["true"]);
    let mut least = before;
    until("the image to be refused", || {
        least = least.min(disk.free());
        match field(containers.ketch(), "zeros", "containerStatuses[0].state.waiting.reason") {
            reason if reason.contains("ImagePull") => Ok(()),
            reason => Err(format!("{reason}, {least} bytes are free")),
        }
    });
    assert!(least > 0 && least < before / 2, "{least} of {before} bytes were left");
    let parts = [
        "there is no room for ketch.local/default/zeros:1",
        "bytes are free",
        "have to stay free",
        "free some space",
    ];
    refused(containers.ketch(), "zeros", "ErrImagePull", &parts);
    comes_back("an image that was refused to go");
    containers.ketch().kubectl_ok(&["delete", "pod", "zeros"]);

    // Few bytes, compressed or not, that become many, and a pod that is gone before it is stopped.
    create(containers.ketch(), "hole", &hole, "Always", &["true"]);
    unpacks();
    containers.ketch().kubectl_ok(&["delete", "pod", "hole"]);
    comes_back("an image that nobody waits for to go");

    // A power cut of Ketch's: the next one goes on with the pod, and takes back what the last one has left.
    create(containers.ketch(), "zeros", &zeros, "Always", &["true"]);
    unpacks();
    containers.crash_and_restart();
    refused(containers.ketch(), "zeros", "ErrImagePull", &parts);
    containers.ketch().kubectl_ok(&["delete", "pod", "zeros"]);
    comes_back("what a Ketch that is gone has left to go");
    neighbour.still_runs(containers.ketch());
}

#[test]
fn images_that_nobody_uses_make_room_for_one_that_is_wanted() {
    let _one = ONE_DISK.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(disk) = SmallDisk::ext4(640) else { return };
    let Some(containers) = Containers::start_in(disk.path(), 196, 197) else { return };
    unused_images_make_room(&disk, &containers);
}

#[test]
fn the_disk_of_a_hosts_containerd_is_watched() {
    let _one = ONE_DISK.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(disk) = SmallDisk::ext4(640) else { return };
    let Some(containers) = Containers::start_on_host(disk.path(), 204, 205) else { return };
    let pressure = |status: &str| {
        let path = "jsonpath={.status.conditions[?(@.type=='DiskPressure')].status}";
        until(&format!("the node's DiskPressure to be {status}"), || {
            match containers.ketch().kubectl_ok(&["get", "node", "test-node", "-o", path]) {
                now if now == status => Ok(()),
                now => Err(format!("{now:?}, {} bytes are free", disk.free())),
            }
        });
    };
    pressure("False");
    // Less than the 64 MiB that stay free, and enough for containerd to go on.
    let filler = disk.path().join("filler");
    let mut take = Command::new("fallocate");
    take.arg("--length").arg((disk.free() - 32 * MIB).to_string()).arg(&filler);
    succeeded("fallocate", take.output().unwrap());
    pressure("True");
    std::fs::remove_file(filler).unwrap();
    pressure("False");
    unused_images_make_room(&disk, &containers);
}

/// `disk` is the one of containerd's images.
fn unused_images_make_room(disk: &SmallDisk, containers: &Containers) {
    let ketch = containers.ketch();
    let pusher = Pusher::new(ketch);
    let zeros =
        |mib: u64| [Archive::busybox().pack(), Archive::default().pack_with_zeros("zeros", mib, true)];
    let neighbour = Neighbour::start(ketch, &pusher.push("kept:1", &zeros(20)));
    let run = |pod: &str, image: &str| {
        create(ketch, pod, image, "Always", &["true"]);
        ends(ketch, pod);
        let id = field(ketch, pod, "containerStatuses[0].imageID");
        ketch.kubectl_ok(&["delete", "pod", pod]);
        id
    };
    // One that its tag has left, and one that has its name.
    let left = run("left", &pusher.push("old:1", &zeros(50)));
    let old = run("old", &pusher.push("old:1", &zeros(51)));
    let has = |id: &str| containers.images().iter().any(|name| name == id);
    assert!(has(&left) && has(&old), "{left} and {old} in {:?}", containers.images());

    // For it some 50 MiB lack, as 64 stay free: less than the two take that nobody uses.
    let next = pusher.push("next:1", &zeros((disk.free() >> 20) - 64 + 50));
    create(ketch, "next", &next, "IfNotPresent", &["true"]);
    refused(ketch, "next", "ErrImagePull", &["there is no room for ketch.local/default/next:1"]);
    ends(ketch, "next");
    let images = containers.images();
    assert!(!images.contains(&left) && !images.contains(&old), "those that nobody uses went: {images:?}");
    assert!(images.iter().any(|name| name.contains("/kept")), "one that is used stays: {images:?}");
    until("the node to name what it has", || {
        match ketch.kubectl_ok(&["get", "node", "test-node", "-o", "jsonpath={.status.images}"]) {
            listed if listed.contains(&left) || listed.contains(&old) => Err(listed),
            _ => Ok(()),
        }
    });
    neighbour.still_runs(ketch);
}
