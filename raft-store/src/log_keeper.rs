//! Keeps the log short in bytes. Consensus counts entries, but one may hold a single command or hundreds.
//!
//! Asks for a checkpoint when the log has grown by [`Config::checkpoint_log_bytes`](crate::Config) since the
//! last, and drops entries that a checkpoint on disk covers, but for the newest
//! [`Config::log_bytes_kept`](crate::Config), which followers that lag a little can still have. So neither
//! memory (the log is held there, too) nor the time that a restart replays grows with the load.

use std::time::Duration;

use crate::store::Store;

/// How often the log is looked at.
const PERIOD: Duration = Duration::from_millis(500);

/// Looks after the log until the store stops.
pub(crate) async fn run(store: Store) {
    let mut asked = 0;
    loop {
        tokio::select! {
            () = store.stopping() => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
        let trigger = store.raft().trigger();
        let durable = store.checkpoint_index();
        let config = store.config();
        if store.log().bytes_after(durable.max(asked)) >= config.checkpoint_log_bytes {
            asked = store.status().applied_index;
            if trigger.snapshot().await.is_err() {
                return;
            }
        }
        let surplus = store.log().index_before_last(config.log_bytes_kept).map(|index| index.min(durable));
        // No checkpoint on disk that this process knows of: nothing may go.
        let surplus = surplus.filter(|_| durable > 0);
        if let Some(index) = surplus.filter(|index| store.log().purged_index() < Some(*index))
            && trigger.purge_log(index).await.is_err()
        {
            return;
        }
    }
}
