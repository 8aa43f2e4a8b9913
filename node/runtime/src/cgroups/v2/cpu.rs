//! `cpu`: weight, bandwidth, time used.

use crate::cgroups::CPU_PERIOD_US_DEFAULT;
use crate::cgroups::control::ControlDir;
use crate::container::spec::CgroupSpec;
use crate::container::state::Unenforced;
use crate::error::Error;

const SHARES_MIN: u64 = 2;
const SHARES_MAX: u64 = 262_144;

pub(in crate::cgroups) fn apply(
    dir: &ControlDir,
    spec: &CgroupSpec,
    unenforced: &mut Vec<Unenforced>,
) -> Result<(), Error> {
    if let Some(shares) = spec.cpu_shares {
        dir.limit("cpu.shares", "cpu.weight", &weight(shares).to_string(), unenforced)?;
    }
    if let Some(quota) = spec.cpu_quota_us {
        let period = spec.cpu_period_us.unwrap_or(CPU_PERIOD_US_DEFAULT);
        dir.limit("cpu.quota", "cpu.max", &format!("{quota} {period}"), unenforced)?;
    }
    Ok(())
}

/// Shares (2 to 262144) as a weight (1 to 10000), by the formula of Kubernetes.
fn weight(shares: u64) -> u64 {
    let shares = shares.clamp(SHARES_MIN, SHARES_MAX);
    1 + ((shares - SHARES_MIN) * 9999) / (SHARES_MAX - SHARES_MIN)
}

pub(in crate::cgroups) fn usage_ns(dir: &ControlDir) -> Option<u64> {
    dir.keyed("cpu.stat", "usage_usec").map(|micros| micros * 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_those_of_kubernetes() {
        assert_eq!(weight(0), 1);
        assert_eq!(weight(2), 1);
        assert_eq!(weight(1024), 39);
        assert_eq!(weight(262_144), 10_000);
        assert_eq!(weight(u64::MAX), 10_000);
    }
}
