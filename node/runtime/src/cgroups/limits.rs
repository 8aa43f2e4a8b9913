//! What a specification asks of its group, as control files of either version. The one place that knows names and
//! units of limits (`Documentation/admin-guide/cgroup-v1`, `cgroup-v2.rst` of the kernel).

use super::CPU_PERIOD_US_DEFAULT;
use crate::container::spec::{CgroupSpec, IoLimit};

const SHARES_MIN: u64 = 2;
const SHARES_MAX: u64 = 262_144;

/// A control file and what is written to it.
pub(super) type Write = (String, String);

/// One limit.
#[derive(Debug)]
pub(super) struct Limit {
    /// As it is reported where it cannot be enforced.
    pub(super) name: &'static str,
    /// The controller of version 1 that enforces it, and that of version 2.
    pub(super) controllers: [&'static str; 2],
    /// The files of both, in the order of their writing; none where that version has no such limit.
    pub(super) files: [Vec<Write>; 2],
}

/// The limits that a specification asks for.
pub(super) fn limits(spec: &CgroupSpec) -> Vec<Limit> {
    let mut limits = Vec::new();
    let mut add = |name, controllers, v1: Vec<Write>, v2: Vec<Write>| {
        limits.push(Limit { name, controllers, files: [v1, v2] });
    };
    let file = |name: &str, value: &dyn ToString| vec![(name.to_owned(), value.to_string())];
    if let Some(shares) = spec.cpu_shares {
        add("cpu.shares", ["cpu"; 2], file("cpu.shares", &shares), file("cpu.weight", &weight(shares)));
    }
    if let Some(quota) = spec.cpu_quota_us {
        let period = spec.cpu_period_us.unwrap_or(CPU_PERIOD_US_DEFAULT);
        let mut v1 = file("cpu.cfs_period_us", &period);
        v1.extend(file("cpu.cfs_quota_us", &quota));
        add("cpu.quota", ["cpu"; 2], v1, file("cpu.max", &format!("{quota} {period}")));
    }
    for (name, asked) in [("cpuset.cpus", &spec.cpuset_cpus), ("cpuset.mems", &spec.cpuset_mems)] {
        if let Some(list) = asked {
            add(name, ["cpuset"; 2], file(name, list), file(name, list));
        }
    }
    if let Some(limit) = spec.memory_limit {
        add("memory.limit", ["memory"; 2], file("memory.limit_in_bytes", &limit), file("memory.max", &limit));
        // Version 1 counts memory and swap together, version 2 swap alone.
        let swap = spec.swap_limit.unwrap_or(0);
        let both = limit.saturating_add(swap);
        let (v1, v2) = (file("memory.memsw.limit_in_bytes", &both), file("memory.swap.max", &swap));
        add("memory.swap", ["memory"; 2], v1, v2);
    }
    if let Some(bytes) = spec.memory_reservation {
        let (v1, v2) = (file("memory.soft_limit_in_bytes", &bytes), file("memory.low", &bytes));
        add("memory.reservation", ["memory"; 2], v1, v2);
    }
    if let Some(swappiness) = spec.memory_swappiness {
        add("memory.swappiness", ["memory"; 2], file("memory.swappiness", &swappiness), Vec::new());
    }
    if let Some(limit) = spec.pids_limit {
        add("pids.limit", ["pids"; 2], file("pids.max", &limit), file("pids.max", &limit));
    }
    for (size, bytes) in &spec.hugepage_limits {
        let v1 = file(&format!("hugetlb.{size}.limit_in_bytes"), bytes);
        add("hugetlb.limit", ["hugetlb"; 2], v1, file(&format!("hugetlb.{size}.max"), bytes));
    }
    for limit in &spec.io_limits {
        let [v1, v2] = io(limit);
        add("io.limit", ["blkio", "io"], v1, v2);
    }
    limits
}

/// Shares (2 to 262144) as a weight (1 to 10000), by the formula of Kubernetes.
fn weight(shares: u64) -> u64 {
    let shares = shares.clamp(SHARES_MIN, SHARES_MAX);
    1 + ((shares - SHARES_MIN) * 9999) / (SHARES_MAX - SHARES_MIN)
}

fn io(limit: &IoLimit) -> [Vec<Write>; 2] {
    let device = format!("{}:{}", limit.major, limit.minor);
    let rates = [
        ("read_bps", "rbps", limit.read_bytes_per_second),
        ("write_bps", "wbps", limit.write_bytes_per_second),
        ("read_iops", "riops", limit.reads_per_second),
        ("write_iops", "wiops", limit.writes_per_second),
    ];
    let asked = || rates.iter().filter_map(|(v1, v2, rate)| rate.map(|rate| (v1, v2, rate)));
    let v1 =
        asked().map(|(name, _, rate)| (format!("blkio.throttle.{name}_device"), format!("{device} {rate}")));
    let v2: String = asked().map(|(_, name, rate)| format!(" {name}={rate}")).collect();
    [v1.collect(), vec![("io.max".to_owned(), format!("{device}{v2}"))]]
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

    #[test]
    fn devices_are_limited_in_the_terms_of_either_version() {
        let limit = IoLimit {
            major: 8,
            minor: 16,
            read_bytes_per_second: Some(1 << 20),
            writes_per_second: Some(100),
            ..IoLimit::default()
        };
        let [v1, v2] = io(&limit);
        let own = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(v1[0], own("blkio.throttle.read_bps_device", "8:16 1048576"));
        assert_eq!(v1[1], own("blkio.throttle.write_iops_device", "8:16 100"));
        assert_eq!(v2, [own("io.max", "8:16 rbps=1048576 wiops=100")]);
    }
}
