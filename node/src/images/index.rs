//! The index of the store: which name stands for which manifest.
//!
//! Owns `index.json`. Written under the store's lock, by rename; every reader of every process sees the newest one
//! at its next question.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Arc, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::fcntl::FlockArg;
use serde::{Deserialize, Serialize};

use super::store::{Loaded, write_atomically};
use super::{ImageError, ImageStore, Reference};

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) index: IndexFile,
    /// Which file the index was read from.
    pub(super) seen: Option<(u64, i64, i64)>,
    /// By manifest digest.
    pub(super) loaded: HashMap<String, Arc<Loaded>>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct IndexFile {
    /// Normalised name → manifest.
    pub(super) images: BTreeMap<String, IndexEntry>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct IndexEntry {
    pub(super) manifest: String,
    /// What the name led to, if that was an index and not the manifest itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) target: Option<String>,
    /// Seconds since 1970.
    #[serde(default)]
    pub(super) added_at: u64,
    /// Set until the image's files are known to be on the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) unflushed_in_boot: Option<String>,
    /// What the image was made of, when it was made here; see `builtin`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) source: Option<String>,
}

impl IndexEntry {
    pub(super) fn target(&self) -> &str {
        self.target.as_deref().unwrap_or(&self.manifest)
    }
}

impl ImageStore {
    /// Names an image whose blobs and layers are all in place, also by the digest that led to it. Visible at once;
    /// flushed to the device by [`flush`](Self::flush).
    pub(crate) fn commit(&self, names: &[Reference], image: Committed<'_>) -> Result<(), ImageError> {
        self.load(image.manifest)?;
        let target = image.target.unwrap_or(image.manifest);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.touch(image.manifest);
        self.change(|index| {
            for name in names {
                let by_digest = format!("{}@{target}", name.repository());
                let mut named: BTreeSet<String> = [by_digest].into();
                // Whoever pins a digest says nothing about what the tag should be.
                if let Some(tag) = name.tag().filter(|_| name.digest().is_none()) {
                    named.insert(format!("{}:{tag}", name.repository()));
                }
                for name in named {
                    let known = index.images.get(&name).filter(|e| e.manifest == image.manifest);
                    // What is flushed stays flushed, and what was here since yesterday did not come today.
                    let unflushed = known.is_none_or(|e| e.unflushed_in_boot.is_some());
                    let entry = IndexEntry {
                        manifest: image.manifest.to_owned(),
                        target: image.target.filter(|t| *t != image.manifest).map(str::to_owned),
                        added_at: known.map_or(now, |e| e.added_at),
                        unflushed_in_boot: unflushed.then(|| self.boot_id.clone()),
                        source: image.source.map(str::to_owned),
                    };
                    index.images.insert(name, entry);
                }
            }
        })
    }

    /// Gives what a name stands for another name, in place of what that stood for.
    pub fn tag(&self, source: &Reference, target: &Reference) -> Result<(), ImageError> {
        let _using = self.using()?;
        let name = source.to_string();
        let entry = self.lock().index.images.get(&name).cloned();
        let entry = entry.ok_or_else(|| ImageError::malformed(&name, "it is not here any more"))?;
        let committed = Committed {
            manifest: &entry.manifest,
            target: Some(entry.target()),
            source: entry.source.as_deref(),
        };
        self.commit(std::slice::from_ref(target), committed)
    }

    /// Takes names away. Content stays until it is swept.
    pub(crate) fn forget(&self, names: &BTreeSet<String>) -> Result<(), ImageError> {
        self.change(|index| index.images.retain(|name, _| !names.contains(name)))
    }

    /// Every name that stands for the same as this one, itself included.
    pub(crate) fn siblings(&self, name: &str) -> Vec<String> {
        let state = self.lock();
        let Some(entry) = state.index.images.get(name) else { return Vec::new() };
        let same = |(_, other): &(&String, &IndexEntry)| other.target() == entry.target();
        state.index.images.iter().filter(same).map(|(name, _)| name.clone()).collect()
    }

    /// The manifests, and the indexes that led to them, of every name.
    pub(crate) fn roots(&self) -> BTreeSet<(String, String)> {
        let state = self.lock();
        state.index.images.values().map(|e| (e.manifest.clone(), e.target().to_owned())).collect()
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
        self.change(|index| {
            for name in before {
                if let Some(entry) = index.images.get_mut(&name) {
                    entry.unflushed_in_boot = None;
                }
            }
        })
    }

    fn read_index(&self) -> Result<IndexFile, ImageError> {
        let path = self.root.join("index.json");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(IndexFile::default()),
            Err(e) => return Err(ImageError::io("read", &path)(e)),
        };
        Ok(serde_json::from_slice(&bytes).unwrap_or_else(|error| {
            tracing::warn!(path = %path.display(), %error, "image index is damaged; every image is imported anew");
            IndexFile::default()
        }))
    }

    /// Forgets what may not have reached the device before the machine stopped.
    pub(super) fn forget_unflushed(&self) -> Result<(), ImageError> {
        let stale = |e: &IndexEntry| e.unflushed_in_boot.as_ref().is_some_and(|boot| *boot != self.boot_id);
        let index = self.lock().index.clone();
        let (gone, kept): (Vec<_>, Vec<_>) = index.images.into_iter().partition(|(_, entry)| stale(entry));
        if gone.is_empty() {
            return Ok(());
        }
        // Content that another image brought to the device in time is whole.
        let kept: BTreeSet<PathBuf> =
            kept.iter().flat_map(|(_, entry)| self.content(&entry.manifest)).collect();
        for (name, entry) in &gone {
            tracing::warn!(image = %name, "image was not flushed before the machine stopped; forgotten");
            for path in self.content(&entry.manifest).into_iter().filter(|path| !kept.contains(path)) {
                drop(if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) });
            }
        }
        let names: BTreeSet<String> = gone.into_iter().map(|(name, _)| name).collect();
        self.forget(&names)
    }

    /// Changes the index as it is now, for everybody.
    fn change(&self, change: impl FnOnce(&mut IndexFile)) -> Result<(), ImageError> {
        let _lock = self.lock_file("lock", FlockArg::LockExclusive)?;
        let mut state = self.lock();
        let mut index = state.index.clone();
        change(&mut index);
        // The first images of a new node are there before anything needs a flush.
        let flush = index.images.values().any(|e| e.unflushed_in_boot.is_none());
        let text = serde_json::to_vec_pretty(&index).expect("an index has string keys only");
        write_atomically(&self.root.join("index.json"), &text, flush)?;
        state.index = index;
        state.loaded.clear();
        state.seen = self.index_stamp();
        Ok(())
    }

    /// Tells one index file from the next.
    fn index_stamp(&self) -> Option<(u64, i64, i64)> {
        let metadata = fs::metadata(self.root.join("index.json")).ok()?;
        Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec()))
    }

    /// The state, with the newest index that any process has written.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().expect("no holder of the image index panics");
        let stamp = self.index_stamp();
        if stamp != state.seen {
            match self.read_index() {
                Ok(index) => *state = State { index, seen: stamp, loaded: HashMap::new() },
                Err(error) => tracing::warn!(%error, "cannot read the image index again"),
            }
        }
        state
    }
}

/// What a name is given to.
pub(crate) struct Committed<'a> {
    pub(crate) manifest: &'a str,
    /// The index that led to the manifest, if one did.
    pub(crate) target: Option<&'a str>,
    pub(crate) source: Option<&'a str>,
}

pub(crate) fn repository_of(name: &str) -> &str {
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    match name.rfind(':') {
        Some(at) if !name[at..].contains('/') => &name[..at],
        _ => name,
    }
}
