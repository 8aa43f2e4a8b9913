//! Files and directories in memory, each twice: as they are, and as a disk without power would keep them.
//!
//! Pure: no kernel, no clock, no fault. What a file holds becomes durable when it is synced; which names a directory has when
//! the directory is synced, as POSIX has it and no more. Pages of zeros take no memory.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use rand::Rng;

/// The number of the root directory.
pub(super) const ROOT: u64 = 1;
/// Bytes of a page: what a disk writes at once or not at all is a sector, eight of which make one.
const PAGE_BYTES: usize = 4096;
const SECTOR_BYTES: usize = 512;

type Page = Arc<[u8; PAGE_BYTES]>;

/// What a file holds.
#[derive(Clone, Default)]
struct Content {
    len: u64,
    pages: BTreeMap<u64, Page>,
}

impl Content {
    fn page(&self, number: u64) -> [u8; PAGE_BYTES] {
        self.pages.get(&number).map_or([0; PAGE_BYTES], |page| **page)
    }

    fn set(&mut self, number: u64, page: [u8; PAGE_BYTES]) {
        if page.iter().all(|byte| *byte == 0) {
            self.pages.remove(&number);
        } else {
            self.pages.insert(number, Arc::new(page));
        }
    }

    fn read(&self, offset: u64, bytes: usize) -> Vec<u8> {
        let end = (offset + bytes as u64).min(self.len);
        let mut read = Vec::with_capacity(bytes);
        let mut at = offset;
        while at < end {
            let inside = (at % PAGE_BYTES as u64) as usize;
            let take = ((end - at) as usize).min(PAGE_BYTES - inside);
            read.extend_from_slice(&self.page(at / PAGE_BYTES as u64)[inside..inside + take]);
            at += take as u64;
        }
        read
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let (mut at, mut rest) = (offset, data);
        while !rest.is_empty() {
            let number = at / PAGE_BYTES as u64;
            let inside = (at % PAGE_BYTES as u64) as usize;
            let take = rest.len().min(PAGE_BYTES - inside);
            let mut page = self.page(number);
            page[inside..inside + take].copy_from_slice(&rest[..take]);
            self.set(number, page);
            (at, rest) = (at + take as u64, &rest[take..]);
        }
        self.len = self.len.max(offset + data.len() as u64);
    }

    fn set_len(&mut self, len: u64) {
        if len < self.len {
            let last = len / PAGE_BYTES as u64;
            self.pages.retain(|number, _| *number <= last);
            let mut page = self.page(last);
            page[(len % PAGE_BYTES as u64) as usize..].fill(0);
            self.set(last, page);
        }
        self.len = len;
    }
}

type Names = BTreeMap<OsString, u64>;

enum Body {
    File { now: Content, durable: Content },
    Directory { now: Names, durable: Names },
}

struct Inode {
    body: Body,
    mode: u16,
}

/// Why an operation is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    Missing,
    Exists,
    NotEmpty,
    NotDirectory,
    IsDirectory,
}

/// What is told of a file or directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct About {
    pub(super) number: u64,
    pub(super) is_directory: bool,
    pub(super) len: u64,
    pub(super) mode: u16,
}

/// A whole file system.
pub(super) struct Tree {
    inodes: HashMap<u64, Inode>,
    next: u64,
}

impl Default for Tree {
    fn default() -> Self {
        let root = Inode { body: Body::Directory { now: Names::new(), durable: Names::new() }, mode: 0o755 };
        Self { inodes: HashMap::from([(ROOT, root)]), next: ROOT + 1 }
    }
}

impl Tree {
    pub(super) fn about(&self, number: u64) -> Result<About, Refusal> {
        let inode = self.inodes.get(&number).ok_or(Refusal::Missing)?;
        let (is_directory, len) = match &inode.body {
            Body::File { now, .. } => (false, now.len),
            Body::Directory { .. } => (true, 0),
        };
        Ok(About { number, is_directory, len, mode: inode.mode })
    }

    pub(super) fn set_mode(&mut self, number: u64, mode: u16) {
        if let Some(inode) = self.inodes.get_mut(&number) {
            inode.mode = mode;
        }
    }

    fn names(&self, directory: u64) -> Result<&Names, Refusal> {
        match &self.inodes.get(&directory).ok_or(Refusal::Missing)?.body {
            Body::Directory { now, .. } => Ok(now),
            Body::File { .. } => Err(Refusal::NotDirectory),
        }
    }

    fn names_mut(&mut self, directory: u64) -> Result<&mut Names, Refusal> {
        match &mut self.inodes.get_mut(&directory).ok_or(Refusal::Missing)?.body {
            Body::Directory { now, .. } => Ok(now),
            Body::File { .. } => Err(Refusal::NotDirectory),
        }
    }

    pub(super) fn lookup(&self, directory: u64, name: &OsStr) -> Result<About, Refusal> {
        self.about(*self.names(directory)?.get(name).ok_or(Refusal::Missing)?)
    }

    pub(super) fn list(&self, directory: u64) -> Result<Vec<(OsString, About)>, Refusal> {
        let names = self.names(directory)?;
        Ok(names
            .iter()
            .filter_map(|(name, number)| Some((name.clone(), self.about(*number).ok()?)))
            .collect())
    }

    pub(super) fn make(
        &mut self,
        directory: u64,
        name: &OsStr,
        mode: u16,
        is_directory: bool,
    ) -> Result<About, Refusal> {
        if self.names(directory)?.contains_key(name) {
            return Err(Refusal::Exists);
        }
        let number = self.next;
        self.next += 1;
        let body = if is_directory {
            Body::Directory { now: Names::new(), durable: Names::new() }
        } else {
            Body::File { now: Content::default(), durable: Content::default() }
        };
        self.inodes.insert(number, Inode { body, mode });
        self.names_mut(directory)?.insert(name.to_owned(), number);
        self.about(number)
    }

    /// Files that no name leads to stay: a disk without power may still know them by their old one.
    pub(super) fn remove(&mut self, directory: u64, name: &OsStr, is_directory: bool) -> Result<(), Refusal> {
        let about = self.lookup(directory, name)?;
        match (about.is_directory, is_directory) {
            (true, false) => return Err(Refusal::IsDirectory),
            (false, true) => return Err(Refusal::NotDirectory),
            (true, true) if !self.names(about.number)?.is_empty() => return Err(Refusal::NotEmpty),
            _ => {}
        }
        self.names_mut(directory)?.remove(name);
        Ok(())
    }

    pub(super) fn rename(&mut self, from: (u64, &OsStr), to: (u64, &OsStr)) -> Result<(), Refusal> {
        let about = self.lookup(from.0, from.1)?;
        if let Ok(there) = self.lookup(to.0, to.1)
            && there.is_directory
            && !self.names(there.number)?.is_empty()
        {
            return Err(Refusal::NotEmpty);
        }
        self.names_mut(from.0)?.remove(from.1);
        self.names_mut(to.0)?.insert(to.1.to_owned(), about.number);
        Ok(())
    }

    fn file(&mut self, number: u64) -> Result<(&mut Content, &mut Content), Refusal> {
        match &mut self.inodes.get_mut(&number).ok_or(Refusal::Missing)?.body {
            Body::File { now, durable } => Ok((now, durable)),
            Body::Directory { .. } => Err(Refusal::IsDirectory),
        }
    }

    pub(super) fn read(&mut self, number: u64, offset: u64, bytes: usize) -> Result<Vec<u8>, Refusal> {
        Ok(self.file(number)?.0.read(offset, bytes))
    }

    pub(super) fn write(&mut self, number: u64, offset: u64, data: &[u8]) -> Result<(), Refusal> {
        self.file(number)?.0.write(offset, data);
        Ok(())
    }

    pub(super) fn set_len(&mut self, number: u64, len: u64) -> Result<(), Refusal> {
        self.file(number)?.0.set_len(len);
        Ok(())
    }

    /// What a file or directory is becomes durable.
    pub(super) fn sync(&mut self, number: u64) -> Result<(), Refusal> {
        match &mut self.inodes.get_mut(&number).ok_or(Refusal::Missing)?.body {
            Body::File { now, durable } => durable.clone_from(now),
            Body::Directory { now, durable } => durable.clone_from(now),
        }
        Ok(())
    }

    /// What was not synced is gone, or with `torn`, some of its sectors are there. Returns how many files and directories lost
    /// something.
    pub(super) fn lose_unsynced(&mut self, torn: bool, random: &mut impl Rng) -> u64 {
        let mut lost = 0;
        for inode in self.inodes.values_mut() {
            match &mut inode.body {
                Body::Directory { now, durable } => {
                    lost += u64::from(now != durable);
                    now.clone_from(durable);
                }
                Body::File { now, durable } => {
                    if torn {
                        tear(now, durable, random);
                    }
                    let differs = now.len != durable.len || changed(now, durable).next().is_some();
                    lost += u64::from(differs);
                    now.clone_from(durable);
                }
            }
        }
        self.forget_nameless();
        lost
    }

    fn forget_nameless(&mut self) {
        let mut named = vec![ROOT];
        let mut at = 0;
        while at < named.len() {
            if let Some(Inode { body: Body::Directory { now, .. }, .. }) = self.inodes.get(&named[at]) {
                named.extend(now.values());
            }
            at += 1;
        }
        self.inodes.retain(|number, _| named.contains(number));
    }
}

/// Pages in which two contents differ.
fn changed<'a>(now: &'a Content, durable: &'a Content) -> impl Iterator<Item = u64> + 'a {
    let numbers =
        now.pages.keys().chain(durable.pages.keys().filter(|number| !now.pages.contains_key(number)));
    numbers.copied().filter(|number| match (now.pages.get(number), durable.pages.get(number)) {
        (Some(a), Some(b)) => !Arc::ptr_eq(a, b) && a != b,
        _ => true,
    })
}

/// Brings some sectors of what was not synced to the disk.
fn tear(now: &Content, durable: &mut Content, random: &mut impl Rng) {
    let numbers: Vec<u64> = changed(now, durable).collect();
    for number in numbers {
        let (new, mut page) = (now.page(number), durable.page(number));
        for sector in (0..PAGE_BYTES).step_by(SECTOR_BYTES) {
            if random.random_bool(0.5) {
                page[sector..sector + SECTOR_BYTES].copy_from_slice(&new[sector..sector + SECTOR_BYTES]);
            }
        }
        durable.set(number, page);
    }
    if now.len > durable.len && random.random_bool(0.5) {
        durable.len = now.len;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(tree: &mut Tree, name: &str) -> u64 {
        tree.make(ROOT, OsStr::new(name), 0o644, false).expect("made").number
    }

    #[test]
    fn what_was_not_synced_is_gone() {
        let mut tree = Tree::default();
        let number = file(&mut tree, "a");
        tree.write(number, 4090, b"twelve bytes").expect("written");
        tree.sync(number).expect("synced");
        tree.sync(ROOT).expect("synced");
        tree.write(number, 0, b"more").expect("written");
        let other = file(&mut tree, "b");
        tree.sync(other).expect("synced, without its directory");
        let mut random = rand::rng();
        assert_eq!(tree.lose_unsynced(false, &mut random), 2);
        assert_eq!(tree.read(number, 4090, 100).expect("read"), b"twelve bytes");
        assert_eq!(tree.read(number, 0, 4).expect("read"), [0; 4]);
        assert_eq!(tree.lookup(ROOT, OsStr::new("b")), Err(Refusal::Missing));
    }

    #[test]
    fn a_rename_without_its_sync_is_undone() {
        let mut tree = Tree::default();
        let number = file(&mut tree, "a");
        tree.sync(ROOT).expect("synced");
        tree.rename((ROOT, OsStr::new("a")), (ROOT, OsStr::new("b"))).expect("renamed");
        tree.lose_unsynced(false, &mut rand::rng());
        assert_eq!(tree.lookup(ROOT, OsStr::new("a")).expect("there").number, number);
    }

    #[test]
    fn a_torn_write_is_made_of_whole_sectors() {
        let mut tree = Tree::default();
        let number = file(&mut tree, "a");
        tree.set_len(number, 16 * 4096).expect("as long");
        tree.sync(number).expect("synced");
        tree.sync(ROOT).expect("synced");
        tree.write(number, 0, &[7; 16 * 4096]).expect("written");
        tree.lose_unsynced(true, &mut rand::rng());
        let read = tree.read(number, 0, 16 * 4096).expect("read");
        let sectors: Vec<&[u8]> = read.chunks(512).collect();
        assert!(sectors.iter().all(|sector| sector.iter().all(|byte| *byte == sector[0])));
        let there = sectors.iter().filter(|sector| sector[0] == 7).count();
        assert!((1..sectors.len()).contains(&there), "{there} of {}", sectors.len());
    }

    #[test]
    fn shorter_and_longer_again_shows_zeros() {
        let mut tree = Tree::default();
        let number = file(&mut tree, "a");
        tree.write(number, 0, &[1; 10_000]).expect("written");
        tree.set_len(number, 5).expect("cut");
        tree.set_len(number, 10_000).expect("longer");
        let read = tree.read(number, 0, 10_000).expect("read");
        assert_eq!((read.len(), read.iter().filter(|byte| **byte == 1).count()), (10_000, 5));
    }
}
