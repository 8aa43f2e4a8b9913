//! A state that goes on at a much later revision: what a restored copy is, so that nobody who followed the
//! original mistakes one for the other.

use crate::census::Census;
use crate::checkpoint::CheckpointTracking;
use crate::history::History;
use crate::key_index::KeyVersions;
use crate::machine::StateMachine;
use crate::mvcc::Keyspace;

impl StateMachine {
    /// Forgets all history, and goes on `by` revisions later; everything before cannot be read any more. Keys
    /// keep their versions and revisions; alarms, which speak of members that are no more, are cleared. Not
    /// for a state that others replicate: it changes without an entry in the log.
    pub fn advance_revision(&mut self, by: u64) {
        let revision = self.keyspace.revision.saturating_add(by);
        let mut keyspace = Keyspace::new();
        keyspace.revision = revision;
        keyspace.compact_revision = revision;
        keyspace.swept_revision = revision;
        keyspace.history = History::starting_at(revision + 1);
        for record in self.keyspace.index.iter().filter_map(KeyVersions::live) {
            keyspace.all.add(&record);
            let slot = keyspace.index.heap.push(&record);
            keyspace.index.append(&[slot]);
        }
        keyspace.census = Census::of(&keyspace.index);
        self.keyspace = keyspace;
        self.alarms.clear();
        self.drained_revision = revision;
        self.tracking = CheckpointTracking::default();
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use crate::{Command, Op, Outcome, Position, PutRequest, RangeRequest, StateMachine, TxnCommand};

    fn put(machine: &mut StateMachine, index: u64, key: &'static str, value: &'static str) -> u64 {
        let (key, value) = (Bytes::from_static(key.as_bytes()), Bytes::from_static(value.as_bytes()));
        let put = Op::Put(PutRequest { key, value, ..PutRequest::default() });
        let position = Position { log_index: index, term: 1 };
        match machine.apply(position, &Command::Txn(TxnCommand::of(put))) {
            Outcome::Txn(outcome) => outcome.revision,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn keys_stay_and_history_does_not() {
        let mut machine = StateMachine::new();
        put(&mut machine, 1, "a", "1");
        put(&mut machine, 2, "a", "2");
        let before = machine.revision();
        machine.advance_revision(1000);
        assert_eq!((machine.revision(), machine.compact_revision()), (before + 1000, before + 1000));
        let range =
            |revision| RangeRequest { key: Bytes::from_static(b"a"), revision, ..RangeRequest::default() };
        let found = machine.range(&range(0)).unwrap().kvs;
        assert_eq!((found[0].version, found[0].mod_revision, &*found[0].value), (2, before, &b"2"[..]));
        assert!(machine.range(&range(before)).is_err());
        assert_eq!(put(&mut machine, 3, "a", "3"), before + 1001);
        assert_eq!(machine.compact_revision(), before + 1000);
    }
}
