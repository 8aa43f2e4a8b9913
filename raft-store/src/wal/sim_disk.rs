//! A disk in memory that can lose power, fill up and fail.
//!
//! What was written and not flushed is kept apart. When the power goes, each 512-byte sector of it, by itself, has
//! reached the disk, or not, or in an older version, or in part; file lengths and directory changes likewise.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rand::Rng;
use rand::rngs::StdRng;

use super::disk::{Disk, DiskFile};

const SECTOR: usize = 512;
/// Why a lock can be taken.
const UNBROKEN: &str = "no code panics while it holds this lock";

#[derive(Clone)]
/// See the module. Clones are the same disk.
pub struct SimDisk {
    dir: PathBuf,
    inner: Arc<Mutex<Inner>>,
}

pub(in crate::wal) struct SimFile {
    inode: usize,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default, Debug)]
struct Inner {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    name_changes: Vec<NameChange>,
    /// So many operations until the power goes.
    operations_left: Option<u64>,
    space_left: Option<u64>,
    /// Flushes of files fail whose names end with this.
    fail_syncs: Option<&'static str>,
    fail_writes: bool,
}

#[derive(Default, Clone, Debug)]
struct Inode {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// Since the last flush.
    writes: Vec<(usize, Vec<u8>)>,
}

#[derive(Clone, Debug)]
enum NameChange {
    Link(String, usize),
    Unlink(String),
    Rename(String, String, usize),
}

impl Default for SimDisk {
    /// An empty disk.
    fn default() -> Self {
        Self { dir: PathBuf::from("/sim"), inner: Arc::default() }
    }
}

impl SimDisk {
    /// The power goes after so many further operations; from then on every operation fails.
    pub fn lose_power_after(&self, operations: Option<u64>) {
        self.inner.lock().expect(UNBROKEN).operations_left = operations;
    }

    /// Whether operations are still carried out.
    pub fn has_power(&self) -> bool {
        self.inner.lock().expect(UNBROKEN).operations_left != Some(0)
    }

    #[cfg(test)]
    pub(super) fn set_space(&self, bytes: Option<u64>) {
        self.inner.lock().expect(UNBROKEN).space_left = bytes;
    }

    #[cfg(test)]
    pub(super) fn fail_syncs(&self, suffix: Option<&'static str>) {
        self.inner.lock().expect(UNBROKEN).fail_syncs = suffix;
    }

    #[cfg(test)]
    pub(super) fn fail_writes(&self, fail: bool) {
        self.inner.lock().expect(UNBROKEN).fail_writes = fail;
    }

    #[cfg(test)]
    pub(super) fn names(&self) -> Vec<String> {
        self.inner.lock().expect(UNBROKEN).names.keys().cloned().collect()
    }

    /// The disk as it is found when the power is back.
    #[must_use]
    pub fn after_power_cut(&self, random: &mut StdRng) -> Self {
        let inner = self.inner.lock().expect(UNBROKEN);
        let mut names = inner.durable_names.clone();
        let in_order = random.random_bool(0.5);
        let survivors = random.random_range(0..=inner.name_changes.len());
        for (at, change) in inner.name_changes.iter().enumerate() {
            if if in_order { at < survivors } else { random.random_bool(0.5) } {
                change.clone().apply(&mut names);
            }
        }
        let inodes = inner.inodes.iter().map(|inode| inode.after_power_cut(random)).collect();
        let after = Inner { inodes, durable_names: names.clone(), names, ..Inner::default() };
        Self { dir: self.dir.clone(), inner: Arc::new(Mutex::new(after)) }
    }
}

impl NameChange {
    fn apply(self, names: &mut BTreeMap<String, usize>) {
        match self {
            Self::Link(name, inode) => {
                names.insert(name, inode);
            }
            Self::Unlink(name) => {
                names.remove(&name);
            }
            Self::Rename(from, to, inode) => {
                names.remove(&from);
                names.insert(to, inode);
            }
        }
    }
}

impl Inode {
    fn after_power_cut(&self, random: &mut StdRng) -> Self {
        let mut versions = vec![self.durable.clone()];
        for (offset, data) in &self.writes {
            let mut version = versions.last().expect("it begins with one").clone();
            put(&mut version, *offset, data);
            versions.push(version);
        }
        let longest = versions.last().expect("it begins with one").len();
        let length = match random.random_range(0..3) {
            0 => self.durable.len(),
            1 => longest,
            _ => random.random_range(self.durable.len()..=longest),
        };
        versions.iter_mut().for_each(|version| version.resize(length, 0));
        let mut content = self.durable.clone();
        content.resize(length, 0);
        for start in (0..length).step_by(SECTOR) {
            let sector = start..(start + SECTOR).min(length);
            let (one, other) =
                (random.random_range(0..versions.len()), random.random_range(0..versions.len()));
            let changed = versions
                .iter()
                .any(|version| version[sector.clone()] != content_or_zeros(&self.durable, &sector));
            if !changed {
                continue;
            }
            content[sector.clone()].copy_from_slice(&versions[one][sector.clone()]);
            match random.random_range(0..8) {
                0 => {
                    // Torn inside.
                    let cut = random.random_range(sector.clone());
                    content[cut..sector.end].copy_from_slice(&versions[other][cut..sector.end]);
                }
                // Nothing durable is here or shortly before (a record may end with zeros): may be anything.
                1 if content_or_zeros(&self.durable, &(start.saturating_sub(SECTOR)..sector.end))
                    .iter()
                    .all(|byte| *byte == 0) =>
                {
                    random.fill(&mut content[sector.clone()]);
                }
                _ => {}
            }
        }
        Self { now: content.clone(), durable: content, writes: Vec::new() }
    }
}

fn content_or_zeros(content: &[u8], range: &std::ops::Range<usize>) -> Vec<u8> {
    range.clone().map(|at| content.get(at).copied().unwrap_or(0)).collect()
}

fn put(content: &mut Vec<u8>, offset: usize, data: &[u8]) {
    let end = offset + data.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset..end].copy_from_slice(data);
}

impl Inner {
    fn step(&mut self) -> io::Result<()> {
        match &mut self.operations_left {
            Some(0) => Err(io::Error::other("the power is off")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn change(&mut self, change: NameChange) {
        change.clone().apply(&mut self.names);
        self.name_changes.push(change);
    }

    fn find(&self, name: &str) -> io::Result<usize> {
        self.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Disk for SimDisk {
    type File = SimFile;

    fn dir(&self) -> &Path {
        &self.dir
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut inner = self.inner.lock().expect(UNBROKEN);
        inner.step()?;
        Ok(inner.names.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<SimFile> {
        let mut inner = self.inner.lock().expect(UNBROKEN);
        inner.step()?;
        if inner.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = inner.inodes.len();
        inner.inodes.push(Inode::default());
        inner.change(NameChange::Link(name.to_owned(), inode));
        Ok(SimFile { inode, inner: Arc::clone(&self.inner) })
    }

    fn open(&self, name: &str) -> io::Result<SimFile> {
        let mut inner = self.inner.lock().expect(UNBROKEN);
        inner.step()?;
        Ok(SimFile { inode: inner.find(name)?, inner: Arc::clone(&self.inner) })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut inner = self.inner.lock().expect(UNBROKEN);
        inner.step()?;
        let inode = inner.find(from)?;
        inner.change(NameChange::Rename(from.to_owned(), to.to_owned(), inode));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut inner = self.inner.lock().expect(UNBROKEN);
        inner.step()?;
        let inode = inner.find(name)?;
        if let Some(left) = inner.space_left.as_mut().map(|left| *left) {
            inner.space_left = Some(left + inner.inodes[inode].now.len() as u64);
        }
        inner.change(NameChange::Unlink(name.to_owned()));
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut inner = self.inner.lock().expect(UNBROKEN);
        inner.step()?;
        inner.durable_names = inner.names.clone();
        inner.name_changes.clear();
        Ok(())
    }
}

impl DiskFile for SimFile {
    fn bytes(&self) -> io::Result<u64> {
        let mut inner = self.inner.lock().expect(UNBROKEN);
        inner.step()?;
        Ok(inner.inodes[self.inode].now.len() as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut inner = self.inner.lock().expect(UNBROKEN);
        inner.step()?;
        let now = &inner.inodes[self.inode].now;
        let start = (offset as usize).min(now.len());
        let end = (start + buffer.len()).min(now.len());
        buffer[..end - start].copy_from_slice(&now[start..end]);
        Ok(end - start)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut inner = self.inner.lock().expect(UNBROKEN);
        let power = inner.step();
        if inner.fail_writes {
            return Err(io::Error::from_raw_os_error(5));
        }
        let grows = (offset + data.len() as u64).saturating_sub(inner.inodes[self.inode].now.len() as u64);
        if let Some(left) = &mut inner.space_left {
            if grows > *left {
                return Err(io::ErrorKind::StorageFull.into());
            }
            *left -= grows;
        }
        // A write in the very moment of the power cut may still get through.
        let inode = &mut inner.inodes[self.inode];
        put(&mut inode.now, offset as usize, data);
        inode.writes.push((offset as usize, data.to_vec()));
        power
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut inner = self.inner.lock().expect(UNBROKEN);
        inner.step()?;
        let fail = inner.fail_syncs.is_some_and(|suffix| {
            inner.names.iter().any(|(name, inode)| *inode == self.inode && name.ends_with(suffix))
        });
        let inode = &mut inner.inodes[self.inode];
        if fail {
            // As Linux does it: what could not be written is marked clean. It can be read, yet no later flush
            // brings it to the disk.
            inode.writes.clear();
            return Err(io::Error::from_raw_os_error(5));
        }
        for (offset, data) in std::mem::take(&mut inode.writes) {
            put(&mut inode.durable, offset, &data);
        }
        Ok(())
    }
}
