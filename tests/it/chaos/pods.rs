//! Experiments with whole clusters: pods, and what keeps pods, while machines die. Rows: KIA-ARCH-013, 025, WS-ORC-10.

use super::{experiment, report};
use crate::cluster;

/// Runs it, and returns what it printed.
#[track_caller]
fn holds(yaml: &str) -> String {
    let _turn = cluster::turn();
    let directory = tempfile::tempdir().unwrap();
    let ended = experiment(directory.path(), yaml, &[]);
    assert_eq!(ended.code, Some(0), "{}\n{}", ended.stdout, ended.stderr);
    let report = std::fs::read_to_string(report(directory.path()).join("report.html")).unwrap();
    assert!(report.contains("one-instance"), "the report tells of identities");
    let mut left = std::fs::read_dir(directory.path()).unwrap().flatten();
    assert!(left.all(|entry| !entry.file_name().to_string_lossy().starts_with("barque-chaos-")));
    ended.stdout
}

#[test]
fn a_nodes_death_and_a_masters_leave_one_of_each_pod() {
    if cluster::skipped("a_nodes_death_and_a_masters_leave_one_of_each_pod") {
        return;
    }
    let said = holds(
        "
name: node-death
cluster: {members: 3, nodes: 2}
workloads:
  - {kind: deployment, clients: 1, rate: 0.5}
  - {kind: stateful-set, clients: 1, rate: 0.5}
  - {kind: pods, clients: 1, rate: 2}
  - {kind: job, clients: 1, rate: 3}
faults:
  - {at: 2s, fault: power-off, of: node, for: 5s}
  - {at: 4s, fault: kill, of: leader, for: 1s}
duration: 9s
",
    );
    for property in [
        "deployment: never-too-many",
        "stateful-set: one-instance",
        "pods: settles",
        "job: settles",
        "kill ×1",
    ] {
        assert!(said.contains(property), "{property}: {said}");
    }
}

#[test]
fn agents_that_die_lose_no_pod_and_keep_none() {
    if cluster::skipped("agents_that_die_lose_no_pod_and_keep_none") {
        return;
    }
    holds(
        "
name: agents-die
cluster: {members: 1, nodes: 2}
workloads:
  - {kind: pods, clients: 2, rate: 3}
  - {kind: stateful-set, clients: 1, rate: 1}
faults:
  - {at: 1s, fault: kill, of: nodes, for: 300ms}
  - {at: 3s, fault: isolate, of: node, for: 1s}
  - {at: 5s, fault: drain, of: node-1, for: 1s}
duration: 7s
",
    );
}
