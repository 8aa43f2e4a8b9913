//! `/dev` of a container: six devices that are safe for everybody, and links. A privileged container gets
//! all of the host's.
//!
//! The devices are bound from the host onto a `/dev` on which nodes do not work, and the root and the
//! volumes are mounted so as well: a node that a container makes, or finds in its image, opens nothing.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::stat::{Mode, mknodat};
use nix::unistd::{UnlinkatFlags, symlinkat, unlinkat};

use super::mounts::bind_onto;
use super::resolve::Root;
use crate::process::failure::Failure;
use crate::syscall::device_of;

/// Devices of every container.
const DEVICES: [&str; 6] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"];
/// Links of every container: where, to what.
const LINKS: [(&str, &str); 6] = [
    ("ptmx", "pts/ptmx"),
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
];
/// What of the host's `/dev` a privileged container has of its own.
const OWN: [&str; 6] = ["pts", "shm", "mqueue", "fd", "ptmx", "console"];
/// Device directories are shallow.
const DEPTH_MAX: u32 = 4;

/// Fills `/dev`, which is mounted already.
pub(crate) fn make(root: &Root, privileged: bool) -> Result<(), Failure> {
    if privileged {
        mirror(root, Path::new("/dev"), DEPTH_MAX)?;
    } else {
        for device in DEVICES {
            let target = root
                .make_file(Path::new(device))
                .map_err(|error| Failure::io("make device", device, error))?;
            bind_onto(Path::new(device), &target)?;
        }
    }
    let dev = root.find(Path::new("/dev")).map_err(|error| Failure::io("find", "/dev", error))?;
    for (name, to) in LINKS {
        match symlinkat(to, &dev, name) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(Failure::io("make link", Path::new("/dev").join(name), error)),
        }
    }
    Ok(())
}

/// Makes the nodes of a host directory anew inside the root.
fn mirror(root: &Root, dir: &Path, depth: u32) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::io("list devices in", dir, error);
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        // Devices come and go while they are listed.
        let Ok(found) = entry.metadata() else { continue };
        let own = OWN.iter().any(|name| path == Path::new("/dev").join(name));
        if own || found.file_type().is_symlink() {
            continue;
        }
        if found.is_dir() && depth > 0 {
            mirror(root, &path, depth - 1)?;
        } else if found.file_type().is_char_device() || found.file_type().is_block_device() {
            make_node(root, &path, &found)?;
        }
    }
    Ok(())
}

fn make_node(root: &Root, path: &Path, found: &fs::Metadata) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::io("make device", path, error);
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let Some((kind, major, minor)) = device_of(found.mode(), found.rdev()) else { return Ok(()) };
    let parent = root.make_dir(parent).map_err(failed)?;
    let mode = Mode::from_bits_truncate(found.mode() & 0o7777);
    let device = nix::sys::stat::makedev(major, minor);
    match unlinkat(&parent, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(error) => return Err(failed(error.into())),
    }
    mknodat(&parent, name, kind, mode, device).map_err(|error| failed(error.into()))
}
