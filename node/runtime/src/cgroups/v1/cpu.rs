//! `cpu` and `cpuacct`: shares, quota, time used.

use crate::cgroups::CPU_PERIOD_US_DEFAULT;
use crate::cgroups::control::ControlDir;
use crate::container::spec::CgroupSpec;
use crate::container::state::Unenforced;
use crate::error::Error;

pub(in crate::cgroups) fn apply(
    dir: &ControlDir,
    spec: &CgroupSpec,
    unenforced: &mut Vec<Unenforced>,
) -> Result<(), Error> {
    if let Some(shares) = spec.cpu_shares {
        dir.limit("cpu.shares", "cpu.shares", &shares.to_string(), unenforced)?;
    }
    if let Some(quota) = spec.cpu_quota_us {
        let period = spec.cpu_period_us.unwrap_or(CPU_PERIOD_US_DEFAULT);
        dir.limit("cpu.quota", "cpu.cfs_period_us", &period.to_string(), unenforced)?;
        dir.limit("cpu.quota", "cpu.cfs_quota_us", &quota.to_string(), unenforced)?;
    }
    Ok(())
}

/// CPU time used in nanoseconds (of the `cpuacct` hierarchy).
pub(in crate::cgroups) fn usage_ns(dir: &ControlDir) -> Option<u64> {
    dir.number("cpuacct.usage")
}
