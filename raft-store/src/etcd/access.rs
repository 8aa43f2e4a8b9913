//! Who calls, and what they may do.
//!
//! Every etcd service makes a [`Caller`] of its request first, and asks it before it reads or proposes. What
//! it proposes carries user and auth revision into the log, where they are checked again: what is decided
//! here only saves a refused command its way through the log.

use bytes::Bytes;
use state_machine::{
    Auth, AuthError, Author, Command, Outcome, RangeRequest, RangeResponse, ReadTxn, RequestId, TxnCommand,
    TxnOutcome,
};
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

use super::{request_id, status};
use crate::store::Store;

/// Where clients put their token; the second is what gateways from HTTP use.
const TOKEN_KEYS: [&str; 2] = ["token", "authorization"];

/// What a server that asked for a client certificate found in it. A server puts this into the extensions of
/// each request that came over such a connection; without it, only tokens say who calls.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientIdentity {
    /// The certificate's common name: the user, unless the request carries a token.
    pub common_name: Option<String>,
}

/// Whoever sent a request, as far as it could be established.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    author: Author,
    request_id: Option<RequestId>,
}

impl Caller {
    /// Reads the request's token or client certificate, and its request id.
    pub(crate) fn of<T>(store: &Store, request: &Request<T>) -> Result<Self, Status> {
        let request_id = request_id::of(request.metadata())?;
        if !store.gauges().is_auth_enabled() {
            return Ok(Self { author: Author::default(), request_id });
        }
        let author = store.read_state(|machine| {
            let auth = machine.auth();
            if let Some(token) = token(request.metadata()) {
                return store.tokens().author(auth, token).ok_or_else(status::invalid_auth_token);
            }
            let identity = request.extensions().get::<ClientIdentity>();
            let user = identity.and_then(|identity| identity.common_name.clone()).unwrap_or_default();
            Ok(Author { user, auth_revision: auth.revision() })
        })?;
        Ok(Self { author, request_id })
    }

    /// The same caller for one of several proposals that a single request needs: its request id names one only.
    pub(crate) fn for_part(&self) -> Self {
        Self { author: self.author.clone(), request_id: None }
    }

    /// The user, if there is one; authentication may be off.
    pub(crate) fn user(&self) -> &str {
        &self.author.user
    }

    /// Whether the caller may read the range.
    pub(crate) fn may_range(&self, store: &Store, key: &Bytes, range_end: &Bytes) -> Result<(), Status> {
        if store.gauges().is_corrupt() {
            return Err(status::corrupt());
        }
        self.ask(store, |auth| auth.may_read(&self.author, key, range_end))
    }

    /// Whether the caller may do everything that the transaction could do.
    pub(crate) fn may_txn(&self, store: &Store, txn: &TxnCommand) -> Result<(), Status> {
        // A retry gets its first answer, even if permissions have changed: only the log knows whether it is one.
        if self.request_id.is_some() || !store.gauges().is_auth_enabled() {
            return Ok(());
        }
        let allowed = store.read_state(|machine| machine.authorize_txn(&self.author, txn));
        allowed.map_err(status::of_auth_error)
    }

    /// Whether the caller may change the store's configuration.
    pub(crate) fn must_be_root(&self, store: &Store) -> Result<(), Status> {
        self.ask(store, |auth| auth.must_be_root(&self.author))
    }

    /// Reads in the caller's name. Unless serializable, the permissions looked at are as new as what is read.
    pub(crate) async fn read(
        &self,
        store: &Store,
        request: &RangeRequest,
        serializable: bool,
    ) -> Result<RangeResponse, Status> {
        if !serializable {
            store.linearize().await.map_err(|error| status::of_error(&error))?;
        }
        self.may_range(store, &request.key, &request.range_end)?;
        store.range(request).map_err(|error| status::of_error(&error))
    }

    /// Carries out a transaction in the caller's name.
    pub(crate) async fn txn(&self, store: &Store, txn: TxnCommand) -> Result<TxnOutcome, Status> {
        self.may_txn(store, &txn)?;
        match self.propose(store, &Command::Txn(txn)).await? {
            Outcome::Txn(outcome) => Ok(outcome),
            _ => Err(status::unexpected_outcome()),
        }
    }

    /// The same; a transaction that only reads is answered from this member's state, as a range is. Unless
    /// serializable, it sees all that was acknowledged when it began.
    pub(crate) async fn txn_or_read(
        &self,
        store: &Store,
        txn: TxnCommand,
        serializable: bool,
    ) -> Result<TxnOutcome, Status> {
        // The answer to a named request is kept by the log.
        if self.request_id.is_some() {
            return self.txn(store, txn).await;
        }
        let reading = match ReadTxn::of(txn) {
            Ok(reading) => reading,
            Err(writing) => return self.txn(store, writing).await,
        };
        if !serializable {
            store.linearize().await.map_err(|error| status::of_error(&error))?;
        }
        let read = store.read_state(|machine| {
            machine.authorize_txn(&self.author, reading.txn())?;
            machine.read_txn(&reading)
        });
        read.map_err(|error| status::of_apply_error(&error))
    }

    /// Proposes in the caller's name: refused inside the log if its permissions changed meanwhile. What the log
    /// refused is an error, never an outcome.
    pub(crate) async fn propose(&self, store: &Store, command: &Command) -> Result<Outcome, Status> {
        match store.propose_request(Some(&self.author), self.request_id.as_ref(), command).await {
            Ok(Outcome::Rejected(error)) => Err(status::of_apply_error(&error)),
            Ok(outcome) => Ok(outcome),
            Err(error) => Err(status::of_error(&error)),
        }
    }

    fn ask(
        &self,
        store: &Store,
        question: impl FnOnce(&Auth) -> Result<(), AuthError>,
    ) -> Result<(), Status> {
        if !store.gauges().is_auth_enabled() {
            return Ok(());
        }
        store.read_state(|machine| question(machine.auth())).map_err(status::of_auth_error)
    }
}

fn token(metadata: &MetadataMap) -> Option<&str> {
    let found = TOKEN_KEYS.iter().find_map(|key| metadata.get(*key))?;
    // What is not text is no token that we gave.
    Some(found.to_str().unwrap_or(""))
}
