//! Which resources the cluster has: discovery, and the names people use for them.

use anyhow::{Result, anyhow};
use serde_json::Value;

use crate::commands::Cluster;

/// One resource type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resource {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) plural: String,
    pub(crate) kind: String,
    pub(crate) namespaced: bool,
    names: Vec<String>,
    categories: Vec<String>,
}

impl Resource {
    /// Path of all of them, of those in a namespace, or of one.
    pub(crate) fn path(&self, namespace: Option<&str>, name: Option<&str>) -> String {
        let mut path = match self.group.as_str() {
            "" => format!("/api/{}", self.version),
            group => format!("/apis/{group}/{}", self.version),
        };
        if let (true, Some(namespace)) = (self.namespaced, namespace) {
            path.push_str(&format!("/namespaces/{namespace}"));
        }
        path.push('/');
        path.push_str(&self.plural);
        if let Some(name) = name {
            path.push('/');
            path.push_str(name);
        }
        path
    }

    /// `deployment.apps`, as `kubectl` names kinds in its messages.
    pub(crate) fn display(&self) -> String {
        match self.group.as_str() {
            "" => self.kind.to_lowercase(),
            group => format!("{}.{group}", self.kind.to_lowercase()),
        }
    }
}

/// Everything the cluster serves.
pub(crate) struct Resources(Vec<Resource>);

impl Resources {
    /// Asks the cluster.
    pub(crate) async fn discover(cluster: &Cluster) -> Result<Self> {
        let mut all = read(cluster, "/api/v1", "", "v1").await?;
        let groups = cluster.get("/apis").await?.unwrap_or_default();
        for group in groups["groups"].as_array().into_iter().flatten() {
            let preferred = &group["preferredVersion"];
            if let (Some(name), Some(path), Some(version)) =
                (group["name"].as_str(), preferred["groupVersion"].as_str(), preferred["version"].as_str())
            {
                all.extend(read(cluster, &format!("/apis/{path}"), name, version).await?);
            }
        }
        Ok(Self(all))
    }

    /// The resource people mean by `name`: plural, singular, short name, kind, or `plural.group`.
    pub(crate) fn named(&self, name: &str) -> Result<&Resource> {
        let wanted = name.to_lowercase();
        let (short, group) = wanted.split_once('.').unwrap_or((&wanted, ""));
        self.0
            .iter()
            .find(|resource| {
                resource.names.iter().any(|name| name == short)
                    && (group.is_empty() || resource.group.starts_with(group))
            })
            .ok_or_else(|| anyhow!("the server doesn't have a resource type \"{name}\""))
    }

    /// The resources of a category such as `all`.
    pub(crate) fn category(&self, name: &str) -> Vec<&Resource> {
        self.0.iter().filter(|resource| resource.categories.iter().any(|category| category == name)).collect()
    }

    /// The resource of an object.
    pub(crate) fn of(&self, object: &Value) -> Result<&Resource> {
        let (version, kind) =
            (object["apiVersion"].as_str().unwrap_or_default(), object["kind"].as_str().unwrap_or_default());
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        self.0
            .iter()
            .find(|resource| resource.kind == kind && resource.group == group && resource.version == version)
            .ok_or_else(|| {
                anyhow!(
                    "no matches for kind \"{kind}\" in version \"{}\"",
                    object["apiVersion"].as_str().unwrap_or_default()
                )
            })
    }
}

async fn read(cluster: &Cluster, path: &str, group: &str, version: &str) -> Result<Vec<Resource>> {
    let list = cluster.get(path).await?.unwrap_or_default();
    Ok(list["resources"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|entry| parse(entry, group, version))
        .collect())
}

fn parse(entry: &Value, group: &str, version: &str) -> Option<Resource> {
    let plural = entry["name"].as_str().filter(|name| !name.contains('/'))?;
    let kind = entry["kind"].as_str()?;
    let texts = |field: &str| -> Vec<String> {
        entry[field].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let mut names = vec![
        plural.to_owned(),
        entry["singularName"].as_str().unwrap_or_default().to_owned(),
        kind.to_lowercase(),
    ];
    names.extend(texts("shortNames"));
    Some(Resource {
        group: group.to_owned(),
        version: version.to_owned(),
        plural: plural.to_owned(),
        kind: kind.to_owned(),
        namespaced: entry["namespaced"].as_bool().unwrap_or_default(),
        names,
        categories: texts("categories"),
    })
}

/// `(type, name)` pairs of command-line words: `pods`, `pods a b`, `deploy/a svc/b`.
pub(crate) fn targets(words: &[String]) -> Result<Vec<(String, Option<String>)>> {
    let Some((first, rest)) = words.split_first() else {
        return Err(anyhow!("name a resource type, such as pods"));
    };
    if first.contains('/') {
        return words
            .iter()
            .map(|word| match word.split_once('/') {
                Some((kind, name)) if !kind.is_empty() && !name.is_empty() => {
                    Ok((kind.to_owned(), Some(name.to_owned())))
                }
                _ => Err(anyhow!("\"{word}\" is not TYPE/NAME; all words must be when the first is")),
            })
            .collect();
    }
    if rest.is_empty() {
        return Ok(first.split(',').map(|kind| (kind.to_owned(), None)).collect());
    }
    Ok(rest.iter().map(|name| (first.clone(), Some(name.clone()))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn command_line_words_become_targets() {
        let some = |kind: &str, name: &str| (kind.to_owned(), Some(name.to_owned()));
        assert_eq!(targets(&words("pods")).unwrap(), [("pods".to_owned(), None)]);
        assert_eq!(targets(&words("po,svc")).unwrap(), [("po".to_owned(), None), ("svc".to_owned(), None)]);
        assert_eq!(targets(&words("pods a b")).unwrap(), [some("pods", "a"), some("pods", "b")]);
        assert_eq!(targets(&words("deploy/a svc/b")).unwrap(), [some("deploy", "a"), some("svc", "b")]);
        assert!(targets(&words("deploy/a b")).is_err());
        assert!(targets(&[]).is_err());
    }

    #[test]
    fn paths_follow_the_scope() {
        let entry = serde_json::json!({"name":"deployments","singularName":"deployment","kind":"Deployment","namespaced":true,"shortNames":["deploy"]});
        let deployments = parse(&entry, "apps", "v1").unwrap();
        assert_eq!(deployments.path(Some("x"), Some("web")), "/apis/apps/v1/namespaces/x/deployments/web");
        assert_eq!(deployments.path(None, None), "/apis/apps/v1/deployments");
        assert_eq!(deployments.display(), "deployment.apps");
        assert!(
            parse(&serde_json::json!({"name":"deployments/scale","kind":"Scale"}), "apps", "v1").is_none()
        );
    }
}
