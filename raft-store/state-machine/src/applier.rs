//! The only writer of replicated state: one log entry in, one outcome out.
//!
//! Reads no clock, no randomness, nothing but the state and the entry. Whatever the command says, it ends in
//! an [`Outcome`]; a command that is refused changes nothing but the applied position.

use crate::auth_command::{AuthCommand, AuthError};
use crate::command::{Alarm, AlarmAction, Command, Fence, LeaseRemaining, TxnCommand};
use crate::envelope::{Envelope, RequestId};
use crate::machine::StateMachine;
use crate::outcome::{ApplyError, Outcome, TxnOutcome};
use crate::requests::Known;
use crate::revision::Position;
use crate::txn::{Run, Shape};

impl StateMachine {
    /// Applies a member's own command from the entry at `position`. Entries must come in the order of the
    /// log; one that was applied before is refused, and changes nothing.
    pub fn apply(&mut self, position: Position, command: &Command) -> Outcome {
        match self.advance(position) {
            Ok(()) => self.perform(position, command),
            Err(error) => Outcome::Rejected(error),
        }
    }

    /// Applies the entry at `position`: each command in its author's name, in turn, each once for its
    /// request id. One outcome for each.
    pub fn apply_all(&mut self, position: Position, envelopes: &[Envelope]) -> Vec<Outcome> {
        if let Err(error) = self.advance(position) {
            return vec![Outcome::Rejected(error); envelopes.len()];
        }
        envelopes.iter().map(|envelope| self.apply_one(position, envelope)).collect()
    }

    /// The same for an entry of one command.
    pub fn apply_envelope(&mut self, position: Position, envelope: &Envelope) -> Outcome {
        match self.advance(position) {
            Ok(()) => self.apply_one(position, envelope),
            Err(error) => Outcome::Rejected(error),
        }
    }

    fn apply_one(&mut self, position: Position, envelope: &Envelope) -> Outcome {
        let Envelope { author, request_id, command } = envelope;
        let user = author.as_ref().map_or("", |author| author.user.as_str());
        // Before permissions are looked at: whoever asks what became of an earlier request must not be told
        // that it was refused.
        let known = request_id.as_ref().map_or(Known::New, |id| self.requests.look(id, user));
        if let Some(answer) = answer(known, request_id.as_ref()) {
            return answer;
        }
        if let Some(author) = author
            && let Err(error) = self.authorize(author, command)
        {
            // Not kept: with new permissions, or a new token, the same request may be sent again.
            return Outcome::Rejected(error.into());
        }
        let outcome = self.perform(position, command);
        if let Some(id) = request_id {
            self.requests.keep(position.log_index, id, user, outcome.encode());
        }
        outcome
    }

    fn perform(&mut self, position: Position, command: &Command) -> Outcome {
        let outcome = match command {
            Command::Txn(txn) => self.txn(position, txn).map(Outcome::Txn),
            Command::Batch(txns) => {
                Ok(Outcome::Batch(txns.iter().map(|txn| self.txn(position, txn)).collect()))
            }
            Command::Compact { revision } => self.compact(*revision),
            Command::LeaseGrant { id, ttl_seconds } => self.lease_grant(*id, *ttl_seconds),
            Command::LeaseRevoke { id, fence } => self.lease_revoke(position, *id, *fence),
            Command::LeaseCheckpoint { fence, remaining } => {
                self.lease_checkpoint(position, *fence, remaining)
            }
            Command::Alarm { action, alarm } => Ok(self.alarm(*action, *alarm)),
            Command::Auth(command) => self.change_auth(command),
            Command::Version(command) => {
                self.versions.apply(command);
                Ok(Outcome::Version { cluster: self.versions.cluster })
            }
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

    fn txn(&mut self, position: Position, txn: &TxnCommand) -> Result<TxnOutcome, ApplyError> {
        if txn.fence.is_some_and(|fence| fence.term != position.term) {
            let revision = self.keyspace.revision;
            return Ok(TxnOutcome { revision, fenced: true, ..TxnOutcome::default() });
        }
        let shape = Shape::of(txn)?;
        self.must_be_sound()?;
        if shape.puts > 0 && self.is_out_of_space() {
            return Err(ApplyError::NoSpace);
        }
        Run::new(&mut self.keyspace, &mut self.leases).txn(txn)
    }

    fn compact(&mut self, revision: u64) -> Result<Outcome, ApplyError> {
        self.must_be_sound()?;
        self.keyspace.compact(revision)?;
        Ok(Outcome::Compacted { compact_revision: revision, revision: self.keyspace.revision })
    }

    fn lease_grant(&mut self, id: i64, ttl_seconds: i64) -> Result<Outcome, ApplyError> {
        self.must_be_sound()?;
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
        self.must_be_sound()?;
        let keys = self.leases.revoke(id)?;
        let (revision, deleted) = Run::new(&mut self.keyspace, &mut self.leases).delete_keys(&keys);
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

    pub(crate) fn must_be_sound(&self) -> Result<(), ApplyError> {
        if self.is_corrupt() { Err(ApplyError::Corrupt) } else { Ok(()) }
    }

    fn change_auth(&mut self, command: &AuthCommand) -> Result<Outcome, ApplyError> {
        self.auth.apply(command)?;
        let (revision, auth_revision) = (self.keyspace.revision, self.auth.revision());
        Ok(Outcome::AuthChanged { revision, auth_revision })
    }

    fn alarm(&mut self, action: AlarmAction, alarm: Alarm) -> Outcome {
        match action {
            AlarmAction::Activate => self.alarms.insert(alarm),
            AlarmAction::Deactivate => self.alarms.remove(&alarm),
        };
        Outcome::Alarms(self.alarms.iter().copied().collect())
    }
}

/// The answer to a request that is not new.
fn answer(known: Known, id: Option<&RequestId>) -> Option<Outcome> {
    let sequence = id.map_or(0, |id| id.sequence);
    let forgotten = Outcome::Rejected(ApplyError::RequestForgotten { sequence });
    match known {
        Known::New => None,
        // What cannot be read any more was written by another version: as good as forgotten.
        Known::Before(bytes) => Some(Outcome::decode(bytes).unwrap_or(forgotten)),
        Known::Forgotten => Some(forgotten),
        Known::OfAnother => Some(Outcome::Rejected(AuthError::PermissionDenied.into())),
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
