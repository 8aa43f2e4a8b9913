//! What etcd's lock and election services share: a queue of keys under one prefix, one for each who waits.
//!
//! Each key belongs to a lease and is named after it; whose key was created first is at the head. One who waits
//! watches only the newest key before its own, so that a departure wakes one waiter.

use bytes::Bytes;
use proto::etcd::etcdserverpb as pb;
use state_machine::{
    Compare, CompareResult, CompareTarget, DeleteRangeRequest, LEASE_NONE, Op, OpResult, PutRequest,
    RangeRequest, RangeResponse, SortOrder, SortTarget, TxnCommand, TxnOutcome,
};
use tonic::{Code, Status};

use super::access::Caller;
use super::{lease, status};
use crate::error::Error;
use crate::store::Store;

/// Time to live of the lease made for one who brings none, in seconds.
const SESSION_TTL_SECONDS: i64 = 60;

/// An error as these services pass it on: etcd's are clients of its own, and keep an error's text but not
/// its code.
pub(crate) fn passed_on(error: Status) -> Status {
    Status::new(Code::Unknown, error.message())
}

/// The store in the name of one caller.
#[derive(Clone)]
pub(crate) struct Session {
    pub(crate) store: Store,
    pub(crate) caller: Caller,
}

/// A caller's key in the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) key: Bytes,
    pub(crate) create_revision: u64,
}

/// `name/`, under which the keys of one lock or election lie.
pub(crate) fn prefix(name: &[u8]) -> Bytes {
    [name, b"/"].concat().into()
}

/// The end of the keys that begin with `prefix`, which ends with a slash.
pub(crate) fn prefix_end(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end.into()
}

/// The key of a lease in the queue.
pub(crate) fn key_of(prefix: &[u8], lease: i64) -> Bytes {
    let sign = if lease < 0 { "-" } else { "" };
    [prefix, format!("{sign}{:x}", lease.unsigned_abs()).as_bytes()].concat().into()
}

/// The key whose creation came first.
pub(crate) fn head_of(prefix: &Bytes) -> RangeRequest {
    RangeRequest {
        key: prefix.clone(),
        range_end: prefix_end(prefix),
        limit: 1,
        sort_order: SortOrder::Ascend,
        sort_target: SortTarget::CreateRevision,
        ..RangeRequest::default()
    }
}

pub(crate) fn get(key: &Bytes) -> RangeRequest {
    RangeRequest { key: key.clone(), ..RangeRequest::default() }
}

pub(crate) fn created_at(key: &Bytes, revision: u64) -> Compare {
    Compare {
        key: key.clone(),
        range_end: Bytes::new(),
        result: CompareResult::Equal,
        target: CompareTarget::CreateRevision(revision),
    }
}

pub(crate) fn put(key: &Bytes, value: Bytes, lease: i64) -> Op {
    Op::Put(PutRequest { key: key.clone(), value, lease, ..PutRequest::default() })
}

impl Session {
    pub(crate) fn header(&self, revision: u64) -> Option<pb::ResponseHeader> {
        Some(self.store.etcd_header(revision))
    }

    /// The lease brought along, or a new one.
    pub(crate) async fn lease(&self, lease: i64) -> Result<i64, Status> {
        match lease {
            LEASE_NONE => {
                let granted = lease::grant(&self.store, &self.caller, LEASE_NONE, SESSION_TTL_SECONDS).await;
                Ok(granted.map_err(passed_on)?.id)
            }
            given => Ok(given),
        }
    }

    pub(crate) async fn txn(&self, txn: TxnCommand) -> Result<TxnOutcome, Status> {
        self.caller.txn(&self.store, txn).await.map_err(passed_on)
    }

    pub(crate) async fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Status> {
        self.caller.read(&self.store, request, false).await.map_err(passed_on)
    }

    /// Deletes a key if it is still the one that was created then.
    pub(crate) async fn leave(&self, place: &Place) -> Result<TxnOutcome, Status> {
        let delete = DeleteRangeRequest { key: place.key.clone(), ..DeleteRangeRequest::default() };
        self.txn(TxnCommand {
            compares: vec![created_at(&place.key, place.create_revision)],
            success: vec![Op::DeleteRange(delete)],
            ..TxnCommand::default()
        })
        .await
    }

    /// Waits until no key under `prefix` is older than `place`.
    pub(crate) async fn wait_for_head(&self, prefix: &Bytes, place: &Place) -> Result<(), Status> {
        let before = RangeRequest {
            max_create_revision: place.create_revision - 1,
            sort_order: SortOrder::Descend,
            ..head_of(prefix)
        };
        loop {
            let found = self.range(&before).await?;
            let Some(next_before) = found.kvs.first() else { return Ok(()) };
            match self.wait_deleted(next_before.key.clone(), found.revision).await {
                // Compacted away meanwhile: look anew.
                Ok(()) | Err(Error::Compacted { .. }) => {}
                Err(error) => return Err(passed_on(status::of_error(&error))),
            }
        }
    }

    async fn wait_deleted(&self, key: Bytes, from: u64) -> Result<(), Error> {
        let mut watcher = self.store.watch(key, Bytes::new(), from)?;
        loop {
            let batches = tokio::select! {
                batches = watcher.next() => batches?,
                () = self.store.stopping() => return Err(Error::Stopped { reason: "it is shutting down".into() }),
            };
            if batches.iter().flat_map(|batch| &batch.events).any(|event| event.is_delete()) {
                return Ok(());
            }
        }
    }
}

/// Deletes the key of one who waits when the client goes away before it is served: dropping it is how that
/// shows.
pub(crate) struct Abandon {
    session: Session,
    place: Option<Place>,
}

impl Abandon {
    pub(crate) fn guard(session: &Session, place: &Place) -> Self {
        Self { session: session.clone(), place: Some(place.clone()) }
    }

    pub(crate) fn disarm(mut self) {
        self.place = None;
    }
}

impl Drop for Abandon {
    fn drop(&mut self) {
        let Some(place) = self.place.take() else { return };
        let session = self.session.clone();
        self.session.store.tasks().spawn(async move {
            if let Err(error) = session.leave(&place).await {
                tracing::debug!(%error, "a waiter that went away stays in the queue until its lease ends");
            }
        });
    }
}

/// The first range among a transaction's results, from `at` on.
pub(crate) fn range_at(outcome: &TxnOutcome, at: usize) -> Option<&RangeResponse> {
    match outcome.results.get(at) {
        Some(OpResult::Range(response)) => Some(response),
        _ => None,
    }
}
