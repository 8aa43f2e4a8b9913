//! Pushing: from the store to a registry.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::FutureExt as _;
use futures_util::stream::{StreamExt as _, TryStreamExt as _};

use super::config::{ConfigFile, Descriptor, Manifest};
use super::credentials::Keyring;
use super::manifest::{self, Format};
use super::pull::{LayerProgress, Progress};
use super::registry::{Access, PushContent, Registries, RegistryError, Repository};
use super::{ImageError, ImageStore, ImagesConfig, Reference, sha256_hex};

/// What a push made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// The digest by which the registry knows the image now.
    pub digest: String,
    /// The size of its manifest.
    pub size: u64,
}

/// Pushes what `source` names to `target`, in the form that it has or in another.
pub async fn push(
    store: &Arc<ImageStore>,
    config: ImagesConfig,
    (source, target): (&Reference, &Reference),
    keyring: &Keyring,
    (format, progress): (Option<Format>, Progress),
) -> Result<Pushed, RegistryError> {
    let _using = store.using()?;
    let (digest, manifest) = store.manifest_of(source).ok_or_else(|| {
        ImageError::malformed(
            source.to_string(),
            "there is no such image on this node; pull or import it first",
        )
    })?;
    let (bytes, manifest): (Bytes, Manifest) = match format {
        // Byte by byte as it came, so that its digest stays.
        None => {
            let path = store.blob_path(&digest);
            (std::fs::read(&path).map_err(ImageError::io("read", &path))?.into(), manifest)
        }
        Some(format) => {
            let manifest = manifest::convert(&manifest, format)?;
            (serde_json::to_vec(&manifest).expect("a manifest has string keys only").into(), manifest)
        }
    };
    let identity = keyring.find(target.domain(), target.path()).into_iter().next();
    let parallel = config.max_parallel_layers;
    let registries = Registries::new(Arc::new(config));
    let repository = registries.repository(target.domain(), target.path(), Access::Push, identity);
    let settings: ConfigFile = store.read_document(&manifest.config.digest)?;
    let layers: Vec<_> = manifest
        .layers
        .iter()
        .zip(&settings.rootfs.diff_ids)
        .map(|(layer, diff_id)| push_layer(store, &repository, (layer, diff_id), &progress).boxed())
        .collect();
    let () = futures_util::stream::iter(layers).buffer_unordered(parallel).try_collect().await?;
    push_blob(&repository, &manifest.config, store.blob_path(&manifest.config.digest)).await?;
    let (size, pushed) = (bytes.len() as u64, format!("sha256:{}", sha256_hex(&bytes)));
    let media_type = match manifest.media_type.as_str() {
        "" => super::config::MEDIA_MANIFEST,
        own => own,
    };
    repository.push_manifest(target.tag().unwrap_or(&pushed), media_type, bytes).await?;
    Ok(Pushed { digest: pushed, size })
}

async fn push_layer(
    store: &Arc<ImageStore>,
    repository: &Repository,
    (layer, diff_id): (&Descriptor, &str),
    progress: &Progress,
) -> Result<(), RegistryError> {
    let (owned, wanted, diff) = (Arc::clone(store), layer.clone(), diff_id.to_owned());
    let archive = tokio::task::spawn_blocking(move || super::export::layer_archive(&owned, &wanted, &diff));
    let archive = archive.await.expect("archiving does not panic")?;
    progress(&layer.digest, LayerProgress::Bytes(0, layer.size));
    let sent = push_blob(repository, layer, archive).await?;
    progress(&layer.digest, if sent { LayerProgress::Done } else { LayerProgress::Present });
    Ok(())
}

async fn push_blob(
    repository: &Repository,
    blob: &Descriptor,
    path: std::path::PathBuf,
) -> Result<bool, RegistryError> {
    if repository.has_blob(&blob.digest).await? {
        return Ok(false);
    }
    repository.push_blob(blob, PushContent::File(path)).await?;
    Ok(true)
}
