//! Prints what a state takes in memory for each key, loaded by commands, overwritten, compacted, and restored.
//!
//! `cargo run --release -p state-machine --example memory -- [keys] [value bytes]`

#![expect(clippy::print_stdout, reason = "it is what the example is for")]

use std::time::Instant;

use bytes::Bytes;
use state_machine::{Command, Op, Position, PutRequest, StateMachine, TxnCommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// As the kernel counts it.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}

fn put(machine: &mut StateMachine, log_index: &mut u64, number: u64, value: &[u8]) {
    *log_index += 1;
    let (key, value) = (Bytes::from(format!("bench/key/{number:010}")), Bytes::copy_from_slice(value));
    let put = Op::Put(PutRequest { key, value, ..PutRequest::default() });
    let encoded = Command::Txn(TxnCommand::of(put)).encode();
    if let Ok(command) = Command::decode(encoded) {
        machine.apply(Position { log_index: *log_index, term: 1 }, &command);
    }
    machine.discard_events();
}

fn main() {
    let mut arguments = std::env::args().skip(1).filter_map(|argument| argument.parse::<u64>().ok());
    let keys = arguments.next().unwrap_or(1_000_000);
    let value = vec![7; arguments.next().unwrap_or(256) as usize];
    let bare = (20 + value.len()) as u64;
    let before = resident_bytes();
    let report = |what: &str, began: Instant| {
        let bytes = resident_bytes().saturating_sub(before);
        let each = bytes as f64 / keys as f64;
        let (mib, seconds) = (bytes >> 20, began.elapsed().as_secs_f64());
        println!("{what:<28} {mib:>6} MiB  {each:>6.1} bytes per key of {bare}  {seconds:.2} s");
    };

    let (mut machine, mut log_index) = (StateMachine::new(), 0);
    let began = Instant::now();
    (0..keys).for_each(|number| put(&mut machine, &mut log_index, number, &value));
    report("loaded in order", began);

    let began = Instant::now();
    let scattered = |at: u64| at.wrapping_mul(0x9e37_79b9_7f4a_7c15) % keys;
    (0..keys).for_each(|at| put(&mut machine, &mut log_index, scattered(at), &value));
    report("each overwritten, scattered", began);

    let began = Instant::now();
    let command = Command::Compact { revision: machine.revision() };
    machine.apply(Position { log_index: log_index + 1, term: 1 }, &command);
    while machine.trim(1000) {}
    report("compacted and trimmed", began);

    let path = std::env::temp_dir().join(format!("state-machine-memory-{}", std::process::id()));
    let written = std::fs::File::create(&path).map(|file| machine.snapshot().write_all(&machine, file));
    drop(machine);
    let began = Instant::now();
    let restored = std::fs::File::open(&path).map(StateMachine::restore);
    report("restored from a snapshot", began);
    let same = matches!((written, &restored), (Ok(Ok(_)), Ok(Ok(_))));
    println!("{}", if same { "the snapshot was whole" } else { "the snapshot could not be written or read" });
    drop(std::fs::remove_file(&path));
}
