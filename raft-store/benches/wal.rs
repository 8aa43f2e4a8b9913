//! How fast the write-ahead log makes entries of 512 B durable, beside the floor: the same bytes written into a
//! zero-filled file and flushed with `fdatasync`, without a log. The two alternate, so that both see the same
//! moods of the disk. Read the ratios; absolute figures are the machine's. On a busy machine p10 says most.
//!
//! `cargo bench -p raft-store --bench wal`; the directory is made under `TMPDIR`, which should be on a real disk.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use raft_store::wal::{Entry, Options, Purged, Wal};

const ENTRY_BYTES: usize = 512;
const RECORD_BYTES: usize = ENTRY_BYTES + 40;
const ROUNDS: u32 = 7;
/// The floor's file, written round and round.
const FLOOR_FILE_BYTES: usize = 64 << 20;
/// The log is purged this far behind its end, so that segments are recycled as they are in a running member.
const KEPT_ENTRIES: u64 = 100_000;

fn main() {
    // Without `--bench` (as `cargo test --all-targets` runs it) only see that it works.
    let slice = if std::env::args().any(|arg| arg == "--bench") { 400 } else { 10 };
    let slice = Duration::from_millis(slice);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut floor = Floor::new(dir.path());
    let mut log = Log::new(&dir.path().join("wal"));
    println!(
        "{ROUNDS} rounds of {slice:?} each, alternating; entries of {ENTRY_BYTES} B, segments of 64 MiB\n"
    );
    println!(
        "| batch | log: entries/s | p10 | p50 | p99 | floor: entries/s | p10 | p50 | p99 | log / floor |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for batch in [1, 16, 128] {
        let (mut log_times, mut floor_times) = (Times::default(), Times::default());
        for _ in 0..ROUNDS {
            floor_times.run(slice, || floor.write(batch));
            log_times.run(slice, || log.append(batch));
        }
        let (log_rate, floor_rate) = (log_times.rate(batch), floor_times.rate(batch));
        println!(
            "| {batch} | {log_rate:.0} | {:?} | {:?} | {:?} | {floor_rate:.0} | {:?} | {:?} | {:?} | {:.2} |",
            log_times.quantile(0.1),
            log_times.quantile(0.5),
            log_times.quantile(0.99),
            floor_times.quantile(0.1),
            floor_times.quantile(0.5),
            floor_times.quantile(0.99),
            log_rate / floor_rate,
        );
    }
    println!();
    for callers in [10, 100, 1000] {
        let (rate, flushes) = log.concurrent(callers, slice * ROUNDS);
        println!(
            "{callers} callers with one entry each in flight: {rate:.0} entries/s, {flushes:.0} flushes/s"
        );
    }
    println!("\nwhole run: {:?} max flush, {} segments", log.wal.stats().sync.max, log.wal.stats().segments);
}

/// Latencies of one kind of operation.
#[derive(Default)]
struct Times {
    all: Vec<Duration>,
    total: Duration,
}

impl Times {
    fn run(&mut self, slice: Duration, mut operation: impl FnMut()) {
        let start = Instant::now();
        while start.elapsed() < slice {
            let begin = Instant::now();
            operation();
            self.all.push(begin.elapsed());
        }
        self.total += start.elapsed();
        self.all.sort_unstable();
    }

    fn rate(&self, batch: u64) -> f64 {
        (self.all.len() as u64 * batch) as f64 / self.total.as_secs_f64()
    }

    fn quantile(&self, share: f64) -> Duration {
        self.all[((self.all.len() - 1) as f64 * share) as usize]
    }
}

/// The least that durability costs.
struct Floor {
    file: File,
    data: Vec<u8>,
    offset: usize,
}

impl Floor {
    fn new(dir: &Path) -> Self {
        let file = File::create_new(dir.join("floor")).expect("a file");
        file.write_all_at(&vec![0; FLOOR_FILE_BYTES], 0).expect("zeros written");
        file.sync_all().expect("zeros synced");
        Self { file, data: vec![0xA5; FLOOR_FILE_BYTES], offset: 0 }
    }

    fn write(&mut self, batch: u64) {
        let bytes = RECORD_BYTES * batch as usize;
        if self.offset + bytes > FLOOR_FILE_BYTES {
            self.offset = 0;
        }
        self.file.write_all_at(&self.data[..bytes], self.offset as u64).expect("written");
        self.file.sync_data().expect("synced");
        self.offset += bytes;
    }
}

/// The log under test.
struct Log {
    wal: Wal,
    payload: Bytes,
    next: u64,
    purged: u64,
}

impl Log {
    fn new(dir: &Path) -> Self {
        let (wal, _) = Wal::open(&Options::new(dir, [1; 16], 1)).expect("a log");
        Self { wal, payload: Bytes::from(vec![0xA5; ENTRY_BYTES]), next: 0, purged: 0 }
    }

    fn entries(&mut self, batch: u64) -> Vec<Entry> {
        self.next += batch;
        let entry = |index| Entry { index, term: 1, payload: self.payload.clone() };
        (self.next - batch..self.next).map(entry).collect()
    }

    fn append(&mut self, batch: u64) {
        let (tell, told) = mpsc::channel();
        let entries = self.entries(batch);
        self.wal.append(entries, Box::new(move |result| tell.send(result).expect("someone waits")));
        told.recv().expect("an answer").expect("durable");
        self.purge();
    }

    fn purge(&mut self) {
        if self.next > self.purged + 2 * KEPT_ENTRIES {
            self.purged = self.next - KEPT_ENTRIES;
            let purged = Purged { index: self.purged, term: 1, position: Bytes::new() };
            self.wal.purge_through(purged, Box::new(|result| result.expect("purged")));
        }
    }

    /// Entries and flushes per second with so many entries in flight.
    fn concurrent(&mut self, callers: u64, time: Duration) -> (f64, f64) {
        let (tell, told) = mpsc::channel();
        let (before, first, start) = (self.wal.stats(), self.next, Instant::now());
        let mut in_flight = 0;
        while start.elapsed() < time || in_flight > 0 {
            while in_flight < callers && start.elapsed() < time {
                let tell = tell.clone();
                let entries = self.entries(1);
                self.wal.append(entries, Box::new(move |result| tell.send(result).expect("someone waits")));
                in_flight += 1;
            }
            if in_flight > 0 {
                told.recv().expect("an answer").expect("durable");
                in_flight -= 1;
            }
            self.purge();
        }
        let seconds = start.elapsed().as_secs_f64();
        let flushes = self.wal.stats().sync.count() - before.sync.count();
        ((self.next - first) as f64 / seconds, flushes as f64 / seconds)
    }
}
