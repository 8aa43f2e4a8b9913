//! Mistakes that the suite must notice, each within a stated number of short runs; and without a mistake it is content.
//!
//! They are compiled into the tests' own program only (`raft_store::mutants`).

use super::{experiment, lacks_disks};
use crate::cluster;

/// Runs that a mutant may survive.
const RUNS: u64 = 8;

/// Runs an experiment with a mistake until one of the properties is violated.
#[track_caller]
fn caught(mutant: &str, yaml: &str, properties: &[&str]) {
    let flag = format!("--member-flag=--test-mutant={mutant}");
    let mut said = String::new();
    for seed in 1..=RUNS {
        let directory = tempfile::tempdir().unwrap();
        let ended = experiment(directory.path(), yaml, &[&flag, "--seed", &seed.to_string()]);
        said = format!("{}\n{}", ended.stdout, ended.stderr);
        assert!(matches!(ended.code, Some(0 | 3)), "{said}");
        if ended.code == Some(3) {
            let is_one = |line: &str| properties.iter().any(|property| line.contains(property));
            let violated = said.lines().any(|line| line.contains('✘') && is_one(line));
            assert!(violated, "something else than {properties:?} was violated:\n{said}");
            println!("{mutant} was caught in run {seed}");
            return;
        }
    }
    panic!("{mutant} survived {RUNS} runs:\n{said}");
}

#[test]
fn reads_that_ask_nobody_are_caught() {
    let yaml = "
name: mutant
workloads: [{kind: register, clients: 16, rate: 40}]
faults:
  - {at: 300ms, fault: isolate, of: follower, for: 700ms}
  - {at: 1300ms, fault: isolate, of: follower, for: 700ms}
  - {at: 2300ms, fault: isolate, of: follower, for: 700ms}
duration: 3300ms
recover_within: 5s
";
    // A client of the isolated member reads only until it has written something, hence several clients and isolations.
    caught("skip-read-index", yaml, &["linearizable"]);
}

#[test]
fn an_acknowledgement_before_the_sync_is_caught() {
    if lacks_disks() {
        return;
    }
    let yaml = "
name: mutant
cluster: {disks: faulty}
workloads: [{kind: set, clients: 6, rate: 80}]
faults: [{at: 1500ms, fault: power-cut, of: all, for: 100ms}]
duration: 2s
recover_within: 8s
";
    // Members that have lost what they had agreed upon may not find together again.
    caught("acknowledge-before-fsync", yaml, &["set: set", "alive-after-healing", "converged"]);
}

#[test]
fn a_change_that_watchers_are_not_told_of_is_caught() {
    let yaml = "
name: mutant
workloads: [{kind: watch, clients: 4, rate: 40}]
duration: 3s
recover_within: 3s
";
    caught("drop-watch-event", yaml, &["watch-"]);
}

#[test]
fn a_lease_that_ends_early_is_caught() {
    let yaml = "
name: mutant
workloads: [{kind: lease, clients: 3, rate: 40}]
duration: 3s
recover_within: 3s
";
    caught("end-leases-early", yaml, &["lease-never-early"]);
}

#[test]
fn a_dead_nodes_pods_that_begin_again_too_early_are_caught() {
    if cluster::skipped("a_dead_nodes_pods_that_begin_again_too_early_are_caught") {
        return;
    }
    let yaml = "
name: mutant
cluster: {members: 1, nodes: 2}
workloads: [{kind: stateful-set, clients: 2, rate: 1}]
faults: [{at: 2s, fault: isolate, of: node, for: 6s}]
duration: 8s
converge_within: 20s
";
    let _turn = cluster::turn();
    caught("forget-dead-nodes", yaml, &["one-instance"]);
}

#[test]
fn nodes_that_are_given_more_than_they_hold_are_caught() {
    if cluster::skipped("nodes_that_are_given_more_than_they_hold_are_caught") {
        return;
    }
    // Each client has four pods of 150 millicores at a time: more than this machine has.
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    let yaml = format!(
        "
name: mutant
cluster: {{members: 1, nodes: 1}}
workloads: [{{kind: pods, clients: {}, rate: 4}}]
duration: 4s
converge_within: 5s
",
        processors * 2 + 2
    );
    let _turn = cluster::turn();
    caught("forget-requests", &yaml, &["capacity"]);
}
