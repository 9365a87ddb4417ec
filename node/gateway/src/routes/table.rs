//! The table and how it is searched.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{Arc, atomic::AtomicU64},
};

use super::target::{Load, Target};

/// How a route's path is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PathKind {
    /// The whole path.
    Exact,
    /// Leading whole segments.
    Prefix,
}

#[derive(Clone, Debug)]
struct PathRoute {
    kind: PathKind,
    path: String,
    target: Target,
}

impl PathRoute {
    fn matches(&self, path: &str) -> bool {
        match self.kind {
            PathKind::Exact => self.path == path,
            PathKind::Prefix => {
                let prefix = self.path.trim_end_matches('/');
                path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
        }
    }
}

/// Routes of one host, best match first.
#[derive(Clone, Debug, Default)]
struct HostRoutes(Vec<PathRoute>);

impl HostRoutes {
    fn find(&self, path: &str) -> Option<&Target> {
        self.0.iter().find(|route| route.matches(path)).map(|route| &route.target)
    }
}

/// What a new table takes over from the one before.
#[derive(Clone, Debug, Default)]
struct Carried {
    loads: HashMap<SocketAddr, Arc<Load>>,
    turns: HashMap<(String, String), Arc<AtomicU64>>,
}

/// All routes at one moment.
#[derive(Clone, Debug, Default)]
pub struct RouteTable {
    complete: bool,
    suffix: String,
    exact: HashMap<String, HostRoutes>,
    /// By the part after `*`, with its dot.
    wildcard: HashMap<String, HostRoutes>,
    any: HostRoutes,
    default: Option<Target>,
    carried: Carried,
    problems: Vec<String>,
}

impl RouteTable {
    /// Whether it was made from complete lists of every kind.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// What could not be routed and why, one line each.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// Where a request goes. `host` may carry a port; its case does not matter.
    pub fn find(&self, host: &str, path: &str) -> Option<&Target> {
        let host = normalize(host);
        let label_end = host.find('.').unwrap_or(host.len());
        let routes = self
            .exact
            .get(host.as_str())
            .or_else(|| self.wildcard.get(host.get(label_end..).unwrap_or_default()))
            .unwrap_or(&self.any);
        routes.find(path).or(self.default.as_ref())
    }

    /// Namespace and name in a default function host (`NAME.NAMESPACE.SUFFIX`).
    pub fn function_of_host(&self, host: &str) -> Option<(String, String)> {
        function_of_host(&normalize(host), &self.suffix)
    }
}

/// Without port, trailing dot and capitals.
fn normalize(host: &str) -> String {
    let bare = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    bare.trim_end_matches('.').to_ascii_lowercase()
}

fn function_of_host(host: &str, suffix: &str) -> Option<(String, String)> {
    let labels = host.strip_suffix(suffix)?.strip_suffix('.')?;
    let (name, namespace) = labels.split_once('.')?;
    (!name.is_empty() && !namespace.is_empty() && !namespace.contains('.'))
        .then(|| (namespace.to_owned(), name.to_owned()))
}

/// Collects routes.
pub(super) struct Builder<'a> {
    suffix: String,
    previous: &'a RouteTable,
    carried: Carried,
    /// Host (empty: any) to path to target. The first to claim a host and path keeps it.
    routes: BTreeMap<String, BTreeMap<(PathKind, String), Target>>,
    default: Option<Target>,
    problems: Vec<String>,
}

impl<'a> Builder<'a> {
    pub(super) fn new(suffix: &str, previous: &'a RouteTable) -> Self {
        Self {
            suffix: suffix.to_ascii_lowercase(),
            previous,
            carried: Carried::default(),
            routes: BTreeMap::new(),
            default: None,
            problems: Vec::new(),
        }
    }

    /// The counter of an address: the same one in every table that has the address.
    pub(super) fn load(&mut self, address: SocketAddr) -> Arc<Load> {
        let fresh = || self.previous.carried.loads.get(&address).cloned().unwrap_or_default();
        Arc::clone(self.carried.loads.entry(address).or_insert_with(fresh))
    }

    /// The counter of a function.
    pub(super) fn turns(&mut self, namespace: &str, name: &str) -> Arc<AtomicU64> {
        let key = (namespace.to_owned(), name.to_owned());
        let turns = self.previous.carried.turns.get(&key).cloned().unwrap_or_default();
        Arc::clone(self.carried.turns.entry(key).or_insert(turns))
    }

    /// The default host of a function.
    pub(super) fn default_host(&self, namespace: &str, name: &str) -> String {
        format!("{name}.{namespace}.{}", self.suffix)
    }

    /// Adds a route on behalf of `owner` in `namespace`. Default hosts of functions belong to their
    /// namespace: another's claim is refused, so nobody can take requests meant for someone else.
    pub(super) fn add(
        &mut self,
        owner: &str,
        namespace: &str,
        host: &str,
        kind: PathKind,
        path: &str,
        target: Target,
    ) {
        let host = host.to_ascii_lowercase();
        let foreign = function_of_host(&host, &self.suffix).is_some_and(|(of, _)| of != namespace);
        let covers = host
            .strip_prefix('*')
            .is_some_and(|rest| format!("{rest}.").ends_with(&format!(".{}.", self.suffix)));
        if foreign || covers {
            self.problem(format!("{owner}: host {host} belongs to functions of other namespaces"));
            return;
        }
        let paths = self.routes.entry(host.clone()).or_default();
        match paths.entry((kind, path.to_owned())) {
            std::collections::btree_map::Entry::Vacant(place) => {
                place.insert(target);
            }
            std::collections::btree_map::Entry::Occupied(_) => {
                self.problem(format!("{owner}: {host}{path} is taken by an older object"));
            }
        }
    }

    /// Sets the default backend; the first wins.
    pub(super) fn default_backend(&mut self, target: Target) {
        self.default.get_or_insert(target);
    }

    pub(super) fn problem(&mut self, text: String) {
        self.problems.push(text);
    }

    pub(super) fn finish(self) -> RouteTable {
        let mut table = RouteTable {
            complete: true,
            suffix: self.suffix,
            default: self.default,
            carried: self.carried,
            problems: self.problems,
            ..RouteTable::default()
        };
        for (host, paths) in self.routes {
            let mut routes: Vec<_> =
                paths.into_iter().map(|((kind, path), target)| PathRoute { kind, path, target }).collect();
            // Stable, so equals keep their order.
            routes.sort_by_key(|r| (r.kind, Reverse(r.path.trim_end_matches('/').len())));
            let routes = HostRoutes(routes);
            match host.strip_prefix('*') {
                _ if host.is_empty() => table.any = routes,
                Some(rest) => drop(table.wildcard.insert(rest.to_owned(), routes)),
                None => drop(table.exact.insert(host, routes)),
            }
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(routes: &[(&str, PathKind, &str, &str)]) -> RouteTable {
        let previous = RouteTable::default();
        let mut builder = Builder::new("localhost", &previous);
        for (host, kind, path, name) in routes {
            builder.add("test", "default", host, *kind, path, Target::Broken((*name).to_owned()));
        }
        builder.finish()
    }

    fn found<'a>(table: &'a RouteTable, host: &str, path: &str) -> &'a str {
        match table.find(host, path) {
            Some(Target::Broken(name)) => name,
            _ => "-",
        }
    }

    #[test]
    fn the_best_match_wins() {
        use PathKind::{Exact, Prefix};
        let table = table(&[
            ("a.example.com", Prefix, "/", "root"),
            ("a.example.com", Prefix, "/api", "api"),
            ("a.example.com", Prefix, "/api/v1/", "v1"),
            ("a.example.com", Exact, "/api", "exact"),
            ("*.example.com", Prefix, "/", "wild"),
            ("", Prefix, "/any", "any"),
            ("b.example.com", Prefix, "/only", "only"),
        ]);
        for (host, path, want) in [
            ("a.example.com", "/", "root"),
            ("A.Example.COM:8080", "/x", "root"),
            ("a.example.com.", "/x", "root"),
            ("a.example.com", "/api", "exact"),
            ("a.example.com", "/api/", "api"),
            ("a.example.com", "/apix", "root"),
            ("a.example.com", "/api/v1", "v1"),
            ("a.example.com", "/api/v1/x", "v1"),
            ("a.example.com", "/api/v10", "api"),
            ("c.example.com", "/", "wild"),
            ("c.d.example.com", "/", "-"),
            ("example.com", "/", "-"),
            ("b.example.com", "/", "-"),
            ("other", "/any/x", "any"),
            ("[::1]:80", "/any", "any"),
            ("", "/", "-"),
        ] {
            assert_eq!(found(&table, host, path), want, "{host}{path}");
        }
    }

    #[test]
    fn default_hosts_belong_to_their_namespace() {
        use PathKind::Prefix;
        let table = table(&[
            ("f.default.localhost", Prefix, "/", "own"),
            ("f.other.localhost", Prefix, "/", "stolen"),
            ("*.other.localhost", Prefix, "/", "stolen"),
            ("*.localhost", Prefix, "/", "stolen"),
            ("f.default.localhost", Prefix, "/", "late"),
            ("other.localhost", Prefix, "/", "free"),
        ]);
        assert_eq!(found(&table, "f.default.localhost:8080", "/"), "own");
        assert_eq!(found(&table, "f.other.localhost", "/"), "-");
        assert_eq!(found(&table, "other.localhost", "/"), "free");
        assert_eq!(table.problems().len(), 4);
        assert_eq!(table.function_of_host("f.ns.localhost:1"), Some(("ns".into(), "f".into())));
        assert_eq!(table.function_of_host("f.localhost"), None);
        assert_eq!(table.function_of_host("a.b.c.localhost"), None);
    }
}
