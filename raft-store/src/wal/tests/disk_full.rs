//! A full disk refuses entries, keeps room for votes and purges, and is over when space returns.

use std::thread;
use std::time::Duration;

use super::*;
use crate::wal::sim_disk::SimDisk;

fn small() -> Options {
    Options { segment_bytes: 16 << 10, entry_bytes_max: 1 << 10, ..options(Path::new("/sim")) }
}

/// Appends single entries until one is refused. Gives the next index.
fn fill(wal: &Wal, from: u64) -> u64 {
    for index in from..from + 1000 {
        if let Err(error) = append(wal, vec![entry(index, 1, 500)]) {
            assert!(matches!(*error, Error::NoSpace { .. }), "{error}");
            assert!(error.to_string().contains("free some disk space"));
            return index;
        }
    }
    panic!("the disk never was full");
}

/// Appends one entry as soon as the log takes it.
fn append_when_there_is_space(wal: &Wal, index: u64) {
    for _ in 0..200 {
        match append(wal, vec![entry(index, 1, 500)]) {
            Ok(()) => return,
            Err(error) => assert!(matches!(*error, Error::NoSpace { .. }), "{error}"),
        }
        thread::sleep(Duration::from_millis(20));
    }
    panic!("the log did not notice that space returned");
}

#[test]
fn entries_are_refused_until_space_returns() {
    let disk = SimDisk::default();
    let (wal, _) = Wal::open_on(disk.clone(), &small()).unwrap();
    disk.set_space(Some(40 << 10));
    let next = fill(&wal, 0);
    assert!(wal.stats().no_space && !wal.stats().failed);
    let vote = Bytes::from_static(b"elections go on");
    wait(|done| wal.save_vote(vote.clone(), done)).unwrap();
    disk.set_space(Some(1 << 20));
    append_when_there_is_space(&wal, next);
    assert!(!wal.stats().no_space);
    drop(wal);
    let (_, recovered) = Wal::open_on(disk, &small()).unwrap();
    assert_eq!(recovered.entries, entries(0..next + 1, 500));
    assert_eq!(recovered.vote, Some(vote));
}

#[test]
fn the_shortage_shows_before_it_bites() {
    let disk = SimDisk::default();
    let (wal, _) = Wal::open_on(disk.clone(), &options(Path::new("/sim"))).unwrap();
    disk.set_space(Some(0));
    append(&wal, entries(0..30, 500)).unwrap();
    for _ in 0..100 {
        if wal.stats().no_space {
            break;
        }
        thread::sleep(Duration::from_millis(20));
    }
    assert!(wal.stats().no_space && wal.stats().segment_left_bytes > 32 << 10);
    append(&wal, entries(30..40, 500)).unwrap();
}

#[test]
fn purging_helps_a_full_disk() {
    let disk = SimDisk::default();
    let (wal, _) = Wal::open_on(disk.clone(), &small()).unwrap();
    disk.set_space(Some(40 << 10));
    let next = fill(&wal, 0);
    wait(|done| wal.purge_through(purged(next - 1), done)).unwrap();
    append_when_there_is_space(&wal, next);
    drop(wal);
    let (_, recovered) = Wal::open_on(disk, &small()).unwrap();
    assert_eq!(recovered.entries, entries(next..next + 1, 500));
}

#[test]
fn a_request_that_fails_half_way_leaves_nothing() {
    let disk = SimDisk::default();
    let (wal, _) = Wal::open_on(disk.clone(), &small()).unwrap();
    append(&wal, entries(0..5, 500)).unwrap();
    disk.set_space(Some(40 << 10));
    // Four segments' worth, with space for two.
    let error = append(&wal, entries(5..105, 500)).unwrap_err();
    assert!(matches!(*error, Error::NoSpace { .. }), "{error}");
    let refused = append(&wal, entries(6..7, 500)).unwrap_err();
    assert!(matches!(*refused, Error::OutOfOrder { expected: 5, .. }), "{refused}");
    drop(wal);
    disk.set_space(None);
    let (wal, recovered) = Wal::open_on(disk.clone(), &small()).unwrap();
    assert_eq!(recovered.entries, entries(0..5, 500));
    append(&wal, entries(5..105, 500)).unwrap();
    drop(wal);
    let (_, recovered) = Wal::open_on(disk, &small()).unwrap();
    assert_eq!(recovered.entries, entries(0..105, 500));
}
