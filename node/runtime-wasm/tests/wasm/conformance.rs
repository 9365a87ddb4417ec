use std::{net::IpAddr, sync::Arc};

use ketch_runtime::{
    ImageSource, Runtime,
    testing::{Program, Role, Subject, conformance},
};

use crate::rig::{Guests, run, runtime};

struct Wasm;

impl Subject for Wasm {
    fn runtime(&self) -> Arc<dyn Runtime> {
        runtime()
    }

    fn source(&self) -> Arc<dyn ImageSource> {
        Arc::new(Guests::default())
    }

    fn program(&self, role: Role) -> Option<Program> {
        let (name, args) = match role {
            Role::Http => ("hello", vec![]),
            Role::ExitsWith(code) => ("job", vec!["exit".to_owned(), code.to_string()]),
            Role::RunsForever => ("job", vec!["sleep".to_owned(), "0".to_owned()]),
            Role::Missing => ("missing", vec![]),
        };
        Some(Program { reference: format!("test.local/{name}:1"), args, ..Program::default() })
    }

    fn ip(&self) -> IpAddr {
        IpAddr::from([127, 42, 99, 1])
    }
}

#[test]
fn the_wasm_runtime_conforms() {
    run(conformance(&Wasm));
}
