//! Doors to what is read of images and of containerd, for the fuzz targets only.

use crate::{
    cni::{self, Environment},
    image::{manifest, name::Name},
};

/// A manifest, an index or a configuration of an image.
pub fn image(bytes: &[u8]) {
    let host = manifest::Platform::host();
    let layers = match manifest::parse("a", &host, bytes) {
        Ok(manifest::Parsed::Image(_, image)) => image.layers.len(),
        _ => 0,
    };
    if let Ok(config) = manifest::Config::parse("a", &host, bytes, layers) {
        assert_eq!(config.diff_ids().len(), layers);
    }
}

/// A reference of an image. One that is complete is its own full name.
pub fn reference(text: &str) {
    let name = Name::parse(text);
    let _ = name.at("sha256:ab");
    let _ = Name::parse(&name.full());
}

/// A call of the network plugin: its variables, line by line, then its configuration.
pub fn plugin(bytes: &[u8]) {
    let mut parts = bytes.splitn(5, |byte| *byte == b'\n');
    let mut next = || String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let (command, container, namespace, interface) = (next(), next(), next(), next());
    let environment = Environment::from_variables(|name| {
        Some(match name {
            "CNI_COMMAND" => command.clone(),
            "CNI_CONTAINERID" => container.clone(),
            "CNI_NETNS" => namespace.clone(),
            _ => interface.clone(),
        })
    });
    if let Ok(request) = cni::parse(&environment, parts.next().unwrap_or_default()) {
        cni::fuzz(&request);
    }
}
