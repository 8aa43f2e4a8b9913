//! The content-addressed image store.
//!
//! ```text
//! images/
//!   blobs/sha256/<hex>     manifests, configurations, layer archives: the file's name is its digest
//!   layers/<hex>/          a layer unpacked, named by the digest of its uncompressed archive (diff id)
//!   partial/<hex>          a blob that is being fetched, or whose transfer broke
//!   ingest/<random>/       work in progress, locked by whoever works there
//!   index.json             names → manifest digests; written last, by rename
//!   lock, using            locks: of the index; of content that no name protects yet
//! ```
//! An image exists once the index names it: under its tag, and under its digest, which stays when the tag moves
//! on. Several processes may use one store: the index is changed under `lock` and read again when another process
//! has replaced it; content is removed (see `gc`) only while nobody brings any in.
//!
//! Entries whose files were not yet flushed to the device carry the boot in which they were written: after a crash
//! of the machine they are forgotten and brought in again; a crash of the agent alone loses nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::ops::Deref;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::fcntl::{Flock, FlockArg};
use serde::Deserialize;

use super::config::{ConfigFile, Manifest};
use super::index::{State, repository_of};
use super::{ImageConfig, ImageError, InvalidReference, Reference, sha256_hex};

/// How long the beginning of a blob is kept for another try.
const PARTIAL_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// An image that can be run.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    /// The normalised name by which it was found.
    pub name: String,
    /// Repository and the digest that its name led to: `docker.io/barque/hello@sha256:…`.
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
    /// The digest of its configuration.
    pub id: String,
    /// When it came here.
    pub added_at: SystemTime,
    /// When it was last looked up to be run.
    pub used_at: SystemTime,
    /// Made here out of the binary; nobody removes it unasked.
    pub pinned: bool,
}

/// The store. Cheap to share; every method may be called from any thread, and blocks on the disk.
#[derive(Debug)]
pub struct ImageStore {
    pub(super) root: PathBuf,
    pub(super) boot_id: String,
    pub(super) state: Mutex<State>,
}

#[derive(Debug)]
pub(super) struct Loaded {
    id: String,
    config: ImageConfig,
    layers: Vec<PathBuf>,
    size_bytes: u64,
}

/// A directory for work in progress; removed with this handle, or by the next who opens the store.
pub(crate) struct Ingest {
    dir: PathBuf,
    _lock: Flock<fs::File>,
}

impl Deref for Ingest {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            tracing::warn!(dir = %self.dir.display(), %error, "cannot remove a work directory; the next start does");
        }
    }
}

impl ImageStore {
    /// Opens the store below `root`, making it if needed and dropping work that nobody is at any more.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, ImageError> {
        let root = root.into();
        for dir in ["blobs/sha256", "layers", "ingest", "partial"].map(|dir| root.join(dir)) {
            fs::create_dir_all(&dir).map_err(ImageError::io("create", &dir))?;
        }
        let store = Self { root, boot_id: boot_id(), state: Mutex::default() };
        {
            let _lock = store.lock_file("lock", FlockArg::LockExclusive)?;
            store.drop_abandoned()?;
        }
        store.forget_unflushed()?;
        Ok(store)
    }

    pub(super) fn lock_file(&self, name: &str, how: FlockArg) -> Result<Flock<fs::File>, ImageError> {
        let path = self.root.join(name);
        let options = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = options.map_err(ImageError::io("open", &path))?;
        Flock::lock(file, how).map_err(|(_, errno)| ImageError::io("lock", &path)(errno.into()))
    }

    /// Keeps content that no name protects yet from being removed. Blocks while some is being removed.
    pub(crate) fn using(&self) -> Result<Flock<fs::File>, ImageError> {
        self.lock_file("using", FlockArg::LockShared)
    }

    /// The right to remove content; `None`: somebody is bringing some in.
    pub(crate) fn removing(&self) -> Result<Option<Flock<fs::File>>, ImageError> {
        match self.lock_file("using", FlockArg::LockExclusiveNonblock) {
            Err(ImageError::Io { source, .. }) if source.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
            other => other.map(Some),
        }
    }

    fn drop_abandoned(&self) -> Result<(), ImageError> {
        let ingest = self.root.join("ingest");
        for entry in fs::read_dir(&ingest).map_err(ImageError::io("list", &ingest))?.flatten() {
            let Ok(dir) = fs::File::open(entry.path()) else { continue };
            if let Ok(_mine) = Flock::lock(dir, FlockArg::LockExclusiveNonblock) {
                fs::remove_dir_all(entry.path()).map_err(ImageError::io("remove", entry.path()))?;
            }
        }
        let partial = self.root.join("partial");
        for entry in fs::read_dir(&partial).map_err(ImageError::io("list", &partial))?.flatten() {
            let age = entry.metadata().ok().and_then(|m| m.modified().ok()?.elapsed().ok());
            if age.is_some_and(|age| age > PARTIAL_KEPT) {
                drop(fs::remove_file(entry.path()));
            }
        }
        Ok(())
    }

    /// The image that a reference names, if it is here and whole.
    pub fn get(&self, reference: &str) -> Result<Option<Image>, InvalidReference> {
        let reference = Reference::parse(reference)?;
        let found = {
            let state = self.lock();
            let images = &state.index.images;
            match reference.digest() {
                Some(digest) => {
                    let repository = reference.repository();
                    let name = format!("{repository}@{digest}");
                    // A digest may also be that of the manifest that an index led to.
                    let by_manifest = || {
                        let ours = |(name, _): &(&String, _)| repository_of(name) == repository;
                        images.iter().filter(ours).find(|(_, entry)| entry.manifest == digest)
                    };
                    images.get_key_value(&name).or_else(by_manifest)
                }
                None => images.get_key_value(&reference.to_string()),
            }
            .map(|(name, entry)| (name.clone(), entry.clone()))
        };
        let Some((name, entry)) = found else { return Ok(None) };
        let loaded = match self.load(&entry.manifest) {
            Ok(loaded) => loaded,
            Err(error) => {
                tracing::warn!(image = %name, %error, "image is named but not whole; treated as absent");
                return Ok(None);
            }
        };
        self.touch(&entry.manifest);
        Ok(Some(Image {
            name,
            image_id: format!("{}@{}", reference.repository(), entry.target()),
            config: loaded.config.clone(),
            layers: loaded.layers.clone(),
            size_bytes: loaded.size_bytes,
        }))
    }

    /// The manifest that a name stands for.
    pub(crate) fn manifest_of(&self, reference: &Reference) -> Option<(String, Manifest)> {
        let name = self.get(&reference.to_string()).ok()??.name;
        let digest = self.lock().index.images.get(&name)?.manifest.clone();
        let manifest = self.read_document(&digest).ok()?;
        Some((digest, manifest))
    }

    /// Notes that an image is used now: its manifest's file bears the time.
    pub(super) fn touch(&self, manifest: &str) {
        let touched = fs::File::open(self.blob_path(manifest))
            .and_then(|file| file.set_times(fs::FileTimes::new().set_modified(SystemTime::now())));
        if let Err(error) = touched {
            tracing::debug!(%manifest, %error, "cannot note an image's use");
        }
    }

    /// Every image, biggest first, as a Node's status lists them.
    pub fn list(&self) -> Vec<ImageSummary> {
        let entries = self.lock().index.images.clone();
        let mut by_target: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
        for (name, entry) in &entries {
            by_target
                .entry((entry.target().to_owned(), entry.manifest.clone()))
                .or_default()
                .push(name.clone());
        }
        let mut images: Vec<ImageSummary> = by_target
            .into_iter()
            .filter_map(|((target, manifest), mut names)| {
                let loaded = self.load(&manifest).ok()?;
                let all = || names.iter().filter_map(|name| entries.get(name));
                let added_at = all().map(|e| e.added_at).max().unwrap_or(0);
                let pinned = all().any(|e| e.source.is_some());
                let used = fs::metadata(self.blob_path(&manifest)).and_then(|m| m.modified());
                if !names.iter().any(|name| name.contains('@')) {
                    names.push(format!("{}@{target}", repository_of(&names[0])));
                }
                names.sort_by_key(|name| (!name.contains('@'), name.clone()));
                Some(ImageSummary {
                    names,
                    size_bytes: loaded.size_bytes,
                    id: loaded.id.clone(),
                    added_at: UNIX_EPOCH + Duration::from_secs(added_at),
                    used_at: used.unwrap_or(UNIX_EPOCH),
                    pinned,
                })
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
    pub(crate) fn ingest_dir(&self) -> Result<Ingest, ImageError> {
        let _index = self.lock_file("lock", FlockArg::LockShared)?;
        let dir = self.root.join("ingest").join(hex::encode(rand::random::<[u8; 8]>()));
        fs::create_dir(&dir).map_err(ImageError::io("create", &dir))?;
        let file = fs::File::open(&dir).map_err(ImageError::io("open", &dir))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock);
        let lock = lock.map_err(|(_, errno)| ImageError::io("lock", &dir)(errno.into()))?;
        Ok(Ingest { dir, _lock: lock })
    }

    /// The file in which a blob is collected, with what a transfer before left in it. `None`: another process
    /// collects it just now.
    pub(crate) fn partial(&self, digest: &str) -> Result<Option<(Flock<fs::File>, PathBuf)>, ImageError> {
        let path = self.root.join("partial").join(digest.trim_start_matches("sha256:"));
        let options = fs::OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path);
        let file = options.map_err(ImageError::io("open", &path))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            // Between opening and locking another process may have moved it into the store.
            Ok(lock) if path.metadata().is_ok_and(|m| lock.metadata().is_ok_and(|l| l.ino() == m.ino())) => {
                Ok(Some((lock, path)))
            }
            _ => Ok(None),
        }
    }

    /// The directory of the store.
    pub(crate) fn root(&self) -> &Path {
        &self.root
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

    pub(super) fn load(&self, manifest_digest: &str) -> Result<Arc<Loaded>, ImageError> {
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
        let id = manifest.config.digest.clone();
        let loaded = Arc::new(Loaded { id, config: config.config.unwrap_or_default(), layers, size_bytes });
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

    /// The files and directories that a manifest's image consists of, as far as it can be read.
    pub(crate) fn content(&self, manifest_digest: &str) -> Vec<PathBuf> {
        let mut paths = vec![self.blob_path(manifest_digest)];
        let Ok(manifest) = self.read_document::<Manifest>(manifest_digest) else { return paths };
        if let Ok(config) = self.read_document::<ConfigFile>(&manifest.config.digest) {
            paths.extend(config.rootfs.diff_ids.iter().map(|diff_id| self.layer_dir(diff_id)));
        }
        paths.push(self.blob_path(&manifest.config.digest));
        paths.extend(manifest.layers.iter().map(|layer| self.blob_path(&layer.digest)));
        paths
    }
}

pub(super) fn write_atomically(path: &Path, bytes: &[u8], flush: bool) -> Result<(), ImageError> {
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
