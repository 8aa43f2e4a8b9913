//! Directories that are still there after the power was cut.
//!
//! Owns making a directory so that its name, and that of every directory above it, is on disk before anything
//! inside it is relied upon: what was synced in a directory whose own name is lost, is lost with it (fsync(2): the
//! entry in the directory needs an fsync of the directory). Does not care who made them: they are synced anyhow.

use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Makes the directory and those above it that are missing, and syncs all that name them.
pub(crate) fn make(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    for above in fs::canonicalize(path)?.ancestors().skip(1) {
        match File::open(above).and_then(|directory| directory.sync_all()) {
            // Somebody else's, which we cannot have changed.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => break,
            synced => synced?,
        }
    }
    Ok(())
}
