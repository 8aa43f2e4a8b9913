//! Output on its way to the log.

use std::fs;

use runtime::LogSpec;
use runtime::shim::LINE_BYTES_MAX;

use crate::Test;
use crate::support::{Host, eventually};

pub(crate) const TESTS: &[Test] = &[
    ("logs::entries_have_the_cri_form", entries_have_the_cri_form),
    ("logs::long_and_unfinished_lines_are_partial", long_and_unfinished_lines_are_partial),
    ("logs::a_flood_arrives_whole_over_rotations", a_flood_arrives_whole_over_rotations),
    ("logs::a_moved_log_can_be_reopened", a_moved_log_can_be_reopened),
    ("logs::a_full_disk_does_not_stop_the_container", a_full_disk_does_not_stop_the_container),
];

fn entries_have_the_cri_form() {
    let host = Host::new();
    host.sandbox("s");
    let started = host.start(&host.spec("out", "s", &["echo", "hello", "world"]));
    host.runtime.wait_exit("out").unwrap();
    host.run(&host.spec("err", "s", &["warn", "careful"]));
    let log = host.log("out");
    let fields: Vec<&str> = log.trim_end().splitn(4, ' ').collect();
    assert_eq!(fields[1..], ["stdout", "F", "hello world"]);
    let (time, started) = (fields[0], started.started_at.to_string());
    assert_eq!(time.len(), "2026-01-01T00:00:00.000000000Z".len(), "{time}");
    assert!(time.ends_with('Z') && time[..16] >= started[..16], "{time} {started}");
    assert!(host.log("err").ends_with(" stderr F careful\n"));
    host.finish();
}

fn long_and_unfinished_lines_are_partial() {
    let host = Host::new();
    host.sandbox("s");
    let text = format!("{}\nrest", "x".repeat(LINE_BYTES_MAX + 10));
    host.run(&host.spec("c", "s", &["write-raw", &text]));
    let shape: Vec<(String, usize)> = host
        .log("c")
        .lines()
        .map(|line| {
            let fields: Vec<&str> = line.splitn(4, ' ').collect();
            (fields[2].to_owned(), fields[3].len())
        })
        .collect();
    assert_eq!(shape, [("P".to_owned(), LINE_BYTES_MAX), ("F".to_owned(), 10), ("P".to_owned(), 4)]);
    host.finish();
}

fn a_flood_arrives_whole_over_rotations() {
    const LINES: usize = 20_000;
    let host = Host::new();
    host.sandbox("s");
    let mut spec = host.spec("c", "s", &["flood", &LINES.to_string()]);
    let path = host.log_path("c");
    spec.log = Some(LogSpec { path: path.clone(), file_bytes_max: 256 << 10, files_max: 1000 });
    let (exit, _) = host.run(&spec);
    assert_eq!((exit.code, exit.log_bytes_lost), (0, 0));
    let mut files: Vec<_> =
        fs::read_dir(path.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() > 5, "{files:?}");
    // The current file sorts first and is the newest.
    files.rotate_left(1);
    let mut next = 0;
    for file in &files {
        assert!(fs::metadata(file).unwrap().len() <= 256 << 10);
        for line in fs::read_to_string(file).unwrap().lines() {
            assert!(line.contains(&format!(" stdout F line {next:08} ")), "{line}");
            next += 1;
        }
    }
    assert_eq!(next, LINES);
    host.finish();
}

fn a_moved_log_can_be_reopened() {
    let host = Host::new();
    host.sandbox("s");
    host.start(&host.spec("c", "s", &["obey"]));
    host.await_output("c", "ready");
    let moved = host.dir.path().join("moved.log");
    fs::rename(host.log_path("c"), &moved).unwrap();
    host.runtime.reopen_log("c").unwrap();
    host.runtime.signal("c", nix::sys::signal::Signal::SIGUSR1 as i32).unwrap();
    eventually("the new file has it", || host.log("c").contains("got a signal"));
    assert!(!fs::read_to_string(moved).unwrap().contains("got a signal"));
    host.finish();
}

fn a_full_disk_does_not_stop_the_container() {
    let host = Host::new();
    host.sandbox("s");
    let mut spec = host.spec("c", "s", &["flood", "1000"]);
    spec.log = Some(LogSpec::new("/dev/full"));
    host.start(&spec);
    let exit = host.runtime.wait_exit("c").unwrap().unwrap();
    assert_eq!(exit.code, 0);
    assert!(exit.log_bytes_lost > 1000 * 60, "{}", exit.log_bytes_lost);
    host.finish();
}
