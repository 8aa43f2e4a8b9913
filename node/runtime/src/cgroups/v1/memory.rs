//! `memory`: the limit (swap included, where the kernel counts it), use, and OOM kills.

use crate::cgroups::control::ControlDir;
use crate::container::spec::CgroupSpec;
use crate::container::state::Unenforced;
use crate::error::Error;

/// Makes a new group count what its children use (older kernels do not unless told).
pub(in crate::cgroups) fn prepare(dir: &ControlDir) -> Result<(), Error> {
    match dir.number("memory.use_hierarchy") {
        Some(0) => dir.write("memory.use_hierarchy", "1"),
        _ => Ok(()),
    }
}

pub(in crate::cgroups) fn apply(
    dir: &ControlDir,
    spec: &CgroupSpec,
    unenforced: &mut Vec<Unenforced>,
) -> Result<(), Error> {
    let Some(limit) = spec.memory_limit else { return Ok(()) };
    let limit = limit.to_string();
    dir.limit("memory.limit", "memory.limit_in_bytes", &limit, unenforced)?;
    // Memory and swap together: no swap beside the limit.
    if dir.has("memory.memsw.limit_in_bytes") {
        dir.write("memory.memsw.limit_in_bytes", &limit)?;
    }
    Ok(())
}

pub(in crate::cgroups) fn usage_bytes(dir: &ControlDir) -> Option<u64> {
    dir.number("memory.usage_in_bytes")
}

/// What cannot be dropped under pressure, roughly: use without inactive file pages.
pub(in crate::cgroups) fn inactive_file_bytes(dir: &ControlDir) -> Option<u64> {
    dir.keyed("memory.stat", "total_inactive_file")
}

pub(in crate::cgroups) fn oom_kills(dir: &ControlDir) -> Option<u64> {
    dir.keyed("memory.oom_control", "oom_kill")
}
