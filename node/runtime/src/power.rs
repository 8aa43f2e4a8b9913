//! Cutting a file system's power, for fault experiments.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;

/// "Do not write the journal back": everything that was not synced is lost (`EXT4_GOING_FLAGS_NOLOGFLUSH`,
/// the value that XFS uses too).
const NO_LOG_FLUSH: u32 = 2;

/// Shuts down the ext4 or XFS file system mounted at `mount` without writing anything back. All use of it
/// fails from then on; the next mount finds what had been synced, as after a power cut.
///
/// # Errors
/// When `mount` cannot be opened, or its file system knows no shutdown.
pub fn cut(mount: &Path) -> io::Result<()> {
    let directory = File::open(mount)?;
    crate::syscall::shut_down_file_system(directory.as_raw_fd(), NO_LOG_FLUSH)
}
