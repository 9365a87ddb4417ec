//! What a file that is not Wasm probably is, from its first bytes.

/// Magic numbers, longest first where one starts another.
const MAGIC: &[(&[u8], &str)] = &[
    (b"\x7fELF", "a Linux program or library: build it for wasm32-wasip2"),
    (b"MZ", "a Windows program: build it for wasm32-wasip2"),
    (b"\xcf\xfa\xed\xfe", "a macOS program: build it for wasm32-wasip2"),
    (b"\xca\xfe\xba\xbe", "a macOS program or a Java class: build it for wasm32-wasip2"),
    (b"BC\xc0\xde", "LLVM bitcode: link it for wasm32-wasip2"),
    (b"!<arch>\n", "a static library: link it into a program for wasm32-wasip2"),
    (b"PK\x03\x04", "a zip archive: unpack it first"),
    (b"\x1f\x8b", "a gzip file: unpack it first"),
    (b"BZh", "a bzip2 file: unpack it first"),
    (b"\xfd7zXZ\0", "an xz file: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd file: unpack it first"),
    (b"%PDF", "a PDF document"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"#!", "a script"),
];

/// First words of texts, in lower case.
const TEXTS: &[(&str, &str)] = &[
    ("(module", "WebAssembly text: turn it into a binary with `wasm-tools parse`"),
    ("(component", "WebAssembly text: turn it into a binary with `wasm-tools parse`"),
    ("<!doctype", "an HTML page: the download was probably answered with an error page"),
    ("<html", "an HTML page: the download was probably answered with an error page"),
    ("version https://git-lfs", "a Git LFS pointer: fetch the file itself with `git lfs pull`"),
    ("package ", "source code: build it for wasm32-wasip2"),
    ("{", "JSON"),
];

/// A noun phrase, with advice where there is some.
pub(super) fn looks_like(bytes: &[u8]) -> &'static str {
    if let Some((_, what)) = MAGIC.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return what;
    }
    if bytes.get(257..262) == Some(b"ustar") {
        return "a tar archive: unpack it first";
    }
    let start = bytes.get(..bytes.len().min(512)).unwrap_or_default();
    let Some(text) = text_of(start) else { return "some other binary file" };
    let text = text.trim_start().to_lowercase();
    TEXTS.iter().find(|(word, _)| text.starts_with(word)).map_or("a text file", |(_, what)| what)
}

/// The text in `bytes`, when it is text; a character may be cut off at the end.
fn text_of(bytes: &[u8]) -> Option<&str> {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(bytes.get(..error.valid_up_to())?).ok()?
        }
        Err(_) => return None,
    };
    let control = |c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t');
    (!text.is_empty() && !text.contains(control)).then_some(text)
}
