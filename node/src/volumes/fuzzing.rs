//! Volumes of pods that somebody made up.

use std::collections::BTreeMap;

use ketch_api::k8s::api::core::v1 as core;

use super::project::{Given, Source, files, projection};
use crate::{fields::Place, sources::Data};

/// The files of a pod's volumes, every object having the keys that are asked for.
pub(crate) fn volumes(pod: &core::Pod) {
    let place = Place { ip: None, host_ips: &[], cpus: 4, memory: 1 << 30 };
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        let Some(projection) = projection(volume) else { continue };
        let mut given = Given::default();
        for source in &projection.sources {
            if let Source::Object { kind, name, items, .. } = source {
                let keys = items.iter().flatten().map(|item| (item.key.clone(), b"x".to_vec()));
                let data: Data = keys.chain([("key".to_owned(), b"y".to_vec())]).collect();
                given.objects.insert((*kind, name.clone()), Some(data));
            }
        }
        given.tokens = BTreeMap::from([("token".to_owned(), "t".to_owned())]);
        let _ = (projection.interval(), projection.is_live());
        for path in files(&projection, pod, &place, &given).unwrap_or_default().keys() {
            assert!(!path.starts_with('/') && path.split('/').all(|part| part != ".."), "{path:?}");
        }
    }
}
