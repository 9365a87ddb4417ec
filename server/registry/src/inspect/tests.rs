//! Binaries made by hand, whole, cut and foreign.

use super::*;

fn wat(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap()
}

fn component(imports: &[&str], exports: &[&str]) -> Vec<u8> {
    let imports = imports.iter().map(|name| format!("(import \"{name}\" (instance))"));
    let exports = exports
        .iter()
        .map(|name| format!("(instance $i{0} ) (export \"{name}\" (instance $i{0}))", name.len()));
    wat(&format!("(component {})", imports.chain(exports).collect::<Vec<_>>().join("\n")))
}

#[test]
fn an_http_component() {
    let bytes = component(
        &["wasi:io/streams@0.2.3", "wasi:http/types@0.2.3", "wasi:config/store@0.2.0-rc.1"],
        &["wasi:http/incoming-handler@0.2.3"],
    );
    let inspection = inspect(&bytes).unwrap();
    assert_eq!(inspection.encoding, Encoding::Component);
    assert_eq!(inspection.world, World::Http);
    let sorted = ["wasi:config/store@0.2.0-rc.1", "wasi:http/types@0.2.3", "wasi:io/streams@0.2.3"];
    assert_eq!(inspection.imports, sorted);
    assert_eq!(inspection.exports, ["wasi:http/incoming-handler@0.2.3"]);
    assert_eq!(inspection.problems, [""; 0]);
    assert_eq!(inspection.size, bytes.len() as u64);
    assert_eq!(inspection.digest, Digest::of(&bytes).to_string());
}

#[test]
fn other_worlds() {
    let world = |bytes: &[u8]| inspect(bytes).unwrap().world;
    assert_eq!(world(&component(&[], &["wasi:http/handler@0.3.0"])), World::HttpAsync);
    assert_eq!(world(&component(&[], &["wasi:cli/run@0.2.0"])), World::Command);
    assert_eq!(world(&component(&[], &["wasi:cli/run@0.3.0-rc-2026"])), World::Command);
    assert_eq!(world(&component(&[], &["example:plugin/api@1.0.0"])), World::Library);
    assert_eq!(world(&wat("(module (func (export \"_start\")))")), World::Command);
    assert_eq!(world(&wat("(module (func (export \"add\")))")), World::Library);
}

#[test]
fn a_preview1_program() {
    let bytes = wat(r#"(module
        (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "proc_exit" (func (param i32)))
        (memory (export "memory") 1)
        (func (export "_start")))"#);
    let inspection = inspect(&bytes).unwrap();
    assert_eq!(inspection.encoding, Encoding::Module);
    let imports = ["wasi_snapshot_preview1::fd_write", "wasi_snapshot_preview1::proc_exit"];
    assert_eq!(inspection.imports, imports);
    assert_eq!(inspection.exports, ["_start", "memory"]);
    assert_eq!(inspection.problems, [""; 0]);
}

#[test]
fn what_nothing_provides_is_a_problem_each() {
    let problems = |bytes: &[u8]| inspect(bytes).unwrap().problems;
    let run: &[&str] = &["wasi:cli/run@0.2.0"];
    for missing in ["wasi:nn/graph@0.2.0", "acme:db/query@1.0.0", "wasi:http/types@0.1.0", "wasi:http/types"]
    {
        let problems = problems(&component(&["wasi:io/poll@0.2.0", missing], run));
        assert!(matches!(&*problems, [problem] if problem.contains(missing)), "{problems:?}");
    }
    let loose =
        wat(r#"(component (import "log" (func)) (export "wasi:cli/run@0.2.0" (instance $i)) (instance $i))"#
            .replace(
                r#"(export "wasi:cli/run@0.2.0" (instance $i)) (instance $i)"#,
                r#"(instance $i) (export "wasi:cli/run@0.2.0" (instance $i))"#,
            )
            .as_str());
    assert!(matches!(&*problems(&loose), [problem] if problem.contains("the function `log`")));
    let browser = wat(r#"(module (import "wbg" "__wbindgen_throw" (func)) (func (export "_start")))"#);
    assert!(matches!(&*problems(&browser), [problem] if problem.contains("wasm-bindgen")));
    let library = problems(&component(&[], &[]));
    assert!(matches!(&*library, [problem] if problem.contains("nothing to start")), "{library:?}");
}

#[test]
fn imports_of_nested_parts_are_not_the_components() {
    let bytes = wat(r#"(component
        (core module (import "inner" "f" (func)))
        (component (import "acme:inner/api@1.0.0" (instance)))
        (import "wasi:io/poll@0.2.0" (instance))
        (instance $run) (export "wasi:cli/run@0.2.0" (instance $run)))"#);
    let inspection = inspect(&bytes).unwrap();
    assert_eq!(inspection.imports, ["wasi:io/poll@0.2.0"]);
    assert_eq!(inspection.problems, [""; 0]);
}

#[test]
fn every_cut_of_a_binary_is_found_out() {
    let bytes = wat(r#"(component
        (core module (func (export "f") i32.const 1 drop))
        (import "wasi:io/poll@0.2.0" (instance))
        (instance $run) (export "wasi:cli/run@0.2.0" (instance $run)))"#);
    inspect(&bytes).unwrap();
    // Sections are a byte, a length (of one byte here) and that many bytes, after a header of eight. A cut
    // between two of them can leave a smaller, valid binary.
    let mut boundaries = vec![8];
    while let Some(length) = bytes.get(boundaries[boundaries.len() - 1] + 1) {
        boundaries.push(boundaries[boundaries.len() - 1] + 2 + usize::from(*length));
    }
    assert_eq!(boundaries.pop(), Some(bytes.len()));
    for length in (4..bytes.len()).filter(|length| !boundaries.contains(length)) {
        assert_eq!(inspect(&bytes[..length]), Err(InspectError::Truncated { size: length as u64 }));
    }
    for length in boundaries {
        let cut = inspect(&bytes[..length]);
        assert!(matches!(cut, Ok(_) | Err(InspectError::Truncated { .. })), "cut at {length}: {cut:?}");
    }
}

#[test]
fn bodies_are_validated() {
    let mut bytes = wat("(module (func (export \"_start\") (drop (i32.const 1))))");
    let code = bytes.windows(2).position(|pair| pair == [0x41, 0x01]).unwrap();
    bytes[code] = 0x42;
    bytes[code + 1] = 0x01;
    inspect(&bytes).unwrap();
    bytes[code] = 0x20;
    let error = inspect(&bytes).unwrap_err();
    assert!(
        matches!(&error, InspectError::Invalid { reason, .. } if reason.contains("unknown local")),
        "{error:?}"
    );
}

#[test]
fn other_files_are_named() {
    let looks = |bytes: &[u8]| match inspect(bytes) {
        Err(InspectError::NotWasm { looks_like }) => looks_like,
        other => panic!("{other:?}"),
    };
    assert!(looks(b"\x7fELF\x02\x01\x01").contains("Linux"));
    assert!(looks(b"PK\x03\x04rest").contains("zip"));
    assert!(looks(b"\x1f\x8b\x08").contains("gzip"));
    assert!(looks(b"  (module)").contains("wasm-tools parse"));
    assert!(looks(b"<!DOCTYPE html><html>").contains("error page"));
    assert!(looks("pl\u{e4}in".as_bytes()).contains("text"));
    assert!(looks(b"\x01\x02\x03\xff").contains("binary"));
    assert_eq!(inspect(b""), Err(InspectError::Empty));
    assert_eq!(inspect(b"\0asm\x0d\0\0\0"), Err(InspectError::Version { version: 13 }));
    assert_eq!(inspect(b"\0asm"), Err(InspectError::Truncated { size: 4 }));
}
