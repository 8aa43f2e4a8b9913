//! Making a mounted directory the root, and letting go of the host's.

use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, pivot_root};

use crate::process::failure::Failure;

/// Makes `new_root`, a mount point, the root of the calling process's mount namespace; nothing of the
/// old one stays reachable.
pub(crate) fn enter(new_root: &Path) -> Result<(), Failure> {
    let failed = |operation| move |error| Failure::io(operation, new_root, error);
    chdir(new_root).map_err(failed("enter"))?;
    // The old root is stacked onto the same directory, so no place for it has to be found in an image
    // that may be read-only; then it is the topmost mount at ".".
    pivot_root(".", ".").map_err(failed("pivot into"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(failed("leave old root for"))?;
    chdir("/").map_err(failed("enter"))
}

/// Makes the root mount read-only; mounts below it are not affected.
pub(crate) fn make_read_only(flags: MsFlags) -> Result<(), Failure> {
    let flags = flags | MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
        .map_err(|error| Failure::io("make read-only", "/", error))
}
