//! Transactions: judged whole before anything is written, then run without a way to fail.
//!
//! As in etcd, every compare, nested ones too, looks at the state before the transaction began; ranges
//! inside see what the transaction wrote before them; no key is written twice (a put that meets another put
//! or a deletion of the same key, other than in the opposite branch of one nested transaction, is refused).
//!
//! [`Run`] carries transactions out and is the applier's; [`read`] answers those that only read, from a state
//! that it cannot change. Both judge with one [`View`] and walk the operations with one [`Perform`].

use std::collections::BTreeSet;
use std::vec::IntoIter;

use bytes::Bytes;

use crate::command::{
    Compare, CompareTarget, DeleteRangeRequest, NestedTxn, Op, PutRequest, RangeRequest, TxnCommand,
};
use crate::key_range::KeyRange;
use crate::lease::{LEASE_NONE, Leases};
use crate::mvcc::{Keyspace, Write};
use crate::outcome::{ApplyError, OpResult, TxnOutcome};
use crate::record::RecordRef;

/// How deep transactions may nest, the outermost counting as one.
pub const TXN_DEPTH_MAX: usize = 8;

/// How many operations and compares a transaction may have, in all branches together.
pub const TXN_OPS_MAX: usize = 8192;

/// What a transaction is, found out without looking at the state.
#[derive(Debug, Default)]
pub(crate) struct Shape {
    /// Puts in all branches.
    pub(crate) puts: usize,
    /// Operations and compares in all branches.
    ops: usize,
    nested: bool,
}

impl Shape {
    /// Counts a transaction's parts and checks everything that does not depend on the state.
    pub(crate) fn of(txn: &TxnCommand) -> Result<Self, ApplyError> {
        let mut shape = Self::default();
        shape.visit(&txn.compares, [&txn.success, &txn.failure], 1)?;
        // One writing operation in a branch cannot meet another.
        if shape.nested || txn.success.len() > 1 || txn.failure.len() > 1 {
            written_keys(&txn.success)?;
            written_keys(&txn.failure)?;
        }
        Ok(shape)
    }

    fn visit(
        &mut self,
        compares: &[Compare],
        branches: [&Vec<Op>; 2],
        depth: usize,
    ) -> Result<(), ApplyError> {
        if depth > TXN_DEPTH_MAX {
            return Err(ApplyError::TooDeep { depth_max: TXN_DEPTH_MAX });
        }
        self.ops += compares.len() + branches[0].len() + branches[1].len();
        if self.ops > TXN_OPS_MAX {
            return Err(ApplyError::TooManyOps { ops_max: TXN_OPS_MAX });
        }
        for op in branches.into_iter().flatten() {
            match op {
                Op::Put(put) => {
                    self.puts += 1;
                    check_put(put)?;
                }
                Op::Txn(txn) => {
                    self.nested = true;
                    self.visit(&txn.compares, [&txn.success, &txn.failure], depth + 1)?;
                }
                Op::Range(_) | Op::DeleteRange(_) => {}
            }
        }
        Ok(())
    }
}

fn check_put(put: &PutRequest) -> Result<(), ApplyError> {
    if put.key.is_empty() {
        return Err(ApplyError::EmptyKey);
    }
    if put.ignore_value && !put.value.is_empty() {
        return Err(ApplyError::ValueProvided);
    }
    if put.ignore_lease && put.lease != LEASE_NONE {
        return Err(ApplyError::LeaseProvided);
    }
    Ok(())
}

/// The keys that a list of operations puts and the ranges that it deletes.
#[derive(Debug, Default)]
struct WrittenKeys<'a> {
    puts: BTreeSet<&'a [u8]>,
    deletes: Vec<KeyRange<'a>>,
}

impl<'a> WrittenKeys<'a> {
    fn of(op: &'a Op) -> Result<Self, ApplyError> {
        let mut written = Self::default();
        match op {
            Op::Put(put) => {
                written.puts.insert(&put.key);
            }
            Op::DeleteRange(delete) => {
                written.deletes.push(KeyRange::of(&delete.key, &delete.range_end));
            }
            Op::Range(_) => {}
            Op::Txn(txn) => {
                // Only one of the branches runs, so they cannot meet.
                written = written_keys(&txn.success)?;
                let other = written_keys(&txn.failure)?;
                written.puts.extend(other.puts);
                written.deletes.extend(other.deletes);
            }
        }
        Ok(written)
    }

    /// Adds what another operation of the same list writes, unless the two meet.
    fn join(&mut self, other: Self) -> Result<(), ApplyError> {
        let meets = |puts: &BTreeSet<&[u8]>, deletes: &[KeyRange<'_>]| {
            let bounds = deletes.iter().filter_map(|range| range.bounds());
            bounds.into_iter().any(|bounds| puts.range::<[u8], _>(bounds).next().is_some())
        };
        let twice = other.puts.iter().any(|key| self.puts.contains(key));
        if twice || meets(&self.puts, &other.deletes) || meets(&other.puts, &self.deletes) {
            return Err(ApplyError::DuplicateKey);
        }
        self.puts.extend(other.puts);
        self.deletes.extend(other.deletes);
        Ok(())
    }
}

fn written_keys(ops: &[Op]) -> Result<WrittenKeys<'_>, ApplyError> {
    let mut written = WrittenKeys::default();
    for op in ops {
        written.join(WrittenKeys::of(op)?)?;
    }
    Ok(written)
}

/// A transaction that writes nothing in either branch, nested ones included, and names no term: reading the
/// state answers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadTxn(TxnCommand);

impl ReadTxn {
    /// The transaction as one that only reads.
    ///
    /// # Errors
    /// The transaction itself, if it could write, or has a fence, which only the log can judge.
    pub fn of(txn: TxnCommand) -> Result<Self, TxnCommand> {
        fn reads(ops: &[Op]) -> bool {
            ops.iter().all(|op| match op {
                Op::Range(_) => true,
                Op::Put(_) | Op::DeleteRange(_) => false,
                Op::Txn(txn) => reads(&txn.success) && reads(&txn.failure),
            })
        }
        let only_reads = txn.fence.is_none() && reads(&txn.success) && reads(&txn.failure);
        if only_reads { Ok(Self(txn)) } else { Err(txn) }
    }

    /// The transaction.
    pub fn txn(&self) -> &TxnCommand {
        &self.0
    }
}

/// The state that transactions are judged by.
#[derive(Clone, Copy)]
struct View<'a> {
    keyspace: &'a Keyspace,
    leases: &'a Leases,
}

impl View<'_> {
    /// Decides a transaction and those nested in the branch that it takes, in the order in which they are
    /// performed; checks everything that depends on the state.
    fn plan(self, txn: &TxnCommand) -> Result<(bool, IntoIter<bool>), ApplyError> {
        let succeeded = self.holds(&txn.compares);
        let mut nested = Vec::new();
        self.plan_ops(if succeeded { &txn.success } else { &txn.failure }, &mut nested)?;
        Ok((succeeded, nested.into_iter()))
    }

    fn plan_ops(self, ops: &[Op], nested: &mut Vec<bool>) -> Result<(), ApplyError> {
        for op in ops {
            match op {
                Op::Put(put) => {
                    if (put.ignore_value || put.ignore_lease) && self.keyspace.get(&put.key).is_none() {
                        return Err(ApplyError::KeyNotFound);
                    }
                    if put.lease != LEASE_NONE && !self.leases.contains(put.lease) {
                        return Err(ApplyError::LeaseNotFound { id: put.lease });
                    }
                }
                Op::Range(range) => self.keyspace.check_revision(range.revision)?,
                Op::DeleteRange(_) => {}
                Op::Txn(txn) => {
                    let holds = self.holds(&txn.compares);
                    nested.push(holds);
                    self.plan_ops(if holds { &txn.success } else { &txn.failure }, nested)?;
                }
            }
        }
        Ok(())
    }

    fn holds(self, compares: &[Compare]) -> bool {
        compares.iter().all(|compare| self.compare_holds(compare))
    }

    fn compare_holds(self, compare: &Compare) -> bool {
        match KeyRange::of(&compare.key, &compare.range_end) {
            KeyRange::One(key) => record_holds(compare, self.keyspace.get(key)),
            range => {
                let mut found = self.keyspace.live_in(range).peekable();
                if found.peek().is_none() {
                    return record_holds(compare, None);
                }
                found.all(|record| record_holds(compare, Some(record)))
            }
        }
    }
}

/// Walks through the operations of a transaction that was planned.
trait Perform {
    fn put(&mut self, put: &PutRequest) -> OpResult;
    fn range(&mut self, range: &RangeRequest) -> OpResult;
    fn delete_range(&mut self, delete: &DeleteRangeRequest) -> OpResult;

    fn perform(&mut self, ops: &[Op], nested: &mut IntoIter<bool>) -> Vec<OpResult> {
        let mut results = Vec::with_capacity(ops.len());
        for op in ops {
            results.push(match op {
                Op::Put(put) => self.put(put),
                Op::Range(range) => self.range(range),
                Op::DeleteRange(delete) => self.delete_range(delete),
                Op::Txn(txn) => self.nested_txn(txn, nested),
            });
        }
        results
    }

    fn nested_txn(&mut self, txn: &NestedTxn, nested: &mut IntoIter<bool>) -> OpResult {
        let succeeded = nested.next().expect("plan decided every nested transaction that is performed");
        let ops = if succeeded { &txn.success } else { &txn.failure };
        OpResult::Txn { succeeded, results: self.perform(ops, nested) }
    }
}

/// Answers a transaction whose [`Shape`] was checked.
pub(crate) fn read(keyspace: &Keyspace, leases: &Leases, txn: &ReadTxn) -> Result<TxnOutcome, ApplyError> {
    let (succeeded, mut nested) = View { keyspace, leases }.plan(&txn.0)?;
    let ops = if succeeded { &txn.0.success } else { &txn.0.failure };
    let results = Reading(keyspace).perform(ops, &mut nested);
    Ok(TxnOutcome { revision: keyspace.revision, succeeded, fenced: false, results })
}

/// The state that a transaction reads.
struct Reading<'a>(&'a Keyspace);

impl Perform for Reading<'_> {
    fn put(&mut self, _: &PutRequest) -> OpResult {
        unreachable!("a ReadTxn holds no put")
    }

    fn range(&mut self, range: &RangeRequest) -> OpResult {
        OpResult::Range(self.0.range(range, self.0.revision))
    }

    fn delete_range(&mut self, _: &DeleteRangeRequest) -> OpResult {
        unreachable!("a ReadTxn holds no deletion")
    }
}

/// The state that a transaction works on.
pub(crate) struct Run<'a> {
    keyspace: &'a mut Keyspace,
    leases: &'a mut Leases,
    /// The revision that the transaction gets if it changes something.
    main: u64,
    changed: bool,
}

impl<'a> Run<'a> {
    pub(crate) fn new(keyspace: &'a mut Keyspace, leases: &'a mut Leases) -> Self {
        let main = keyspace.revision + 1;
        Self { keyspace, leases, main, changed: false }
    }

    /// Runs a transaction whose [`Shape`] was checked.
    pub(crate) fn txn(mut self, txn: &TxnCommand) -> Result<TxnOutcome, ApplyError> {
        let view = View { keyspace: self.keyspace, leases: self.leases };
        let (succeeded, mut nested) = view.plan(txn)?;
        let ops = if succeeded { &txn.success } else { &txn.failure };
        let results = self.perform(ops, &mut nested);
        Ok(TxnOutcome { revision: self.finish(), succeeded, fenced: false, results })
    }

    /// Deletes these keys; returns the revision afterwards and how many there were.
    pub(crate) fn delete_keys(mut self, keys: &BTreeSet<Bytes>) -> (u64, u64) {
        let mut deleted = 0;
        for key in keys {
            deleted += self.delete(KeyRange::One(key), |_| {});
        }
        (self.finish(), deleted)
    }

    fn finish(self) -> u64 {
        if self.changed {
            self.keyspace.revision = self.main;
        }
        self.keyspace.revision
    }

    fn delete(&mut self, range: KeyRange<'_>, mut deleted: impl FnMut(RecordRef<'_>)) -> u64 {
        let mut count = 0;
        let leases = &mut *self.leases;
        self.keyspace.delete(self.main, range, |prev| {
            leases.detach(prev.lease, prev.key);
            deleted(prev);
            count += 1;
        });
        self.changed |= count > 0;
        count
    }
}

impl Perform for Run<'_> {
    fn put(&mut self, put: &PutRequest) -> OpResult {
        let value = (!put.ignore_value).then_some(put.value.as_ref());
        let lease = (!put.ignore_lease).then_some(put.lease);
        let prev = self.keyspace.put(Write { main: self.main, key: &put.key, value, lease });
        self.changed = true;
        let lease_before = prev.map_or(LEASE_NONE, |prev| prev.lease);
        let lease = lease.unwrap_or(lease_before);
        if lease != lease_before {
            self.leases.detach(lease_before, &put.key);
            self.leases.attach(lease, Bytes::copy_from_slice(&put.key));
        }
        let prev = prev.filter(|_| put.prev_kv);
        OpResult::Put { prev_kv: prev.map(|prev| self.keyspace.index.heap.view(prev.slot).to_record()) }
    }

    fn range(&mut self, range: &RangeRequest) -> OpResult {
        let revision = if self.changed { self.main } else { self.keyspace.revision };
        OpResult::Range(self.keyspace.range(range, revision))
    }

    fn delete_range(&mut self, delete: &DeleteRangeRequest) -> OpResult {
        let mut prev_kvs = Vec::new();
        let deleted = self.delete(KeyRange::of(&delete.key, &delete.range_end), |prev| {
            if delete.prev_kv {
                prev_kvs.push(prev.to_record());
            }
        });
        OpResult::DeleteRange { deleted, prev_kvs }
    }
}

/// Whether a compare holds for a key's newest version, or for its absence.
fn record_holds(compare: &Compare, record: Option<RecordRef<'_>>) -> bool {
    let number = |of: fn(RecordRef<'_>) -> u64| record.map_or(0, of);
    let ordering = match &compare.target {
        CompareTarget::Version(operand) => number(|record| record.version).cmp(operand),
        CompareTarget::CreateRevision(operand) => number(|record| record.create_revision).cmp(operand),
        CompareTarget::ModRevision(operand) => number(|record| record.mod_revision).cmp(operand),
        CompareTarget::Lease(operand) => record.map_or(LEASE_NONE, |record| record.lease).cmp(operand),
        // An absent value is no value, not an empty one.
        CompareTarget::Value(operand) => match record {
            Some(record) => record.value.cmp(operand.as_ref()),
            None => return false,
        },
    };
    compare.result.holds(ordering)
}
