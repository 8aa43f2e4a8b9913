//! Images that were made here, step by step: what a builder reads of an image and puts together.
//!
//! Every step is an image in the repository [`STEPS`], under a tag that says what it was made of; names there are never
//! shown, and go when nothing descends from them any more ([`ImageStore::forget_steps`]).

use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufWriter;
use std::time::SystemTime;

use jiff::Timestamp;
use runtime::layers::{LayerLimits, Packed};
use serde_json::Value;

use super::config::{
    ConfigFile, Descriptor, MEDIA_CONFIG, MEDIA_DOCKER_LAYER, MEDIA_DOCKER_LAYER_TAR, MEDIA_LAYER_GZIP,
    MEDIA_LAYER_TAR, MEDIA_MANIFEST, Manifest,
};
use super::index::Committed;
use super::{Image, ImageError, ImageStore, InUse, Reference};

/// The repository of steps. No registry has this name (RFC 2606).
pub(crate) const STEPS: &str = "build.invalid/step";
/// The repository of images that nobody named.
const NAMELESS: &str = "build.invalid/image";

/// The processor that images are made for.
pub(crate) use super::manifest::architecture;

/// A layer in the store.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    pub(crate) diff_id: String,
    descriptor: Descriptor,
}

/// A row of an image's history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryRow {
    /// The image as it was then, if it is here.
    pub id: Option<String>,
    /// When, if the image says it.
    pub created: Option<SystemTime>,
    /// What made it.
    pub created_by: String,
    /// Bytes of the layer that was made.
    pub size_bytes: u64,
}

/// Whether a name is that of a step of a build, which no user gave.
pub fn is_step(name: &str) -> bool {
    name.strip_prefix(STEPS).is_some_and(|rest| rest.starts_with([':', '@']))
}

/// Whether a name is that of an image that was built without one.
pub fn is_nameless(name: &str) -> bool {
    name.starts_with(NAMELESS)
}

/// An image's manifest, layers and configuration document.
pub(crate) fn parts(
    store: &ImageStore,
    name: &Reference,
) -> Result<Option<(String, Vec<Layer>, Value)>, ImageError> {
    let Some((digest, manifest)) = store.manifest_of(name) else { return Ok(None) };
    let document: Value = store.read_document(&manifest.config.digest)?;
    let config: ConfigFile = store.read_document(&manifest.config.digest)?;
    let layers = manifest.layers.into_iter().zip(config.rootfs.diff_ids);
    let layers = layers.map(|(descriptor, diff_id)| Layer { diff_id, descriptor }).collect();
    Ok(Some((digest, layers, document)))
}

/// The digest of an image's configuration.
pub(crate) fn id(store: &ImageStore, name: &Reference) -> Result<Option<String>, ImageError> {
    Ok(store.manifest_of(name).map(|(_, manifest)| manifest.config.digest))
}

/// Takes a layer in whose archive `write` writes. `None`: nothing is in it.
pub(crate) fn add_layer<E: From<ImageError>>(
    store: &ImageStore,
    write: impl FnOnce(BufWriter<File>) -> Result<Packed, E>,
) -> Result<Option<Layer>, E> {
    let work = store.ingest_dir()?;
    let archive = work.join("layer.tar");
    let file = File::create(&archive).map_err(ImageError::io("create", &archive))?;
    let packed = write(BufWriter::new(file))?;
    if packed.entries == 0 {
        return Ok(None);
    }
    if !store.layer_dir(&packed.diff_id).is_dir() {
        super::layer::unpack_into(store, &work, &archive, &packed.diff_id, LayerLimits::default())?;
    }
    // A plain archive has one digest, inside and outside.
    store.put_blob(&archive, &packed.diff_id)?;
    let descriptor = describe(MEDIA_LAYER_TAR, packed.diff_id.clone(), packed.bytes);
    Ok(Some(Layer { diff_id: packed.diff_id, descriptor }))
}

/// Stores an image's documents and names it; the manifest's digest. The caller holds [`ImageStore::using`].
pub(crate) fn commit(
    store: &ImageStore,
    document: &Value,
    layers: &[Layer],
    names: &[Reference],
) -> Result<String, ImageError> {
    let config = serde_json::to_vec(document).expect("a configuration has string keys only");
    let config_digest = store.put_blob_bytes(&config)?;
    let in_oci = |layer: &Layer| {
        let mut descriptor = layer.descriptor.clone();
        // The two forms are not mixed in one manifest.
        match descriptor.media_type.as_str() {
            MEDIA_DOCKER_LAYER => descriptor.media_type = MEDIA_LAYER_GZIP.to_owned(),
            MEDIA_DOCKER_LAYER_TAR => descriptor.media_type = MEDIA_LAYER_TAR.to_owned(),
            _ => {}
        }
        descriptor
    };
    let manifest = Manifest {
        schema_version: 2,
        media_type: MEDIA_MANIFEST.to_owned(),
        config: describe(MEDIA_CONFIG, config_digest, config.len() as u64),
        layers: layers.iter().map(in_oci).collect(),
    };
    let manifest = serde_json::to_vec(&manifest).expect("a manifest has string keys only");
    let manifest = store.put_blob_bytes(&manifest)?;
    store.commit(names, Committed { manifest: &manifest, target: None, source: None })?;
    Ok(manifest)
}

/// Names what is committed for users; without names it is listed without one.
pub(crate) fn publish(store: &ImageStore, manifest: &str, names: &[Reference]) -> Result<(), ImageError> {
    let nameless = [Reference::parse(&format!("{NAMELESS}@{manifest}"))?];
    let names = if names.is_empty() { &nameless } else { names };
    store.commit(names, Committed { manifest, target: None, source: None })?;
    store.flush()
}

fn describe(media_type: &str, digest: String, size: u64) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest,
        size,
        platform: None,
        annotations: Default::default(),
    }
}

impl ImageStore {
    /// How an image came to be, the newest step first. Rows of which the image as it then was is here have its id.
    pub fn history(&self, image: &Image) -> Result<Vec<HistoryRow>, ImageError> {
        let absent = || ImageError::malformed(&image.name, "it is not here any more");
        let (_, layers, document) = parts(self, &Reference::parse(&image.name)?)?.ok_or_else(absent)?;
        let others = self.lineages()?;
        let lines = lines(&document);
        let made = lines.iter().filter(|line| makes_layer(line)).count();
        // Of layers that the image says nothing about.
        let mut rows: Vec<HistoryRow> = layers[..layers.len().saturating_sub(made)]
            .iter()
            .map(|layer| HistoryRow {
                id: None,
                created: None,
                created_by: String::new(),
                size_bytes: layer.descriptor.size,
            })
            .collect();
        let mut below = rows.len();
        for (at, line) in lines.iter().enumerate() {
            let layer = makes_layer(line).then(|| layers.get(below)).flatten();
            below += usize::from(layer.is_some());
            let then = Lineage { lines: lines[..=at].to_vec(), diff_ids: ids(&layers[..below]) };
            let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
            rows.push(HistoryRow {
                id: others.iter().find(|(_, other)| *other == then).map(|(id, _)| id.clone()),
                created: text("created").parse::<Timestamp>().ok().map(SystemTime::from),
                created_by: text("created_by"),
                size_bytes: layer.map_or(0, |layer| layer.descriptor.size),
            });
        }
        rows.reverse();
        Ok(rows)
    }

    /// Images that have no tag.
    pub fn dangling(&self, in_use: &InUse) -> Vec<Vec<String>> {
        let nameless = |names: &Vec<String>| {
            names.iter().any(|name| !is_step(name))
                && !names.iter().any(|name| !is_step(name) && !name.contains('@'))
                && !names.iter().any(|name| in_use.contains_key(name))
        };
        self.list()
            .into_iter()
            .filter(|image| !image.pinned)
            .map(|image| image.names)
            .filter(nameless)
            .collect()
    }

    /// Takes the names of steps away that nothing descends from which has a name or is in use.
    pub fn forget_steps(&self, in_use: &InUse) -> Result<(), ImageError> {
        let all = self.list();
        let is_kept = |names: &[String]| names.iter().any(|name| !is_step(name) || in_use.contains_key(name));
        let lineages = self.lineages()?;
        let lineage = |id: &str| lineages.iter().find(|(other, _)| other == id).map(|(_, lineage)| lineage);
        let kept: Vec<&Lineage> =
            all.iter().filter(|image| is_kept(&image.names)).filter_map(|image| lineage(&image.id)).collect();
        let mut gone = BTreeSet::new();
        for image in all.iter().filter(|image| !is_kept(&image.names)) {
            let descends = |kept: &&Lineage| lineage(&image.id).is_some_and(|own| kept.begins_with(own));
            if !kept.iter().any(descends) {
                gone.extend(image.names.iter().cloned());
            }
        }
        if gone.is_empty() { Ok(()) } else { self.forget(&gone) }
    }

    fn lineages(&self) -> Result<Vec<(String, Lineage)>, ImageError> {
        let mut lineages = Vec::new();
        for image in self.list() {
            let Some(name) = image.names.first() else { continue };
            if let Some((_, layers, document)) = parts(self, &Reference::parse(name)?)? {
                lineages.push((image.id, Lineage { lines: lines(&document), diff_ids: ids(&layers) }));
            }
        }
        Ok(lineages)
    }

    /// Takes names away, and what they stood for with the next sweep. Bytes that became free.
    pub fn remove_names(&self, names: Vec<String>) -> Result<u64, ImageError> {
        self.forget(&names.into_iter().collect())?;
        Ok(self.sweep()?.unwrap_or(0))
    }
}

/// What an image was made of, step by step.
#[derive(Debug, PartialEq)]
struct Lineage {
    lines: Vec<Value>,
    diff_ids: Vec<String>,
}

impl Lineage {
    fn begins_with(&self, other: &Self) -> bool {
        self.lines.starts_with(&other.lines) && self.diff_ids.starts_with(&other.diff_ids)
    }
}

fn ids(layers: &[Layer]) -> Vec<String> {
    layers.iter().map(|layer| layer.diff_id.clone()).collect()
}

fn lines(document: &Value) -> Vec<Value> {
    document["history"].as_array().cloned().unwrap_or_default()
}

fn makes_layer(line: &Value) -> bool {
    line["empty_layer"] != true
}
