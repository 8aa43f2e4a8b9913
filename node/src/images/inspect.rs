//! Everything about an image, for people.

use serde_json::{Value, json};

use super::config::Manifest;
use super::{ImageError, ImageStore, Reference};

/// The image in the words of `docker image inspect`, with its manifest.
pub fn inspect(store: &ImageStore, reference: &Reference) -> Result<Value, ImageError> {
    let absent = || ImageError::malformed(reference.to_string(), "there is no such image on this node");
    let image = store.get(&reference.to_string())?.ok_or_else(absent)?;
    let (digest, manifest): (String, Manifest) = store.manifest_of(reference).ok_or_else(absent)?;
    let config: Value = store.read_document(&manifest.config.digest)?;
    let names = store.siblings(&image.name);
    let (digests, tags): (Vec<String>, Vec<String>) = names.into_iter().partition(|name| name.contains('@'));
    Ok(json!({
        "Id": manifest.config.digest,
        "RepoTags": tags,
        "RepoDigests": digests,
        "Created": config["created"],
        "Architecture": config["architecture"],
        "Os": config["os"],
        "Size": image.size_bytes,
        "Config": config["config"],
        "RootFS": {"Type": "layers", "Layers": config["rootfs"]["diff_ids"]},
        "Manifest": {"Digest": digest, "Document": manifest},
    }))
}
