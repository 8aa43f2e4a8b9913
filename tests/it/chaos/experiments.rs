//! Each family of faults against real members, and what a run leaves for people and machines.

use super::{experiment, lacks_disks, report};
use crate::support::run;

/// Fails with all that the run said.
#[track_caller]
fn holds(yaml: &str) {
    let directory = tempfile::tempdir().unwrap();
    let ended = experiment(directory.path(), yaml, &[]);
    assert_eq!(ended.code, Some(0), "{}\n{}", ended.stdout, ended.stderr);
}

#[test]
fn dead_leaders_lose_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let yaml = "
name: dead-leaders
workloads:
  - {kind: register, clients: 4, rate: 40}
  - {kind: append, clients: 3, rate: 30}
  - {kind: set, clients: 4, rate: 30}
  - {kind: bank, clients: 3, rate: 30}
faults:
  - {at: 500ms, fault: kill, of: leader, for: 500ms}
  - {at: 3s, fault: kill-all, for: 200ms}
  - {at: 6s, fault: kill-while-booting, of: follower, for: 200ms}
duration: 8s
recover_within: 8s
";
    let ended = experiment(directory.path(), yaml, &["--seed", "5"]);
    assert_eq!(ended.code, Some(0), "{}\n{}", ended.stdout, ended.stderr);

    let report = report(directory.path());
    let html = std::fs::read_to_string(report.join("report.html")).unwrap();
    assert!(html.contains("barque chaos replay 5 "), "the command that repeats it");
    assert_eq!(html.matches("<svg").count(), 2, "latency and throughput");
    assert!(!html.contains("http://") || !html.contains("src=\"http"), "it loads nothing");
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(report.join("report.json")).unwrap()).unwrap();
    assert_eq!(json["outcome"], "valid");
    assert!(json["operations"]["ok"].as_u64().unwrap() > 300, "{}", json["operations"]);
    let junit = std::fs::read_to_string(report.join("junit.xml")).unwrap();
    assert!(junit.contains("failures=\"0\"") && junit.contains("register: linearizable"), "{junit}");

    // The history by itself is judged alike, also after a way through Jepsen's form.
    let history = report.join("history-1-register.jsonl");
    let edn = directory.path().join("history.edn");
    let (history, edn) = (history.to_str().unwrap(), edn.to_str().unwrap());
    assert_eq!(run(&["chaos", "check", history, "--write", edn]).code, Some(0));
    let ended = run(&["chaos", "check", edn]);
    assert_eq!(ended.code, Some(0), "{}", ended.stdout);
    assert!(ended.stdout.contains("✔ linearizable"), "{}", ended.stdout);
}

#[test]
fn cut_links_show_nothing_stale() {
    holds(
        "
name: cut-links
workloads:
  - {kind: register, clients: 6, rate: 40}
  - {kind: put-get, clients: 4, rate: 40}
faults:
  - {at: 500ms, fault: isolate, of: leader, for: 2s}
  - {at: 4s, fault: isolate-outbound, of: leader, for: 1500ms}
  - {at: 7s, fault: isolate-inbound, of: leader, for: 1500ms}
duration: 10s
recover_within: 8s
",
    );
}

#[test]
fn slow_and_broken_links_lose_nothing() {
    holds(
        "
name: slow-links
cluster: {members: 5}
workloads:
  - {kind: append, clients: 4, rate: 30}
faults:
  - {at: 500ms, fault: delay, delay: 20ms, jitter: 20ms, for: 1500ms}
  - {at: 2500ms, fault: bridge, for: 1s}
  - {at: 4s, fault: ring, for: 1s}
  - {at: 5500ms, fault: reset, of: leader, for: 500ms}
  - {at: 6500ms, fault: half-open, of: follower, for: 500ms}
duration: 8s
recover_within: 10s
",
    );
}

#[test]
fn paused_and_restarted_members_keep_watches_leases_and_locks() {
    holds(
        "
name: paused
workloads:
  - {kind: watch, clients: 4, rate: 40}
  - {kind: lease, clients: 4, rate: 30}
  - {kind: lock, clients: 3, rate: 30}
  - {kind: election, clients: 3, rate: 30}
faults:
  - {at: 500ms, fault: pause, of: leader, for: 1500ms}
  - {at: 4s, fault: move-leader}
  - {at: 5s, fault: rolling-restart, of: all}
duration: 9s
recover_within: 8s
",
    );
}

#[test]
fn members_that_are_lost_are_replaced_by_empty_ones() {
    holds(
        "
name: lost-members
cluster: {flags: [--snapshot-count=50]}
workloads:
  - {kind: append, clients: 4, rate: 40}
  - {kind: watch, clients: 3, rate: 40}
faults:
  - {at: 1s, fault: replace-member, of: follower, for: 2s}
  - {at: 4s, fault: replace-member, of: leader, for: 2s}
  - {at: 5s, fault: compact}
duration: 8s
recover_within: 8s
",
    );
}

#[test]
fn damaged_files_and_old_disks_are_never_served() {
    holds(
        "
name: damage
cluster: {flags: [--snapshot-count=50]}
workloads:
  - {kind: append, clients: 4, rate: 40}
  - {kind: watch, clients: 3, rate: 40}
faults:
  - {at: 500ms, fault: restore-old, of: follower, for: 1s}
  - {at: 4s, fault: flip-bits, of: leader, for: 1s}
  - {at: 7s, fault: truncate, of: follower, for: 1s}
  - {at: 10s, fault: delete-file, of: one, for: 1s}
duration: 12s
recover_within: 8s
",
    );
}

#[test]
fn disks_without_power_keep_what_was_acknowledged() {
    if lacks_disks() {
        return;
    }
    holds(
        "
name: without-power
cluster: {disks: faulty, flags: [--snapshot-count=50]}
workloads:
  - {kind: set, clients: 4, rate: 40}
  - {kind: put-get, clients: 3, rate: 40}
faults:
  - {at: 1s, fault: power-cut, of: all, for: 200ms}
  - {at: 4s, fault: torn-write, of: leader, for: 200ms}
  - {at: 7s, fault: disk-slow, delay: 50ms, of: leader, for: 1s}
duration: 9s
recover_within: 10s
",
    );
}

#[test]
fn failing_disks_end_members_and_nothing_else() {
    if lacks_disks() {
        return;
    }
    holds(
        "
name: failing-disks
cluster: {disks: faulty, flags: [--snapshot-count=50]}
workloads:
  - {kind: register, clients: 4, rate: 40}
faults:
  - {at: 500ms, fault: disk-error-once, of: follower, for: 1s}
  - {at: 3s, fault: disk-full, of: leader, for: 1500ms}
  - {at: 6s, fault: disk-hang, of: leader, for: 1500ms}
duration: 9s
recover_within: 10s
",
    );
}

#[test]
fn a_run_that_shows_nothing_is_rejected() {
    let directory = tempfile::tempdir().unwrap();
    // A ring of three cuts nothing.
    let yaml = "
name: vacuous
workloads: [{kind: register, clients: 2, rate: 50}]
faults: [{at: 200ms, fault: ring, for: 300ms}]
duration: 600ms
recover_within: 3s
";
    let ended = experiment(directory.path(), yaml, &[]);
    assert_eq!(ended.code, Some(3), "{}\n{}", ended.stdout, ended.stderr);
    assert!(ended.stdout.contains("never fired: ring"), "{}", ended.stdout);
}

#[test]
fn what_is_no_experiment_is_refused_with_its_reason() {
    let directory = tempfile::tempdir().unwrap();
    for (yaml, words) in [
        ("name: x\nworkloads: []\nduration: 1s", "nothing to do"),
        ("name: x\nworkloads: [{kind: register}]\nduration: soon", "\"soon\" is no time"),
        ("name: x/y\nworkloads: [{kind: register}]\nduration: 1s", "names files"),
        ("name: x\nworkloads: [{kind: registry}]\nduration: 1s", "registry"),
        (
            "name: x\nworkloads: [{kind: register}]\nfaults: [{at: 1s, fault: disk-full}]\nduration: 2s",
            "disks: faulty",
        ),
        (
            "name: x\nworkloads: [{kind: register}]\nfaults: [{at: 1s, fault: kill, of: him}]\nduration: 2s",
            "is nobody",
        ),
        ("name: x\nworkload: [{kind: register}]\nduration: 2s", "workload"),
        ("name: x\nworkloads: [{kind: pods}]\nduration: 2s", "nodes: 3"),
        ("name: x\ncluster: {nodes: 1}\nworkloads: [{kind: register}]\nduration: 2s", "leave `nodes` out"),
        (
            "name: x\nworkloads: [{kind: register}]\nfaults: [{at: 1s, fault: power-off}]\nduration: 2s",
            "power-off of One needs nodes",
        ),
        (
            "name: x\ncluster: {nodes: 1}\nworkloads: [{kind: pods}]\nfaults: [{at: 1s, fault: ring}]\nduration: 2s",
            "ring befalls members of a store alone",
        ),
        (
            "name: x\ncluster: {members: 2, nodes: 1}\nworkloads: [{kind: pods}]\nduration: 2s",
            "2 masters survive no more than 1 do",
        ),
    ] {
        let ended = experiment(directory.path(), yaml, &[]);
        assert_eq!(ended.code, Some(1), "{yaml}");
        assert!(ended.stderr.contains(words), "{yaml}: {}", ended.stderr);
    }
}

#[test]
fn the_same_seed_gives_the_same_plan() {
    use chaos_tests::experiment::Experiment;
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/chaos/anything-goes.yaml");
    let experiment = Experiment::read(&path).unwrap();
    assert_eq!(experiment.plan(7), experiment.plan(7));
    assert_ne!(experiment.plan(7), experiment.plan(8));
    assert!(experiment.plan(7).len() > 8);
}

#[test]
fn every_example_can_be_read() {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/chaos");
    let mut count = 0;
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "yaml") {
            let experiment = chaos_tests::experiment::Experiment::read(&entry.path()).unwrap();
            assert_eq!(format!("{}.yaml", experiment.name), entry.file_name().to_str().unwrap());
            assert!(experiment.duration.as_secs() < 60);
            count += 1;
        }
    }
    assert!(count >= 12, "{count} examples");
    let listed = run(&["chaos", "list"]).stdout;
    assert!(listed.contains("isolate-outbound") && listed.contains("append"), "{listed}");
}
