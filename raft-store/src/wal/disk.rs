//! The few file operations the log needs, behind a trait, so that tests can put a disk underneath that loses
//! power. Generic, not `dyn`: the production path compiles to plain calls.
//!
//! All names are file names inside the log's one directory. Durability is explicit: file content is durable after
//! [`DiskFile::sync_data`], creation, renaming and removal after [`Disk::sync_dir`].

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::Error;

const LOCK_NAME: &str = "LOCK";

/// A directory on a disk.
pub(super) trait Disk: Clone + Send + 'static {
    /// An open file in it.
    type File: DiskFile;

    fn dir(&self) -> &Path;
    fn list(&self) -> io::Result<Vec<String>>;
    /// Creates a file that must not exist yet.
    fn create(&self, name: &str) -> io::Result<Self::File>;
    fn open(&self, name: &str) -> io::Result<Self::File>;
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    fn remove(&self, name: &str) -> io::Result<()>;
    fn sync_dir(&self) -> io::Result<()>;
}

/// An open file.
pub(super) trait DiskFile: Send + 'static {
    fn bytes(&self) -> io::Result<u64>;
    /// Fills `buffer` from `offset` on; fewer bytes only at the end of the file.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
    /// Writes all of `data`.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    fn sync_data(&self) -> io::Result<()>;
}

/// The real thing. Holds the lock on the directory until the last clone is dropped.
#[derive(Clone)]
pub(super) struct OsDisk {
    dir: PathBuf,
    _lock: Arc<File>,
}

impl OsDisk {
    /// Makes the directory if needed and locks it against other processes.
    pub(super) fn open(dir: &Path) -> Result<Self, Error> {
        crate::directories::make(dir).map_err(|e| Error::io("create the directory", dir, e))?;
        let path = dir.join(LOCK_NAME);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|e| Error::io("open the lock file", &path, e))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { dir: dir.to_owned(), _lock: Arc::new(lock) }),
            Err(TryLockError::WouldBlock) => Err(Error::Locked { dir: dir.to_owned() }),
            Err(TryLockError::Error(e)) => Err(Error::io("lock", &path, e)),
        }
    }
}

impl Disk for OsDisk {
    type File = File;

    fn dir(&self) -> &Path {
        &self.dir
    }

    fn list(&self) -> io::Result<Vec<String>> {
        // Names that are not UTF-8 are not ours.
        fs::read_dir(&self.dir)?
            .map(|entry| entry.map(|e| e.file_name().into_string().ok()))
            .filter_map(Result::transpose)
            .collect()
    }

    fn create(&self, name: &str) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).create_new(true).open(self.dir.join(name))
    }

    fn open(&self, name: &str) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).open(self.dir.join(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.dir.join(from), self.dir.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.dir.join(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }
}

impl DiskFile for File {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match FileExt::read_at(self, &mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(filled)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_all_at(data, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        File::sync_data(self)
    }
}
