//! Who may act for the cluster, and since when.
//!
//! Owns the step from "this replica leads the log" to "this replica may act": its reflectors first take
//! over everything that earlier leaders wrote. Only then is an [`Epoch`] handed out, and it is taken back
//! the moment leadership goes. Whatever acts under an epoch puts it as fence on every write, so that a
//! write of a deposed leader loses in the log even if nobody here has noticed yet.
//!
//! ```text
//!  follower ──leads──► syncing ──copies are current──► leading(epoch = raft term) ──loses──► follower
//!                         └────────── leadership goes or the term changes ──────────────────────┘
//! ```

use std::future::Future;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::object_store::{Error, Leadership};

/// The wait between two tries to take over the state.
const SYNC_RETRY: Duration = Duration::from_millis(20);

/// The right to act for the cluster: the raft term under which this replica leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The value to put as fence on writes.
    pub fn fence(self) -> Option<u64> {
        Some(self.0)
    }
}

/// Says under which epoch this replica may act; `None`: it may not.
pub type EpochReceiver = watch::Receiver<Option<Epoch>>;

/// Turns leadership into epochs until cancelled. `sync` brings the reflectors up to date.
pub async fn publish_epochs<F, Fut>(
    mut leadership: watch::Receiver<Leadership>,
    epochs: watch::Sender<Option<Epoch>>,
    sync: F,
    cancel: CancellationToken,
) where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<(), Error>>,
{
    let work = async {
        loop {
            let seen = *leadership.borrow_and_update();
            if seen.is_self {
                let take_over = async {
                    while let Err(error) = sync().await {
                        tracing::debug!(term = seen.term, %error, "taking over the state failed; trying again");
                        tokio::time::sleep(SYNC_RETRY).await;
                    }
                };
                tokio::select! {
                    () = take_over => {
                        tracing::info!(epoch = seen.term, "leading");
                        epochs.send_replace(Some(Epoch(seen.term)));
                        if !changed_from(&mut leadership, seen).await { return }
                        epochs.send_replace(None);
                        tracing::info!(epoch = seen.term, "no longer leading");
                    }
                    alive = changed_from(&mut leadership, seen) => if !alive { return },
                }
            } else if leadership.changed().await.is_err() {
                return;
            }
        }
    };
    cancel.run_until_cancelled(work).await;
    epochs.send_replace(None);
}

/// Waits until term or role differ from `seen`. `false`: the store is gone.
async fn changed_from(leadership: &mut watch::Receiver<Leadership>, seen: Leadership) -> bool {
    leadership.wait_for(|now| (now.term, now.is_self) != (seen.term, seen.is_self)).await.is_ok()
}

/// Runs `work` whenever this replica may act, under a token that is cancelled when it no longer may. The
/// next run begins only after the one before has ended. Ends when `cancel` is cancelled.
pub async fn while_leading<F, Fut>(mut epochs: EpochReceiver, cancel: CancellationToken, work: F)
where
    F: Fn(Epoch, CancellationToken) -> Fut,
    Fut: Future<Output = ()>,
{
    loop {
        let epoch = tokio::select! {
            () = cancel.cancelled() => return,
            found = epochs.wait_for(Option::is_some) => match found.map(|found| *found) {
                Ok(Some(epoch)) => epoch,
                Ok(None) => continue,
                Err(_) => return,
            },
        };
        let stop = cancel.child_token();
        let watch_epoch = async {
            // An error: the publisher is gone, which ends every epoch.
            let _ = epochs.wait_for(|now| *now != Some(epoch)).await;
            stop.cancel();
        };
        tokio::join!(work(epoch, stop.clone()), async {
            tokio::select! {
                () = watch_epoch => {}
                () = cancel.cancelled() => {}
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::sync::mpsc;

    use super::*;

    fn leader(term: u64) -> Leadership {
        Leadership { term, leader: Some(1), is_self: true }
    }

    fn follower(term: u64) -> Leadership {
        Leadership { term, leader: Some(2), is_self: false }
    }

    #[tokio::test]
    async fn an_epoch_begins_after_the_sync_and_ends_with_the_leadership() {
        let (leadership, receiver) = watch::channel(follower(1));
        let (epochs, mut seen) = watch::channel(None);
        let ready = Arc::new(AtomicBool::new(false));
        let sync = {
            let ready = ready.clone();
            move || {
                let ready = ready.load(Ordering::SeqCst);
                async move { if ready { Ok(()) } else { Err(Error::Stopping) } }
            }
        };
        let cancel = CancellationToken::new();
        let task = tokio::spawn(publish_epochs(receiver, epochs, sync, cancel.clone()));
        leadership.send_replace(leader(2));
        tokio::time::sleep(3 * SYNC_RETRY).await;
        assert_eq!(*seen.borrow(), None, "not before the state is taken over");
        ready.store(true, Ordering::SeqCst);
        seen.wait_for(|epoch| *epoch == Some(Epoch(2))).await.expect("published");
        leadership.send_replace(follower(3));
        seen.wait_for(Option::is_none).await.expect("taken back");
        leadership.send_replace(leader(4));
        seen.wait_for(|epoch| *epoch == Some(Epoch(4))).await.expect("published");
        leadership.send_replace(leader(5));
        seen.wait_for(|epoch| *epoch == Some(Epoch(5))).await.expect("a new term is a new epoch");
        cancel.cancel();
        task.await.expect("ends");
        assert_eq!(*seen.borrow(), None);
    }

    #[tokio::test]
    async fn work_runs_only_while_leading_and_never_twice_at_once() {
        let (epochs, receiver) = watch::channel(None);
        let (log, mut entries) = mpsc::unbounded_channel();
        let cancel = CancellationToken::new();
        let work = move |epoch: Epoch, stop: CancellationToken| {
            let log = log.clone();
            async move {
                let _ = log.send(format!("begin {}", epoch.0));
                stop.cancelled().await;
                tokio::time::sleep(SYNC_RETRY).await;
                let _ = log.send(format!("end {}", epoch.0));
            }
        };
        let task = tokio::spawn(while_leading(receiver, cancel.clone(), work));
        epochs.send_replace(Some(Epoch(1)));
        assert_eq!(entries.recv().await.as_deref(), Some("begin 1"));
        epochs.send_replace(Some(Epoch(2)));
        assert_eq!(entries.recv().await.as_deref(), Some("end 1"));
        assert_eq!(entries.recv().await.as_deref(), Some("begin 2"));
        cancel.cancel();
        assert_eq!(entries.recv().await.as_deref(), Some("end 2"));
        task.await.expect("ends");
    }
}
