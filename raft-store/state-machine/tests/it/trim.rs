//! Trimming what a compaction left behind comes in steps of bounded work, whatever there is to trim.

use bytes::Bytes;
use state_machine::*;

const VERSIONS: u64 = 200_000;
const STEP_EVENTS: usize = 512;

fn put(key: &str) -> Command {
    let key = Bytes::copy_from_slice(key.as_bytes());
    Command::Txn(TxnCommand::of(Op::Put(PutRequest { key, value: "v".into(), ..PutRequest::default() })))
}

/// Trims `VERSIONS` old versions of so many keys, with a write after each step.
fn trim_beside_writes(keys: u64) {
    let mut machine = StateMachine::new();
    let mut log_index = 0;
    let mut apply = |machine: &mut StateMachine, command: &Command| {
        log_index += 1;
        machine.apply(Position { log_index, term: 1 }, command)
    };
    for n in 0..VERSIONS {
        apply(&mut machine, &put(&format!("key-{}", n % keys)));
    }
    let compact_revision = machine.revision();
    let _ = machine.take_dirty();
    machine.discard_events();
    apply(&mut machine, &Command::Compact { revision: compact_revision });
    let mut steps = 0;
    let mut trimmed = machine.trimmed_revision();
    while machine.trim(STEP_EVENTS) {
        let now = machine.trimmed_revision();
        assert!(now - trimmed <= STEP_EVENTS as u64 + 1, "one step went from {trimmed} to {now}");
        trimmed = now;
        steps += 1;
        let Outcome::Txn(outcome) = apply(&mut machine, &put("beside")) else { panic!() };
        assert_eq!(outcome.revision, compact_revision + steps);
    }
    // Two events are looked at for each revision: the one that superseded, and the one that is forgotten.
    let least = 2 * VERSIONS / STEP_EVENTS as u64;
    assert!((least - 2..=least + 2).contains(&steps), "{steps} steps, {least} expected");
    assert!(machine.is_trimmed());
    assert_eq!(machine.records(), keys + steps);
}

#[test]
fn a_write_beside_trimming_waits_for_one_step_of_many_keys() {
    trim_beside_writes(1000);
}

#[test]
fn a_write_beside_trimming_waits_for_one_step_of_one_hot_key() {
    trim_beside_writes(1);
}
