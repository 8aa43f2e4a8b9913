//! The checkpoint's directory: who holds it, which generation of files is in charge.
//!
//! `CURRENT` is replaced by rename, so at any moment one complete generation is in charge. Everything else
//! in the directory is rubbish of a crash and is swept.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::statvfs::statvfs;

use super::Error;

/// A store that has just ended may still be at its last write.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(2);
const LOCK_PAUSE: Duration = Duration::from_millis(10);

const LOCK: &str = "LOCK";
const CURRENT: &str = "CURRENT";
const CURRENT_NEW: &str = "CURRENT.new";
const DISCARDED: &str = "discarded";
const GENERATION_PREFIX: &str = "gen-";

/// See the module's head.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    /// Held for as long as this lives.
    _lock: File,
}

impl Directory {
    /// Takes the directory, creating it if need be.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        crate::directories::make(path).map_err(Error::io("create", path))?;
        let lock_path = path.join(LOCK);
        let lock = File::create(&lock_path).map_err(Error::io("create", &lock_path))?;
        let began = Instant::now();
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(Self { path: path.to_path_buf(), _lock: lock }),
                Err(TryLockError::WouldBlock) if began.elapsed() < LOCK_WAIT_MAX => {
                    thread::sleep(LOCK_PAUSE);
                }
                Err(TryLockError::WouldBlock) => return Err(Error::Locked { path: path.to_path_buf() }),
                Err(TryLockError::Error(source)) => return Err(Error::io("lock", &lock_path)(source)),
            }
        }
    }

    /// Refuses to begin with what the disk may have no room for: sled does not come back from a full disk, its next
    /// call never returns.
    pub(super) fn check_room(&self, needed_bytes: u64) -> Result<(), Error> {
        let disk = statvfs(&self.path)
            .map_err(|error| Error::io("look at the disk of", &self.path)(error.into()))?;
        let free_bytes = disk.blocks_available().saturating_mul(disk.fragment_size());
        if free_bytes >= needed_bytes {
            return Ok(());
        }
        Err(Error::NoRoom { path: self.path.clone(), needed_bytes, free_bytes })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The directory of the generation in charge, if there ever was one.
    pub(super) fn current(&self) -> Result<Option<PathBuf>, Error> {
        let path = self.path.join(CURRENT);
        let name = match fs::read(&path) {
            Ok(name) => name,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("read", &path)(error)),
        };
        let name = std::str::from_utf8(&name).ok().and_then(|name| name.strip_suffix('\n'));
        let name = name.filter(|name| generation_number(name).is_some()).ok_or(Error::Current)?;
        let generation = self.path.join(name);
        if generation.is_dir() { Ok(Some(generation)) } else { Err(Error::Current) }
    }

    /// Makes a directory for a new generation's files.
    pub(super) fn next_generation(&self) -> Result<PathBuf, Error> {
        let newest = self.generations()?.iter().map(|(number, _)| *number).max().unwrap_or(0);
        let path = self.path.join(format!("{GENERATION_PREFIX}{}", newest + 1));
        fs::create_dir(&path).map_err(Error::io("create", &path))?;
        Ok(path)
    }

    /// Puts a generation, whose files are durable, in charge.
    pub(super) fn put_in_charge(&self, generation: &Path) -> Result<(), Error> {
        // Its name must be durable before it is pointed at.
        sync_directory(&self.path)?;
        let name = generation.file_name().unwrap_or_default().to_string_lossy();
        let (new, current) = (self.path.join(CURRENT_NEW), self.path.join(CURRENT));
        let write = || {
            let mut file = File::create(&new)?;
            file.write_all(format!("{name}\n").as_bytes())?;
            file.sync_all()
        };
        write().map_err(Error::io("write", &new))?;
        fs::rename(&new, &current).map_err(Error::io("replace", &current))?;
        sync_directory(&self.path)
    }

    /// Removes every generation but the one in charge.
    pub(super) fn sweep(&self) -> Result<(), Error> {
        let current = self.current()?;
        for (_, path) in self.generations()? {
            if Some(&path) != current.as_ref() {
                fs::remove_dir_all(&path).map_err(Error::io("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Moves the newest generation to `discarded`, in place of what was there; leaves no other, and none in
    /// charge.
    pub(super) fn set_aside(&self) -> Result<(), Error> {
        let (current, discarded) = (self.path.join(CURRENT), self.path.join(DISCARDED));
        unless_missing(fs::remove_file(&current)).map_err(Error::io("remove", &current))?;
        unless_missing(fs::remove_dir_all(&discarded)).map_err(Error::io("remove", &discarded))?;
        if let Some((_, newest)) = self.generations()?.into_iter().max() {
            fs::rename(&newest, &discarded).map_err(Error::io("move aside", &newest))?;
        }
        self.sweep()?;
        sync_directory(&self.path)
    }

    fn generations(&self) -> Result<Vec<(u64, PathBuf)>, Error> {
        let mut generations = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(Error::io("list", &self.path))? {
            let entry = entry.map_err(Error::io("list", &self.path))?;
            if let Some(number) = entry.file_name().to_str().and_then(generation_number) {
                generations.push((number, entry.path()));
            }
        }
        Ok(generations)
    }
}

fn unless_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn generation_number(name: &str) -> Option<u64> {
    name.strip_prefix(GENERATION_PREFIX)?.parse().ok()
}

/// Makes the names in a directory durable.
pub(super) fn sync_directory(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(Error::io("fsync", path))
}
