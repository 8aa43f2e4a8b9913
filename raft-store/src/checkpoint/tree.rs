//! sled, with its habits fenced in: panics are caught, batches are bounded, durability is made here.
//!
//! It is open only while it is used. What it has read or written it keeps in memory far beyond the size that its
//! cache is given (it looks at that only after 64 accesses in each of 256 parts), and opening it again
//! takes some ten milliseconds.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use super::Error;
use super::directory::sync_directory;

/// Keys in one atomic batch; larger ones stall sled's other work for long.
const BATCH_KEYS_MAX: usize = 500;

/// Bytes in one atomic batch, but for a single key that is larger.
const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Pages that sled is to keep in memory. Nothing is read twice.
const CACHE_BYTES: u64 = 1024 * 1024;

/// sled's threads let go of its lock a moment after the last handle is dropped.
const REOPEN_ATTEMPTS: u32 = 200;
const REOPEN_PAUSE: Duration = Duration::from_millis(10);

/// sled's log: the one file that it writes in place.
const LOG: &str = "db";

/// Where sled keeps values too large for its log, one file each, never changed once written.
const BLOBS: &str = "blobs";

/// A sled database.
#[derive(Debug)]
pub(super) struct Tree {
    db: Db,
    path: PathBuf,
    /// Files that are written once, and are durable.
    synced: HashSet<PathBuf>,
}

#[derive(Debug)]
struct Db(Option<sled::Db>);

impl Db {
    fn get(&self) -> &sled::Db {
        self.0.as_ref().expect("the database is opened before it is used")
    }
}

impl Drop for Db {
    fn drop(&mut self) {
        let Some(db) = self.0.take() else { return };
        // sled flushes as it goes; if that panics, everything that counts was synced before.
        if let Err(error) = guarded("close", || {
            drop(db);
            Ok(())
        }) {
            tracing::warn!(%error, "closing the checkpoint's files failed; what was durable still is");
        }
    }
}

impl Tree {
    /// Opens or creates the files in a directory that exists.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        Ok(Self { db: open(path)?, path: path.to_path_buf(), synced: HashSet::new() })
    }

    /// As `open`; but where sled would make new files in place of lost ones, says so.
    pub(super) fn open_existing(path: &Path) -> Result<Self, Error> {
        check_existing(path)?;
        Self::open(path)
    }

    /// Closes the files until [`reopen`](Self::reopen). Nothing else may be called meanwhile.
    pub(super) fn close(&mut self) {
        self.db = Db(None);
    }

    /// Opens the files again.
    pub(super) fn reopen(&mut self) -> Result<(), Error> {
        if self.db.0.is_none() {
            check_existing(&self.path)?;
            self.db = open(&self.path)?;
        }
        Ok(())
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        guarded("read", || Ok(self.db.get().get(key)?.map(|value| value.to_vec())))
    }

    pub(super) fn put(&self, key: &[u8], value: &[u8]) -> Result<(), Error> {
        guarded("write", || self.db.get().insert(key, value).map(drop))
    }

    /// Hands over every value under a prefix, in the order of their keys, until one is not taken.
    pub(super) fn scan(&self, prefix: &[u8], mut each: impl FnMut(sled::IVec) -> bool) -> Result<(), Error> {
        guarded("scan", || {
            for item in self.db.get().scan_prefix(prefix).values() {
                if !each(item?) {
                    break;
                }
            }
            Ok(())
        })
    }

    /// The keys from `from` on that begin with `prefix`.
    pub(super) fn keys_from(&self, from: &[u8], prefix: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        guarded("scan", || {
            let keys = self.db.get().range(from..).keys().map(|key| key.map(|key| key.to_vec()));
            keys.take_while(|key| key.as_ref().map_or(true, |key| key.starts_with(prefix))).collect()
        })
    }

    /// Makes everything written so far survive a power cut.
    pub(super) fn sync(&mut self) -> Result<(), Error> {
        guarded("flush", || self.db.get().flush().map(drop))?;
        // Everything but the log is written once; usually the log is all there is to do.
        let mut present = HashSet::new();
        for directory in [self.path.join(BLOBS), self.path.clone()] {
            let mut new_names = false;
            for entry in list(&directory)? {
                let path = entry.path();
                if path.is_file() && entry.file_name() != LOG {
                    if !self.synced.contains(&path) {
                        sync_file(&path)?;
                        new_names = true;
                    }
                    present.insert(path);
                }
            }
            if new_names {
                sync_directory(&directory)?;
            }
        }
        self.synced = present;
        let log = self.path.join(LOG);
        File::open(&log).and_then(|log| log.sync_data()).map_err(Error::io("fsync", &log))
    }

    /// Bytes that the files take up.
    pub(super) fn disk_bytes(&self) -> Result<u64, Error> {
        let mut blocks = 0;
        for entry in list(&self.path)?.into_iter().chain(list(&self.path.join(BLOBS))?) {
            // A file that sled removed meanwhile takes up nothing.
            blocks += entry.metadata().map_or(0, |metadata| metadata.blocks());
        }
        Ok(blocks * 512)
    }
}

/// Collects changes and applies them in bounded atomic batches.
pub(super) struct Batch<'a> {
    tree: &'a Tree,
    batch: sled::Batch,
    keys: usize,
    bytes: usize,
}

impl<'a> Batch<'a> {
    pub(super) fn new(tree: &'a Tree) -> Self {
        Self { tree, batch: sled::Batch::default(), keys: 0, bytes: 0 }
    }

    pub(super) fn insert(&mut self, key: &[u8], value: &[u8]) -> Result<(), Error> {
        self.make_room(key.len() + value.len())?;
        self.batch.insert(key, value);
        Ok(())
    }

    pub(super) fn remove(&mut self, key: &[u8]) -> Result<(), Error> {
        self.make_room(key.len())?;
        self.batch.remove(key);
        Ok(())
    }

    /// Applies what is left.
    pub(super) fn apply(mut self) -> Result<(), Error> {
        self.flush()
    }

    fn make_room(&mut self, bytes: usize) -> Result<(), Error> {
        if self.keys == BATCH_KEYS_MAX || (self.keys > 0 && self.bytes + bytes > BATCH_BYTES_MAX) {
            self.flush()?;
        }
        self.keys += 1;
        self.bytes += bytes;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        (self.keys, self.bytes) = (0, 0);
        let batch = std::mem::take(&mut self.batch);
        guarded("write", || self.tree.db.get().apply_batch(batch))
    }
}

/// Makes one call to sled.
fn guarded<T>(operation: &'static str, call: impl FnOnce() -> sled::Result<T>) -> Result<T, Error> {
    // After a panic the caller drops the database, so a torn invariant inside it is not looked at again.
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|source| Error::Sled { operation, source }),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            Err(Error::Panicked { operation, message: text.unwrap_or("without a message").to_owned() })
        }
    }
}

fn open(path: &Path) -> Result<Db, Error> {
    // No flusher thread: only `sync` decides what is durable, and when.
    let config = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(None);
    let mut attempt = 0;
    loop {
        match guarded("open", || config.open()) {
            Err(Error::Sled { source: sled::Error::Io(error), .. })
                if error.to_string().contains("could not acquire lock") =>
            {
                attempt += 1;
                if attempt == REOPEN_ATTEMPTS {
                    return Err(Error::Locked { path: path.to_path_buf() });
                }
                thread::sleep(REOPEN_PAUSE);
            }
            result => break Ok(Db(Some(result?))),
        }
    }
}

fn check_existing(path: &Path) -> Result<(), Error> {
    let there = ["conf", LOG].iter().all(|name| path.join(name).is_file());
    if there { Ok(()) } else { Err(Error::Current) }
}

fn list(path: &Path) -> Result<Vec<fs::DirEntry>, Error> {
    fs::read_dir(path).and_then(Iterator::collect).map_err(Error::io("list", path))
}

fn sync_file(path: &Path) -> Result<(), Error> {
    match File::open(path).and_then(|file| file.sync_all()) {
        // sled removes snapshots and blobs when it pleases.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(Error::io("fsync", path)),
    }
}
