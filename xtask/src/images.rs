//! `cargo xtask images`: small container images made from Debian packages, as OCI archives in
//! `workloads/dist/images`. No registry and no container engine is needed: a package's files, the shared
//! libraries its programs need, and a configuration make an image.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::{
    shell::{output, program, root, run, step, tools_dir},
    tools,
};

const DIST: &str = "workloads/dist/images";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Files of packages that no program reads at run time.
const LEFT_OUT: &[&str] =
    &["usr/share/doc", "usr/share/man", "usr/share/lintian", "usr/share/locale", "etc/init.d", "lib/systemd"];

/// An image.
struct Image {
    name: &'static str,
    /// Packages whose files it holds.
    packages: &'static [&'static str],
    /// What it runs.
    command: &'static [&'static str],
    working_dir: &'static str,
    ports: &'static [&'static str],
    /// Makes what the packages lack.
    finish: fn(&Path) -> Result<()>,
}

const IMAGES: &[Image] = &[
    Image {
        name: "busybox",
        packages: &["busybox-static"],
        command: &["/bin/sh"],
        working_dir: "/",
        ports: &[],
        finish: applets,
    },
    Image {
        name: "curl",
        packages: &["curl", "busybox-static"],
        command: &["/bin/sh"],
        working_dir: "/",
        ports: &[],
        finish: applets,
    },
    Image {
        name: "redis",
        packages: &["redis-server", "redis-tools"],
        command: &["redis-server", "--bind", "*", "--protected-mode", "no", "--dir", "/data"],
        working_dir: "/data",
        ports: &["6379/tcp"],
        finish: |root| Ok(fs::create_dir_all(root.join("data"))?),
    },
    // It answers gRPC's health checks.
    Image {
        name: "etcd",
        packages: &["etcd-server"],
        command: &[
            "etcd",
            "--data-dir=/data",
            "--listen-client-urls=http://0.0.0.0:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
        ],
        working_dir: "/data",
        ports: &["2379/tcp"],
        finish: |root| Ok(fs::create_dir_all(root.join("data"))?),
    },
    Image {
        name: "nginx",
        packages: &["nginx", "nginx-common"],
        command: &["nginx", "-c", "/etc/nginx/container.conf"],
        working_dir: "/",
        ports: &["80/tcp"],
        finish: nginx,
    },
];

/// Builds the images that are missing.
pub fn build() -> Result<()> {
    tools::packages(&[("objdump", "binutils"), ("tar", "tar"), ("gzip", "gzip")])?;
    fs::create_dir_all(DIST)?;
    if output(program("apt-cache").args(["show", "busybox-static"])).is_none_or(|text| text.is_empty()) {
        tools::refresh_packages()?;
    }
    for image in IMAGES {
        let archive = Path::new(DIST).join(format!("{}.tar", image.name));
        if !archive.is_file() {
            step(&format!("make the image {} from Debian packages", image.name), || image.build(&archive))?;
        }
    }
    Ok(())
}

impl Image {
    fn build(&self, archive: &Path) -> Result<()> {
        let work = tools_dir().join("images").join(self.name);
        let _ = fs::remove_dir_all(&work);
        let (staging, rootfs) = (work.join("staging"), work.join("root"));
        for dir in [&staging, &rootfs] {
            fs::create_dir_all(dir)?;
        }
        unpack(self.packages, &work.join("packages"), &rootfs)?;
        unpack(&libraries(self.packages)?, &work.join("libraries"), &staging)?;
        for path in LEFT_OUT {
            let _ = fs::remove_dir_all(rootfs.join(path));
        }
        for directory in ["tmp", "run", "etc", "var/run", "dev", "proc", "sys"] {
            fs::create_dir_all(rootfs.join(directory))?;
        }
        fs::write(
            rootfs.join("etc/passwd"),
            "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
        )?;
        fs::write(rootfs.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?;
        (self.finish)(&rootfs)?;
        link_libraries(&staging, &rootfs)?;
        self.pack(&work, &rootfs, archive)
    }

    /// The layer, the configuration, the manifest and the layout around them, the same bytes each time.
    fn pack(&self, work: &Path, rootfs: &Path, archive: &Path) -> Result<()> {
        let (layout, plain) = (work.join("layout"), work.join("layer.tar"));
        fs::create_dir_all(layout.join("blobs/sha256"))?;
        tar(rootfs, &plain)?;
        let diff = sha256(&plain)?;
        run(program("gzip").args(["--no-name", "--force", "--best"]).arg(&plain))?;
        let layer = blob(&layout, &fs::read(work.join("layer.tar.gz"))?, LAYER)?;
        let ports: serde_json::Map<String, Value> =
            self.ports.iter().map(|port| ((*port).to_owned(), json!({}))).collect();
        let config = json!({
            "architecture": architecture()?, "os": "linux",
            "config": {"Cmd": self.command, "WorkingDir": self.working_dir, "ExposedPorts": ports,
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{diff}")]},
        });
        let config = blob(&layout, &serde_json::to_vec(&config)?, CONFIG)?;
        let manifest =
            json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]});
        let mut entry = blob(&layout, &serde_json::to_vec(&manifest)?, MANIFEST)?;
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": "latest"});
        let index = json!({"schemaVersion": 2, "manifests": [entry]});
        fs::write(layout.join("index.json"), serde_json::to_vec(&index)?)?;
        fs::write(layout.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        tar(&layout, &root().join(archive))
    }
}

fn architecture() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => bail!("images for {other} are not made here"),
    }
}

fn tar(directory: &Path, file: &Path) -> Result<()> {
    run(program("tar")
        .args(["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "--format=gnu"])
        .arg("--directory")
        .arg(directory)
        .arg("--create")
        .arg("--file")
        .arg(file)
        .arg("."))
}

fn sha256(file: &Path) -> Result<String> {
    let line = output(program("sha256sum").arg(file)).context("sha256sum")?;
    Ok(line.split_whitespace().next().context("sha256sum printed nothing")?.to_owned())
}

/// Adds a blob to a layout and returns its descriptor.
fn blob(layout: &Path, bytes: &[u8], media_type: &str) -> Result<Value> {
    let temporary = layout.join("blob");
    fs::write(&temporary, bytes)?;
    let digest = sha256(&temporary)?;
    fs::rename(&temporary, layout.join("blobs/sha256").join(&digest))?;
    Ok(json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len()}))
}

/// Downloads packages and extracts their files.
fn unpack(packages: &[impl AsRef<OsStr>], download: &Path, into: &Path) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    fs::create_dir_all(download)?;
    run(program("apt-get")
        .args(["download", "-qq", "-o", "APT::Sandbox::User=root"])
        .args(packages)
        .current_dir(download))?;
    for file in fs::read_dir(download)? {
        run(program("dpkg-deb").arg("--extract").arg(file?.path()).arg(into))?;
    }
    Ok(())
}

/// Names of the library packages that `packages` depend on, directly or not.
fn libraries(packages: &[&str]) -> Result<Vec<String>> {
    const ONLY: &[&str] = &[
        "--no-recommends",
        "--no-suggests",
        "--no-conflicts",
        "--no-breaks",
        "--no-replaces",
        "--no-enhances",
    ];
    let list = || {
        output(program("apt-cache").args(["depends", "--recurse"]).args(ONLY).args(packages))
            .unwrap_or_default()
    };
    let text = list();
    let library =
        |name: &&str| (name.starts_with("lib") && !name.ends_with("-perl")) || name.starts_with("zlib");
    let names: Vec<&str> =
        text.lines().filter(|line| !line.starts_with([' ', '<', '|'])).filter(library).collect();
    if names.is_empty() {
        return Ok(Vec::new());
    }
    // Some of the names are virtual and have nothing to download.
    let known =
        output(program("apt-cache").args(["show", "--no-all-versions"]).args(&names)).unwrap_or_default();
    let real = known.lines().filter_map(|line| line.strip_prefix("Package: "));
    Ok(real.map(str::to_owned).collect::<BTreeSet<_>>().into_iter().collect())
}

/// Copies from `staging` the shared libraries, and the loader, that programs in `rootfs` need.
fn link_libraries(staging: &Path, rootfs: &Path) -> Result<()> {
    let triple = format!("{}-linux-gnu", std::env::consts::ARCH);
    let places = ["lib", "usr/lib"].map(|dir| staging.join(dir).join(&triple));
    let own = rootfs.join("lib").join(&triple);
    let mut seen = BTreeSet::new();
    let mut queue = programs(rootfs)?;
    while let Some(file) = queue.pop() {
        let text = output(program("objdump").arg("-p").arg(&file)).unwrap_or_default();
        let needed = text.lines().filter_map(|line| line.trim().strip_prefix("NEEDED")).map(str::trim);
        for name in needed {
            if !seen.insert(name.to_owned()) {
                continue;
            }
            let found = places.iter().map(|dir| dir.join(name)).find(|path| path.exists());
            let found =
                found.with_context(|| format!("{} needs {name}, which no package has", file.display()))?;
            fs::create_dir_all(&own)?;
            fs::copy(&found, own.join(name))?;
            queue.push(found);
        }
    }
    if let Some(loader) = seen.iter().find(|name| name.starts_with("ld-linux")) {
        // Where programs look for it on this architecture.
        let fixed = if triple.starts_with("x86_64") { "lib64" } else { "lib" };
        fs::create_dir_all(rootfs.join(fixed))?;
        fs::copy(own.join(loader), rootfs.join(fixed).join(loader))?;
    }
    Ok(())
}

fn programs(rootfs: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for dir in ["bin", "sbin", "usr/bin", "usr/sbin"] {
        let Ok(entries) = fs::read_dir(rootfs.join(dir)) else { continue };
        for entry in entries {
            let path = entry?.path();
            if path.is_file() {
                found.push(path);
            }
        }
    }
    Ok(found)
}

/// A link for every program that busybox is.
fn applets(rootfs: &Path) -> Result<()> {
    let busybox =
        ["bin/busybox", "usr/bin/busybox"].map(|path| rootfs.join(path)).into_iter().find(|p| p.is_file());
    let busybox = busybox.context("the package has no busybox")?;
    let list = output(program(&busybox).arg("--list")).context("busybox --list")?;
    for applet in list.lines().filter(|name| *name != "busybox") {
        let _ = symlink("busybox", busybox.with_file_name(applet));
    }
    Ok(())
}

const NGINX: &str = "daemon off;\nerror_log /dev/stderr info;\npid /run/nginx.pid;\nuser nobody nogroup;\n\
    events {}\nhttp {\n  include /etc/nginx/mime.types;\n  access_log /dev/stdout;\n  server {\n    listen 80;\n    \
    root /usr/share/nginx/html;\n  }\n}\n";

fn nginx(rootfs: &Path) -> Result<()> {
    for dir in ["var/lib/nginx", "var/log/nginx"] {
        fs::create_dir_all(rootfs.join(dir))?;
    }
    // The package's own configuration names modules that are packages of their own.
    Ok(fs::write(rootfs.join("etc/nginx/container.conf"), NGINX)?)
}
