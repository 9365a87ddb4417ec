//! Image references, as containerd's stores spell them.

/// The registry of a reference that names none.
const DEFAULT_REGISTRY: &str = "docker.io";

/// A reference in full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    /// Registry and path.
    pub(crate) repository: String,
    /// `:tag` or `@sha256:…`; a digest wins over a tag.
    suffix: String,
}

impl Name {
    /// Completes `reference` the way every container tool does: `nginx` is `docker.io/library/nginx:latest`.
    pub(crate) fn parse(reference: &str) -> Self {
        let (name, digest) = match reference.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (reference, None),
        };
        let (name, tag) = match name.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (name, None),
        };
        let has_registry =
            name.split_once('/').is_some_and(|(first, _)| first.contains(['.', ':']) || first == "localhost");
        let repository = match (has_registry, name.contains('/')) {
            (true, _) => name.to_owned(),
            (false, true) => format!("{DEFAULT_REGISTRY}/{name}"),
            (false, false) => format!("{DEFAULT_REGISTRY}/library/{name}"),
        };
        let suffix = match digest {
            Some(digest) => format!("@{digest}"),
            None => format!(":{}", tag.unwrap_or("latest")),
        };
        Self { repository, suffix }
    }

    /// The reference.
    pub(crate) fn full(&self) -> String {
        format!("{}{}", self.repository, self.suffix)
    }

    /// The same repository at a digest.
    pub(crate) fn at(&self, digest: &str) -> String {
        format!("{}@{digest}", self.repository)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_completed_as_docker_does() {
        for (given, full) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.27", "docker.io/library/nginx:1.27"),
            ("bitnami/redis:7", "docker.io/bitnami/redis:7"),
            ("ghcr.io/a/b", "ghcr.io/a/b:latest"),
            ("localhost/a", "localhost/a:latest"),
            ("localhost:5000/a/b:c", "localhost:5000/a/b:c"),
            ("ketch.local/default/web:1", "ketch.local/default/web:1"),
            ("nginx:1@sha256:ab", "docker.io/library/nginx@sha256:ab"),
        ] {
            assert_eq!(Name::parse(given).full(), full, "{given}");
        }
        assert_eq!(Name::parse("nginx:1").at("sha256:cd"), "docker.io/library/nginx@sha256:cd");
    }
}
