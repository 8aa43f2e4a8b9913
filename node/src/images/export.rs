//! Export of an image as a tar: an OCI image layout, or what `docker load` reads.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;

use serde_json::json;

use super::config::{
    ConfigFile, Descriptor, Index, MEDIA_INDEX, Manifest, NAME_ANNOTATION, REF_NAME_ANNOTATION,
};
use super::manifest::{self, Format};
use super::{ImageError, ImageStore, Reference, sha256_hex};

/// Writes an image of the store to a tar.
pub fn export(
    store: &ImageStore,
    reference: &Reference,
    format: Format,
    output: impl Write,
) -> Result<(), ImageError> {
    let _using = store.using()?;
    let (_, manifest) = store.manifest_of(reference).ok_or_else(|| {
        ImageError::malformed(
            reference.to_string(),
            "there is no such image on this node; pull or import it first",
        )
    })?;
    let mut archive = Archive { builder: tar::Builder::new(output), dirs: BTreeSet::new() };
    match format {
        Format::Oci => oci(store, reference, &manifest, &mut archive)?,
        Format::Docker => docker(store, reference, &manifest, &mut archive)?,
    }
    archive
        .builder
        .into_inner()
        .and_then(|mut output| output.flush())
        .map_err(ImageError::io("write", "the archive"))
}

struct Archive<W: Write> {
    builder: tar::Builder<W>,
    dirs: BTreeSet<String>,
}

fn oci(
    store: &ImageStore,
    reference: &Reference,
    manifest: &Manifest,
    archive: &mut Archive<impl Write>,
) -> Result<(), ImageError> {
    let manifest = manifest::convert(manifest, Format::Oci)?;
    let bytes = serde_json::to_vec(&manifest).expect("a manifest has string keys only");
    let digest = format!("sha256:{}", sha256_hex(&bytes));
    let mut entry = Descriptor {
        media_type: manifest.media_type.clone(),
        digest: digest.clone(),
        size: bytes.len() as u64,
        platform: None,
        annotations: Default::default(),
    };
    entry.annotations.insert(NAME_ANNOTATION.into(), reference.to_string());
    entry.annotations.insert(REF_NAME_ANNOTATION.into(), reference.tag().unwrap_or("latest").into());
    let index = Index { schema_version: 2, media_type: MEDIA_INDEX.into(), manifests: vec![entry] };
    let index = serde_json::to_vec(&index).expect("an index has string keys only");
    archive.bytes("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    archive.bytes("index.json", &index)?;
    archive.bytes(&blob_name(&digest), &bytes)?;
    let mut written: BTreeSet<&str> = BTreeSet::new();
    let config: ConfigFile = store.read_document(&manifest.config.digest)?;
    archive.file(&blob_name(&manifest.config.digest), &store.blob_path(&manifest.config.digest))?;
    for (layer, diff_id) in manifest.layers.iter().zip(&config.rootfs.diff_ids) {
        if written.insert(&layer.digest) {
            archive.file(&blob_name(&layer.digest), &layer_archive(store, layer, diff_id)?)?;
        }
    }
    Ok(())
}

/// Docker's own archives hold layers as plain tar; its `load` also takes them as the registry has them.
fn docker(
    store: &ImageStore,
    reference: &Reference,
    manifest: &Manifest,
    archive: &mut Archive<impl Write>,
) -> Result<(), ImageError> {
    // Only to refuse what that form has no name for.
    manifest::convert(manifest, Format::Docker)?;
    let config: ConfigFile = store.read_document(&manifest.config.digest)?;
    let hex = |digest: &str| digest.trim_start_matches("sha256:").to_owned();
    let config_name = format!("{}.json", hex(&manifest.config.digest));
    archive.file(&config_name, &store.blob_path(&manifest.config.digest))?;
    let mut names: Vec<String> = Vec::new();
    for (layer, diff_id) in manifest.layers.iter().zip(&config.rootfs.diff_ids) {
        let name = format!("{}/layer.tar", hex(diff_id));
        if !names.contains(&name) {
            archive.file(&name, &layer_archive(store, layer, diff_id)?)?;
        }
        names.push(name);
    }
    let tags: Vec<String> = reference.tag().map(|_| reference.to_string()).into_iter().collect();
    let list = json!([{"Config": config_name, "RepoTags": tags, "Layers": names}]);
    archive.bytes("manifest.json", list.to_string().as_bytes())
}

/// A layer's archive; that of an image that was made here is made now.
pub(super) fn layer_archive(
    store: &ImageStore,
    layer: &Descriptor,
    diff_id: &str,
) -> Result<std::path::PathBuf, ImageError> {
    let path = store.blob_path(&layer.digest);
    if !path.exists() {
        super::builtin::archive_layer(store, diff_id)?;
    }
    Ok(path)
}

fn blob_name(digest: &str) -> String {
    format!("blobs/sha256/{}", digest.trim_start_matches("sha256:"))
}

impl<W: Write> Archive<W> {
    fn header(size: u64, kind: tar::EntryType) -> tar::Header {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(if kind == tar::EntryType::Directory { 0o755 } else { 0o644 });
        header.set_size(size);
        header
    }

    /// The directories that a name stands in, once.
    fn parents(&mut self, name: &str) -> Result<(), ImageError> {
        for (at, _) in name.match_indices('/') {
            let dir = name[..=at].to_owned();
            if self.dirs.insert(dir.clone()) {
                let mut header = Self::header(0, tar::EntryType::Directory);
                self.builder
                    .append_data(&mut header, &dir, std::io::empty())
                    .map_err(ImageError::io("write", "the archive"))?;
            }
        }
        Ok(())
    }

    fn bytes(&mut self, name: &str, bytes: &[u8]) -> Result<(), ImageError> {
        self.parents(name)?;
        let mut header = Self::header(bytes.len() as u64, tar::EntryType::Regular);
        self.builder.append_data(&mut header, name, bytes).map_err(ImageError::io("write", "the archive"))
    }

    fn file(&mut self, name: &str, path: &Path) -> Result<(), ImageError> {
        self.parents(name)?;
        let file = fs::File::open(path).map_err(ImageError::io("open", path))?;
        let size = file.metadata().map_err(ImageError::io("read", path))?.len();
        let mut header = Self::header(size, tar::EntryType::Regular);
        self.builder.append_data(&mut header, name, file).map_err(ImageError::io("write", "the archive"))
    }
}
