//! What the configuration says where its file says nothing.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

pub(super) fn data_dir() -> PathBuf {
    "/var/lib/barque/node".into()
}

pub(super) fn run_dir() -> PathBuf {
    "/run/barque/node".into()
}

pub(super) fn cgroup_root() -> String {
    "/barque".into()
}

pub(super) fn cluster_name() -> String {
    "barque".into()
}

pub(super) fn bridge_name() -> String {
    "cbr0".into()
}

pub(super) fn heartbeat_interval() -> Duration {
    Duration::from_millis(500)
}

pub(super) fn ingress_http_port() -> u16 {
    80
}

pub(super) fn ingress_https_port() -> u16 {
    443
}

pub(super) fn metrics_interval() -> Duration {
    Duration::from_secs(15)
}

pub(super) fn fail_swap_on() -> bool {
    true
}

pub(super) fn seccomp_default() -> bool {
    true
}

pub(super) fn seccomp_dir() -> PathBuf {
    "/var/lib/barque/seccomp".into()
}

pub(super) fn eviction_hard() -> BTreeMap<String, String> {
    let defaults = [
        ("memory.available", "100Mi"),
        ("nodefs.available", "10%"),
        ("nodefs.inodesFree", "5%"),
        ("imagefs.available", "15%"),
        ("imagefs.inodesFree", "5%"),
    ];
    defaults.map(|(signal, least)| (signal.to_owned(), least.to_owned())).into()
}

pub(super) fn node_status_update_frequency() -> Duration {
    Duration::from_secs(10)
}

pub(super) fn node_status_report_frequency() -> Duration {
    Duration::from_secs(300)
}

pub(super) fn eviction_pressure_transition_period() -> Duration {
    Duration::from_secs(300)
}

pub(super) fn eviction_monitoring_interval() -> Duration {
    Duration::from_secs(10)
}

pub(super) fn file_check_frequency() -> Duration {
    Duration::from_secs(20)
}

pub(super) fn max_pods() -> u32 {
    110
}

pub(super) fn cluster_domain() -> String {
    "cluster.local".into()
}
