//! The handle: many callers, one writer, a bounded queue, a clean end.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use super::*;

#[test]
fn completions_come_in_order_and_share_flushes() {
    let dir = memory_dir();
    let (wal, _) = Wal::open(&options(dir.path())).unwrap();
    let (tell, told) = mpsc::channel();
    for index in 0..2000_u64 {
        let tell = tell.clone();
        wal.append(vec![entry(index, 1, 20)], Box::new(move |result| tell.send((index, result)).unwrap()));
    }
    for index in 0..2000 {
        let (done, result) = told.recv().unwrap();
        result.unwrap();
        assert_eq!(done, index);
    }
    let stats = wal.stats();
    assert_eq!((stats.entries, stats.queued_bytes, stats.failed), (2000, 0, false));
    assert!(stats.sync.count() < 1000, "{} flushes for 2000 requests", stats.sync.count());
}

#[test]
fn votes_from_many_threads() {
    let dir = memory_dir();
    let options = options(dir.path());
    let (wal, _) = Wal::open(&options).unwrap();
    let last = Arc::new(Mutex::new(Bytes::new()));
    thread::scope(|scope| {
        for caller in 0..4 {
            let (wal, last) = (wal.clone(), &last);
            scope.spawn(move || {
                for round in 0..50 {
                    let vote = Bytes::from(format!("{caller}/{round}"));
                    let last = Arc::clone(last);
                    let saved = vote.clone();
                    wait(|done| {
                        wal.save_vote(
                            vote,
                            Box::new(move |result| {
                                *last.lock().unwrap() = saved;
                                done(result);
                            }),
                        );
                    })
                    .unwrap();
                }
            });
        }
    });
    drop(wal);
    assert_eq!(reopen(&options).vote, Some(last.lock().unwrap().clone()));
}

#[test]
fn a_full_queue_refuses_entries_and_tells_when_there_is_room() {
    let dir = memory_dir();
    let (wal, _) = Wal::open(&Options { queue_bytes_max: 4096, ..options(dir.path()) }).unwrap();
    // The writer is held up in a callback, so that what follows stays queued.
    let (release, held) = mpsc::channel::<()>();
    let (entered, inside) = mpsc::channel();
    wal.save_vote(
        Bytes::new(),
        Box::new(move |_| {
            entered.send(()).unwrap();
            held.recv().unwrap();
        }),
    );
    inside.recv().unwrap();
    let first = Arc::new(AtomicBool::new(false));
    let done = Arc::clone(&first);
    wal.append(vec![entry(0, 1, 3000)], Box::new(move |r| done.store(r.is_ok(), Ordering::SeqCst)));
    let busy = append(&wal, vec![entry(1, 1, 3000)]).unwrap_err();
    assert!(matches!(*busy, Error::Busy { queue_bytes_max: 4096, .. }), "{busy}");
    let vote = Arc::new(AtomicBool::new(false));
    let done = Arc::clone(&vote);
    wal.save_vote(vec![0; 1000].into(), Box::new(move |r| done.store(r.is_ok(), Ordering::SeqCst)));
    wal.save_vote(vec![0; 1000].into(), Box::new(|r| r.unwrap()));
    let (tell, room) = mpsc::channel();
    wal.when_room(Box::new(move || tell.send(()).unwrap()));
    assert!(room.try_recv().is_err(), "there is no room yet");
    release.send(()).unwrap();
    room.recv().unwrap();
    assert!(first.load(Ordering::SeqCst) && vote.load(Ordering::SeqCst));
    append(&wal, vec![entry(1, 1, 3000)]).unwrap();
    wal.when_room(Box::new(|| {}));
    // Larger than the whole queue, but alone.
    append(&wal, vec![entry(2, 1, 8000)]).unwrap();
}

#[test]
fn dropping_the_last_handle_writes_what_was_accepted() {
    let dir = memory_dir();
    let options = options(dir.path());
    let (wal, _) = Wal::open(&options).unwrap();
    let done = Arc::new(AtomicU64::new(0));
    for index in 0..500 {
        let done = Arc::clone(&done);
        wal.append(
            vec![entry(index, 1, 50)],
            Box::new(move |result| {
                result.unwrap();
                done.fetch_add(1, Ordering::SeqCst);
            }),
        );
    }
    drop(wal);
    assert_eq!(done.load(Ordering::SeqCst), 500);
    assert_eq!(reopen(&options).entries.len(), 500);
}

#[test]
fn the_last_handle_may_be_dropped_in_a_callback() {
    let dir = memory_dir();
    let options = options(dir.path());
    let (wal, _) = Wal::open(&options).unwrap();
    let (tell, told) = mpsc::channel();
    let held = wal.clone();
    drop(wal);
    let other = held.clone();
    other.append(
        entries(0..3, 10),
        Box::new(move |result| {
            drop(held);
            tell.send(result).unwrap();
        }),
    );
    drop(other);
    told.recv().unwrap().unwrap();
    // The writer ends on its own; until then the directory is locked.
    let recovered = loop {
        match Wal::open(&options) {
            Ok((_, recovered)) => break recovered,
            Err(Error::Locked { .. }) => thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(recovered.entries.len(), 3);
}

#[test]
fn a_panic_in_a_callback_does_not_leave_callers_waiting() {
    let dir = memory_dir();
    let (wal, _) = Wal::open(&options(dir.path())).unwrap();
    wal.save_vote(Bytes::new(), Box::new(|_| panic!("on purpose: part of a test")));
    loop {
        // Accepted until the writer is gone, and answered or given up in any case.
        let (tell, told) = mpsc::channel();
        wal.save_vote(Bytes::new(), Box::new(move |result| tell.send(result).unwrap()));
        if let Ok(Err(error)) = told.recv() {
            assert!(matches!(*error, Error::WriterGone), "{error}");
            break;
        }
    }
}

#[test]
fn two_openers() {
    let dir = memory_dir();
    let options = options(dir.path());
    let (wal, _) = Wal::open(&options).unwrap();
    let error = refused(&options);
    assert!(matches!(error, Error::Locked { .. }));
    assert!(error.to_string().contains("in use by another process"), "{error}");
    drop(wal);
    reopen(&options);
}
