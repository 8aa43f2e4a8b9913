//! Removal: of images by name, of content that no name leads to, and of unused images when the disk fills.
//!
//! Taking a name away and removing content are two steps: names go under the index's lock, content only while
//! nobody brings any in ([`ImageStore::removing`]). A removal that dies in between leaves content for the next.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::Deserialize;

use super::index::repository_of;
use super::made;
use super::{ImageError, ImageStore, ImageSummary, ImagesConfig, Reference};

/// What a removal did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Names that are gone.
    pub untagged: Vec<String>,
    /// Bytes of content that are gone; `None`: content is removed later, because some is just being brought in.
    pub bytes: Option<u64>,
}

/// Why an image was not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// There is no such image.
    #[error("no such image: {0}")]
    Absent(String),
    /// A container was made of it.
    #[error("image {name} is in use by {user}; end it first")]
    InUse {
        /// The image.
        name: String,
        /// One pod and container that uses it.
        user: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] ImageError),
}

/// Why the disk is as full as before.
#[derive(Debug, thiserror::Error)]
pub enum GcError {
    /// Not enough is unused.
    #[error(
        "Failed to garbage collect required amount of images. Attempted to free {wanted} bytes, but only found {freed} \
         bytes eligible to free."
    )]
    NotEnough {
        /// Bytes over the low threshold.
        wanted: u64,
        /// Bytes that were freed.
        freed: u64,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] ImageError),
}

/// Images that containers of this node were made of, and by whom: `repository@digest` → `namespace/pod/container`.
pub type InUse = std::collections::BTreeMap<String, String>;

/// What the checkpoints of a node's pods say about images. Read from disk, so that every process sees the same.
pub fn images_in_use(pods_dir: &Path) -> Result<InUse, ImageError> {
    let mut in_use = InUse::new();
    let entries = match fs::read_dir(pods_dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(in_use),
        Err(e) => return Err(ImageError::io("list", pods_dir)(e)),
    };
    for entry in entries.flatten() {
        let path = entry.path().join("checkpoint.json");
        let Ok(bytes) = fs::read(&path) else { continue };
        let record: PodUses = serde_json::from_slice(&bytes)
            .map_err(|e| ImageError::malformed(path.display().to_string(), e))?;
        let pod = format!("{}/{}", record.pod.metadata.namespace, record.pod.metadata.name);
        for (name, container) in record.containers {
            if let Some(instance) = container.current {
                in_use.insert(instance.image_id, format!("{pod}/{name}"));
            }
        }
    }
    Ok(in_use)
}

/// As much of a pod's checkpoint as is needed here.
#[derive(Deserialize)]
struct PodUses {
    pod: PodUsed,
    containers: std::collections::BTreeMap<String, ContainerUses>,
}

#[derive(Deserialize)]
struct PodUsed {
    metadata: PodName,
}

#[derive(Deserialize)]
struct PodName {
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
struct ContainerUses {
    current: Option<InstanceUses>,
}

#[derive(Deserialize)]
struct InstanceUses {
    image_id: String,
}

impl ImageStore {
    /// Removes a name, and what it stands for if that has no other tag and no container uses it.
    pub fn remove(&self, reference: &Reference, in_use: &InUse) -> Result<Removed, RemoveError> {
        let absent = || RemoveError::Absent(reference.to_string());
        let image = self.get(&reference.to_string()).map_err(ImageError::from)?.ok_or_else(absent)?;
        let siblings = self.siblings(&image.name);
        let is_tagged = |name: &String| !name.contains('@') && !made::is_step(name);
        let tags = siblings.iter().filter(|name| is_tagged(name)).count();
        let is_tag = !image.name.contains('@');
        let names: BTreeSet<String> = match is_tag && tags > 1 {
            // The image goes on under its other tags. Its digest name goes if this was the last of the repository.
            true => {
                let repository = repository_of(&image.name);
                let of_it = |name: &&String| repository_of(name) == repository && **name != image.name;
                let others = siblings.iter().filter(of_it);
                let keeps = others.clone().any(|name| !name.contains('@'));
                let mut names: BTreeSet<String> = [image.name.clone()].into();
                names.extend(others.filter(|_| !keeps).cloned());
                names
            }
            false => siblings.into_iter().collect(),
        };
        if let Some((id, user)) = names.iter().find_map(|name| in_use.get_key_value(name)) {
            return Err(RemoveError::InUse { name: id.clone(), user: user.clone() });
        }
        self.forget(&names)?;
        Ok(Removed { untagged: names.into_iter().collect(), bytes: self.sweep()? })
    }

    /// Removes content that no name leads to. `None`: some is just being brought in; another time.
    pub fn sweep(&self) -> Result<Option<u64>, ImageError> {
        let Some(_removing) = self.removing()? else { return Ok(None) };
        let mut kept: BTreeSet<PathBuf> = BTreeSet::new();
        for (manifest, target) in self.roots() {
            kept.insert(self.blob_path(&target));
            kept.extend(self.content(&manifest));
        }
        let work = self.ingest_dir()?;
        let mut freed = 0;
        for dir in ["blobs/sha256", "layers"].map(|dir| self.root().join(dir)) {
            for entry in fs::read_dir(&dir).map_err(ImageError::io("list", &dir))?.flatten() {
                let path = entry.path();
                if kept.contains(&path) {
                    continue;
                }
                freed += bytes_of(&path);
                // Gone at once, whatever happens while a big tree is removed.
                let aside = work.join(hex::encode(rand::random::<[u8; 8]>()));
                fs::rename(&path, &aside).map_err(ImageError::io("remove", &path))?;
                let removed =
                    if aside.is_dir() { fs::remove_dir_all(&aside) } else { fs::remove_file(&aside) };
                removed.map_err(ImageError::io("remove", &aside))?;
            }
        }
        Ok(Some(freed))
    }

    /// Removes unused images, least recently used first, if the disk is fuller than it should be. Returns the
    /// bytes freed.
    pub fn collect_garbage(&self, config: &ImagesConfig, in_use: &InUse) -> Result<u64, GcError> {
        self.sweep()?;
        let high = config.gc_high_threshold_percent;
        let wanted = match self.disk()? {
            disk if high < 100 && disk.percent_used() >= high => disk.over(config.gc_low_threshold_percent),
            _ => return Ok(0),
        };
        let mut freed = 0;
        for image in eligible(self.list(), in_use, config.gc_minimum_age, SystemTime::now()) {
            // Names are not taken away for nothing: while an image is brought in, no content goes.
            if self.disk()?.over(config.gc_low_threshold_percent) == 0 || self.removing()?.is_none() {
                return Ok(freed);
            }
            tracing::info!(image = %image.names.join(", "), "removing an unused image: the disk is filling");
            self.forget(&image.names.into_iter().collect())?;
            freed += self.sweep()?.unwrap_or(0);
        }
        match self.disk()?.over(config.gc_low_threshold_percent) {
            0 => Ok(freed),
            _ => Err(GcError::NotEnough { wanted, freed }),
        }
    }

    /// Removes every image that nobody uses and that is old enough. Returns the bytes freed.
    pub fn remove_unused(&self, config: &ImagesConfig, in_use: &InUse) -> Result<u64, ImageError> {
        let unused = eligible(self.list(), in_use, config.gc_minimum_age, SystemTime::now());
        // Names are not taken away for nothing: while an image is brought in, no content goes.
        if !unused.is_empty() && self.removing()?.is_some() {
            self.forget(&unused.into_iter().flat_map(|image| image.names).collect())?;
        }
        Ok(self.sweep()?.unwrap_or(0))
    }

    fn disk(&self) -> Result<Disk, ImageError> {
        let failed = |e: nix::Error| ImageError::io("look at the disk of", self.root())(e.into());
        let stat = nix::sys::statvfs::statvfs(self.root()).map_err(failed)?;
        let block = stat.fragment_size();
        Ok(Disk { total: stat.blocks() * block, available: stat.blocks_available() * block })
    }
}

struct Disk {
    total: u64,
    available: u64,
}

impl Disk {
    fn percent_used(&self) -> u8 {
        100 - (self.available.saturating_mul(100) / self.total.max(1)).min(100) as u8
    }

    /// Bytes used beyond so many percent.
    fn over(&self, percent: u8) -> u64 {
        let allowed = self.total / 100 * u64::from(percent);
        (self.total - self.available).saturating_sub(allowed)
    }
}

/// What may be removed, in the order in which it is.
fn eligible(
    images: Vec<ImageSummary>,
    in_use: &InUse,
    minimum_age: Duration,
    now: SystemTime,
) -> Vec<ImageSummary> {
    let old = |at: SystemTime| now.duration_since(at).is_ok_and(|age| age >= minimum_age);
    let mut images: Vec<ImageSummary> = images
        .into_iter()
        .filter(|i| !i.pinned && old(i.added_at) && old(i.used_at))
        .filter(|i| !i.names.iter().any(|name| in_use.contains_key(name)))
        .collect();
    images.sort_by_key(|image| (image.used_at, image.added_at));
    images
}

/// What removing a path frees, about.
fn bytes_of(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(metadata) = fs::symlink_metadata(path) else { return 0 };
    let own = metadata.blocks() * 512;
    if !metadata.is_dir() {
        return own;
    }
    let children = fs::read_dir(path).into_iter().flatten().flatten();
    own + children.map(|entry| bytes_of(&entry.path())).sum::<u64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_goes_first() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(10_000);
        let at = |seconds_ago: u64| now - Duration::from_secs(seconds_ago);
        let image = |name: &str, added: u64, used: u64| ImageSummary {
            names: vec![format!("r/{name}@sha256:0"), format!("r/{name}:1")],
            size_bytes: 1,
            id: String::new(),
            added_at: at(added),
            used_at: at(used),
            pinned: name == "pinned",
        };
        let images = vec![
            image("recent", 5000, 200),
            image("old", 5000, 4000),
            image("young", 100, 100),
            image("just-used", 5000, 5),
            image("used", 5000, 4500),
            image("pinned", 5000, 5000),
            image("older", 5000, 4200),
        ];
        let in_use = InUse::from([("r/used@sha256:0".to_owned(), "default/p/c".to_owned())]);
        let order = eligible(images, &in_use, Duration::from_secs(120), now);
        let order: Vec<&str> = order.iter().map(|i| i.names[1].as_str()).collect();
        assert_eq!(order, ["r/older:1", "r/old:1", "r/recent:1"]);
    }

    #[test]
    fn thresholds_are_percent_of_the_disk() {
        let disk = Disk { total: 1000, available: 100 };
        assert_eq!((disk.percent_used(), disk.over(80), disk.over(90)), (90, 100, 0));
        assert_eq!(Disk { total: 0, available: 0 }.percent_used(), 100);
    }
}
