//! Which files a volume made from API objects has. Pure.

use std::{collections::BTreeMap, time::Duration};

use ketch_api::{k8s::api::core::v1 as core, names::ROOT_CA_CONFIG_MAP};

use crate::{
    fields::{self, Place},
    sources::{Data, Kind},
};

/// Permissions of files when nothing says otherwise.
const DEFAULT_MODE: i32 = 0o644;
/// Life of a token when the volume does not say (upstream's).
const TOKEN_SECONDS: i64 = 3600;
/// Most bytes of one volume: a pod can name the same keys under many paths.
const LARGEST: usize = 64 << 20;

/// Between looks at objects that a volume is made from.
const REFRESH: Duration = Duration::from_secs(40);
/// Between looks at tokens that live long.
const LONGEST: Duration = Duration::from_secs(300);

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct File {
    pub(super) bytes: Vec<u8>,
    pub(super) mode: u32,
    /// The user it belongs to, where that is not this process's.
    pub(super) owner: Option<u32>,
}

/// Files by path inside the volume.
pub(super) type Files = BTreeMap<String, File>;

/// One part of a volume.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// Keys of a ConfigMap or Secret; all when there are no items.
    Object { kind: Kind, name: String, items: Option<Vec<core::KeyToPath>>, optional: bool },
    /// Fields of the pod.
    Fields(Vec<core::DownwardAPIVolumeFile>),
    /// A token of the pod's service account.
    Token { audience: Option<String>, seconds: i64, path: String },
}

/// A volume made from API objects.
#[derive(Clone, Debug)]
pub(super) struct Projection {
    mode: i32,
    pub(super) sources: Vec<Source>,
}

impl Projection {
    /// How often its sources have to be looked at; `None`: they never change. Tokens come due at a time that is
    /// known, so a tenth of their life will do.
    pub(super) fn interval(&self) -> Option<Duration> {
        let of = |source: &Source| match source {
            Source::Token { seconds, .. } => {
                let tenth = Duration::from_secs(u64::try_from(seconds / 10).unwrap_or_default());
                Some(tenth.clamp(REFRESH, LONGEST))
            }
            other => other.is_live().then_some(REFRESH),
        };
        self.sources.iter().filter_map(of).min()
    }

    /// Whether anything but its tokens can change.
    pub(super) fn is_live(&self) -> bool {
        self.sources.iter().any(Source::is_live)
    }
}

impl Source {
    fn is_live(&self) -> bool {
        match self {
            Self::Object { name, .. } => name != ROOT_CA_CONFIG_MAP,
            Self::Fields(items) => items.iter().any(may_change),
            Self::Token { .. } => false,
        }
    }
}

/// Labels and annotations are all of a pod that changes.
fn may_change(item: &core::DownwardAPIVolumeFile) -> bool {
    let path = item.field_ref.as_ref().map(|field| field.field_path.as_str()).unwrap_or_default();
    path.starts_with("metadata.labels") || path.starts_with("metadata.annotations")
}

/// How a volume is made from API objects; `None` for other volumes.
pub(super) fn projection(volume: &core::Volume) -> Option<Projection> {
    let of = |mode: Option<i32>, sources| Some(Projection { mode: mode.unwrap_or(DEFAULT_MODE), sources });
    let object =
        |kind, name: &str, items: &Option<Vec<core::KeyToPath>>, optional: Option<bool>| Source::Object {
            kind,
            name: name.to_owned(),
            items: items.clone().filter(|items| !items.is_empty()),
            optional: optional.unwrap_or(false),
        };
    if let Some(one) = &volume.config_map {
        return of(one.default_mode, vec![object(Kind::ConfigMap, &one.name, &one.items, one.optional)]);
    }
    if let Some(one) = &volume.secret {
        let name = one.secret_name.as_deref().unwrap_or_default();
        return of(one.default_mode, vec![object(Kind::Secret, name, &one.items, one.optional)]);
    }
    if let Some(one) = &volume.downward_api {
        return of(one.default_mode, vec![Source::Fields(one.items.clone().unwrap_or_default())]);
    }
    let projected = volume.projected.as_ref()?;
    let mut sources = Vec::new();
    for part in projected.sources.iter().flatten() {
        sources.extend(
            part.config_map.iter().map(|one| object(Kind::ConfigMap, &one.name, &one.items, one.optional)),
        );
        sources
            .extend(part.secret.iter().map(|one| object(Kind::Secret, &one.name, &one.items, one.optional)));
        sources.extend(
            part.downward_api.iter().map(|one| Source::Fields(one.items.clone().unwrap_or_default())),
        );
        sources.extend(part.service_account_token.iter().map(|one| Source::Token {
            audience: one.audience.clone().filter(|audience| !audience.is_empty()),
            seconds: one.expiration_seconds.unwrap_or(TOKEN_SECONDS),
            path: one.path.clone(),
        }));
    }
    of(projected.default_mode, sources)
}

/// What a projection's sources gave.
#[derive(Debug, Default)]
pub(super) struct Given {
    /// Objects; `None`: there is no such one.
    pub(super) objects: BTreeMap<(Kind, String), Option<Data>>,
    /// Tokens by path.
    pub(super) tokens: BTreeMap<String, String>,
}

/// The volume's files; `Err` with upstream's text for what is missing.
pub(super) fn files(
    projection: &Projection,
    pod: &core::Pod,
    place: &Place<'_>,
    given: &Given,
) -> Result<Files, String> {
    let (mut files, mut size) = (Files::new(), 0);
    let mut put = |path: &str, bytes: Vec<u8>, mode: Option<i32>, owner| -> Result<(), String> {
        size += bytes.len();
        if size > LARGEST {
            return Err(format!("the volume's files have more than {LARGEST} bytes; name fewer keys"));
        }
        let mode = u32::try_from(mode.unwrap_or(projection.mode)).unwrap_or(0o644) & 0o777;
        files.insert(relative(path)?, File { bytes, mode, owner });
        Ok(())
    };
    for source in &projection.sources {
        match source {
            Source::Object { kind, name, items, optional } => {
                let data = given.objects.get(&(*kind, name.clone())).cloned().flatten();
                let Some(data) = data.or_else(|| optional.then(Data::new)) else {
                    return Err(format!("{} \"{name}\" not found", kind.noun()));
                };
                match items {
                    None => data.into_iter().try_for_each(|(key, bytes)| put(&key, bytes, None, None))?,
                    Some(items) => {
                        for item in items {
                            match data.get(&item.key) {
                                Some(bytes) => put(&item.path, bytes.clone(), item.mode, None)?,
                                None if *optional => {}
                                None => {
                                    return Err(format!(
                                        "references non-existent {} key: {}",
                                        noun(*kind),
                                        item.key
                                    ));
                                }
                            }
                        }
                    }
                }
            }
            Source::Fields(items) => {
                for item in items {
                    let text = match (&item.field_ref, &item.resource_field_ref) {
                        (Some(field), _) => fields::field(pod, place, &field.field_path)?,
                        (None, Some(resource)) => fields::resource(pod, None, place, resource)?,
                        (None, None) => String::new(),
                    };
                    put(&item.path, text.into_bytes(), item.mode, None)?;
                }
            }
            Source::Token { path, .. } => {
                let bytes = given.tokens.get(path).cloned().unwrap_or_default().into_bytes();
                let (mode, owner) = reader(pod);
                put(path, bytes, mode, owner)?;
            }
        }
    }
    Ok(files)
}

/// Permissions and owner of tokens: only the pod's user, where all its containers have the same one, and the
/// group of its volumes read them (upstream's projected volumes).
fn reader(pod: &core::Pod) -> (Option<i32>, Option<u32>) {
    let Some(spec) = &pod.spec else { return (None, None) };
    let context = spec.security_context.as_ref();
    let shared = context.and_then(|context| context.run_as_user);
    let all = spec.init_containers.iter().flatten().chain(&spec.containers);
    let mut users = all.map(|one| one.security_context.as_ref().and_then(|own| own.run_as_user).or(shared));
    let first = users.next().flatten();
    let user = first.filter(|_| users.all(|user| user == first)).and_then(|user| u32::try_from(user).ok());
    let group = context.and_then(|context| context.fs_group);
    ((user.is_some() || group.is_some()).then_some(0o600), user)
}

fn noun(kind: Kind) -> &'static str {
    match kind {
        Kind::ConfigMap => "config",
        Kind::Secret => "secret",
    }
}

/// A path inside the volume: relative, without steps up.
fn relative(path: &str) -> Result<String, String> {
    let good = !path.is_empty()
        && !path.starts_with('/')
        && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
        && !path.starts_with("..");
    if good { Ok(path.to_owned()) } else { Err(format!("invalid path in volume: {path:?}")) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn given() -> Given {
        let data = |pairs: &[(&str, &str)]| -> Option<Data> {
            Some(pairs.iter().map(|(k, v)| ((*k).to_owned(), v.as_bytes().to_vec())).collect())
        };
        Given {
            objects: BTreeMap::from([
                ((Kind::ConfigMap, "cfg".to_owned()), data(&[("a", "1"), ("b", "2")])),
                ((Kind::Secret, "key".to_owned()), data(&[("token", "x")])),
                ((Kind::ConfigMap, "none".to_owned()), None),
            ]),
            tokens: BTreeMap::from([("token".to_owned(), "jwt".to_owned())]),
        }
    }

    fn make(volume: serde_json::Value) -> Result<Files, String> {
        let mut volume = volume;
        volume["name"] = json!("v");
        let volume: core::Volume = serde_json::from_value(volume).unwrap();
        let pod: core::Pod =
            serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "shop"}})).unwrap();
        let place = Place { ip: None, host_ips: &[], cpus: 1, memory: 1 };
        files(&projection(&volume).unwrap(), &pod, &place, &given())
    }

    fn text(files: &Files) -> Vec<(&str, &str, u32)> {
        files
            .iter()
            .map(|(path, f)| (path.as_str(), std::str::from_utf8(&f.bytes).unwrap(), f.mode))
            .collect()
    }

    #[test]
    fn objects_become_files() {
        let all = make(json!({"configMap": {"name": "cfg"}})).unwrap();
        assert_eq!(text(&all), [("a", "1", 0o644), ("b", "2", 0o644)]);
        let some = make(json!({"secret": {"secretName": "key", "defaultMode": 0o400,
            "items": [{"key": "token", "path": "dir/t", "mode": 0o440}]}}))
        .unwrap();
        assert_eq!(text(&some), [("dir/t", "x", 0o440)]);
        assert_eq!(make(json!({"configMap": {"name": "none", "optional": true}})).unwrap().len(), 0);
    }

    #[test]
    fn tokens_are_for_the_pods_user_or_group() {
        let container = |user: Option<i64>| json!({"name": "c", "securityContext": {"runAsUser": user}});
        for (context, containers, mode, owner) in [
            (json!({}), vec![None, None], None, None),
            (json!({}), vec![Some(7), Some(7)], Some(0o600), Some(7)),
            (json!({}), vec![Some(7), Some(8)], None, None),
            (json!({}), vec![Some(7), None], None, None),
            (json!({"runAsUser": 7}), vec![None, Some(7)], Some(0o600), Some(7)),
            (json!({"fsGroup": 9}), vec![None], Some(0o600), None),
        ] {
            let containers: Vec<_> = containers.into_iter().map(container).collect();
            let pod: core::Pod = serde_json::from_value(
                json!({"spec": {"securityContext": context, "containers": containers}}),
            )
            .unwrap();
            assert_eq!(reader(&pod), (mode, owner), "{pod:?}");
        }
    }

    #[test]
    fn what_can_change_is_looked_at_and_the_rest_is_not() {
        let every = |sources: serde_json::Value| {
            let volume = json!({"name": "v", "projected": {"sources": sources}});
            let projection = projection(&serde_json::from_value(volume).unwrap()).unwrap();
            (projection.interval().map(|every| every.as_secs()), projection.is_live())
        };
        let token =
            |seconds: i64| json!({"serviceAccountToken": {"expirationSeconds": seconds, "path": "t"}});
        let field =
            |path: &str| json!({"downwardAPI": {"items": [{"path": "f", "fieldRef": {"fieldPath": path}}]}});
        let map = |name: &str| json!({"configMap": {"name": name}});
        assert_eq!(every(json!([map("cfg"), token(3607)])), (Some(40), true));
        assert_eq!(
            every(json!([map("kube-root-ca.crt"), token(3607), field("metadata.namespace")])),
            (Some(300), false)
        );
        assert_eq!(every(json!([token(600)])), (Some(60), false));
        assert_eq!(every(json!([field("metadata.labels['a']")])), (Some(40), true));
        assert_eq!(every(json!([map("kube-root-ca.crt"), field("metadata.name")])), (None, false));
    }

    #[test]
    fn an_api_access_volume_has_its_three_files() {
        let files = make(json!({"projected": {"sources": [
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
            {"configMap": {"name": "cfg", "items": [{"key": "a", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}}
        ]}}))
        .unwrap();
        assert_eq!(
            text(&files),
            [("ca.crt", "1", 0o644), ("namespace", "shop", 0o644), ("token", "jwt", 0o644)]
        );
    }

    #[test]
    fn one_key_under_many_paths_is_still_limited() {
        let items: Vec<_> = (0..65).map(|n| json!({"key": "a", "path": format!("p{n}")})).collect();
        let volume = json!({"name": "v", "configMap": {"name": "cfg", "items": items}});
        let volume: core::Volume = serde_json::from_value(volume).unwrap();
        let large: Data = [("a".to_owned(), vec![0; 1 << 20])].into();
        let objects = BTreeMap::from([((Kind::ConfigMap, "cfg".to_owned()), Some(large))]);
        let place = Place { ip: None, host_ips: &[], cpus: 1, memory: 1 };
        let given = Given { objects, ..Given::default() };
        let error = files(&projection(&volume).unwrap(), &core::Pod::default(), &place, &given).unwrap_err();
        assert!(error.contains("name fewer keys"), "{error}");
    }

    #[test]
    fn what_is_missing_or_escapes_is_refused() {
        assert_eq!(make(json!({"configMap": {"name": "none"}})).unwrap_err(), "configmap \"none\" not found");
        let key = json!({"configMap": {"name": "cfg", "items": [{"key": "z", "path": "z"}]}});
        assert_eq!(make(key).unwrap_err(), "references non-existent config key: z");
        for path in ["../x", "/x", "a/../../x", "", "a//b", "..data"] {
            let volume = json!({"configMap": {"name": "cfg", "items": [{"key": "a", "path": path}]}});
            assert!(make(volume).is_err(), "{path:?}");
        }
    }
}
