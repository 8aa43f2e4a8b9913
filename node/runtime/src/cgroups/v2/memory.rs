//! `memory`: the limit, no swap, use, and OOM kills.

use crate::cgroups::control::ControlDir;
use crate::container::spec::CgroupSpec;
use crate::container::state::Unenforced;
use crate::error::Error;

pub(in crate::cgroups) fn apply(
    dir: &ControlDir,
    spec: &CgroupSpec,
    unenforced: &mut Vec<Unenforced>,
) -> Result<(), Error> {
    let Some(limit) = spec.memory_limit else { return Ok(()) };
    dir.limit("memory.limit", "memory.max", &limit.to_string(), unenforced)?;
    if dir.has("memory.swap.max") {
        dir.write("memory.swap.max", "0")?;
    }
    Ok(())
}

pub(in crate::cgroups) fn usage_bytes(dir: &ControlDir) -> Option<u64> {
    dir.number("memory.current")
}

pub(in crate::cgroups) fn inactive_file_bytes(dir: &ControlDir) -> Option<u64> {
    dir.keyed("memory.stat", "inactive_file")
}

pub(in crate::cgroups) fn oom_kills(dir: &ControlDir) -> Option<u64> {
    dir.keyed("memory.events", "oom_kill")
}
