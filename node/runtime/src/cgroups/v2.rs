//! Version 2: one hierarchy; a controller acts on a group when its parent has switched it on.

use super::control::ControlDir;
use crate::error::Error;

/// Switches controllers on for the children of a group, one by one: a kernel refuses all of a list for
/// the sake of one.
pub(super) fn delegate(dir: &ControlDir, controllers: &[&str]) -> Result<(), Error> {
    let on = dir.read("cgroup.subtree_control")?;
    for controller in controllers {
        if !on.split_ascii_whitespace().any(|found| found == *controller) {
            dir.write("cgroup.subtree_control", &format!("+{controller}"))?;
        }
    }
    Ok(())
}

/// The controllers that act on a group.
pub(super) fn controllers(dir: &ControlDir) -> String {
    dir.read("cgroup.controllers").unwrap_or_default()
}

/// Kills all of a group at once; `false` where the kernel cannot (before 5.14).
pub(super) fn kill(dir: &ControlDir) -> bool {
    dir.write("cgroup.kill", "1").is_ok()
}

/// CPU time used in nanoseconds.
pub(super) fn cpu_usage_ns(dir: &ControlDir) -> Option<u64> {
    dir.keyed("cpu.stat", "usage_usec").map(|micros| micros * 1000)
}

/// Memory in use.
pub(super) fn memory_usage_bytes(dir: &ControlDir) -> Option<u64> {
    dir.number("memory.current")
}

/// File pages that were not used lately.
pub(super) fn inactive_file_bytes(dir: &ControlDir) -> Option<u64> {
    dir.keyed("memory.stat", "inactive_file")
}

/// Processes killed for want of memory.
pub(super) fn oom_kills(dir: &ControlDir) -> Option<u64> {
    dir.keyed("memory.events", "oom_kill")
}
