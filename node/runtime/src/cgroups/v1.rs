//! Version 1: a hierarchy per controller (or a few). What a group needs before processes enter it, how it is held
//! still, and what it has used.

use std::path::Path;

use super::control::ControlDir;
use super::detect::V1Mount;
use crate::error::Error;

/// Makes a new group of a hierarchy able to take processes.
pub(super) fn prepare(mount: &V1Mount, dir: &ControlDir) -> Result<(), Error> {
    // Older kernels do not count what children use unless told.
    if mount.has("memory") && dir.number("memory.use_hierarchy") == Some(0) {
        dir.write("memory.use_hierarchy", "1")?;
    }
    if mount.has("cpuset") {
        // A new group has no processors and no memory: nothing can enter it before it has its parent's.
        let parent = ControlDir::new(dir.path.parent().unwrap_or(Path::new("/")).to_owned());
        for file in ["cpuset.cpus", "cpuset.mems"] {
            dir.write(file, parent.read(file)?.trim())?;
        }
    }
    Ok(())
}

/// Holds a group still while it is being killed, so that it cannot fork away. Freezing takes effect soon, not at
/// once; killing works on what is not frozen yet as well, so failures matter little and are not reported.
pub(super) fn set_frozen(dir: &ControlDir, frozen: bool) {
    let state = if frozen { "FROZEN" } else { "THAWED" };
    let _ = dir.write("freezer.state", state);
}

/// CPU time used in nanoseconds (of the `cpuacct` hierarchy).
pub(super) fn cpu_usage_ns(dir: &ControlDir) -> Option<u64> {
    dir.number("cpuacct.usage")
}

/// Memory in use (of the `memory` hierarchy).
pub(super) fn memory_usage_bytes(dir: &ControlDir) -> Option<u64> {
    dir.number("memory.usage_in_bytes")
}

/// File pages that were not used lately.
pub(super) fn inactive_file_bytes(dir: &ControlDir) -> Option<u64> {
    dir.keyed("memory.stat", "total_inactive_file")
}

/// Processes killed for want of memory.
pub(super) fn oom_kills(dir: &ControlDir) -> Option<u64> {
    dir.keyed("memory.oom_control", "oom_kill")
}
