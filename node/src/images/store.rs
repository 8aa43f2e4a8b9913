//! The content-addressed image store.
//!
//! ```text
//! images/
//!   blobs/sha256/<hex>     manifests, configurations, layer archives: the file's name is its digest
//!   layers/<hex>/          a layer unpacked, named by the digest of its uncompressed archive (diff id)
//!   ingest/                work in progress; emptied when the store is opened
//!   index.json             names → manifest digests; written last, by rename
//! ```
//! An image exists once the index names it. Entries whose files were not yet flushed to the device carry
//! the boot in which they were written: after a crash of the machine they are forgotten and imported again;
//! a crash of the agent alone loses nothing.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};

use super::config::{ConfigFile, Manifest};
use super::{ImageConfig, ImageError, InvalidReference, Reference, sha256_hex};

/// An image that can be run.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    /// The normalised name by which it was found.
    pub name: String,
    /// Repository and manifest digest: `docker.io/barque/hello@sha256:…`.
    pub image_id: String,
    /// What the image says about how to run it.
    pub config: ImageConfig,
    /// The unpacked layers, lowest first.
    pub layers: Vec<PathBuf>,
    /// The sum of its blobs.
    pub size_bytes: u64,
}

/// An image as the node's status lists it.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageSummary {
    /// Repository with digest first, then every name with a tag.
    pub names: Vec<String>,
    /// The sum of its blobs.
    pub size_bytes: u64,
}

/// The store. Cheap to share; every method may be called from any thread, and blocks on the disk.
#[derive(Debug)]
pub struct ImageStore {
    root: PathBuf,
    boot_id: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    index: IndexFile,
    /// By manifest digest.
    loaded: HashMap<String, Arc<Loaded>>,
}

#[derive(Debug)]
struct Loaded {
    config: ImageConfig,
    layers: Vec<PathBuf>,
    size_bytes: u64,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct IndexFile {
    /// Normalised name → manifest.
    images: BTreeMap<String, IndexEntry>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct IndexEntry {
    manifest: String,
    /// Set until the image's files are known to be on the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unflushed_in_boot: Option<String>,
    /// What the image was made of, when it was made here; see `builtin`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    source: Option<String>,
}

impl ImageStore {
    /// Opens the store below `root`, making it if needed and dropping work in progress.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, ImageError> {
        let root = root.into();
        let ingest = root.join("ingest");
        if ingest.exists() {
            fs::remove_dir_all(&ingest).map_err(ImageError::io("empty", &ingest))?;
        }
        for dir in [root.join("blobs/sha256"), root.join("layers"), ingest] {
            fs::create_dir_all(&dir).map_err(ImageError::io("create", &dir))?;
        }
        let store = Self { root, boot_id: boot_id(), state: Mutex::default() };
        let index = store.read_index()?;
        store.lock().index = index;
        Ok(store)
    }

    /// The image that a reference names, if it is here and whole.
    pub fn get(&self, reference: &str) -> Result<Option<Image>, InvalidReference> {
        let reference = Reference::parse(reference)?;
        let found = {
            let state = self.lock();
            match reference.digest() {
                Some(digest) => state
                    .index
                    .images
                    .iter()
                    .find(|(name, entry)| {
                        entry.manifest == digest && repository_of(name) == reference.repository()
                    })
                    .map(|(name, entry)| (name.clone(), entry.manifest.clone())),
                None => {
                    let name = reference.to_string();
                    state.index.images.get(&name).map(|entry| (name, entry.manifest.clone()))
                }
            }
        };
        let Some((name, manifest)) = found else { return Ok(None) };
        let loaded = match self.load(&manifest) {
            Ok(loaded) => loaded,
            Err(error) => {
                tracing::warn!(image = %name, %error, "image is named but not whole; treated as absent");
                return Ok(None);
            }
        };
        Ok(Some(Image {
            name,
            image_id: format!("{}@{manifest}", reference.repository()),
            config: loaded.config.clone(),
            layers: loaded.layers.clone(),
            size_bytes: loaded.size_bytes,
        }))
    }

    /// Every image, biggest first, as a Node's status lists them.
    pub fn list(&self) -> Vec<ImageSummary> {
        let entries: Vec<(String, String)> =
            self.lock().index.images.iter().map(|(n, e)| (n.clone(), e.manifest.clone())).collect();
        let mut by_manifest: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, manifest) in entries {
            by_manifest.entry(manifest).or_default().push(name);
        }
        let mut images: Vec<ImageSummary> = by_manifest
            .into_iter()
            .filter_map(|(manifest, tagged)| {
                let size_bytes = self.load(&manifest).ok()?.size_bytes;
                let mut names = vec![format!("{}@{manifest}", repository_of(&tagged[0]))];
                names.extend(tagged);
                Some(ImageSummary { names, size_bytes })
            })
            .collect();
        images.sort_by(|a, b| b.size_bytes.cmp(&a.size_bytes).then_with(|| a.names.cmp(&b.names)));
        images
    }

    /// What the named image was made of, if it was made here and is whole.
    pub(crate) fn source(&self, reference: &Reference) -> Option<String> {
        let entry = self.lock().index.images.get(&reference.to_string()).cloned()?;
        self.load(&entry.manifest).ok()?;
        entry.source
    }

    /// A fresh directory for work in progress.
    pub(crate) fn ingest_dir(&self) -> Result<PathBuf, ImageError> {
        let dir = self.root.join("ingest").join(hex::encode(rand::random::<[u8; 8]>()));
        fs::create_dir(&dir).map_err(ImageError::io("create", &dir))?;
        Ok(dir)
    }

    /// Where a blob lies or would lie.
    pub(crate) fn blob_path(&self, digest: &str) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.trim_start_matches("sha256:"))
    }

    /// Takes a file whose digest was verified by the caller; it must be on the store's filesystem.
    pub(crate) fn put_blob(&self, file: &Path, digest: &str) -> Result<(), ImageError> {
        let path = self.blob_path(digest);
        fs::rename(file, &path).map_err(ImageError::io("move into the store", &path))
    }

    /// Stores bytes under their digest.
    pub(crate) fn put_blob_bytes(&self, bytes: &[u8]) -> Result<String, ImageError> {
        let hex = sha256_hex(bytes);
        let path = self.root.join("blobs/sha256").join(&hex);
        write_atomically(&path, bytes, false)?;
        Ok(format!("sha256:{hex}"))
    }

    /// Where a layer is unpacked or would be.
    pub(crate) fn layer_dir(&self, diff_id: &str) -> PathBuf {
        self.root.join("layers").join(diff_id.trim_start_matches("sha256:"))
    }

    /// Makes a finished directory the unpacked form of a layer; a layer that is already there wins.
    pub(crate) fn put_layer(&self, dir: &Path, diff_id: &str) -> Result<(), ImageError> {
        let target = self.layer_dir(diff_id);
        match fs::rename(dir, &target) {
            Err(_) if target.is_dir() => {
                fs::remove_dir_all(dir).map_err(ImageError::io("remove the spare layer", dir))
            }
            other => other.map_err(ImageError::io("move into the store", &target)),
        }
    }

    /// Names an image whose blobs and layers are all in place. Visible at once; flushed to the device by
    /// [`flush`](Self::flush).
    pub(crate) fn commit(
        &self,
        names: &[Reference],
        manifest: &str,
        source: Option<&str>,
    ) -> Result<(), ImageError> {
        self.load(manifest)?;
        let mut state = self.lock();
        for name in names {
            state.index.images.insert(
                name.to_string(),
                IndexEntry {
                    manifest: manifest.to_owned(),
                    unflushed_in_boot: Some(self.boot_id.clone()),
                    source: source.map(str::to_owned),
                },
            );
        }
        self.write_index(&state.index, false)
    }

    /// Flushes the store's filesystem, after which its images outlive a power cut. Slow; call it off the path.
    pub fn flush(&self) -> Result<(), ImageError> {
        let before: Vec<String> = {
            let state = self.lock();
            let waiting = state.index.images.iter().filter(|(_, e)| e.unflushed_in_boot.is_some());
            waiting.map(|(name, _)| name.clone()).collect()
        };
        if before.is_empty() {
            return Ok(());
        }
        let dir = fs::File::open(&self.root).map_err(ImageError::io("open", &self.root))?;
        nix::unistd::syncfs(&dir).map_err(|e| ImageError::io("flush", &self.root)(e.into()))?;
        let mut state = self.lock();
        for name in before {
            if let Some(entry) = state.index.images.get_mut(&name) {
                entry.unflushed_in_boot = None;
            }
        }
        self.write_index(&state.index, true)
    }

    fn load(&self, manifest_digest: &str) -> Result<Arc<Loaded>, ImageError> {
        if let Some(loaded) = self.lock().loaded.get(manifest_digest) {
            return Ok(Arc::clone(loaded));
        }
        let manifest: Manifest = self.read_document(manifest_digest)?;
        let config: ConfigFile = self.read_document(&manifest.config.digest)?;
        let mut layers = Vec::with_capacity(config.rootfs.diff_ids.len());
        for diff_id in &config.rootfs.diff_ids {
            let dir = self.layer_dir(diff_id);
            fs::metadata(&dir).map_err(ImageError::io("find the unpacked layer", &dir))?;
            layers.push(dir);
        }
        let size_bytes = manifest.config.size + manifest.layers.iter().map(|l| l.size).sum::<u64>();
        let loaded = Arc::new(Loaded { config: config.config.unwrap_or_default(), layers, size_bytes });
        self.lock().loaded.insert(manifest_digest.to_owned(), Arc::clone(&loaded));
        Ok(loaded)
    }

    pub(crate) fn read_document<T: for<'de> Deserialize<'de>>(&self, digest: &str) -> Result<T, ImageError> {
        let path = self.blob_path(digest);
        let bytes = fs::read(&path).map_err(ImageError::io("read", &path))?;
        let found = format!("sha256:{}", sha256_hex(&bytes));
        if found != digest {
            let (what, expected) = ("a document".to_owned(), digest.to_owned());
            return Err(ImageError::Corrupt { what, path, expected, found });
        }
        serde_json::from_slice(&bytes).map_err(|e| ImageError::malformed(path.display().to_string(), e))
    }

    fn read_index(&self) -> Result<IndexFile, ImageError> {
        let path = self.root.join("index.json");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(IndexFile::default()),
            Err(e) => return Err(ImageError::io("read", &path)(e)),
        };
        let mut index: IndexFile = match serde_json::from_slice(&bytes) {
            Ok(index) => index,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "image index is damaged; every image is imported anew");
                IndexFile::default()
            }
        };
        let stale = |e: &IndexEntry| e.unflushed_in_boot.as_ref().is_some_and(|boot| *boot != self.boot_id);
        for (name, entry) in index.images.iter().filter(|(_, e)| stale(e)) {
            tracing::warn!(image = %name, "image was not flushed before the machine stopped; forgotten");
            self.drop_content(&entry.manifest);
        }
        index.images.retain(|_, entry| !stale(entry));
        Ok(index)
    }

    /// Removes what an untrusted image consists of; another image that shared it is then seen as absent.
    fn drop_content(&self, manifest_digest: &str) {
        let Ok(manifest) = self.read_document::<Manifest>(manifest_digest) else { return };
        if let Ok(config) = self.read_document::<ConfigFile>(&manifest.config.digest) {
            for diff_id in &config.rootfs.diff_ids {
                drop(fs::remove_dir_all(self.layer_dir(diff_id)));
            }
        }
        for layer in &manifest.layers {
            drop(fs::remove_file(self.blob_path(&layer.digest)));
        }
    }

    fn write_index(&self, index: &IndexFile, flush: bool) -> Result<(), ImageError> {
        let text = serde_json::to_vec_pretty(index).expect("an index has string keys only");
        write_atomically(&self.root.join("index.json"), &text, flush)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the image index panics")
    }
}

fn repository_of(name: &str) -> &str {
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    match name.rfind(':') {
        Some(at) if !name[at..].contains('/') => &name[..at],
        _ => name,
    }
}

fn write_atomically(path: &Path, bytes: &[u8], flush: bool) -> Result<(), ImageError> {
    let temporary = path.with_extension(format!("tmp-{}", hex::encode(rand::random::<[u8; 4]>())));
    let mut file = fs::File::create(&temporary).map_err(ImageError::io("create", &temporary))?;
    file.write_all(bytes).map_err(ImageError::io("write", &temporary))?;
    if flush {
        file.sync_all().map_err(ImageError::io("flush", &temporary))?;
    }
    fs::rename(&temporary, path).map_err(ImageError::io("replace", path))
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|t| t.trim().to_owned()).unwrap_or_default()
}
