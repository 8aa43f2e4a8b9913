//! Thousands of keys with values of all sizes, written, deleted, compacted and trimmed for long: enough for chunks to
//! split and join, and for blocks to be emptied. Every answer is a plain map's.

use std::collections::BTreeMap;

use bytes::Bytes;
use state_machine::*;

/// The same numbers in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// A machine, and what its keys were at some revisions.
struct Pair {
    machine: StateMachine,
    log_index: u64,
    now: BTreeMap<Bytes, Bytes>,
    then: BTreeMap<u64, BTreeMap<Bytes, Bytes>>,
}

impl Pair {
    fn apply(&mut self, command: &Command) {
        self.log_index += 1;
        let outcome = self.machine.apply(Position { log_index: self.log_index, term: 1 }, command);
        assert!(!matches!(outcome, Outcome::Rejected(_)), "{outcome:?}");
    }

    fn put(&mut self, key: Bytes, value: Bytes) {
        let put = PutRequest { key: key.clone(), value: value.clone(), ..PutRequest::default() };
        self.apply(&Command::Txn(TxnCommand::of(Op::Put(put))));
        self.now.insert(key, value);
    }

    fn delete(&mut self, from: Bytes, to: Bytes) {
        let gone: Vec<Bytes> = self.now.range(from.clone()..to.clone()).map(|(key, _)| key.clone()).collect();
        gone.iter().for_each(|key| drop(self.now.remove(key)));
        let delete = DeleteRangeRequest { key: from, range_end: to, prev_kv: false };
        self.apply(&Command::Txn(TxnCommand::of(Op::DeleteRange(delete))));
    }

    fn compact(&mut self, revision: u64) {
        self.apply(&Command::Compact { revision });
        self.then.retain(|then, _| *then >= revision);
    }

    fn check(&self) {
        for (revision, keys) in self.then.iter().chain([(&0, &self.now)]) {
            let all = RangeRequest {
                key: Bytes::from_static(b"\0"),
                range_end: Bytes::from_static(b"\0"),
                revision: *revision,
                ..RangeRequest::default()
            };
            let found = self.machine.range(&all).unwrap();
            let found = found.kvs.iter().map(|record| (&record.key, &record.value));
            assert!(found.eq(keys), "at revision {revision}");
            let count = self.machine.range(&RangeRequest { count_only: true, ..all }).unwrap().count;
            assert_eq!(count, keys.len() as u64);
        }
        for (key, value) in self.now.iter().step_by(7) {
            assert_eq!(self.machine.get(key).unwrap().value, value);
        }
        let bytes = self.machine.snapshot().write_all(&self.machine, Vec::new()).unwrap();
        let restored = StateMachine::restore(&bytes[..]).unwrap();
        assert_eq!(restored.header(), self.machine.header());
        let events = |machine: &StateMachine| {
            let events = machine.events_since(machine.compact_revision().max(1), usize::MAX).unwrap();
            events.map(|events| events.to_batch()).collect::<Vec<_>>()
        };
        assert!(events(&restored) == events(&self.machine));
    }
}

#[test]
fn a_long_life_leaves_every_answer_right() {
    let mut random = Random(1);
    let (machine, log_index) = (StateMachine::new(), 0);
    let mut pair = Pair { machine, log_index, now: BTreeMap::new(), then: BTreeMap::new() };
    let key = |number: u64| Bytes::from(format!("/registry/pods/{number:06}"));
    for round in 0..6 {
        for _ in 0..2500 {
            let number = random.below(4000);
            match random.below(100) {
                0 => pair.delete(key(number), key(number + 200)),
                1..20 => pair.delete(key(number), key(number + 1)),
                20 => pair.put(key(number), vec![random.below(256) as u8; 30_000].into()),
                _ => pair.put(key(number), vec![random.below(256) as u8; random.below(900) as usize].into()),
            }
        }
        pair.then.insert(pair.machine.revision(), pair.now.clone());
        if round % 3 == 2 {
            let revision = *pair.then.keys().nth(1).unwrap();
            pair.compact(revision);
        }
        pair.machine.discard_events();
        pair.check();
        while pair.machine.trim(500) {}
        pair.check();
    }
    // Everything goes, and the state is as small as at first.
    pair.delete(key(0), key(9999));
    pair.put(key(1), Bytes::new());
    pair.compact(pair.machine.revision());
    pair.machine.discard_events();
    while pair.machine.trim(500) {}
    pair.check();
    assert!(pair.machine.records() == 1 && pair.machine.is_trimmed());
}
