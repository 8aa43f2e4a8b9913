//! How much of the disk lies below a directory, as `du` counts: blocks and inodes, hard links once.
//!
//! Bounded: so many entries at most, one file system, no link followed. What containers do meanwhile may make
//! the result old, never the walk longer.

use std::collections::HashSet;
use std::fs;
use std::iter::Sum;
use std::ops::Add;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Entries of one pod that are looked at; beyond them the result is "at least".
pub(crate) const ENTRIES_MAX: u64 = 1_000_000;
/// A block of `st_blocks`, whatever the file system's own are.
const BLOCK_BYTES: u64 = 512;

/// What is used of a disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Used {
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

impl Add for Used {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { bytes: self.bytes + other.bytes, inodes: self.inodes + other.inodes }
    }
}

impl Sum for Used {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self::default(), Add::add)
    }
}

/// Counts what lies at and below `root`; nothing where there is nothing. Takes from the budget.
pub(crate) fn used(root: &Path, budget: &mut u64) -> Used {
    let Ok(top) = fs::symlink_metadata(root) else { return Used::default() };
    let mut used = Used { bytes: top.blocks() * BLOCK_BYTES, inodes: 1 };
    let mut linked = HashSet::new();
    let mut waiting = if top.is_dir() { vec![root.to_owned()] } else { Vec::new() };
    while let Some(dir) = waiting.pop() {
        // It may be gone again: then it uses nothing.
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if *budget == 0 {
                return used;
            }
            *budget -= 1;
            let Ok(found) = entry.metadata() else { continue };
            let elsewhere = found.dev() != top.dev();
            if elsewhere || (found.nlink() > 1 && !found.is_dir() && !linked.insert(found.ino())) {
                continue;
            }
            used = used + Used { bytes: found.blocks() * BLOCK_BYTES, inodes: 1 };
            if found.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    used
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_files_once_and_follows_no_link() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("sub")).unwrap();
        fs::write(dir.path().join("outside"), vec![1; 1 << 20]).unwrap();
        let empty = used(&root, &mut 100);
        assert_eq!(empty.inodes, 2);
        fs::write(root.join("sub/file"), vec![1; 100_000]).unwrap();
        fs::hard_link(root.join("sub/file"), root.join("again")).unwrap();
        std::os::unix::fs::symlink(dir.path(), root.join("up")).unwrap();
        let found = used(&root, &mut 100);
        assert_eq!(found.inodes, 4);
        let grown = found.bytes - empty.bytes;
        assert!((100_000..150_000).contains(&grown), "{grown}");
        assert_eq!(used(&root, &mut 2).inodes, 3, "no further than the budget");
        assert_eq!(used(&dir.path().join("none"), &mut 1), Used::default());
    }
}
