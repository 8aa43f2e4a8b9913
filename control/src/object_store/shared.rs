//! One handle for any [`ObjectStore`], so that the control plane is compiled once, not once per store.
//!
//! Costs one boxed future per call. Clones share the store.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;

use super::{
    Consistency, Error, Leadership, ListRequest, Listing, ObjectStore, StoredObject, Transaction,
    TransactionOutcome, WatchStream,
};

type Boxed<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

trait Erased: Send + Sync {
    fn get(&self, key: Bytes, consistency: Consistency) -> Boxed<'_, (Option<StoredObject>, u64)>;
    fn list(&self, request: ListRequest) -> Boxed<'_, Listing>;
    fn transact(&self, transaction: Transaction) -> Boxed<'_, TransactionOutcome>;
    fn transact_all(&self, transactions: Vec<Transaction>) -> Boxed<'_, Vec<TransactionOutcome>>;
    fn watch(&self, prefix: Bytes, from_revision: u64) -> Boxed<'_, WatchStream>;
    fn leadership(&self) -> watch::Receiver<Leadership>;
}

impl<S: ObjectStore> Erased for S {
    fn get(&self, key: Bytes, consistency: Consistency) -> Boxed<'_, (Option<StoredObject>, u64)> {
        Box::pin(ObjectStore::get(self, key, consistency))
    }

    fn list(&self, request: ListRequest) -> Boxed<'_, Listing> {
        Box::pin(ObjectStore::list(self, request))
    }

    fn transact(&self, transaction: Transaction) -> Boxed<'_, TransactionOutcome> {
        Box::pin(ObjectStore::transact(self, transaction))
    }

    fn transact_all(&self, transactions: Vec<Transaction>) -> Boxed<'_, Vec<TransactionOutcome>> {
        Box::pin(ObjectStore::transact_all(self, transactions))
    }

    fn watch(&self, prefix: Bytes, from_revision: u64) -> Boxed<'_, WatchStream> {
        Box::pin(ObjectStore::watch(self, prefix, from_revision))
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        ObjectStore::leadership(self)
    }
}

/// Any [`ObjectStore`] behind one type.
#[derive(Clone)]
pub struct SharedStore {
    inner: Arc<dyn Erased>,
}

impl SharedStore {
    /// Takes the store in.
    pub fn new(store: impl ObjectStore) -> Self {
        Self { inner: Arc::new(store) }
    }
}

impl std::fmt::Debug for SharedStore {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("SharedStore").finish_non_exhaustive()
    }
}

impl ObjectStore for SharedStore {
    fn get(
        &self,
        key: Bytes,
        consistency: Consistency,
    ) -> impl Future<Output = Result<(Option<StoredObject>, u64), Error>> + Send {
        self.inner.get(key, consistency)
    }

    fn list(&self, request: ListRequest) -> impl Future<Output = Result<Listing, Error>> + Send {
        self.inner.list(request)
    }

    fn transact(
        &self,
        transaction: Transaction,
    ) -> impl Future<Output = Result<TransactionOutcome, Error>> + Send {
        self.inner.transact(transaction)
    }

    fn transact_all(
        &self,
        transactions: Vec<Transaction>,
    ) -> impl Future<Output = Result<Vec<TransactionOutcome>, Error>> + Send {
        self.inner.transact_all(transactions)
    }

    fn watch(
        &self,
        prefix: Bytes,
        from_revision: u64,
    ) -> impl Future<Output = Result<WatchStream, Error>> + Send {
        self.inner.watch(prefix, from_revision)
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership()
    }
}
