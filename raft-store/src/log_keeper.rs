//! Keeps the log short in bytes. Consensus counts entries, but one may hold a single command or hundreds.
//!
//! Asks for a checkpoint when the log has grown by [`Config::checkpoint_log_bytes`](crate::Config) since the
//! last, and drops entries that a checkpoint on disk covers, but for the newest
//! [`Config::log_bytes_kept`](crate::Config), which followers that lag a little can still have. So neither
//! memory (the log is held there, too) nor the time that a restart replays grows with the load. At the same pace it
//! has freed memory given back to the system.

use std::time::Duration;

use crate::store::Store;

/// How often the log is looked at.
const PERIOD: Duration = Duration::from_millis(500);

/// A piece that the allocator takes from the system and does not keep for a size of its own.
const LARGE_PIECE_BYTES: usize = 4 * 1024 * 1024;

/// Looks after the log until the store stops.
pub(crate) async fn run(store: Store) {
    let mut asked = 0;
    loop {
        tokio::select! {
            () = store.stopping() => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
        give_memory_back();
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

/// Makes the allocator look at what it has kept for too long. mimalloc gives memory back some time after it was freed,
/// but only when another large piece is freed: a member that has loaded its state or written a checkpoint,
/// and is idle then, would keep all that this took. The piece is never touched, so it costs a system call.
fn give_memory_back() {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(LARGE_PIECE_BYTES)));
}
