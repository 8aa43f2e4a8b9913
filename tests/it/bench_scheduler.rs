//! `barque bench scheduler`: three real replicas, and a leader that dies in the middle.

use crate::support::{run, text};

/// The benchmark itself watches that no pod is bound twice and no node over-committed.
#[test]
fn no_pod_is_bound_twice_and_none_is_forgotten_when_the_leader_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("report.json");
    let svg = directory.path().join("report.svg");
    let ended = run(&[
        "bench",
        "scheduler",
        "--work",
        "basic",
        "--nodes",
        "20",
        "--pods",
        "600",
        "--kill-leader",
        "--dir",
        text(directory.path()),
        "--json",
        text(&json),
        "--svg",
        text(&svg),
    ]);
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    assert!(ended.stdout.contains("basic") && ended.stdout.contains("680"), "{}", ended.stdout);
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(report["rows"][0]["pods"], 600);
    assert!(report["rows"][0]["average"].as_f64().unwrap() > 0.0);
    assert!(std::fs::read_to_string(&svg).unwrap().contains("<svg"));
    let left: Vec<_> =
        std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(left.len(), 2, "the replicas' files are gone: {left:?}");
}

#[test]
fn a_workload_that_is_not_there_is_named_with_those_that_are() {
    let ended = run(&["bench", "scheduler", "--work", "luck"]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("luck") && ended.stderr.contains("pod-anti-affinity"), "{}", ended.stderr);
}
