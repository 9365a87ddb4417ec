//! The compiler in a process of its own: this test binary, called as the `ketch` binary calls itself.

use std::{path::Path, sync::Arc};

use ketch_runtime::Runtime;
use ketch_runtime_wasm::{Compiler, Host, Options, ProcessCompiler, WasmRuntime, compile_main};

use crate::rig::{Guests, Loopback, Pod, guest, run};

/// Not a test: what the child process runs.
#[test]
#[ignore = "called by other tests"]
fn worker() {
    let args: Vec<_> = std::env::args().collect();
    let [.., wasm, out] = &args[..] else { panic!("two paths are missing") };
    if let Err(error) = compile_main(Path::new(wasm), Path::new(out)) {
        eprintln!("{error}");
        std::process::exit(1);
    }
    std::process::exit(0);
}

fn process() -> ProcessCompiler {
    let args =
        ["--exact", "compiler::worker", "--ignored", "--nocapture", "--quiet"].map(str::to_owned).to_vec();
    ProcessCompiler { program: std::env::current_exe().unwrap(), args }
}

#[test]
fn code_compiled_elsewhere_runs_here_whatever_the_layout() {
    run(async {
        for address_space in [u64::MAX, 0] {
            let dir = tempfile::tempdir().unwrap();
            let mut options = Options::new(dir.path().to_owned(), Arc::new(Loopback), Arc::new(process()));
            options.host = Host { memory: 512 << 20, address_space };
            let runtime = Arc::new(WasmRuntime::new(options).unwrap());
            assert_eq!(runtime.capabilities().limitations.is_empty(), address_space > 0);
            let pod = Pod::on(Arc::clone(&runtime), "test.local/hello:1", Arc::new(Guests::default())).await;
            let pod = pod.start().await;
            assert_eq!(pod.get("/").await.unwrap().0, 200);
            assert_eq!(pod.get("/big?n=3000000").await.unwrap().1.len(), 3_000_000);
            pod.remove().await;
            runtime.shutdown().await;
        }
    });
}

#[test]
fn what_does_not_compile_is_said_in_a_line() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let (wasm, out) = (dir.path().join("in.wasm"), dir.path().join("out.cwasm"));
        std::fs::write(&wasm, &guest("hello")[..1000]).unwrap();
        let error = process().compile(&wasm, &out, ketch_runtime_wasm::Layout::Roomy).await.unwrap_err();
        assert!(!error.contains('\n') && error.contains("unexpected end"), "{error}");
        assert!(!out.exists());
    });
}

#[test]
fn a_compiler_that_is_not_there_is_named() {
    run(async {
        let missing = ProcessCompiler { program: "/no/such/compiler".into(), args: Vec::new() };
        let error =
            missing.compile(Path::new("in"), Path::new("out"), ketch_runtime_wasm::Layout::Roomy).await;
        assert!(error.unwrap_err().starts_with("cannot start the compiler /no/such/compiler"));
    });
}
