//! The replica's own store behind [`ObjectStore`], in process.
//!
//! Translates conditions and mutations into one transaction of the store and its outcome back. Owns
//! nothing: the store outlives it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use raft_store::state_machine::{
    ApplyError, Command, Compare, CompareResult, CompareTarget, DeleteRangeRequest, Event, EventBatch, Fence,
    Op, OpResult, Outcome, PutRequest, RangeRequest, Record, TxnCommand, TxnOutcome,
};
use raft_store::{Store, Watcher};
use tokio::sync::watch;

use super::{
    Condition, Consistency, Error, Leadership, ListRequest, Listing, Mutation, ObjectStore, StoredObject,
    Transaction, TransactionOutcome, WatchEvent, WatchItem, WatchStream,
};

/// A watch on which nothing happens says so this often.
const PROGRESS_PERIOD: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Clone)]
pub struct RaftObjectStore {
    store: Store,
    leadership: watch::Receiver<Leadership>,
}

impl RaftObjectStore {
    /// A door to `store`. The task that translates leadership ends with the last door or the store.
    pub fn new(store: Store) -> Self {
        let mut source = store.watch_leadership();
        let (publish, receiver) = watch::channel(leadership(*source.borrow_and_update()));
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = publish.closed() => return,
                    changed = source.changed() => if changed.is_err() { return },
                }
                publish.send_replace(leadership(*source.borrow_and_update()));
            }
        });
        Self { store, leadership: receiver }
    }
}

fn leadership(from: raft_store::Leadership) -> Leadership {
    Leadership { term: from.term, leader: from.leader, is_self: from.is_self }
}

impl ObjectStore for RaftObjectStore {
    async fn get(&self, key: Bytes, consistency: Consistency) -> Result<(Option<StoredObject>, u64), Error> {
        if consistency == Consistency::Linearizable {
            self.store.linearize().await?;
        }
        let response = self.store.range(&RangeRequest { key, ..RangeRequest::default() })?;
        Ok((response.kvs.first().map(stored), response.revision))
    }

    async fn list(&self, request: ListRequest) -> Result<Listing, Error> {
        if request.revision.is_none() && request.consistency == Consistency::Linearizable {
            self.store.linearize().await?;
        }
        let range_end = prefix_end(&request.prefix);
        let key = match &request.after {
            Some(after) => successor(after),
            None => request.prefix,
        };
        let limit = request.limit.map_or(0, |limit| limit as u64);
        let revision = request.revision.unwrap_or(0);
        let response =
            self.store.range(&RangeRequest { key, range_end, limit, revision, ..RangeRequest::default() })?;
        let items: Vec<_> = response.kvs.iter().map(stored).collect();
        let remaining = response.count.saturating_sub(items.len() as u64);
        Ok(Listing { items, revision: request.revision.unwrap_or(response.revision), remaining })
    }

    async fn transact(&self, transaction: Transaction) -> Result<TransactionOutcome, Error> {
        let command = Command::Txn(txn_command(transaction));
        match self.store.propose(&command).await? {
            Outcome::Txn(outcome) => Ok(transaction_outcome(outcome)),
            Outcome::Rejected(error) => Err(rejected(&error)),
            _ => Err(unexpected()),
        }
    }

    async fn transact_all(&self, transactions: Vec<Transaction>) -> Result<Vec<TransactionOutcome>, Error> {
        let command = Command::Batch(transactions.into_iter().map(txn_command).collect());
        match self.store.propose(&command).await? {
            Outcome::Batch(outcomes) => outcomes
                .into_iter()
                .map(|outcome| outcome.map(transaction_outcome).map_err(|error| rejected(&error)))
                .collect(),
            Outcome::Rejected(error) => Err(rejected(&error)),
            _ => Err(unexpected()),
        }
    }

    async fn watch(&self, prefix: Bytes, from_revision: u64) -> Result<WatchStream, Error> {
        let range_end = prefix_end(&prefix);
        let watcher = self.store.watch(prefix, range_end, from_revision)?;
        Ok(stream::unfold(Some(watcher), next_item).boxed())
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }
}

/// One element of a watch stream; the stream ends after an error.
async fn next_item(watcher: Option<Watcher>) -> Option<(Result<WatchItem, Error>, Option<Watcher>)> {
    let mut watcher = watcher?;
    loop {
        match tokio::time::timeout(PROGRESS_PERIOD, watcher.next()).await {
            Ok(Ok(batches)) => {
                let events = batches.iter().flat_map(events).collect();
                return Some((Ok(WatchItem::Events(events)), Some(watcher)));
            }
            Ok(Err(error)) => return Some((Err(error.into()), None)),
            Err(_) => {
                if let Some(revision) = watcher.progress() {
                    return Some((Ok(WatchItem::Progress { revision }), Some(watcher)));
                }
            }
        }
    }
}

fn events(batch: &EventBatch) -> impl Iterator<Item = WatchEvent> + '_ {
    batch.events.iter().map(|event| watch_event(event, batch.revision))
}

fn watch_event(event: &Event, revision: u64) -> WatchEvent {
    let previous = event.prev_kv.as_ref().map(stored);
    if !event.is_delete() {
        return WatchEvent { object: stored(&event.kv), previous, deleted: false };
    }
    let before = previous.clone();
    let object = StoredObject {
        key: event.kv.key.clone(),
        value: before.as_ref().map(|object| object.value.clone()).unwrap_or_default(),
        create_revision: before.as_ref().map_or(0, |object| object.create_revision),
        mod_revision: revision,
    };
    WatchEvent { object, previous, deleted: true }
}

fn stored(record: &Arc<Record>) -> StoredObject {
    StoredObject {
        key: record.key.clone(),
        value: record.value.clone(),
        create_revision: record.create_revision,
        mod_revision: record.mod_revision,
    }
}

/// The end of the range of all keys that begin with `prefix`, as etcd clients compute it.
fn prefix_end(prefix: &Bytes) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end.into();
        }
    }
    Bytes::from_static(&[0])
}

/// The smallest key greater than `key`.
fn successor(key: &Bytes) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next.into()
}

fn txn_command(transaction: Transaction) -> TxnCommand {
    let failure = transaction.conditions.iter().map(|condition| Op::Range(range_of(condition))).collect();
    TxnCommand {
        fence: transaction.fence.map(|term| Fence { term }),
        compares: transaction.conditions.into_iter().map(compare).collect(),
        success: transaction.mutations.into_iter().map(op).collect(),
        failure,
    }
}

fn range_of(condition: &Condition) -> RangeRequest {
    let (Condition::Absent { key } | Condition::Unchanged { key, .. }) = condition;
    RangeRequest { key: key.clone(), ..RangeRequest::default() }
}

fn compare(condition: Condition) -> Compare {
    let (key, target) = match condition {
        Condition::Absent { key } => (key, CompareTarget::CreateRevision(0)),
        Condition::Unchanged { key, mod_revision } => (key, CompareTarget::ModRevision(mod_revision)),
    };
    Compare { key, range_end: Bytes::new(), result: CompareResult::Equal, target }
}

fn op(mutation: Mutation) -> Op {
    match mutation {
        Mutation::Put { key, value } => Op::Put(PutRequest { key, value, ..PutRequest::default() }),
        Mutation::Delete { key } => {
            Op::DeleteRange(DeleteRangeRequest { key, ..DeleteRangeRequest::default() })
        }
    }
}

fn transaction_outcome(outcome: TxnOutcome) -> TransactionOutcome {
    if outcome.fenced {
        return TransactionOutcome::Fenced;
    }
    if outcome.succeeded {
        return TransactionOutcome::Committed { revision: outcome.revision };
    }
    let current = outcome.results.iter().map(|result| match result {
        OpResult::Range(response) => response.kvs.first().map(stored),
        OpResult::Put { .. } | OpResult::DeleteRange { .. } | OpResult::Txn { .. } => None,
    });
    TransactionOutcome::ConditionFailed { current: current.collect() }
}

fn rejected(error: &ApplyError) -> Error {
    match error {
        ApplyError::NoSpace => Error::NoSpace,
        other => Error::Unavailable { reason: other.to_string() },
    }
}

fn unexpected() -> Error {
    Error::Unknown { reason: "the store answered something that does not fit the question".into() }
}

impl From<raft_store::Error> for Error {
    fn from(error: raft_store::Error) -> Self {
        use raft_store::Error as E;
        match error {
            E::Unavailable { reason } | E::Refused { reason } => Self::Unavailable { reason },
            E::Unknown { reason } => Self::Unknown { reason },
            E::TooLarge { bytes, bytes_max } => Self::TooLarge { bytes, bytes_max },
            E::Compacted { requested, compact_revision } => Self::Compacted { requested, compact_revision },
            E::Future { requested, newest } => Self::Future { requested, newest },
            E::Stopped { .. } => Self::Stopping,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_the_next_key_that_does_not_begin_with_it() {
        let end = |prefix: &'static [u8]| prefix_end(&Bytes::from_static(prefix));
        assert_eq!(end(b"/registry/core/pods/"), Bytes::from_static(b"/registry/core/pods0"));
        assert_eq!(end(b"a\xff"), Bytes::from_static(b"b"));
        assert_eq!(end(b"\xff\xff"), Bytes::from_static(b"\0"), "every key from the prefix on");
    }
}
