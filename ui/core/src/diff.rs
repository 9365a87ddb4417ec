//! What a new upload changes about the running revision.

use ketch_api::wasm::Inspection;

use crate::format::{bytes, short_digest};

/// One line of the comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// Only the new one has it.
    Added(String),
    /// Only the running one has it.
    Removed(String),
    /// A figure that differs: name, before, after.
    Changed(&'static str, String, String),
}

/// Differences of two binaries: digest, size, world, imports, exports. Empty when they are the same bytes.
pub fn compare(old: &Inspection, new: &Inspection) -> Vec<Line> {
    if old.digest == new.digest {
        return Vec::new();
    }
    let mut lines = vec![Line::Changed("Digest", short_digest(&old.digest), short_digest(&new.digest))];
    if old.size != new.size {
        lines.push(Line::Changed("Size", bytes(old.size), bytes(new.size)));
    }
    if old.world != new.world {
        lines.push(Line::Changed("World", format!("{:?}", old.world), format!("{:?}", new.world)));
    }
    lines.extend(sets("imports", &old.imports, &new.imports));
    lines.extend(sets("exports", &old.exports, &new.exports));
    lines
}

fn sets(verb: &str, old: &[String], new: &[String]) -> Vec<Line> {
    let added = new.iter().filter(|i| !old.contains(i)).map(|i| Line::Added(format!("{verb} {i}")));
    let removed = old.iter().filter(|i| !new.contains(i)).map(|i| Line::Removed(format!("{verb} {i}")));
    added.chain(removed).collect()
}

#[cfg(test)]
mod tests {
    use ketch_api::wasm::{Encoding, World};

    use super::*;

    fn inspection(digest: &str, size: u64, imports: &[&str]) -> Inspection {
        Inspection {
            encoding: Encoding::Component,
            world: World::Http,
            imports: imports.iter().map(|s| (*s).to_owned()).collect(),
            exports: vec!["wasi:http/incoming-handler@0.2.3".into()],
            size,
            digest: digest.into(),
            problems: vec![],
        }
    }

    #[test]
    fn new_imports_stand_out() {
        let old = inspection("sha256:aa", 1024, &["wasi:io/streams"]);
        let new = inspection("sha256:bb", 2048, &["wasi:sockets/tcp"]);
        assert_eq!(
            compare(&old, &new),
            [
                Line::Changed("Digest", "sha256:aa".into(), "sha256:bb".into()),
                Line::Changed("Size", "1.0 KiB".into(), "2.0 KiB".into()),
                Line::Added("imports wasi:sockets/tcp".into()),
                Line::Removed("imports wasi:io/streams".into()),
            ]
        );
        assert_eq!(compare(&old, &old), []);
    }
}
