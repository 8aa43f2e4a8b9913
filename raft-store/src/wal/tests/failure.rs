//! After a failed write or flush nothing is acknowledged any more.

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::wal::sim_disk::SimDisk;

fn failed(result: Result<(), Arc<Error>>) -> String {
    let error = result.expect_err("the log has failed");
    assert!(matches!(*error, Error::Failed { .. }), "{error}");
    error.to_string()
}

#[test]
fn a_failed_flush_is_final() {
    let disk = SimDisk::default();
    let options = options(Path::new("/sim"));
    let (wal, _) = Wal::open_on(disk.clone(), &options).unwrap();
    append(&wal, entries(0..5, 100)).unwrap();
    disk.fail_syncs(Some(".wal"));
    let text = failed(append(&wal, entries(5..35, 400)));
    assert!(text.contains("cannot sync") && text.contains("start this member again"), "{text}");
    disk.fail_syncs(None);
    failed(append(&wal, entries(5..6, 100)));
    failed(wait(|done| wal.save_vote(Bytes::new(), done)));
    failed(wait(|done| wal.truncate_after(Some(1), done)));
    failed(wait(|done| wal.purge_through(purged(1), done)));
    wal.save_committed(Bytes::new());
    wal.when_room(Box::new(|| {}));
    assert!(wal.stats().failed);
    assert_eq!(wal.stats().queued_bytes, 0);
    drop(wal);
    // A new process may still read the entries from the kernel's memory, though no flush will bring it to the disk.
    // What it shows must survive all the same.
    let (wal, recovered) = Wal::open_on(disk.clone(), &options).unwrap();
    assert_eq!(recovered.entries.len(), 35);
    drop(wal);
    for seed in 0..20 {
        let disk = disk.after_power_cut(&mut StdRng::seed_from_u64(seed));
        assert_eq!(Wal::open_on(disk, &options).unwrap().1.entries, recovered.entries, "seed {seed}");
    }
}

#[test]
fn a_failed_write_is_final() {
    let disk = SimDisk::default();
    let options = options(Path::new("/sim"));
    let (wal, _) = Wal::open_on(disk.clone(), &options).unwrap();
    append(&wal, entries(0..5, 100)).unwrap();
    disk.fail_writes(true);
    failed(append(&wal, entries(5..6, 100)));
    disk.fail_writes(false);
    failed(append(&wal, entries(5..6, 100)));
    drop(wal);
    assert_eq!(Wal::open_on(disk, &options).unwrap().1.entries, entries(0..5, 100));
}

#[test]
fn everyone_who_waits_is_told() {
    let disk = SimDisk::default();
    let options = options(Path::new("/sim"));
    let (wal, _) = Wal::open_on(disk.clone(), &options).unwrap();
    disk.fail_syncs(Some(".wal"));
    let (tell, told) = mpsc::channel();
    for index in 0..50 {
        let tell = tell.clone();
        wal.append(entries(index..index + 1, 100), Box::new(move |result| tell.send(result).unwrap()));
    }
    drop(tell);
    let answers: Vec<_> = told.iter().collect();
    assert_eq!(answers.len(), 50);
    answers.into_iter().for_each(|answer| drop(failed(answer)));
}

#[test]
fn trouble_with_the_next_segment_ends_the_log_when_it_is_needed() {
    let disk = SimDisk::default();
    let options = Options { segment_bytes: 16 << 10, entry_bytes_max: 1 << 10, ..options(Path::new("/sim")) };
    let (wal, _) = Wal::open_on(disk.clone(), &options).unwrap();
    let (mut acknowledged, mut last) = (0, Ok(()));
    disk.fail_syncs(Some(".tmp"));
    for index in 0..100 {
        last = append(&wal, vec![entry(index, 1, 500)]);
        if last.is_err() {
            break;
        }
        acknowledged = index + 1;
    }
    failed(last);
    disk.fail_syncs(None);
    drop(wal);
    let recovered = Wal::open_on(disk, &options).unwrap().1;
    assert!(recovered.entries.len() as u64 >= acknowledged);
}
