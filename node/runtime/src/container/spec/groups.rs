//! A control group and its limits, in units that fit both versions.

use std::collections::BTreeMap;
use std::path::{Component, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// A cgroup and its limits. What a host cannot enforce is reported, not ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupSpec {
    /// Relative to the runtime's cgroup root, for example `pod-<uid>/<container>`.
    pub path: PathBuf,
    /// Relative weight of CPU time, 2 to 262144 (v1's scale; converted for v2).
    pub cpu_shares: Option<u64>,
    /// CPU time in microseconds per period.
    pub cpu_quota_us: Option<u64>,
    /// Length of the period in microseconds; `None`: 100000.
    pub cpu_period_us: Option<u64>,
    /// The processors to run on, as a list: `0-2,5`.
    pub cpuset_cpus: Option<String>,
    /// The memory nodes to allocate from, likewise.
    pub cpuset_mems: Option<String>,
    /// Memory in bytes.
    pub memory_limit: Option<u64>,
    /// Swap in bytes beside the memory limit; `None`: no swap.
    pub swap_limit: Option<u64>,
    /// Memory in bytes that is taken away last when the host runs short.
    pub memory_reservation: Option<u64>,
    /// How readily memory is swapped out, 0 to 100. Version 1 only.
    pub memory_swappiness: Option<u64>,
    /// Huge pages in bytes by page size: `2MB`, `1GB`.
    pub hugepage_limits: BTreeMap<String, u64>,
    /// Rates of disks.
    pub io_limits: Vec<IoLimit>,
    /// Number of processes and threads.
    pub pids_limit: Option<u64>,
}

/// The rates at which a block device may be used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoLimit {
    /// The device's number.
    pub major: u64,
    /// Its second half.
    pub minor: u64,
    /// Bytes read.
    pub read_bytes_per_second: Option<u64>,
    /// Bytes written.
    pub write_bytes_per_second: Option<u64>,
    /// Read operations.
    pub reads_per_second: Option<u64>,
    /// Write operations.
    pub writes_per_second: Option<u64>,
}

impl CgroupSpec {
    pub(crate) fn check(&self) -> Result<(), Error> {
        let plain = self.path.components().all(|part| matches!(part, Component::Normal(_)));
        if !plain || self.path.as_os_str().is_empty() {
            return Err(Error::invalid(
                "cgroup.path",
                format!("{:?} is not a relative path of plain names", self.path),
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup_paths_stay_below_the_root() {
        let with = |path: &str| CgroupSpec { path: path.into(), ..CgroupSpec::default() }.check();
        assert!(with("pod/a").is_ok());
        for path in ["", "/abs", "../up", "a/../../b", "."] {
            assert!(with(path).is_err(), "{path}");
        }
    }
}
