//! What every runtime promises.

use std::{net::IpAddr, sync::Arc};

use ketch_runtime::{
    ImageSource, Runtime,
    testing::{Program, Role, Subject, conformance},
};

use crate::rig::{BUSYBOX, Rig};

struct Containers(Rig);

impl Subject for Containers {
    fn runtime(&self) -> Arc<dyn Runtime> {
        self.0.runtime.clone()
    }

    fn source(&self) -> Arc<dyn ImageSource> {
        self.0.images.clone()
    }

    fn program(&self, role: Role) -> Option<Program> {
        let script = match role {
            Role::Http => {
                "mkdir -p /tmp/www; echo ok >/tmp/www/index.html; exec httpd -f -p 18080 -h /tmp/www"
                    .to_owned()
            }
            Role::ExitsWith(code) => format!("echo over; exit {code}"),
            Role::RunsForever => "exec sleep 100000".to_owned(),
            Role::Missing => {
                return Some(Program { reference: "registry.test/none:1".into(), ..Program::default() });
            }
        };
        let command = vec!["busybox".into(), "sh".into(), "-c".into()];
        Some(Program { reference: BUSYBOX.into(), command, args: vec![script], ..Program::default() })
    }

    fn has_handles(&self) -> bool {
        true
    }

    fn ip(&self) -> IpAddr {
        self.0.ip(2).into()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_keep_every_promise() {
    let Some(rig) = Rig::new().await else { return };
    let subject = Containers(rig);
    conformance(&subject).await;
    subject.0.done().await;
}
