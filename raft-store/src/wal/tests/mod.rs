//! Tests of the log as a whole, on real files and on a disk that loses power.

mod damage;
mod disk_full;
mod failure;
mod lifecycle;
mod power_cut;
mod process;
mod threads;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};

use bytes::Bytes;

use super::{Done, Entry, Error, Options, Purged, Recovered, Wal};

pub(super) const CLUSTER: [u8; 16] = *b"cluster under te";

/// Segments so small that a test goes through many.
pub(super) fn options(dir: &Path) -> Options {
    Options { segment_bytes: 64 << 10, entry_bytes_max: 8 << 10, ..Options::new(dir, CLUSTER, 7) }
}

pub(super) fn entry(index: u64, term: u64, bytes: usize) -> Entry {
    let payload = (0..bytes).map(|at| (index as usize * 31 + at * 7 + term as usize) as u8).collect();
    Entry { index, term, payload }
}

pub(super) fn entries(indexes: std::ops::Range<u64>, bytes: usize) -> Vec<Entry> {
    indexes.map(|index| entry(index, 1, bytes)).collect()
}

pub(super) fn purged(index: u64) -> Purged {
    Purged { index, term: 1, position: Bytes::from(format!("position {index}")) }
}

/// A directory in memory where there is one: most tests look at content, and real flushes only make them slow.
pub(super) fn memory_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a temporary directory")
}

/// Asks for something and waits for the answer.
pub(super) fn wait(ask: impl FnOnce(Done)) -> Result<(), Arc<Error>> {
    let (tell, told) = mpsc::channel();
    ask(Box::new(move |result| drop(tell.send(result))));
    told.recv().expect("the log answers each request")
}

pub(super) fn append(wal: &Wal, entries: Vec<Entry>) -> Result<(), Arc<Error>> {
    wait(|done| wal.append(entries, done))
}

/// Opens, closes, and gives what was there.
pub(super) fn reopen(options: &Options) -> Recovered {
    Wal::open(options).expect("the log opens").1
}

pub(super) fn refused(options: &Options) -> Error {
    Wal::open(options).map(|_| ()).expect_err("the log is refused")
}

/// Names and sizes of the files in a directory.
pub(super) fn files(dir: &Path) -> BTreeMap<String, u64> {
    let read = std::fs::read_dir(dir).unwrap();
    read.map(|file| file.unwrap())
        .map(|file| (file.file_name().into_string().unwrap(), file.metadata().unwrap().len()))
        .collect()
}
