//! Locks between commands: one for what all containers share (names, addresses, ports), one for each container.
//!
//! Order: a container's lock before the common one. Both go with the process that has them.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::EngineError;

/// Held until it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _file: Flock<File>,
}

/// Takes the lock of a file, which is made if needed.
pub(super) fn take(path: &Path) -> Result<Lock, EngineError> {
    let file = open(path).map_err(EngineError::io("open", path))?;
    let locked = Flock::lock(file, FlockArg::LockExclusive);
    locked.map(|file| Lock { _file: file }).map_err(|(_, errno)| EngineError::io("lock", path)(errno.into()))
}

/// Takes the lock of a directory's file, waiting for whoever has it. `None`: the directory is gone.
pub(super) fn take_existing(path: &Path) -> Result<Option<Lock>, EngineError> {
    take_at(path, FlockArg::LockExclusive)
}

/// The same without waiting. `None` also when somebody has it.
pub(super) fn try_existing(path: &Path) -> Result<Option<Lock>, EngineError> {
    take_at(path, FlockArg::LockExclusiveNonblock)
}

fn take_at(path: &Path, how: FlockArg) -> Result<Option<Lock>, EngineError> {
    let file = match open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(EngineError::io("open", path))?,
    };
    match Flock::lock(file, how) {
        // Removed while it was awaited: nobody else will ever ask for this one.
        Ok(lock) if !is_at(&lock, path) => Ok(None),
        Ok(lock) => Ok(Some(Lock { _file: lock })),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(EngineError::io("lock", path)(errno.into())),
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).open(path)
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(held), Ok(found)) => (held.dev(), held.ino()) == (found.dev(), found.ino()),
        _ => false,
    }
}
