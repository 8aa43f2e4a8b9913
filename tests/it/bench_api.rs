//! `barque bench api`: three real replicas, every work, and nothing left behind.

use crate::support::{run, text};

#[test]
fn every_work_is_measured_and_nothing_is_left() {
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("report.json");
    let ended = run(&[
        "bench",
        "api",
        "--objects",
        "50",
        "--seconds",
        "1",
        "--clients",
        "4",
        "--watchers",
        "5",
        "--changes",
        "20",
        "--dir",
        text(directory.path()),
        "--json",
        text(&json),
    ]);
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let rows = report["rows"].as_array().unwrap();
    let works: Vec<&str> = rows.iter().map(|row| row["work"].as_str().unwrap()).collect();
    assert_eq!(works, ["create", "get", "get-local", "patch", "list", "watch"]);
    for row in rows {
        assert_eq!(row["errors"], 0, "{row}");
        assert!(row["operations_per_second"].as_f64().unwrap() > 0.0, "{row}");
        assert!(row["server_cpu_seconds_per_operation"].as_f64().unwrap() > 0.0, "{row}");
    }
    // Every change reached every watcher.
    assert!(ended.stdout.contains("watch"), "{}", ended.stdout);
    let left: Vec<_> =
        std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(left, [json], "the replicas' files are gone");
}
