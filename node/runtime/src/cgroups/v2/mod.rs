//! cgroups version 2: one hierarchy; a controller acts on a group when its parent has switched it on.
//! A file here per controller family.

pub(super) mod cpu;
pub(super) mod memory;
pub(super) mod pids;

use super::control::ControlDir;
use crate::error::Error;

/// Switches controllers on for the children of a group, one by one: a kernel refuses all of a list for
/// the sake of one.
pub(super) fn delegate(dir: &ControlDir, controllers: &[String]) -> Result<(), Error> {
    let on = dir.read("cgroup.subtree_control")?;
    for controller in controllers {
        if !on.split_ascii_whitespace().any(|found| found == controller) {
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
