//! Who calls, and what they may do.
//!
//! Every etcd service makes a [`Caller`] of its request first, and asks it before it reads or proposes.

use bytes::Bytes;
use state_machine::{Command, Outcome, TxnCommand};
use tonic::{Request, Status};

use crate::error::Error;
use crate::store::Store;

/// Whoever sent a request, as far as it could be established.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// The user, if authentication is on.
    #[expect(dead_code, reason = "authentication is not there yet")]
    pub(crate) user: Option<String>,
}

impl Caller {
    /// Reads the request's token or client certificate.
    #[expect(clippy::unnecessary_wraps, reason = "authentication is not there yet")]
    pub(crate) fn of<T>(_store: &Store, _request: &Request<T>) -> Result<Self, Status> {
        Ok(Self { user: None })
    }

    /// Whether the caller may read the range.
    pub(crate) fn may_range(&self, _store: &Store, _key: &Bytes, _range_end: &Bytes) -> Result<(), Status> {
        Ok(())
    }

    /// Whether the caller may do everything that the transaction could do.
    pub(crate) fn may_txn(&self, _store: &Store, _txn: &TxnCommand) -> Result<(), Status> {
        Ok(())
    }

    /// Whether the caller may change the store's configuration.
    #[expect(clippy::unnecessary_wraps, reason = "authentication is not there yet")]
    pub(crate) fn must_be_root(&self, _store: &Store) -> Result<(), Status> {
        Ok(())
    }

    /// Proposes in the caller's name: refused inside the log if its permissions changed meanwhile.
    pub(crate) async fn propose(&self, store: &Store, command: &Command) -> Result<Outcome, Error> {
        store.propose(command).await
    }
}
