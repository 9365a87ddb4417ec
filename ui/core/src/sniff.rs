//! What a dropped file is, by its content. Names are not trusted.

/// How many bytes [`sniff`] wants to see.
pub const PREFIX: usize = 4096;

/// The kind of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A component-model component: can be deployed.
    Component,
    /// A core module: runs as WASI preview 1 when it has a `_start`.
    Module,
    /// Begins like Wasm, but ends inside the header or is of an unknown version.
    BrokenWasm,
    /// A Kubernetes manifest or other YAML or JSON.
    Manifest,
    /// gzip.
    Gzip,
    /// zip.
    Zip,
    /// A native program.
    Native,
    /// Wasm in text form.
    WasmText,
    /// Other text.
    Text,
    /// No bytes.
    Empty,
    /// None of these.
    Unknown,
}

impl Content {
    /// Whether it is uploaded as a Wasm artifact.
    pub fn is_wasm(self) -> bool {
        matches!(self, Content::Component | Content::Module)
    }

    /// Why it cannot be deployed and what to do about it; `None` when it can.
    pub fn advice(self) -> Option<&'static str> {
        Some(match self {
            Content::Component | Content::Module | Content::Manifest => return None,
            Content::BrokenWasm => {
                "This begins like WebAssembly but stops or changes in the header, so the file is cut off or \
                 was altered on its way. Build or download it again."
            }
            Content::Gzip | Content::Zip => {
                "This is an archive. Unpack it and drop the .wasm file that is inside."
            }
            Content::Native => {
                "This is a native program, not WebAssembly. Build it for wasm32-wasip2 (Rust: \
                 cargo build --target wasm32-wasip2), or put it in a container image and deploy that."
            }
            Content::WasmText => {
                "This is WebAssembly in text form. Turn it into a binary first: wasm-tools parse app.wat -o app.wasm."
            }
            Content::Text => {
                "This is text, neither WebAssembly nor a Kubernetes manifest with apiVersion and kind. \
                 Drop a .wasm file or a manifest."
            }
            Content::Empty => "The file is empty. Build it again, or choose another file.",
            Content::Unknown => {
                "This is not WebAssembly: its first bytes are not those of a .wasm file. Choose the file that \
                 your build put out, often under target/wasm32-wasip2/release or dist."
            }
        })
    }
}

/// Looks at the first [`PREFIX`] bytes of a file.
pub fn sniff(head: &[u8]) -> Content {
    const WASM: &[u8] = b"\0asm";
    match head {
        [] => Content::Empty,
        [0, b'a', b's', b'm', 1, 0, 0, 0, ..] => Content::Module,
        [0, b'a', b's', b'm', 0x0d, 0, 1, 0, ..] => Content::Component,
        _ if head.starts_with(WASM) || WASM.starts_with(head) => Content::BrokenWasm,
        [0x1f, 0x8b, ..] => Content::Gzip,
        [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => Content::Zip,
        [0x7f, b'E', b'L', b'F', ..]
        | [b'M', b'Z', ..]
        | [0xcf, 0xfa, 0xed, 0xfe, ..]
        | [0xca, 0xfe, 0xba, 0xbe, ..] => Content::Native,
        _ => sniff_text(head),
    }
}

fn sniff_text(head: &[u8]) -> Content {
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        // The prefix may end inside a character.
        Err(e) if head.len() - e.valid_up_to() < 4 && head.len() >= PREFIX => {
            head.get(..e.valid_up_to()).and_then(|t| std::str::from_utf8(t).ok()).unwrap_or_default()
        }
        Err(_) => return Content::Unknown,
    };
    if text.contains('\0') {
        return Content::Unknown;
    }
    let body = text.trim_start_matches('\u{feff}').trim_start();
    if body.starts_with("(module") || body.starts_with("(component") {
        return Content::WasmText;
    }
    let key = |name: &str| {
        text.contains(&format!("\"{name}\"")) || text.lines().any(|l| l.starts_with(&format!("{name}:")))
    };
    if key("apiVersion") || key("kind") { Content::Manifest } else { Content::Text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_content() {
        for (bytes, content) in [
            (&b""[..], Content::Empty),
            (b"\0asm\x01\0\0\0\x01", Content::Module),
            (b"\0asm\x0d\0\x01\0", Content::Component),
            (b"\0as", Content::BrokenWasm),
            (b"\0asm\x0d\0", Content::BrokenWasm),
            (b"\0asm\x02\0\0\0", Content::BrokenWasm),
            (b"\x1f\x8b\x08", Content::Gzip),
            (b"PK\x03\x04zz", Content::Zip),
            (b"\x7fELF\x02", Content::Native),
            (b"MZ\x90\0", Content::Native),
            (b"# c\n---\napiVersion: v1\nkind: Pod\n", Content::Manifest),
            (b"{\"apiVersion\": \"v1\"}", Content::Manifest),
            (b"(module (func))", Content::WasmText),
            (b"hello there", Content::Text),
            (b"\xff\xfe\x01\x02\x03\x04", Content::Unknown),
            (b"abc\0def", Content::Unknown),
        ] {
            assert_eq!(sniff(bytes), content, "{bytes:?}");
        }
    }

    #[test]
    fn a_character_cut_by_the_prefix_is_still_text() {
        let mut text = "apiVersion: v1\nkind: ConfigMap\n".to_owned();
        text.push_str(&"é".repeat(PREFIX));
        let head = &text.as_bytes()[..PREFIX];
        assert!(std::str::from_utf8(head).is_err());
        assert_eq!(sniff(head), Content::Manifest);
    }

    #[test]
    fn everything_not_deployable_has_advice() {
        for content in [Content::BrokenWasm, Content::Gzip, Content::Native, Content::Text, Content::Unknown]
        {
            assert!(content.advice().is_some_and(|a| a.ends_with('.')), "{content:?}");
        }
        assert_eq!(Content::Component.advice(), None);
    }
}
