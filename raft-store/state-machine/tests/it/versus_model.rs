//! Random sequences of commands, with the unreplicated acts (draining, trimming, checkpoints, snapshots)
//! thrown in between: the machine answers as the model does, at every revision, however it came to its state.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use state_machine::*;

use crate::model::Model;
use crate::strategy;

/// What may happen between two commands without changing replicated state.
#[derive(Debug, Clone)]
enum Aside {
    Nothing,
    Drain,
    Trim(usize),
    Checkpoint,
    CheckpointFails,
    Snapshot,
    Skip,
}

fn aside() -> impl Strategy<Value = Aside> {
    prop_oneof![
        6 => Just(Aside::Nothing),
        3 => Just(Aside::Drain),
        2 => (0usize..5).prop_map(Aside::Trim),
        2 => Just(Aside::Checkpoint),
        1 => Just(Aside::CheckpointFails),
        2 => Just(Aside::Snapshot),
        1 => Just(Aside::Skip),
    ]
}

/// A checkpoint as a disk would hold it.
#[derive(Debug, Default)]
struct Disk {
    records: BTreeMap<(Bytes, u64), KeyValue>,
    header: Option<StateHeader>,
}

impl Disk {
    fn write(&mut self, machine: &mut StateMachine) {
        let mut delta = machine.take_dirty();
        if delta.full {
            self.records.clear();
        }
        let mut bytes = 0;
        while let Some(records) = machine.read_dirty(&mut delta, 100).unwrap() {
            for record in records {
                bytes += (record.key.len() + record.value.len()) as u64 + RECORD_OVERHEAD_BYTES;
                self.records.insert((record.key.clone(), record.mod_revision), (**record).clone());
            }
        }
        assert_eq!(bytes, delta.bytes);
        self.header = Some(delta.header);
    }

    fn open(&self) -> StateMachine {
        let mut rebuild = Rebuild::new(self.header.clone().unwrap());
        self.records.values().for_each(|kv| rebuild.insert(kv).unwrap());
        rebuild.finish().unwrap()
    }

    /// The same from records that come newest first, some of them twice.
    fn open_in_any_order(&self) -> StateMachine {
        let mut rebuild = Rebuild::in_any_order(self.header.clone().unwrap());
        let mut records: Vec<_> = self.records.values().collect();
        records.sort_by_key(|kv| std::cmp::Reverse(kv.mod_revision));
        let twice = records.iter().step_by(3);
        records.iter().chain(twice).for_each(|kv| rebuild.insert(*kv).unwrap());
        rebuild.finish().unwrap()
    }
}

fn everything(revision: u64) -> RangeRequest {
    RangeRequest {
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        revision,
        ..RangeRequest::default()
    }
}

fn copy(record: RecordRef<'_>) -> KeyValue {
    (**record.to_record()).clone()
}

/// The changes as a watch from `revision` on sees them.
fn watched(machine: &StateMachine, revision: u64) -> Vec<(u64, KeyValue, Option<KeyValue>)> {
    let revisions = machine.events_since(revision, usize::MAX).unwrap();
    revisions
        .flat_map(|events| {
            let revision = events.revision();
            events.iter().map(move |(kv, prev)| (revision, copy(kv), prev.map(copy)))
        })
        .collect()
}

fn check_equal(machine: &StateMachine, model: &Model) {
    assert_eq!(machine.revision(), model.revision);
    assert_eq!(machine.compact_revision(), model.compact_revision);
    for revision in model.compact_revision.max(1)..=model.revision {
        let expected = model.range(&everything(revision), model.revision).unwrap();
        assert_eq!(machine.range(&everything(revision)).unwrap(), expected, "at revision {revision}");
    }
    let leases: Vec<_> =
        machine.leases().map(|lease| (lease, machine.lease(lease.id).unwrap().1.clone())).collect();
    assert_eq!(leases, model.leases());
    model.auth.check_equal(machine.auth());
    let first = model.compact_revision;
    let changes: Vec<_> = model
        .log
        .iter()
        .filter(|kv| kv.mod_revision >= first)
        .map(|kv| {
            let before = model.view(kv.mod_revision - 1).remove(&kv.key);
            (kv.mod_revision, kv.clone(), before.filter(|_| kv.mod_revision > first))
        })
        .collect();
    assert_eq!(watched(machine, first), changes);
    if first > 0 {
        assert!(machine.events_since(first - 1, 1).is_err());
    }
}

fn check_same(one: &StateMachine, other: &StateMachine, model: &Model) {
    check_equal(other, model);
    assert_eq!(one.header(), other.header());
    assert_eq!(one.live_bytes(), other.live_bytes());
    assert_eq!(one.bytes_in_use(), other.bytes_in_use());
    for revision in one.compact_revision().max(1)..=one.revision() {
        assert_eq!(one.hash_kv(revision), other.hash_kv(revision));
    }
    assert!(one.bytes_in_use() >= one.live_bytes() + model.key_bytes_on_leases());
}

/// Draws the revision of a compaction near to those that exist.
fn mostly_possible(command: &Command, model: &Model) -> Command {
    match command {
        Command::Compact { revision } => Command::Compact { revision: revision % (model.revision + 2) },
        other => other.clone(),
    }
}

/// A snapshot shows the state as it was when it was taken, whatever happened since.
fn check_snapshot(mut snapshot: Snapshot, machine: &StateMachine, then: &Model) {
    let mut writer = SnapshotWriter::begin(Vec::new(), snapshot.header()).unwrap();
    while let Some(records) = snapshot.read_chunk(machine, 2).unwrap() {
        writer.write(&records).unwrap();
    }
    let restored = StateMachine::restore(writer.finish().unwrap().as_slice()).unwrap();
    assert_eq!(&restored.header(), snapshot.header());
    check_equal(&restored, then);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn answers_as_the_model_does(
        steps in vec((strategy::command(), strategy::request_id(), 1u64..3, aside()), 1..60),
        ranges in vec(strategy::range(), 8),
    ) {
        let mut model = Model::new();
        let mut machine = StateMachine::new();
        let mut replayed = StateMachine::new();
        let mut disk = Disk::default();
        let mut drained = Vec::new();
        let mut snapshot = None;
        let mut log_index = 0;
        for (command, id, term, aside) in &steps {
            log_index += 1;
            let position = Position { log_index, term: *term };
            let command = &mostly_possible(command, &model);
            let entry = Envelope { author: None, request_id: *id, command: command.clone() };
            let outcome = machine.apply_envelope(position, &entry);
            prop_assert_eq!(&outcome, &model.apply_once(*term, *id, command), "{:?}", command);

            // Another member, which reads the entry from its log and never does anything aside.
            let decoded = Envelope::decode(entry.encode()).unwrap();
            prop_assert_eq!(&decoded, &entry);
            let replayed_outcome = replayed.apply_envelope(position, &decoded);
            let replayed_outcome = Outcome::decode(replayed_outcome.encode()).unwrap();
            prop_assert_eq!(&replayed_outcome, &outcome);
            prop_assert_eq!(machine.state_hash(), replayed.state_hash());

            match aside {
                Aside::Nothing => {}
                Aside::Drain => drained.extend(machine.drain_events()),
                Aside::Trim(events) => {
                    machine.trim(*events);
                }
                Aside::Checkpoint => disk.write(&mut machine),
                Aside::CheckpointFails => {
                    let delta = machine.take_dirty();
                    machine.put_back_dirty(delta);
                }
                // Every second one is read and let go, as a snapshot that is held stops trimming.
                Aside::Snapshot => match snapshot.take() {
                    None => snapshot = Some((machine.snapshot(), model.clone())),
                    Some((snapshot, then)) => check_snapshot(snapshot, &machine, &then),
                },
                Aside::Skip => {
                    log_index += 1;
                    machine.skip(Position { log_index, term: *term });
                    replayed.skip(Position { log_index, term: *term });
                }
            }
        }

        check_equal(&machine, &model);
        check_equal(&replayed, &model);
        for range in &ranges {
            prop_assert_eq!(
                machine.range(range).map_err(ApplyError::from),
                model.range(range, model.revision).map_err(ApplyError::from)
            );
        }

        // What was published is everything that happened, once, whatever was compacted meanwhile.
        drained.extend(machine.drain_events());
        let published: Vec<_> =
            drained.iter().flat_map(|batch| &batch.events).map(|event| (*event.kv).clone()).collect();
        prop_assert_eq!(&published, &model.log);
        for event in drained.iter().flat_map(|batch| &batch.events) {
            let before = model.view(event.kv.mod_revision - 1).remove(&event.kv.key);
            prop_assert_eq!(event.prev_kv.as_ref().map(|prev| (**prev).clone()), before);
        }

        if let Some((snapshot, then)) = snapshot {
            check_snapshot(snapshot, &machine, &then);
        }
        let bytes = machine.snapshot().write_all(&machine, Vec::new()).unwrap();
        check_same(&machine, &StateMachine::restore(bytes.as_slice()).unwrap(), &model);

        // With nothing pinned any more, trimming goes to the end, and no answer changes.
        disk.write(&mut machine);
        while machine.trim(3) {}
        check_equal(&machine, &model);
        check_same(&machine, &disk.open(), &model);
        check_same(&machine, &disk.open_in_any_order(), &model);
        disk.write(&mut machine);
        check_same(&machine, &disk.open(), &model);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn reading_a_transaction_gives_what_applying_it_would(
        commands in vec(strategy::command(), 1..40),
        transactions in vec(strategy::reading_txn(), 1..8),
    ) {
        let mut model = Model::new();
        let mut machine = StateMachine::new();
        for (log_index, command) in (1..).zip(&commands) {
            let command = &mostly_possible(command, &model);
            machine.apply(Position { log_index, term: 1 }, command);
            model.apply_once(1, None, command);
            if let Command::Txn(txn) = command {
                prop_assert_eq!(ReadTxn::of(txn.clone()).is_ok(), writes_nothing(txn));
            }
        }
        for (log_index, txn) in (commands.len() as u64 + 1..).zip(transactions) {
            let reading = ReadTxn::of(txn.clone()).expect("it holds ranges only");
            let (hash, applied) = (machine.state_hash(), machine.applied());
            let read = machine.read_txn(&reading).map_or_else(Outcome::Rejected, Outcome::Txn);
            prop_assert_eq!((machine.state_hash(), machine.applied()), (hash, applied));
            let txn = Command::Txn(txn);
            prop_assert_eq!(&read, &model.apply_once(1, None, &txn));
            prop_assert_eq!(&read, &machine.apply(Position { log_index, term: 1 }, &txn));
        }
    }
}

fn writes_nothing(txn: &TxnCommand) -> bool {
    fn reads(op: &Op) -> bool {
        match op {
            Op::Range(_) => true,
            Op::Txn(txn) => txn.success.iter().chain(&txn.failure).all(reads),
            Op::Put(_) | Op::DeleteRange(_) => false,
        }
    }
    txn.fence.is_none() && txn.success.iter().chain(&txn.failure).all(reads)
}

#[test]
fn a_transaction_with_a_fence_is_the_logs_to_judge() {
    let txn = TxnCommand { fence: Some(Fence { term: 1 }), ..TxnCommand::default() };
    assert_eq!(ReadTxn::of(txn.clone()), Err(txn));
}

#[test]
fn a_restored_state_goes_on_as_the_original_does() {
    let put = |key: &'static str, value: &'static str| {
        Command::Txn(TxnCommand::of(Op::Put(PutRequest {
            key: Bytes::from_static(key.as_bytes()),
            value: Bytes::from_static(value.as_bytes()),
            ..PutRequest::default()
        })))
    };
    let mut machine = StateMachine::new();
    let at = |log_index| Position { log_index, term: 1 };
    machine.apply(at(1), &put("a", "1"));
    machine.apply(at(2), &put("a", "2"));
    machine.apply(at(3), &put("b", "1"));
    machine.apply(at(4), &Command::Compact { revision: 3 });
    let bytes = machine.snapshot().write_all(&machine, Vec::new()).unwrap();
    let mut restored = StateMachine::restore(bytes.as_slice()).unwrap();
    for (log_index, command) in
        (5..).zip([put("a", "3"), put("c", "1"), Command::Compact { revision: 5 }, put("b", "2")])
    {
        assert_eq!(machine.apply(at(log_index), &command), restored.apply(at(log_index), &command));
        assert_eq!(machine.header(), restored.header());
    }
    // The first delta after a restore is the whole state.
    assert!(restored.take_dirty().full);
}

#[test]
fn a_snapshot_of_a_replaced_state_is_refused() {
    let machine = StateMachine::new();
    let mut snapshot = machine.snapshot();
    assert!(matches!(snapshot.read_chunk(&StateMachine::new(), 1), Err(SnapshotError::Superseded)));
}
