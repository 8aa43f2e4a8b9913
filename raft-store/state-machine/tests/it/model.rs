//! etcd's rules written down as simply as possible: a list of everything that ever happened, searched from
//! the start for every question.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use state_machine::*;

use crate::auth_model::AuthModel;

#[derive(Debug, Default, Clone)]
pub(crate) struct Model {
    /// Every version of every key in the order of writing, tombstones included. Never shortened.
    pub(crate) log: Vec<KeyValue>,
    pub(crate) revision: u64,
    pub(crate) compact_revision: u64,
    leases: BTreeMap<i64, (i64, i64)>,
    alarms: BTreeSet<Alarm>,
    pub(crate) auth: AuthModel,
    cluster: u32,
    supported: BTreeMap<u64, u32>,
    /// Outcomes of requests with an id.
    requests: BTreeMap<RequestId, Outcome>,
}

fn covers(key: &[u8], range_end: &[u8], candidate: &[u8]) -> bool {
    match range_end {
        [] => candidate == key,
        [0] => candidate >= key,
        end => candidate >= key && candidate < end,
    }
}

fn record(kv: &KeyValue) -> Arc<Record> {
    Arc::new(Record::detached(kv.clone()))
}

impl Model {
    pub(crate) fn new() -> Self {
        Self { revision: 1, cluster: 1, ..Self::default() }
    }

    pub(crate) fn apply_once(&mut self, term: u64, id: Option<RequestId>, command: &Command) -> Outcome {
        let Some(id) = id else { return self.apply(term, command) };
        if let Some(outcome) = self.requests.get(&id) {
            return outcome.clone();
        }
        let outcome = self.apply(term, command);
        self.requests.insert(id, outcome.clone());
        outcome
    }

    /// All keys as they were at `revision`.
    pub(crate) fn view(&self, revision: u64) -> BTreeMap<Bytes, KeyValue> {
        let mut view = BTreeMap::new();
        for kv in self.log.iter().filter(|kv| kv.mod_revision <= revision) {
            if kv.is_tombstone() {
                view.remove(&kv.key);
            } else {
                view.insert(kv.key.clone(), kv.clone());
            }
        }
        view
    }

    pub(crate) fn range(&self, request: &RangeRequest, revision: u64) -> Result<RangeResponse, ReadError> {
        self.check(request.revision)?;
        let at = if request.revision == 0 { u64::MAX } else { request.revision };
        let mut kvs: Vec<_> = self.view(at).into_values().collect();
        kvs.retain(|kv| covers(&request.key, &request.range_end, &kv.key));
        let count = kvs.len() as u64;
        if request.count_only {
            return Ok(RangeResponse { revision, count, ..RangeResponse::default() });
        }
        kvs.retain(|kv| {
            kv.mod_revision >= request.min_mod_revision
                && kv.create_revision >= request.min_create_revision
                && (request.max_mod_revision == 0 || kv.mod_revision <= request.max_mod_revision)
                && (request.max_create_revision == 0 || kv.create_revision <= request.max_create_revision)
        });
        kvs.sort_by(|left, right| {
            match request.sort_target {
                SortTarget::Key => left.key.cmp(&right.key),
                SortTarget::Version => left.version.cmp(&right.version),
                SortTarget::CreateRevision => left.create_revision.cmp(&right.create_revision),
                SortTarget::ModRevision => left.mod_revision.cmp(&right.mod_revision),
                SortTarget::Value => left.value.cmp(&right.value),
            }
            .then_with(|| left.key.cmp(&right.key))
        });
        if request.sort_order == SortOrder::Descend {
            kvs.reverse();
        }
        let limit = if request.limit == 0 { usize::MAX } else { request.limit as usize };
        let more = kvs.len() > limit;
        kvs.truncate(limit);
        if request.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        Ok(RangeResponse { revision, count, more, kvs: kvs.iter().map(record).collect() })
    }

    fn check(&self, requested: u64) -> Result<(), ReadError> {
        if requested != 0 && requested < self.compact_revision {
            return Err(ReadError::Compacted { requested, compact_revision: self.compact_revision });
        }
        if requested > self.revision {
            return Err(ReadError::Future { requested, revision: self.revision });
        }
        Ok(())
    }

    pub(crate) fn apply(&mut self, term: u64, command: &Command) -> Outcome {
        let result = match command {
            Command::Txn(txn) => self.txn(term, txn).map(Outcome::Txn),
            Command::Batch(txns) => Ok(Outcome::Batch(txns.iter().map(|txn| self.txn(term, txn)).collect())),
            Command::Compact { revision } => self.compact(*revision),
            Command::LeaseGrant { id, ttl_seconds } => self.grant(*id, *ttl_seconds),
            Command::LeaseRevoke { id, fence } => fenced(term, *fence).and_then(|()| self.revoke(*id)),
            Command::LeaseCheckpoint { fence, remaining } => fenced(term, *fence).map(|()| {
                for lease in remaining {
                    if let Some((ttl, left)) = self.leases.get_mut(&lease.id) {
                        *left = lease.remaining_ttl_seconds.clamp(0, *ttl);
                    }
                }
                Outcome::LeaseCheckpointed
            }),
            Command::Alarm { action, alarm } => {
                match action {
                    AlarmAction::Activate => self.alarms.insert(*alarm),
                    AlarmAction::Deactivate => self.alarms.remove(alarm),
                };
                Ok(Outcome::Alarms(self.alarms.iter().copied().collect()))
            }
            Command::Auth(command) => self.auth.apply(command).map_err(ApplyError::from).map(|()| {
                Outcome::AuthChanged { revision: self.revision, auth_revision: self.auth.revision }
            }),
            Command::Version(command) => {
                match command {
                    VersionCommand::Supports { member_id, version } => {
                        self.supported.insert(*member_id, *version);
                    }
                    VersionCommand::Raise { version, members } => {
                        self.supported.retain(|member, _| members.contains(member));
                        let lowest = self.supported.values().min().copied().unwrap_or(0);
                        if self.supported.len() == members.len() && lowest >= *version {
                            self.cluster = self.cluster.max(*version);
                        }
                    }
                }
                Ok(Outcome::Version { cluster: self.cluster })
            }
        };
        result.unwrap_or_else(Outcome::Rejected)
    }

    fn out_of_space(&self) -> bool {
        self.alarms.iter().any(|alarm| alarm.kind == AlarmKind::NoSpace)
    }

    fn sound(&self) -> Result<(), ApplyError> {
        let corrupt = self.alarms.iter().any(|alarm| alarm.kind == AlarmKind::Corrupt);
        if corrupt { Err(ApplyError::Corrupt) } else { Ok(()) }
    }

    fn compact(&mut self, revision: u64) -> Result<Outcome, ApplyError> {
        self.sound()?;
        let (compact_revision, newest) = (self.compact_revision, self.revision);
        if revision <= compact_revision {
            return Err(ReadError::Compacted { requested: revision, compact_revision }.into());
        }
        if revision > newest {
            return Err(ReadError::Future { requested: revision, revision: newest }.into());
        }
        self.compact_revision = revision;
        Ok(Outcome::Compacted { compact_revision: revision, revision: newest })
    }

    fn grant(&mut self, id: i64, ttl_seconds: i64) -> Result<Outcome, ApplyError> {
        self.sound()?;
        if self.out_of_space() {
            return Err(ApplyError::NoSpace);
        }
        if id == 0 {
            return Err(ApplyError::LeaseNotFound { id });
        }
        if !(1..=9_000_000_000).contains(&ttl_seconds) {
            return Err(ApplyError::LeaseTtl { ttl_seconds, ttl_seconds_max: 9_000_000_000 });
        }
        if self.leases.contains_key(&id) {
            return Err(ApplyError::LeaseExists { id });
        }
        self.leases.insert(id, (ttl_seconds, 0));
        Ok(Outcome::LeaseGranted { id, ttl_seconds, revision: self.revision })
    }

    fn revoke(&mut self, id: i64) -> Result<Outcome, ApplyError> {
        self.sound()?;
        self.leases.remove(&id).ok_or(ApplyError::LeaseNotFound { id })?;
        let main = self.revision + 1;
        let keys: Vec<_> = self.view(main).into_values().filter(|kv| kv.lease == id).collect();
        for (sub, kv) in keys.iter().enumerate() {
            self.log.push(KeyValue::tombstone(kv.key.clone(), Revision { main, sub: sub as u32 }));
        }
        if !keys.is_empty() {
            self.revision = main;
        }
        Ok(Outcome::LeaseRevoked { revision: self.revision, deleted: keys.len() as u64 })
    }

    /// What the state charges, added up anew.
    pub(crate) fn key_bytes_on_leases(&self) -> u64 {
        let hanging = self.leases().into_iter().flat_map(|(_, keys)| keys);
        hanging.map(|key| key.len() as u64 + 64).sum::<u64>() + 64 * self.leases.len() as u64
    }

    /// The leases' keys and times, for comparison with `StateMachine::lease`.
    pub(crate) fn leases(&self) -> Vec<(LeaseState, BTreeSet<Bytes>)> {
        let view = self.view(u64::MAX);
        let keys = |id| view.values().filter(|kv| kv.lease == id).map(|kv| kv.key.clone()).collect();
        self.leases
            .iter()
            .map(|(&id, &(ttl_seconds, remaining_ttl_seconds))| {
                (LeaseState { id, ttl_seconds, remaining_ttl_seconds }, keys(id))
            })
            .collect()
    }

    fn txn(&mut self, term: u64, txn: &TxnCommand) -> Result<TxnOutcome, ApplyError> {
        if txn.fence.is_some_and(|fence| fence.term != term) {
            return Ok(TxnOutcome { revision: self.revision, fenced: true, ..TxnOutcome::default() });
        }
        let mut puts = 0;
        for op in txn.success.iter().chain(&txn.failure) {
            judge(op, &mut puts)?;
        }
        for branch in [&txn.success, &txn.failure] {
            for path in paths(branch) {
                no_key_twice(&path)?;
            }
        }
        self.sound()?;
        if puts > 0 && self.out_of_space() {
            return Err(ApplyError::NoSpace);
        }
        // Run on a copy, with compares looking at the original: an error leaves nothing behind.
        let before = self.clone();
        let main = self.revision + 1;
        let mut after = self.clone();
        let nested = NestedTxn {
            compares: txn.compares.clone(),
            success: txn.success.clone(),
            failure: txn.failure.clone(),
        };
        let (succeeded, results) = after.run(&before, main, &nested)?;
        if after.log.len() > self.log.len() {
            after.revision = main;
        }
        *self = after;
        Ok(TxnOutcome { revision: self.revision, succeeded, fenced: false, results })
    }

    fn run(
        &mut self,
        before: &Model,
        main: u64,
        txn: &NestedTxn,
    ) -> Result<(bool, Vec<OpResult>), ApplyError> {
        let succeeded = txn.compares.iter().all(|compare| before.holds(compare));
        let mut results = Vec::new();
        for op in if succeeded { &txn.success } else { &txn.failure } {
            results.push(match op {
                Op::Put(put) => self.put(main, put)?,
                Op::DeleteRange(delete) => self.delete(main, delete),
                Op::Range(range) => {
                    let changed = self.log.len() > before.log.len();
                    OpResult::Range(self.range(range, if changed { main } else { before.revision })?)
                }
                Op::Txn(txn) => {
                    let (succeeded, results) = self.run(before, main, txn)?;
                    OpResult::Txn { succeeded, results }
                }
            });
        }
        Ok((succeeded, results))
    }

    fn next_sub(&self, main: u64) -> u32 {
        self.log.iter().filter(|kv| kv.mod_revision == main).count() as u32
    }

    fn put(&mut self, main: u64, put: &PutRequest) -> Result<OpResult, ApplyError> {
        let prev = self.view(main).remove(&put.key);
        if prev.is_none() && (put.ignore_value || put.ignore_lease) {
            return Err(ApplyError::KeyNotFound);
        }
        if put.lease != 0 && !self.leases.contains_key(&put.lease) {
            return Err(ApplyError::LeaseNotFound { id: put.lease });
        }
        let kept = prev.clone().unwrap_or_default();
        self.log.push(KeyValue {
            key: put.key.clone(),
            value: if put.ignore_value { kept.value } else { put.value.clone() },
            create_revision: if prev.is_some() { kept.create_revision } else { main },
            mod_revision: main,
            sub: self.next_sub(main),
            version: kept.version + 1,
            lease: if put.ignore_lease { kept.lease } else { put.lease },
        });
        Ok(OpResult::Put { prev_kv: prev.filter(|_| put.prev_kv).map(|kv| record(&kv)) })
    }

    fn delete(&mut self, main: u64, delete: &DeleteRangeRequest) -> OpResult {
        let mut gone: Vec<_> = self.view(main).into_values().collect();
        gone.retain(|kv| covers(&delete.key, &delete.range_end, &kv.key));
        for kv in &gone {
            let revision = Revision { main, sub: self.next_sub(main) };
            self.log.push(KeyValue::tombstone(kv.key.clone(), revision));
        }
        let prev_kvs = if delete.prev_kv { gone.iter().map(record).collect() } else { Vec::new() };
        OpResult::DeleteRange { deleted: gone.len() as u64, prev_kvs }
    }

    fn holds(&self, compare: &Compare) -> bool {
        let mut kvs: Vec<_> = self.view(u64::MAX).into_values().collect();
        kvs.retain(|kv| covers(&compare.key, &compare.range_end, &kv.key));
        if kvs.is_empty() {
            if matches!(compare.target, CompareTarget::Value(_)) {
                return false;
            }
            kvs.push(KeyValue::default());
        }
        kvs.iter().all(|kv| {
            let ordering = match &compare.target {
                CompareTarget::Version(operand) => kv.version.cmp(operand),
                CompareTarget::CreateRevision(operand) => kv.create_revision.cmp(operand),
                CompareTarget::ModRevision(operand) => kv.mod_revision.cmp(operand),
                CompareTarget::Value(operand) => kv.value.cmp(operand),
                CompareTarget::Lease(operand) => kv.lease.cmp(operand),
            };
            match compare.result {
                CompareResult::Equal => ordering.is_eq(),
                CompareResult::NotEqual => ordering.is_ne(),
                CompareResult::Greater => ordering.is_gt(),
                CompareResult::Less => ordering.is_lt(),
            }
        })
    }
}

fn fenced(term: u64, fence: Option<Fence>) -> Result<(), ApplyError> {
    match fence {
        Some(fence) if fence.term != term => {
            Err(ApplyError::Fenced { fence_term: fence.term, entry_term: term })
        }
        _ => Ok(()),
    }
}

fn judge(op: &Op, puts: &mut usize) -> Result<(), ApplyError> {
    match op {
        Op::Put(put) => {
            *puts += 1;
            if put.key.is_empty() {
                return Err(ApplyError::EmptyKey);
            }
            if put.ignore_value && !put.value.is_empty() {
                return Err(ApplyError::ValueProvided);
            }
            if put.ignore_lease && put.lease != 0 {
                return Err(ApplyError::LeaseProvided);
            }
        }
        Op::Txn(txn) => {
            for op in txn.success.iter().chain(&txn.failure) {
                judge(op, puts)?;
            }
        }
        Op::Range(_) | Op::DeleteRange(_) => {}
    }
    Ok(())
}

/// Every list of plain operations that could run, whatever nested transactions decide.
fn paths(ops: &[Op]) -> Vec<Vec<&Op>> {
    let mut paths = vec![Vec::new()];
    for op in ops {
        let choices = match op {
            Op::Txn(txn) => [self::paths(&txn.success), self::paths(&txn.failure)].concat(),
            plain => vec![vec![plain]],
        };
        paths = paths
            .iter()
            .flat_map(|path| choices.iter().map(move |choice| [path.as_slice(), choice].concat()))
            .collect();
    }
    paths
}

fn no_key_twice(path: &[&Op]) -> Result<(), ApplyError> {
    for (at, op) in path.iter().enumerate() {
        let Op::Put(put) = op else { continue };
        let meets = |other: &&Op| match other {
            Op::Put(other) => other.key == put.key,
            Op::DeleteRange(delete) => covers(&delete.key, &delete.range_end, &put.key),
            _ => false,
        };
        if path[..at].iter().chain(&path[at + 1..]).any(meets) {
            return Err(ApplyError::DuplicateKey);
        }
    }
    Ok(())
}
