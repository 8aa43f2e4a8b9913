//! cgroups of the host at hand.

use std::fs;
use std::time::Duration;

use runtime::{CgroupSpec, ContainerState};

use crate::Test;
use crate::support::{Host, eventually};

pub(crate) const TESTS: &[Test] = &[
    ("limits::memory_is_limited_and_the_kill_is_told", memory_is_limited_and_the_kill_is_told),
    ("limits::a_killed_child_is_told_as_well", a_killed_child_is_told_as_well),
    ("limits::processes_are_limited", processes_are_limited),
    ("limits::cpu_time_is_limited_and_counted", cpu_time_is_limited_and_counted),
    (
        "limits::limits_are_in_force_before_the_first_instruction",
        limits_are_in_force_before_the_first_instruction,
    ),
    ("limits::version_2_has_them_in_its_own_files", version_2_has_them_in_its_own_files),
    ("limits::a_container_without_limits_has_none", a_container_without_limits_has_none),
    ("limits::what_cannot_be_enforced_is_reported", what_cannot_be_enforced_is_reported),
];

const MIB: u64 = 1 << 20;

/// Whether the host can enforce a limit at all; says so where it cannot.
fn can(unenforced: &[runtime::Unenforced], limit: &str) -> bool {
    let found = unenforced.iter().find(|found| found.limit == limit);
    if let Some(found) = found {
        println!("    skipped: {limit}: {}", found.reason);
    }
    found.is_none()
}

fn memory_is_limited_and_the_kill_is_told() {
    let host = Host::new();
    host.sandbox("s");
    let mut spec = host.spec("greedy", "s", &["hoard", &(256 * MIB).to_string()]);
    spec.cgroup.memory_limit = Some(32 * MIB);
    let started = host.start(&spec);
    let exit = host.runtime.wait_exit("greedy").unwrap().unwrap();
    if can(&started.unenforced, "memory.limit") {
        assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, Some(9), true));
        assert_eq!(host.output("greedy"), "hoarding\n");
    }
    let mut spec = host.spec("modest", "s", &["hoard", &(8 * MIB).to_string()]);
    spec.cgroup.memory_limit = Some(64 * MIB);
    let (exit, output) = host.run(&spec);
    assert_eq!((exit.code, exit.oom_killed), (0, false));
    assert!(output.ends_with(&format!("has {}\n", 8 * MIB)));
    host.finish();
}

fn a_killed_child_is_told_as_well() {
    let host = Host::new();
    host.sandbox("s");
    // A pod-wide limit: the container itself has none.
    host.runtime.delete_sandbox("s").unwrap();
    let mut sandbox = host.sandbox_spec("s");
    sandbox.cgroup.memory_limit = Some(32 * MIB);
    let made = host.runtime.create_sandbox(&sandbox).unwrap();
    host.start(&host.spec("c", "s", &["hoard", &(256 * MIB).to_string()]));
    let exit = host.runtime.wait_exit("c").unwrap().unwrap();
    if can(&made.unenforced, "memory.limit") {
        assert_eq!((exit.code, exit.oom_killed), (137, true));
    }
    host.finish();
}

fn processes_are_limited() {
    let host = Host::new();
    host.sandbox("s");
    let mut spec = host.spec("c", "s", &["fork", "30"]);
    spec.cgroup.pids_limit = Some(10);
    let started = host.start(&spec);
    let exit = host.runtime.wait_exit("c").unwrap().unwrap();
    assert_eq!(exit.code, 0);
    if can(&started.unenforced, "pids.limit") {
        assert!(host.output("c").contains("Resource temporarily unavailable"), "{}", host.output("c"));
    }
    host.finish();
}

fn cpu_time_is_limited_and_counted() {
    let host = Host::new();
    host.sandbox("s");
    let mut spec = host.spec("c", "s", &["spin", "100"]);
    spec.cgroup.cpu_quota_us = Some(20_000);
    spec.cgroup.cpu_shares = Some(256);
    let started = host.start(&spec);
    let exit = host.runtime.wait_exit("c").unwrap().unwrap();
    if can(&started.unenforced, "cpu.quota") {
        let nanos = exit.finished_at.unix_nanos() - started.started_at.unix_nanos();
        let took = Duration::from_nanos(nanos.try_into().unwrap());
        assert!(took > Duration::from_millis(300), "100 ms at a fifth of a CPU: {took:?}");
        let used = Duration::from_nanos(host.runtime.stats("c").unwrap().cpu_usage_ns.unwrap());
        assert!(used >= Duration::from_millis(100), "{used:?}");
    }
    host.start(&host.spec("d", "s", &["sleep"]));
    eventually("its memory and processes are counted", || {
        let stats = host.runtime.stats("d").unwrap();
        stats.pids == Some(1) && stats.memory_working_set_bytes > Some(0)
    });
    host.finish();
}

/// What a container reads of its own group, on the version of cgroups that is there.
fn own_limits(
    host: &Host,
    id: &str,
    files: &[(&str, &str)],
    change: impl Fn(&mut CgroupSpec),
) -> Vec<String> {
    let read = |(number, (controller, file)): (usize, &(&str, &str))| {
        let path = format!("/sys/fs/cgroup/{controller}/{file}");
        let mut spec = host.spec(&format!("{id}-{number}"), "s", &["cat", &path]);
        change(&mut spec.cgroup);
        host.run(&spec).1.trim().to_owned()
    };
    files.iter().enumerate().map(read).collect()
}

/// The program is what reads them.
fn limits_are_in_force_before_the_first_instruction() {
    if !fs::exists("/sys/fs/cgroup/memory").unwrap() {
        println!("    skipped: version 2 only; its terms are tested without a kernel");
        return;
    }
    let host = Host::new();
    host.sandbox("s");
    let files = [
        ("memory", "memory.limit_in_bytes"),
        ("memory", "memory.memsw.limit_in_bytes"),
        ("memory", "memory.soft_limit_in_bytes"),
        ("memory", "memory.swappiness"),
        ("cpu", "cpu.cfs_quota_us"),
        ("cpu", "cpu.cfs_period_us"),
        ("cpu", "cpu.shares"),
        ("cpuset", "cpuset.cpus"),
        ("pids", "pids.max"),
    ];
    let limits = own_limits(&host, "c", &files, |group| {
        group.memory_limit = Some(100 * MIB);
        group.memory_reservation = Some(50 * MIB);
        group.memory_swappiness = Some(10);
        group.cpu_quota_us = Some(50_000);
        group.cpu_shares = Some(512);
        group.cpuset_cpus = Some("0".to_owned());
        group.pids_limit = Some(77);
    });
    let wanted = ["104857600", "104857600", "52428800", "10", "50000", "100000", "512", "0", "77"];
    for ((wanted, found), (_, file)) in wanted.iter().zip(&limits).zip(&files) {
        assert!(found == wanted || found.starts_with("error: No such file"), "{file}: {found}");
    }
    assert_eq!(limits[0], "104857600", "no swap accounting is no reason to miss the limit itself");
    let with_swap = own_limits(&host, "w", &files[1..2], |group| {
        group.memory_limit = Some(20 * MIB);
        group.swap_limit = Some(10 * MIB);
    });
    assert!(with_swap[0] == "31457280" || with_swap[0].starts_with("error"), "{with_swap:?}");

    let mut spec = host.spec("nowhere", "s", &["exit", "0"]);
    spec.cgroup.cpuset_cpus = Some("4095".to_owned());
    let refused = host.runtime.start_container(&spec).unwrap_err().to_string();
    assert!(refused.contains("cpuset.cpus"), "{refused}");
    host.finish();
}

/// The same where version 2 has the controllers (`tests/virtual_machine.sh` makes such a host).
fn version_2_has_them_in_its_own_files() {
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    if !controllers.contains("memory") {
        println!("    skipped: version 2 has no controllers on this host");
        return;
    }
    let host = Host::new();
    host.sandbox("s");
    let read = |id: &str, file: &str, limited: bool| {
        let mut spec = host.spec(id, "s", &["cat", &format!("/sys/fs/cgroup/{file}")]);
        if limited {
            spec.cgroup.memory_limit = Some(100 * MIB);
            spec.cgroup.swap_limit = Some(0);
            spec.cgroup.cpu_quota_us = Some(50_000);
            spec.cgroup.cpuset_cpus = Some("0".to_owned());
            spec.cgroup.pids_limit = Some(20);
        }
        host.run(&spec).1.trim().to_owned()
    };
    for (number, (file, limited, free)) in [
        ("memory.max", "104857600", "max"),
        ("memory.swap.max", "0", "max"),
        ("cpu.max", "50000 100000", "max 100000"),
        ("pids.max", "20", "max"),
    ]
    .into_iter()
    .enumerate()
    {
        if !fs::exists(format!("/sys/fs/cgroup/{}", host.cgroup_root.join("pod-s").join(file).display()))
            .unwrap()
        {
            println!("    skipped: this kernel has no {file}");
            continue;
        }
        assert_eq!(read(&format!("limited{number}"), file, true), limited, "{file}");
        assert_eq!(read(&format!("free{number}"), file, false), free, "{file}");
    }
    assert_eq!(read("processor", "cpuset.cpus", true), "0");
    host.finish();
}

fn a_container_without_limits_has_none() {
    if !fs::exists("/sys/fs/cgroup/memory").unwrap() {
        println!("    skipped: version 2 only; its terms are tested without a kernel");
        return;
    }
    let host = Host::new();
    host.sandbox("s");
    let files = [("memory", "memory.limit_in_bytes"), ("cpu", "cpu.cfs_quota_us"), ("pids", "pids.max")];
    // 2^63 - 4096: the largest number of whole pages.
    let limits = own_limits(&host, "c", &files, |_| {});
    assert_eq!(limits, ["9223372036854771712", "-1", "max"]);
    host.finish();
}

fn what_cannot_be_enforced_is_reported() {
    let host = Host::new();
    host.sandbox("s");
    let mut spec = host.spec("c", "s", &["cat", "/proc/self/oom_score_adj"]);
    spec.oom_score_adj = Some(-998);
    let started = host.start(&spec);
    host.runtime.wait_exit("c").unwrap();
    let output = host.output("c");
    let reported = started.unenforced.iter().any(|found| found.limit == "oom_score_adj");
    assert_eq!(reported, output.trim() != "-998", "{:?} {output}", started.unenforced);
    let mut spec = host.spec("d", "s", &["cat", "/proc/self/oom_score_adj"]);
    spec.oom_score_adj = Some(500);
    assert_eq!(host.run(&spec).1, "500\n");
    assert!(matches!(host.state("d"), Some(ContainerState::Exited { .. })));
    let own = fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    assert_ne!(own.trim(), "500", "the runner's own is untouched");
    host.finish();
}
