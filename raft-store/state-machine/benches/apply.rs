//! Applying commands to, and reading from, a state of a million keys of 256 bytes.

use std::hint::black_box;
use std::io;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use state_machine::{
    Command, Compare, CompareResult, CompareTarget, Op, Outcome, Position, PutRequest, RangeRequest,
    SnapshotWriter, StateMachine, TxnCommand,
};

const KEYS: u64 = 1_000_000;
const VALUE_BYTES: usize = 256;

/// Commands between two drains of events, as a group commit would have them.
const COMMANDS_PER_DRAIN: u64 = 64;

/// Revisions that stay readable before the bench compacts.
const REVISIONS_KEPT: u64 = 100_000;

/// Visits all keys in an order without locality.
fn scattered(at: u64) -> u64 {
    at.wrapping_mul(0x9e37_79b9_7f4a_7c15) % KEYS
}

fn key(number: u64) -> Bytes {
    Bytes::from(format!("/registry/core/pods/namespace-{:03}/pod-{number:08}", number % 100))
}

fn put_op(number: u64) -> Op {
    Op::Put(PutRequest {
        key: key(number),
        value: vec![number as u8; VALUE_BYTES].into(),
        ..Default::default()
    })
}

fn put(number: u64) -> Bytes {
    Command::Txn(TxnCommand::of(put_op(number))).encode()
}

/// A state together with its place in the log.
struct Store {
    machine: StateMachine,
    log_index: u64,
}

impl Store {
    fn new() -> Self {
        Self { machine: StateMachine::new(), log_index: 0 }
    }

    fn loaded() -> Self {
        let mut store = Self::new();
        (0..KEYS).for_each(|number| drop(store.apply(put(number))));
        store
    }

    fn position(&mut self) -> Position {
        self.log_index += 1;
        Position { log_index: self.log_index, term: 1 }
    }

    /// One log entry: decoded, applied, old revisions compacted now and then.
    fn apply(&mut self, bytes: Bytes) -> Outcome {
        let position = self.position();
        let command = Command::decode(bytes).expect("the bench encoded it");
        let outcome = self.machine.apply(position, &command);
        if self.log_index.is_multiple_of(COMMANDS_PER_DRAIN) {
            self.machine.discard_events();
        }
        if self.log_index.is_multiple_of(REVISIONS_KEPT) && self.machine.revision() > REVISIONS_KEPT {
            let revision = self.machine.revision() - REVISIONS_KEPT;
            let position = self.position();
            self.machine.apply(position, &Command::Compact { revision });
        }
        outcome
    }
}

/// Times `iterations` entries, whose encoding is not counted.
fn time(store: &mut Store, iterations: u64, mut entry: impl FnMut(&Store, u64) -> Bytes) -> Duration {
    let mut elapsed = Duration::ZERO;
    let mut done = 0;
    while done < iterations {
        let chunk = (iterations - done).min(10_000);
        let entries: Vec<_> = (done..done + chunk).map(|at| entry(store, at)).collect();
        let start = Instant::now();
        for bytes in entries {
            black_box(store.apply(bytes));
        }
        elapsed += start.elapsed();
        done += chunk;
    }
    elapsed
}

fn writes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("apply");
    group.throughput(Throughput::Elements(1)).sample_size(10).measurement_time(Duration::from_secs(3));
    group.bench_function("put_new_key_in_order", |bencher| {
        bencher.iter_custom(|iterations| {
            let mut store = Store::new();
            time(&mut store, iterations, |_, at| put(at))
        });
    });
    let mut store = Store::loaded();
    let mut turn = 0;
    group.bench_function("overwrite_scattered", |bencher| {
        bencher.iter_custom(|iterations| {
            turn += iterations;
            let from = turn;
            time(&mut store, iterations, |_, at| put(scattered(from + at)))
        });
    });
    group.bench_function("txn_compare_and_swap", |bencher| {
        bencher.iter_custom(|iterations| {
            turn += iterations;
            let from = turn;
            time(&mut store, iterations, |store, at| {
                let number = scattered(from + at);
                let key = key(number);
                let seen = store.machine.get(&key).map_or(0, |record| record.mod_revision);
                let target = CompareTarget::ModRevision(seen);
                let range_end = Bytes::new();
                let compares = vec![Compare { key, range_end, result: CompareResult::Equal, target }];
                let success = vec![put_op(number)];
                Command::Txn(TxnCommand { compares, success, ..TxnCommand::default() }).encode()
            })
        });
    });
    group.finish();
}

fn reads(criterion: &mut Criterion) {
    let store = Store::loaded();
    let mut group = criterion.benchmark_group("read");
    group.sample_size(10).measurement_time(Duration::from_secs(2));
    let mut at = 0;
    group.bench_function("range_one_key", |bencher| {
        bencher.iter(|| {
            at += 1;
            let one = RangeRequest { key: key(scattered(at)), ..RangeRequest::default() };
            store.machine.range(&one).map(|response| response.count)
        });
    });
    let page = |prefix: &'static str, range_end: &'static str, limit, revision| RangeRequest {
        key: Bytes::from_static(prefix.as_bytes()),
        range_end: Bytes::from_static(range_end.as_bytes()),
        limit,
        revision,
        ..RangeRequest::default()
    };
    let (from, to) = ("/registry/core/pods/namespace-042/", "/registry/core/pods/namespace-0420");
    let cases = [
        ("range_10k_keys", page(from, to, 0, 0)),
        ("page_of_500_from_10k_keys", page(from, to, 500, 0)),
        ("range_10k_keys_at_old_revision", page(from, to, 0, KEYS - REVISIONS_KEPT / 2)),
        ("page_of_500_from_1m_keys", page("/registry/core/pods/", "/registry/core/pods0", 500, 0)),
    ];
    for (name, request) in cases {
        group.bench_function(name, |bencher| {
            bencher.iter_with_large_drop(|| store.machine.range(&request));
        });
    }
    group.finish();
}

fn whole_state(criterion: &mut Criterion) {
    let mut store = Store::loaded();
    let mut group = criterion.benchmark_group("whole_state");
    group.sample_size(10).measurement_time(Duration::from_secs(2));
    // How long apply waits at most for a snapshot that is being read.
    group.bench_function("snapshot_chunk_of_1000_keys", |bencher| {
        bencher.iter_batched(
            || {
                let mut snapshot = store.machine.snapshot();
                snapshot.read_chunk(&store.machine, scattered(7) as usize).map(drop).expect("same state");
                snapshot
            },
            |mut snapshot| snapshot.read_chunk(&store.machine, 1000).map(|chunk| (chunk, snapshot)),
            BatchSize::PerIteration,
        );
    });
    group.bench_function("snapshot_written_1m_keys", |bencher| {
        bencher.iter(|| {
            let mut snapshot = store.machine.snapshot();
            let mut writer = SnapshotWriter::begin(io::sink(), snapshot.header())?;
            while let Some(records) = snapshot.read_chunk(&store.machine, 1000)? {
                writer.write(&records)?;
            }
            writer.finish().map(drop)
        });
    });
    let bytes = store.machine.snapshot().write_all(&store.machine, Vec::new()).expect("memory");
    group.bench_function("snapshot_restored_1m_keys", |bencher| {
        bencher.iter_with_large_drop(|| StateMachine::restore(bytes.as_slice()));
    });
    group.bench_function("compact_1000_revisions_without_trim", |bencher| {
        bencher.iter_custom(|iterations| {
            let mut elapsed = Duration::ZERO;
            for _ in 0..iterations {
                let position = store.position();
                let command = Command::Compact { revision: store.machine.compact_revision() + 1000 };
                let start = Instant::now();
                black_box(store.machine.apply(position, &command));
                elapsed += start.elapsed();
            }
            elapsed
        });
    });
    group.finish();
}

criterion_group!(benches, writes, reads, whole_state);
criterion_main!(benches);
