//! Environments of containers that somebody made up.

use ketch_api::k8s::api::core::v1 as core;

use super::{
    Found, Variables,
    build::{Inputs, api_env, build, references},
    expand::MOST,
};
use crate::{fields::Place, sources::Data};

/// Builds the environment of every container, with `text` under every key, and fills it into its command.
pub(crate) fn containers(pod: &core::Pod, text: &str) {
    for container in pod.spec.iter().flat_map(|spec| &spec.containers) {
        let data: Data = [("key".to_owned(), text.as_bytes().to_vec())].into();
        let found: Found = references(container).into_iter().map(|key| (key, Some(data.clone()))).collect();
        let place = Place { ip: None, host_ips: &[], cpus: 4, memory: 1 << 30 };
        let services = api_env("10.43.0.1", 443);
        let Ok(built) = build(&Inputs { pod, container, place: &place, services, found: &found }) else {
            continue;
        };
        assert!(built.env.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() <= MOST);
        let variables = Variables::new(&built.env);
        let _ = variables.expand_all(container.command.as_deref().unwrap_or_default());
        let _ = variables.expand(text);
    }
}

/// Fills variables into a text.
pub(crate) fn expand(text: &str) {
    let env = [("A".to_owned(), "1".to_owned()), ("B".to_owned(), text.to_owned())];
    let _ = Variables::new(&env).expand(text);
}
