//! The rewriting of what lies under an older key, or in plain text, by the leader.
//!
//! One pass over all objects when a leader takes over and whenever a member's note changes (it was started with
//! other keys). Each object is written only if it still is the one that was read, so nobody's write is lost; to
//! watches it is a change that changes nothing. What cannot be decrypted is left and told of.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio_util::sync::CancellationToken;

use super::Sealing;
use super::agreement::notes;
use crate::leader::{Epoch, EpochReceiver, while_leading};
use crate::object_store::{
    Condition, Consistency, Error, ListRequest, Mutation, ObjectStore, SharedStore, StoredObject,
    Transaction, TransactionOutcome,
};

/// Objects read at once.
const PAGE_ITEMS: usize = 500;
/// Writes at once.
const WRITES_MAX: usize = 8;
/// How often the members' notes are looked at, and a pass that failed is made again.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// What a pass did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rewritten {
    /// Objects that lie under the first key now.
    pub written: usize,
    /// Objects that changed meanwhile: whoever did that wrote them anew, perhaps under an older key.
    pub missed: usize,
    /// Objects that no configured key opens.
    pub unreadable: usize,
}

/// Rewrites whenever this replica leads, until cancelled. `store` is the one below the encryption.
pub async fn run(
    store: SharedStore,
    sealing: Arc<Sealing>,
    epochs: EpochReceiver,
    cancel: CancellationToken,
) {
    if sealing.is_empty() {
        return;
    }
    while_leading(epochs, cancel, |epoch, stop| {
        let (store, sealing) = (store.clone(), sealing.clone());
        async move {
            stop.run_until_cancelled(look(&store, &sealing, epoch)).await;
        }
    })
    .await;
}

async fn look(store: &SharedStore, sealing: &Sealing, epoch: Epoch) {
    let mut done_for: Option<Vec<StoredObject>> = None;
    loop {
        if let Ok(now) = notes(store, Consistency::Serializable).await
            && done_for.as_ref() != Some(&now)
        {
            match pass(store, sealing, epoch).await {
                Ok(done) => {
                    if done.unreadable > 0 {
                        tracing::error!(
                            count = done.unreadable,
                            "objects are encrypted under keys that are not configured"
                        );
                    }
                    tracing::info!(
                        written = done.written,
                        missed = done.missed,
                        "what lay under older keys was rewritten"
                    );
                    done_for = (done.missed == 0).then_some(now);
                }
                Err(error) => {
                    tracing::warn!(%error, "rewriting under the first key broke off; it begins anew")
                }
            }
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Rewrites everything once.
pub async fn pass(store: &impl ObjectStore, sealing: &Sealing, epoch: Epoch) -> Result<Rewritten, Error> {
    let mut done = Rewritten::default();
    let mut after = None;
    loop {
        let request = ListRequest {
            prefix: Bytes::from_static(b"/registry/"),
            after: after.take(),
            limit: Some(PAGE_ITEMS),
            revision: None,
            consistency: Consistency::Serializable,
        };
        let page = store.list(request).await?;
        after = page.items.last().map(|item| item.key.clone());
        let stale = page.items.into_iter().filter(|item| !sealing.is_current(&item.key, &item.value));
        let mut writes =
            stream::iter(stale).map(|item| rewrite(store, sealing, item, epoch)).buffer_unordered(WRITES_MAX);
        while let Some(outcome) = writes.next().await {
            match outcome? {
                Outcome::Written => done.written += 1,
                Outcome::Missed => done.missed += 1,
                Outcome::Unreadable => done.unreadable += 1,
            }
        }
        if page.remaining == 0 || after.is_none() {
            return Ok(done);
        }
    }
}

enum Outcome {
    Written,
    Missed,
    Unreadable,
}

async fn rewrite(
    store: &impl ObjectStore,
    sealing: &Sealing,
    item: StoredObject,
    epoch: Epoch,
) -> Result<Outcome, Error> {
    let StoredObject { key, value, mod_revision, .. } = item;
    let opened = match sealing.is_plain(&value) {
        // Also where plain text is not to be read any more: it is why it is rewritten.
        true => Ok(value),
        false => sealing.open(&key, value),
    };
    let value = match opened.and_then(|plain| sealing.seal(&key, plain)) {
        Ok(value) => value,
        Err(why) => {
            tracing::debug!(key = %String::from_utf8_lossy(&key), %why, "an object cannot be rewritten");
            return Ok(Outcome::Unreadable);
        }
    };
    let transaction = Transaction {
        conditions: vec![Condition::Unchanged { key: key.clone(), mod_revision }],
        mutations: vec![Mutation::Put { key, value }],
        fence: epoch.fence(),
    };
    match store.transact(transaction).await? {
        TransactionOutcome::Committed { .. } => Ok(Outcome::Written),
        TransactionOutcome::ConditionFailed { .. } | TransactionOutcome::Fenced => Ok(Outcome::Missed),
    }
}
