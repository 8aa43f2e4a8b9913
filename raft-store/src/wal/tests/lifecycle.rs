//! What goes in comes out again: over reopening, truncation, purging, rolling and recycling.

use std::time::{Duration, Instant};

use super::*;

#[test]
fn a_fresh_log_is_empty_small_and_quick() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options::new(dir.path().join("a/b/wal"), CLUSTER, 1);
    // The fastest of a few: other work on the machine is not under test.
    let took = (0..5)
        .map(|round| {
            let options = Options::new(dir.path().join(format!("round{round}")), CLUSTER, 1);
            let start = Instant::now();
            drop(Wal::open(&options).unwrap());
            start.elapsed()
        })
        .min()
        .unwrap();
    assert!(took < Duration::from_millis(100), "took {took:?} to make a log");
    assert_eq!(reopen(&options), Recovered::default());
    let total: u64 = files(&options.dir).values().sum();
    assert!(total <= 16 << 20, "an idle log takes {total} bytes");
}

#[test]
fn everything_is_there_again() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(dir.path());
    let mut expected = Recovered::default();
    for round in 0..4_u64 {
        let (wal, recovered) = Wal::open(&options).unwrap();
        assert_eq!(recovered, expected, "round {round}");
        let new = entries(round * 100..round * 100 + 100, 300);
        append(&wal, new.clone()).unwrap();
        let vote = Bytes::from(format!("vote {round}"));
        wait(|done| wal.save_vote(vote.clone(), done)).unwrap();
        let committed = Bytes::from(format!("committed {round}"));
        wal.save_committed(committed.clone());
        expected.entries.extend(new);
        expected.vote = Some(vote);
        expected.committed = Some(committed);
    }
    assert_eq!(reopen(&options), expected);
    assert!(files(dir.path()).len() > 4, "several segments were used");
}

#[test]
fn an_empty_payload_and_the_longest_one() {
    let dir = memory_dir();
    let options = options(dir.path());
    let (wal, _) = Wal::open(&options).unwrap();
    let mut all = vec![entry(0, 1, 0)];
    all.extend((1..40).map(|index| entry(index, 1, options.entry_bytes_max)));
    append(&wal, all.clone()).unwrap();
    let too_large = append(&wal, vec![entry(40, 1, options.entry_bytes_max + 1)]);
    assert!(matches!(*too_large.unwrap_err(), Error::TooLarge { .. }));
    drop(wal);
    assert_eq!(reopen(&options).entries, all);
}

#[test]
fn the_log_may_begin_anywhere_and_then_has_no_gaps() {
    let dir = memory_dir();
    let options = options(dir.path());
    let (wal, _) = Wal::open(&options).unwrap();
    append(&wal, entries(5..8, 10)).unwrap();
    for wrong in [4, 7, 9] {
        let error = append(&wal, vec![entry(wrong, 1, 10)]).unwrap_err();
        assert!(matches!(*error, Error::OutOfOrder { expected: 8, found } if found == wrong), "{error}");
    }
    let inner_gap = append(&wal, vec![entry(8, 1, 10), entry(10, 1, 10)]).unwrap_err();
    assert!(matches!(*inner_gap, Error::OutOfOrder { expected: 9, found: 10 }));
    append(&wal, entries(8..9, 10)).unwrap();
    drop(wal);
    assert_eq!(reopen(&options).entries, entries(5..9, 10));
}

#[test]
fn truncation_voids_the_tail() {
    let dir = memory_dir();
    let options = options(dir.path());
    let (wal, _) = Wal::open(&options).unwrap();
    append(&wal, entries(0..500, 200)).unwrap();
    wait(|done| wal.truncate_after(Some(299), done)).unwrap();
    wait(|done| wal.truncate_after(Some(1000), done)).unwrap();
    let replaced: Vec<_> = (300..320).map(|index| entry(index, 2, 100)).collect();
    append(&wal, replaced.clone()).unwrap();
    drop(wal);
    let (wal, recovered) = Wal::open(&options).unwrap();
    assert_eq!(recovered.entries[..300], entries(0..300, 200));
    assert_eq!(recovered.entries[300..], replaced);
    wait(|done| wal.truncate_after(None, done)).unwrap();
    drop(wal);
    assert_eq!(reopen(&options).entries, []);
}

#[test]
fn purging_recycles_segments_and_never_replays_their_old_life() {
    let dir = memory_dir();
    let options = options(dir.path());
    let (wal, _) = Wal::open(&options).unwrap();
    wait(|done| wal.save_vote(Bytes::from_static(b"the vote"), done)).unwrap();
    let mut next = 0;
    for _ in 0..40 {
        append(&wal, entries(next..next + 50, 400)).unwrap();
        next += 50;
        wait(|done| wal.purge_through(purged(next - 20), done)).unwrap();
    }
    drop(wal);
    let names = files(dir.path());
    let segments = names.keys().filter(|name| name.ends_with(".wal")).count();
    let spares = names.keys().filter(|name| name.ends_with(".spare")).count();
    assert!(segments <= 4 && spares <= 2, "800 kB went through, this is left: {names:?}");
    let recovered = reopen(&options);
    assert_eq!(recovered.entries, entries(next - 19..next, 400));
    assert_eq!(recovered.purged, Some(purged(next - 20)));
    assert_eq!(recovered.vote, Some(Bytes::from_static(b"the vote")));
    assert_eq!(recovered.truncated_tail_bytes, 0, "what a former life left is no torn tail");
}

#[test]
fn reopening_often_in_recycled_segments() {
    let dir = memory_dir();
    let options = options(dir.path());
    let mut next = 0;
    let mut kept = Vec::new();
    for round in 0..60 {
        let (wal, recovered) = Wal::open(&options).unwrap();
        assert_eq!(recovered.entries, kept, "round {round}");
        append(&wal, entries(next..next + 30, 350)).unwrap();
        kept.extend(entries(next..next + 30, 350));
        next += 30;
        if round % 3 == 2 {
            wait(|done| wal.purge_through(purged(next - 31), done)).unwrap();
            kept.retain(|entry| entry.index > next - 31);
        }
    }
}

#[test]
fn purging_beyond_the_end_is_how_a_snapshot_is_installed() {
    let dir = memory_dir();
    let options = options(dir.path());
    let (wal, _) = Wal::open(&options).unwrap();
    append(&wal, entries(0..10, 10)).unwrap();
    wait(|done| wal.purge_through(purged(1000), done)).unwrap();
    wait(|done| wal.purge_through(purged(500), done)).unwrap();
    assert!(matches!(
        *append(&wal, entries(10..11, 1)).unwrap_err(),
        Error::OutOfOrder { expected: 1001, .. }
    ));
    append(&wal, entries(1001..1003, 10)).unwrap();
    let below = wait(|done| wal.truncate_after(Some(900), done)).unwrap_err();
    assert!(matches!(*below, Error::OutOfOrder { expected: 1001, found: 901 }), "{below}");
    drop(wal);
    let recovered = reopen(&options);
    assert_eq!((recovered.entries, recovered.purged), (entries(1001..1003, 10), Some(purged(1000))));
}

#[test]
fn segments_grow_to_the_configured_size() {
    let dir = memory_dir();
    let options = Options { segment_bytes: 8 << 20, ..Options::new(dir.path(), CLUSTER, 7) };
    let (wal, _) = Wal::open(&options).unwrap();
    append(&wal, entries(0..1, 10)).unwrap();
    append(&wal, entries(1..16, 1 << 20)).unwrap();
    drop(wal);
    let sizes: Vec<_> = files(dir.path())
        .into_iter()
        .filter(|(name, _)| name.ends_with(".wal"))
        .map(|file| file.1 >> 20)
        .collect();
    assert_eq!(sizes, [1, 4, 8, 8]);
    assert_eq!(reopen(&options).entries.len(), 16);
}

#[test]
fn a_smaller_entry_limit_may_be_raised_later() {
    let dir = memory_dir();
    let small = Options { segment_bytes: 1 << 20, entry_bytes_max: 1024, ..options(dir.path()) };
    let (wal, _) = Wal::open(&Options { segment_bytes: 64 << 10, ..small.clone() }).unwrap();
    // Enough that the next segment is prepared.
    append(&wal, entries(0..30, 1000)).unwrap();
    drop(wal);
    let large = Options { entry_bytes_max: 512 << 10, ..small };
    let (wal, _) = Wal::open(&large).unwrap();
    append(&wal, entries(30..33, 512 << 10)).unwrap();
    drop(wal);
    assert_eq!(reopen(&large).entries.len(), 33);
}

#[test]
fn options_that_cannot_work_are_refused() {
    let dir = memory_dir();
    for (segment_bytes, entry_bytes_max) in [(64 << 10, 64 << 10), (100_000, 10), (2 << 30, 10), (4096, 0)] {
        let options = Options { segment_bytes, entry_bytes_max, ..options(dir.path()) };
        assert!(matches!(refused(&options), Error::InvalidOptions { .. }));
    }
}
