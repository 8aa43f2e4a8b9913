//! The store's size limit: who watches it, and what happens at it.
//!
//! As in etcd, the member that takes a request in compares it with its own quota before proposing it. A
//! request that does not fit raises the alarm NOSPACE, which every member then obeys, and is refused. What
//! frees space, and what takes none, stays possible: deletions, compaction, reads, revocations, and clearing
//! the alarm. Space comes back with compaction, without anything like a defragmentation.

use state_machine::{
    Alarm, AlarmAction, AlarmKind, ApplyError, Command, Op, Outcome, RECORD_OVERHEAD_BYTES, TxnCommand,
};

use crate::store::Store;

/// etcd's default.
const QUOTA_BYTES_DEFAULT: u64 = 2 * 1024 * 1024 * 1024;

/// The answer to a command for which there is no room.
pub(crate) fn refusal() -> Outcome {
    Outcome::Rejected(ApplyError::NoSpace)
}

/// How much a command can add, at most; 0 for one that takes no space.
pub(crate) fn cost(command: &Command) -> u64 {
    match command {
        Command::Txn(txn) => txn_cost(txn),
        Command::Batch(txns) => txns.iter().map(txn_cost).sum(),
        Command::LeaseGrant { .. } => RECORD_OVERHEAD_BYTES,
        _ => 0,
    }
}

fn txn_cost(txn: &TxnCommand) -> u64 {
    ops_cost(&txn.success).max(ops_cost(&txn.failure))
}

fn ops_cost(ops: &[Op]) -> u64 {
    let cost = |op: &Op| match op {
        Op::Put(put) => (put.key.len() + put.value.len()) as u64 + RECORD_OVERHEAD_BYTES,
        Op::Txn(txn) => ops_cost(&txn.success).max(ops_cost(&txn.failure)),
        Op::Range(_) | Op::DeleteRange(_) => 0,
    };
    ops.iter().map(cost).sum()
}

impl Store {
    /// The limit in bytes; `None`: there is none.
    pub fn quota_bytes(&self) -> Option<u64> {
        match self.config().quota_bytes {
            0 => Some(QUOTA_BYTES_DEFAULT),
            bytes => u64::try_from(bytes).ok(),
        }
    }

    /// Bytes that the state takes of the quota; see `StateMachine::bytes_in_use`.
    pub fn bytes_in_use(&self) -> u64 {
        self.gauges().bytes_in_use()
    }

    /// The refusal of a command for which there is no room; raises the alarm if it is not raised yet.
    pub(crate) async fn refuse_beyond_quota(&self, command: &Command) -> Option<Outcome> {
        let quota = self.quota_bytes()?;
        let cost = cost(command);
        if cost == 0 || self.bytes_in_use().saturating_add(cost) <= quota {
            return None;
        }
        let raised = self.read_state(|machine| machine.is_out_of_space());
        if !raised {
            tracing::warn!(quota, in_use = self.bytes_in_use(), "the quota is used up: raising NOSPACE");
            let alarm = Alarm { kind: AlarmKind::NoSpace, member_id: self.member_id() };
            let raise = Command::Alarm { action: AlarmAction::Activate, alarm };
            // Boxed: an alarm costs nothing, so this goes one step deep.
            if let Err(error) = Box::pin(self.propose(&raise)).await {
                tracing::warn!(%error, "cannot raise NOSPACE now; the write is refused all the same");
            }
        }
        Some(refusal())
    }
}
