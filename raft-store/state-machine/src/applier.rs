//! The only writer of replicated state: one log entry in, one outcome out.
//!
//! Reads no clock, no randomness, nothing but the state and the entry. Whatever the command says, it ends in
//! an [`Outcome`]; a command that is refused changes nothing but the applied position.

use crate::command::{Alarm, AlarmAction, Command, Fence, LeaseRemaining, TxnCommand};
use crate::machine::StateMachine;
use crate::outcome::{ApplyError, Outcome, TxnOutcome};
use crate::revision::Position;
use crate::txn::{Run, Shape};

impl StateMachine {
    /// Applies the entry at `position`. Entries must come in the order of the log; one that was applied
    /// before is refused, and changes nothing.
    pub fn apply(&mut self, position: Position, command: &Command) -> Outcome {
        if let Err(error) = self.advance(position) {
            return Outcome::Rejected(error);
        }
        let outcome = match command {
            Command::Txn(txn) => self.txn(position, txn, true).map(Outcome::Txn),
            Command::Batch(txns) => {
                Ok(Outcome::Batch(txns.iter().map(|txn| self.txn(position, txn, txns.len() == 1)).collect()))
            }
            Command::Compact { revision } => self.compact(*revision),
            Command::LeaseGrant { id, ttl_seconds } => self.lease_grant(*id, *ttl_seconds),
            Command::LeaseRevoke { id, fence } => self.lease_revoke(position, *id, *fence),
            Command::LeaseCheckpoint { fence, remaining } => {
                self.lease_checkpoint(position, *fence, remaining)
            }
            Command::Alarm { action, alarm } => Ok(self.alarm(*action, *alarm)),
        };
        outcome.unwrap_or_else(Outcome::Rejected)
    }

    /// Passes over an entry that holds no command (a blank one, or one about membership).
    pub fn skip(&mut self, position: Position) {
        // An entry that was passed over before needs nothing.
        let _ = self.advance(position);
    }

    fn advance(&mut self, position: Position) -> Result<(), ApplyError> {
        if let Some(applied) = self.applied
            && position.log_index <= applied.log_index
        {
            let (log_index, applied_index) = (position.log_index, applied.log_index);
            return Err(ApplyError::AlreadyApplied { log_index, applied_index });
        }
        self.applied = Some(position);
        Ok(())
    }

    fn txn(&mut self, position: Position, txn: &TxnCommand, alone: bool) -> Result<TxnOutcome, ApplyError> {
        if txn.fence.is_some_and(|fence| fence.term != position.term) {
            let revision = self.keyspace.revision;
            return Ok(TxnOutcome { revision, fenced: true, ..TxnOutcome::default() });
        }
        let shape = Shape::of(txn)?;
        if shape.puts > 0 && self.is_out_of_space() {
            return Err(ApplyError::NoSpace);
        }
        Run::new(&mut self.keyspace, &mut self.leases, alone && shape.puts == 1).txn(txn)
    }

    fn compact(&mut self, revision: u64) -> Result<Outcome, ApplyError> {
        self.keyspace.compact(revision)?;
        Ok(Outcome::Compacted { compact_revision: revision, revision: self.keyspace.revision })
    }

    fn lease_grant(&mut self, id: i64, ttl_seconds: i64) -> Result<Outcome, ApplyError> {
        if self.is_out_of_space() {
            return Err(ApplyError::NoSpace);
        }
        self.leases.grant(id, ttl_seconds)?;
        Ok(Outcome::LeaseGranted { id, ttl_seconds, revision: self.keyspace.revision })
    }

    fn lease_revoke(
        &mut self,
        position: Position,
        id: i64,
        fence: Option<Fence>,
    ) -> Result<Outcome, ApplyError> {
        check_fence(position, fence)?;
        let keys = self.leases.revoke(id)?;
        let (revision, deleted) = Run::new(&mut self.keyspace, &mut self.leases, false).delete_keys(&keys);
        Ok(Outcome::LeaseRevoked { revision, deleted })
    }

    fn lease_checkpoint(
        &mut self,
        position: Position,
        fence: Option<Fence>,
        remaining: &[LeaseRemaining],
    ) -> Result<Outcome, ApplyError> {
        check_fence(position, fence)?;
        for lease in remaining {
            self.leases.checkpoint(lease.id, lease.remaining_ttl_seconds);
        }
        Ok(Outcome::LeaseCheckpointed)
    }

    fn alarm(&mut self, action: AlarmAction, alarm: Alarm) -> Outcome {
        match action {
            AlarmAction::Activate => self.alarms.insert(alarm),
            AlarmAction::Deactivate => self.alarms.remove(&alarm),
        };
        Outcome::Alarms(self.alarms.iter().copied().collect())
    }
}

fn check_fence(position: Position, fence: Option<Fence>) -> Result<(), ApplyError> {
    match fence {
        Some(fence) if fence.term != position.term => {
            Err(ApplyError::Fenced { fence_term: fence.term, entry_term: position.term })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::command::{Op, PutRequest};
    use crate::outcome::OpResult;

    fn put(key: &str, value: &str) -> TxnCommand {
        TxnCommand::of(Op::Put(PutRequest {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::copy_from_slice(value.as_bytes()),
            prev_kv: true,
            ..PutRequest::default()
        }))
    }

    fn at(log_index: u64) -> Position {
        Position { log_index, term: 1 }
    }

    #[test]
    fn the_first_write_is_revision_two_and_each_write_counts_on() {
        let mut machine = StateMachine::new();
        assert_eq!(machine.revision(), 1);
        let Outcome::Txn(first) = machine.apply(at(1), &Command::Txn(put("a", "1"))) else { panic!() };
        assert_eq!((first.revision, first.results), (2, vec![OpResult::Put { prev_kv: None }]));
        machine.skip(at(2));
        let Outcome::Txn(second) = machine.apply(at(3), &Command::Txn(put("a", "2"))) else { panic!() };
        assert_eq!(second.revision, 3);
        let a = machine.get(b"a").unwrap();
        assert_eq!((a.version, a.create_revision, a.mod_revision), (2, 2, 3));
        assert_eq!(machine.applied(), Some(at(3)));
    }

    #[test]
    fn a_write_of_a_deposed_leader_loses_inside_the_log() {
        let mut machine = StateMachine::new();
        let txn = TxnCommand { fence: Some(Fence { term: 4 }), ..put("bind", "x") };
        let entry = Position { log_index: 1, term: 5 };
        let Outcome::Txn(outcome) = machine.apply(entry, &Command::Txn(txn.clone())) else { panic!() };
        assert!(outcome.fenced && !outcome.succeeded && outcome.results.is_empty());
        assert!(machine.get(b"bind").is_none());
        let entry = Position { log_index: 2, term: 4 };
        let Outcome::Txn(outcome) = machine.apply(entry, &Command::Txn(txn)) else { panic!() };
        assert!(!outcome.fenced && machine.get(b"bind").is_some());
    }

    #[test]
    fn an_entry_applied_twice_changes_nothing() {
        let mut machine = StateMachine::new();
        machine.apply(at(7), &Command::Txn(put("a", "1")));
        let hash = machine.state_hash();
        let again = machine.apply(at(7), &Command::Txn(put("a", "2")));
        assert_eq!(again, Outcome::Rejected(ApplyError::AlreadyApplied { log_index: 7, applied_index: 7 }));
        assert_eq!(machine.state_hash(), hash);
    }

    #[test]
    fn used_up_space_refuses_puts_and_takes_deletions() {
        use crate::command::{AlarmKind, DeleteRangeRequest};
        let mut machine = StateMachine::new();
        machine.apply(at(1), &Command::Txn(put("a", "1")));
        let alarm = Alarm { kind: AlarmKind::NoSpace, member_id: 3 };
        machine.apply(at(2), &Command::Alarm { action: AlarmAction::Activate, alarm });
        assert_eq!(
            machine.apply(at(3), &Command::Txn(put("b", "1"))),
            Outcome::Rejected(ApplyError::NoSpace)
        );
        assert_eq!(
            machine.apply(at(4), &Command::LeaseGrant { id: 1, ttl_seconds: 9 }),
            Outcome::Rejected(ApplyError::NoSpace)
        );
        let delete = DeleteRangeRequest { key: Bytes::from_static(b"a"), ..Default::default() };
        machine.apply(at(5), &Command::Txn(TxnCommand::of(Op::DeleteRange(delete))));
        assert!(machine.get(b"a").is_none());
        machine.apply(at(6), &Command::Alarm { action: AlarmAction::Deactivate, alarm });
        machine.apply(at(7), &Command::Txn(put("b", "1")));
        assert!(machine.get(b"b").is_some());
    }
}
