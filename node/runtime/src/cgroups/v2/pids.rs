//! `pids`: how many processes and threads.

use crate::cgroups::control::ControlDir;
use crate::container::spec::CgroupSpec;
use crate::container::state::Unenforced;
use crate::error::Error;

pub(in crate::cgroups) fn apply(
    dir: &ControlDir,
    spec: &CgroupSpec,
    unenforced: &mut Vec<Unenforced>,
) -> Result<(), Error> {
    match spec.pids_limit {
        Some(limit) => dir.limit("pids.limit", "pids.max", &limit.to_string(), unenforced),
        None => Ok(()),
    }
}

pub(in crate::cgroups) fn current(dir: &ControlDir) -> Option<u64> {
    dir.number("pids.current")
}
