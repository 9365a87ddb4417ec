//! What a component's imports and exports mean to a person.

use ketch_api::wasm::{Encoding, Inspection, World};

/// A group of interfaces under a human name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    /// For instance "Makes HTTP requests".
    pub title: &'static str,
    /// Whether it reaches beyond the sandbox, so that a permission decides about it.
    pub outbound: bool,
    /// The interfaces in it.
    pub interfaces: Vec<String>,
}

const GROUPS: [(&str, bool, &[&str]); 11] = [
    ("Makes HTTP requests", true, &["wasi:http/outgoing-handler", "wasi:http/client"]),
    ("Opens network sockets", true, &["wasi:sockets"]),
    ("Reads and writes files", false, &["wasi:filesystem"]),
    ("Stores key-value data", false, &["wasi:keyvalue"]),
    ("Reads configuration", false, &["wasi:config", "wasi:runtime-config"]),
    ("Uses HTTP types", false, &["wasi:http"]),
    ("Reads arguments, environment and standard streams", false, &["wasi:cli"]),
    ("Asks for the time", false, &["wasi:clocks"]),
    ("Asks for random numbers", false, &["wasi:random"]),
    ("Waits for input and output", false, &["wasi:io"]),
    ("Uses WASI preview 1", false, &["wasi_snapshot_preview1", "wasi_unstable"]),
];

/// Sorts imports into groups, those that reach outside first; what is in no group comes last.
pub fn group(imports: &[String]) -> Vec<Capability> {
    let mut groups: Vec<Capability> = GROUPS
        .iter()
        .map(|(title, outbound, _)| Capability { title, outbound: *outbound, interfaces: Vec::new() })
        .collect();
    let mut other = Capability { title: "Needs something else", outbound: false, interfaces: Vec::new() };
    for import in imports {
        let index = GROUPS.iter().position(|(_, _, prefixes)| prefixes.iter().any(|p| is_under(import, p)));
        match index.and_then(|i| groups.get_mut(i)) {
            Some(group) => group.interfaces.push(import.clone()),
            None => other.interfaces.push(import.clone()),
        }
    }
    groups.push(other);
    groups.retain(|g| !g.interfaces.is_empty());
    groups
}

/// Whether `import` is the interface or package `prefix`, at any version.
fn is_under(import: &str, prefix: &str) -> bool {
    import.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '@', ':', '.']))
}

/// Whether any of the imports can reach beyond the cluster.
pub fn wants_network(imports: &[String]) -> bool {
    group(imports).iter().any(|g| g.outbound)
}

/// What it is, in a few words.
pub fn describe(inspection: &Inspection) -> &'static str {
    match (inspection.world, inspection.encoding) {
        (World::Http, _) => "HTTP component: answers requests",
        (World::HttpAsync, _) => "HTTP component, asynchronous (WASI 0.3): answers requests",
        (World::Command, Encoding::Component) => "Command component: runs until it ends",
        (World::Command, Encoding::Module) => "Core module with WASI preview 1: runs until it ends",
        (World::Library, _) => "Library: exports neither an HTTP handler nor a command",
    }
}

/// Why it cannot be deployed although it is valid, with the next step.
pub fn blocked(inspection: &Inspection) -> Option<String> {
    if let Some(problem) = inspection.problems.first() {
        return Some(problem.clone());
    }
    match (inspection.world, inspection.encoding) {
        (World::Library, Encoding::Module) => Some(
            "This is a core module without a _start function, so there is nothing to run. Build it as a component \
             (Rust: --target wasm32-wasip2), or turn it into one with wasm-tools component new."
                .to_owned(),
        ),
        (World::Library, Encoding::Component) => Some(
            "This component exports neither wasi:http/incoming-handler nor wasi:cli/run, so nothing can start it. \
             Implement one of the two worlds, or compose it into a component that does."
                .to_owned(),
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn imports_are_grouped_by_meaning() {
        let imports = strings(&[
            "wasi:cli/environment@0.2.3",
            "wasi:http/outgoing-handler@0.2.3",
            "wasi:http/types@0.2.3",
            "wasi:keyvalue/store@0.2.0-draft",
            "acme:thing/do-it",
        ]);
        let groups = group(&imports);
        let titles: Vec<_> = groups.iter().map(|g| g.title).collect();
        assert_eq!(
            titles,
            [
                "Makes HTTP requests",
                "Stores key-value data",
                "Uses HTTP types",
                "Reads arguments, environment and standard streams",
                "Needs something else"
            ]
        );
        assert!(groups[0].outbound && !groups[2].outbound);
        assert_eq!(groups.iter().map(|g| g.interfaces.len()).sum::<usize>(), imports.len(), "none is lost");
        assert!(wants_network(&imports));
        assert!(!wants_network(&strings(&["wasi:http/types@0.2.3", "wasi:socketsish/x"])));
    }

    #[test]
    fn a_library_is_refused_with_advice() {
        let mut inspection = Inspection {
            encoding: Encoding::Module,
            world: World::Library,
            imports: vec![],
            exports: vec![],
            size: 1,
            digest: "sha256:0".into(),
            problems: vec![],
        };
        assert!(blocked(&inspection).unwrap().contains("_start"));
        inspection.problems = vec!["imports acme:x/y, which Ketch does not provide".into()];
        assert!(blocked(&inspection).unwrap().contains("acme"));
        inspection.problems.clear();
        inspection.world = World::Http;
        assert_eq!(blocked(&inspection), None);
    }
}
