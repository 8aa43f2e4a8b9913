//! kill -9 in the middle of appending: a child process (this very test program) reports what was acknowledged.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::*;

const CHILD_DIR: &str = "BARQUE_WAL_TEST_CHILD_DIR";
const MARK: &str = "acknowledged ";

/// The child's part; does nothing in an ordinary run.
#[test]
fn child_appends_until_it_is_killed() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let (wal, recovered) = Wal::open(&options(Path::new(&dir))).unwrap();
    let mut next = recovered.entries.last().map_or(0, |last| last.index + 1);
    // Ends by itself, should the parent be gone.
    for round in 0..200_000_u64 {
        let count = 1 + round % 7;
        wal.append(
            (next..next + count).map(|index| entry(index, 1, 100)).collect(),
            Box::new(move |result| {
                result.unwrap();
                writeln!(std::io::stdout(), "\n{MARK}{}", next + count - 1).unwrap();
            }),
        );
        next += count;
        if round % 16 == 15 {
            wait(|done| wal.save_vote(Bytes::from(next.to_string()), done)).unwrap();
        }
    }
}

#[test]
fn everything_acknowledged_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = None;
    for round in 0..6_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "wal::tests::process::child_appends_until_it_is_killed", "--nocapture"])
            .env(CHILD_DIR, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let number = |line: String| line.strip_prefix(MARK).and_then(|text| text.parse::<u64>().ok());
        // Working, then a little longer, then dead in the middle of it.
        acknowledged = acknowledged.max(lines.by_ref().find_map(number));
        let reader = std::thread::spawn(move || lines.filter_map(number).last());
        std::thread::sleep(Duration::from_millis(20 + 17 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        acknowledged = acknowledged.max(reader.join().unwrap());
        let recovered = reopen(&options(dir.path()));
        let last = recovered.entries.last().map(|last| last.index);
        assert!(
            acknowledged.is_some() && last >= acknowledged,
            "{acknowledged:?} acknowledged, {last:?} found"
        );
        assert_eq!(recovered.entries, entries(0..last.unwrap() + 1, 100));
    }
}
