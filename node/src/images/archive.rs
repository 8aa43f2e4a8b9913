//! Import of images: OCI image layouts (a directory, or in a tar) and docker's `save` archives.
//!
//! Archive paths never become file-system paths: each entry is written to a file of our own naming and found
//! again by its name in a table. Layers are unpacked by the runtime, which confines them to their root.
//! An import that is interrupted leaves blobs (found again by the next try) and nothing that is visible.

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};
use runtime::layers::LayerLimits;
use serde::Deserialize;

use super::config::{
    ConfigFile, Descriptor, Index, MEDIA_CONFIG, MEDIA_LAYER_TAR, MEDIA_MANIFEST, Manifest, NAME_ANNOTATION,
    REF_NAME_ANNOTATION, SavedImage,
};
use super::index::Committed;
use super::manifest::{self, Document};
use super::{ImageError, ImageStore, Reference};

const DOCUMENT_BYTES_MAX: u64 = 8 << 20;
const INDEX_DEPTH_MAX: usize = 3;
const ENTRIES_MAX: usize = 10_000;
const COPY_BUFFER_BYTES: usize = 256 << 10;

/// An image that an import brought in.
#[derive(Debug, Clone, PartialEq)]
pub struct Imported {
    /// Its normalised names.
    pub names: Vec<String>,
    /// The manifest's digest.
    pub digest: String,
}

/// Imports every image of an archive or layout directory. `name` names the image where the archive does not.
pub fn import(store: &ImageStore, path: &Path, name: Option<&str>) -> Result<Vec<Imported>, ImageError> {
    let _using = store.using()?;
    let dir = store.ingest_dir()?;
    let source = Source::open(path, &dir)?;
    import_source(store, &source, &dir, name)
}

/// The files of an archive, by their names in it.
struct Source {
    path: PathBuf,
    files: HashMap<String, SourceFile>,
}

#[derive(Clone)]
struct SourceFile {
    file: PathBuf,
    size: u64,
    /// Known when the bytes passed through our hands.
    digest: Option<String>,
    /// The file is ours to move; else it is the user's, to be copied.
    ours: bool,
}

impl Source {
    fn open(path: &Path, work: &Path) -> Result<Self, ImageError> {
        let metadata = fs::metadata(path).map_err(ImageError::io("read", path))?;
        let files = if metadata.is_dir() { list_layout(path)? } else { ingest_tar(path, work)? };
        Ok(Self { path: path.to_owned(), files })
    }

    fn find(&self, name: &str) -> Result<&SourceFile, ImageError> {
        self.files.get(name).ok_or_else(|| ImageError::NotAnArchive {
            path: self.path.clone(),
            problem: format!("it has no {name}"),
        })
    }

    fn document<T: for<'de> Deserialize<'de>>(&self, name: &str) -> Result<T, ImageError> {
        let bytes = self.document_bytes(name)?;
        serde_json::from_slice(&bytes)
            .map_err(|e| ImageError::malformed(format!("{name} in {}", self.path.display()), e))
    }

    fn document_bytes(&self, name: &str) -> Result<Vec<u8>, ImageError> {
        let source = self.find(name)?;
        if source.size > DOCUMENT_BYTES_MAX {
            let what = format!("{name} in {}", self.path.display());
            return Err(ImageError::malformed(what, format!("it is larger than {DOCUMENT_BYTES_MAX} bytes")));
        }
        fs::read(&source.file).map_err(ImageError::io("read", &source.file))
    }
}

fn import_source(
    store: &ImageStore,
    source: &Source,
    work: &Path,
    name: Option<&str>,
) -> Result<Vec<Imported>, ImageError> {
    let saved: Vec<SavedImage> = if source.files.contains_key("manifest.json") {
        source.document("manifest.json")?
    } else {
        Vec::new()
    };
    if !source.files.contains_key("index.json") {
        if saved.is_empty() {
            return Err(ImageError::NotAnArchive {
                path: source.path.clone(),
                problem: "neither index.json (OCI layout) nor manifest.json (docker save) is in it".into(),
            });
        }
        return saved.iter().map(|image| import_saved(store, source, work, image, name)).collect();
    }
    let index: Index = source.document("index.json")?;
    let mut imported = Vec::new();
    for descriptor in &index.manifests {
        let given = descriptor.annotations.get(NAME_ANNOTATION).or_else(|| {
            descriptor.annotations.get(REF_NAME_ANNOTATION).filter(|n| n.contains('/') || n.contains(':'))
        });
        let names: Vec<String> = match (name, given) {
            (Some(name), _) => vec![name.to_owned()],
            (None, Some(name)) => vec![name.clone()],
            (None, None) => saved.iter().flat_map(|s| s.repo_tags.clone().unwrap_or_default()).collect(),
        };
        let manifest = resolve_manifest(store, source, descriptor, 0)?;
        imported.push(finish(store, source, work, &manifest, &names)?);
    }
    Ok(imported)
}

/// Follows indexes to the manifest for this machine and stores it.
fn resolve_manifest(
    store: &ImageStore,
    source: &Source,
    descriptor: &Descriptor,
    depth: usize,
) -> Result<String, ImageError> {
    let file = blob_name(&descriptor.digest)?;
    let bytes = source.document_bytes(&file)?;
    verify(source, &file, &descriptor.digest, &format!("sha256:{}", super::sha256_hex(&bytes)))?;
    let stored = store.put_blob_bytes(&bytes)?;
    match manifest::parse(&file, &bytes, Some(&descriptor.media_type))? {
        Document::Image(_) => Ok(stored),
        Document::Index(_) if depth >= INDEX_DEPTH_MAX => {
            Err(ImageError::malformed(&file, "indexes are nested too deeply"))
        }
        Document::Index(index) => {
            resolve_manifest(store, source, manifest::select(&file, &index)?, depth + 1)
        }
    }
}

/// Builds the OCI manifest that docker's archive does not have.
fn import_saved(
    store: &ImageStore,
    source: &Source,
    work: &Path,
    image: &SavedImage,
    name: Option<&str>,
) -> Result<Imported, ImageError> {
    let describe = |file: &str, media_type: &str| -> Result<Descriptor, ImageError> {
        let found = source.find(file)?;
        let digest = match &found.digest {
            Some(digest) => digest.clone(),
            None => hash_file(&found.file)?,
        };
        Ok(Descriptor {
            media_type: media_type.to_owned(),
            digest,
            size: found.size,
            platform: None,
            annotations: Default::default(),
        })
    };
    let manifest = Manifest {
        schema_version: 2,
        media_type: MEDIA_MANIFEST.to_owned(),
        config: describe(&image.config, MEDIA_CONFIG)?,
        layers: image.layers.iter().map(|l| describe(l, MEDIA_LAYER_TAR)).collect::<Result<_, _>>()?,
    };
    for (file, descriptor) in
        std::iter::once((&image.config, &manifest.config)).chain(image.layers.iter().zip(&manifest.layers))
    {
        take_blob(store, source, work, file, &descriptor.digest)?;
    }
    let bytes = serde_json::to_vec(&manifest).expect("a manifest has string keys only");
    let digest = store.put_blob_bytes(&bytes)?;
    let names = match name {
        Some(name) => vec![name.to_owned()],
        None => image.repo_tags.clone().unwrap_or_default(),
    };
    finish(store, source, work, &digest, &names)
}

/// Brings in what a stored manifest refers to, unpacks its layers, names it.
fn finish(
    store: &ImageStore,
    source: &Source,
    work: &Path,
    manifest_digest: &str,
    names: &[String],
) -> Result<Imported, ImageError> {
    let references: Vec<Reference> = names.iter().map(|n| Reference::parse(n)).collect::<Result<_, _>>()?;
    if references.is_empty() {
        return Err(ImageError::NotAnArchive {
            path: source.path.clone(),
            problem: "it does not name its image; give the name with the import".into(),
        });
    }
    let manifest: Manifest = store.read_document(manifest_digest)?;
    for descriptor in std::iter::once(&manifest.config).chain(&manifest.layers) {
        if !store.blob_path(&descriptor.digest).exists() {
            take_blob(store, source, work, &blob_name(&descriptor.digest)?, &descriptor.digest)?;
        }
    }
    let config: ConfigFile = store.read_document(&manifest.config.digest)?;
    super::pull::check_config(&names.join(", "), &manifest, &config)?;
    for (descriptor, diff_id) in manifest.layers.iter().zip(&config.rootfs.diff_ids) {
        if !store.layer_dir(diff_id).is_dir() {
            let blob = store.blob_path(&descriptor.digest);
            super::layer::unpack_into(store, work, &blob, diff_id, LayerLimits::default())?;
        }
    }
    store.commit(&references, Committed { manifest: manifest_digest, target: None, source: None })?;
    Ok(Imported {
        names: references.iter().map(Reference::to_string).collect(),
        digest: manifest_digest.to_owned(),
    })
}

/// Moves (or copies) one file of the source into the store, verified.
fn take_blob(
    store: &ImageStore,
    source: &Source,
    work: &Path,
    file: &str,
    digest: &str,
) -> Result<(), ImageError> {
    if store.blob_path(digest).exists() {
        return Ok(());
    }
    let found = source.find(file)?;
    if found.ours {
        let own = match &found.digest {
            Some(digest) => digest.clone(),
            None => hash_file(&found.file)?,
        };
        verify(source, file, digest, &own)?;
        return store.put_blob(&found.file, digest);
    }
    let copy = work.join(hex::encode(rand::random::<[u8; 8]>()));
    let input = fs::File::open(&found.file).map_err(ImageError::io("open", &found.file))?;
    let (own, _) = copy_hashing(input, &copy)?;
    verify(source, file, digest, &own)?;
    store.put_blob(&copy, digest)
}

fn verify(source: &Source, what: &str, expected: &str, found: &str) -> Result<(), ImageError> {
    if expected == found {
        return Ok(());
    }
    Err(ImageError::Corrupt {
        what: what.to_owned(),
        path: source.path.clone(),
        expected: expected.to_owned(),
        found: found.to_owned(),
    })
}

/// The name in a layout of a blob; only plain SHA-256 digests are taken.
fn blob_name(digest: &str) -> Result<String, ImageError> {
    match digest.strip_prefix("sha256:") {
        Some(hex) if manifest::is_digest(digest) => Ok(format!("blobs/sha256/{hex}")),
        _ => Err(ImageError::malformed("a digest", format!("{digest:?} is not sha256:<64 hex digits>"))),
    }
}

fn list_layout(dir: &Path) -> Result<HashMap<String, SourceFile>, ImageError> {
    let mut files = HashMap::new();
    let mut add = |file: PathBuf, name: String| -> Result<(), ImageError> {
        let metadata = fs::metadata(&file).map_err(ImageError::io("read", &file))?;
        if metadata.is_file() {
            files.insert(name, SourceFile { file, size: metadata.len(), digest: None, ours: false });
        }
        Ok(())
    };
    if dir.join("index.json").exists() {
        add(dir.join("index.json"), "index.json".into())?;
    }
    let blobs = dir.join("blobs/sha256");
    for entry in fs::read_dir(&blobs).map_err(ImageError::io("list", &blobs))? {
        let entry = entry.map_err(ImageError::io("list", &blobs))?;
        let name = format!("blobs/sha256/{}", entry.file_name().to_string_lossy());
        add(entry.path(), name)?;
    }
    Ok(files)
}

fn ingest_tar(path: &Path, work: &Path) -> Result<HashMap<String, SourceFile>, ImageError> {
    let refuse = |problem: String| ImageError::NotAnArchive { path: path.to_owned(), problem };
    let file = fs::File::open(path).map_err(ImageError::io("open", path))?;
    let mut archive = tar::Archive::new(std::io::BufReader::with_capacity(COPY_BUFFER_BYTES, file));
    let mut files: HashMap<String, SourceFile> = HashMap::new();
    let mut links: Vec<(String, String)> = Vec::new();
    let entries = archive.entries().map_err(|e| refuse(e.to_string()))?;
    for (number, entry) in entries.enumerate() {
        if number >= ENTRIES_MAX {
            return Err(refuse(format!("it has more than {ENTRIES_MAX} entries")));
        }
        let mut entry = entry.map_err(|e| refuse(format!("it is not a tar, or is cut short: {e}")))?;
        let name = normal_name(&entry.path_bytes());
        match entry.header().entry_type() {
            tar::EntryType::Regular | tar::EntryType::Continuous => {
                let target = work.join(format!("entry-{number}"));
                let (digest, size) = copy_hashing(&mut entry, &target)?;
                files.insert(name, SourceFile { file: target, size, digest: Some(digest), ours: true });
            }
            tar::EntryType::Symlink | tar::EntryType::Link => {
                let Some(link) = entry.link_name_bytes() else { continue };
                let hard = entry.header().entry_type() == tar::EntryType::Link;
                let base = if hard { "" } else { name.rsplit_once('/').map_or("", |(dir, _)| dir) };
                let target = normal_name(format!("{base}/{}", String::from_utf8_lossy(&link)).as_bytes());
                links.push((name, target));
            }
            _ => {}
        }
    }
    for (name, target) in links {
        if let Some(file) = files.get(&target).cloned() {
            // Two names of one file: neither may move it away from the other.
            let shared = SourceFile { ours: false, ..file };
            files.insert(target, shared.clone());
            files.insert(name, shared);
        }
    }
    Ok(files)
}

/// `./a/../b` as `b`: names are keys of a table, nothing more.
fn normal_name(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut parts: Vec<&str> = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn copy_hashing(mut input: impl Read, target: &Path) -> Result<(String, u64), ImageError> {
    let mut output = fs::File::create(target).map_err(ImageError::io("create", target))?;
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; COPY_BUFFER_BYTES];
    let mut size = 0;
    loop {
        let count = input.read(&mut buffer).map_err(ImageError::io("read into", target))?;
        if count == 0 {
            return Ok((format!("sha256:{}", hex::encode(context.finish())), size));
        }
        context.update(&buffer[..count]);
        output.write_all(&buffer[..count]).map_err(ImageError::io("write", target))?;
        size += count as u64;
    }
}

pub(super) fn hash_file(path: &Path) -> Result<String, ImageError> {
    let mut file = fs::File::open(path).map_err(ImageError::io("open", path))?;
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; COPY_BUFFER_BYTES];
    loop {
        let count = file.read(&mut buffer).map_err(ImageError::io("read", path))?;
        if count == 0 {
            return Ok(format!("sha256:{}", hex::encode(context.finish())));
        }
        context.update(&buffer[..count]);
    }
}
