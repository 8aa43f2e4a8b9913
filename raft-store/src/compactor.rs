//! Keeps history bounded: the leader compacts away what is older than the retention time.
//!
//! As kube-apiserver does with etcd: every period the revision of one period ago becomes the compact
//! revision. Watches and paged lists that are older must start again.

use std::time::Duration;

use state_machine::Command;

use crate::store::Store;

/// Proposes compactions while this member leads, until the store stops. `period` zero: never.
pub(crate) async fn run(store: Store, period: Duration) {
    if period.is_zero() {
        return;
    }
    // The store's revision one period ago, if this member led then.
    let mut due = None;
    loop {
        tokio::select! {
            () = store.stopping() => return,
            () = tokio::time::sleep(period) => {}
        }
        if !store.leadership().is_self {
            due = None;
            continue;
        }
        if let Some(revision) = due
            && revision > store.compact_revision()
            && let Err(error) = store.propose(&Command::Compact { revision }).await
        {
            tracing::warn!(%error, revision, "no compaction this time; trying again in a period");
        }
        due = Some(store.revision());
    }
}
