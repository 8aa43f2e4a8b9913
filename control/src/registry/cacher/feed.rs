//! The feed of one kind: follows the store's watch and hands events on.
//!
//! States: *starting* (nobody is served) → *following* → (store watch ended: every watcher is ended, the ring
//! is dropped) → *starting*, until cancelled.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::Kind;
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{Filter, ObjectEvent, QUEUE_EVENTS_MAX, RING_EVENTS_MAX, SharedEvent, Subscription};
use crate::object_store::{Consistency, Error, ObjectStore, SharedStore, WatchEvent, WatchItem, WatchStream};
use crate::registry::keys;

/// How many revisions before now a starting feed reads again, for watchers that come from elsewhere.
const HISTORY_REVISIONS: u64 = 2000;
/// How long a watcher waits for a feed that is starting before it opens a store watch of its own.
const START_WAIT_MAX: Duration = Duration::from_secs(2);
/// Pause before the store is asked for a watch again.
const RESTART_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Feed {
    kind: &'static Kind,
    prefix: Bytes,
    state: Mutex<State>,
    /// Everything up to this revision was handed on; 0: starting.
    position: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    following: bool,
    /// Every event after this revision is in the ring.
    ring_after: u64,
    ring: VecDeque<WatchEvent>,
    watchers: Vec<Watcher>,
}

#[derive(Debug)]
struct Watcher {
    filter: Filter,
    after: u64,
    queue: mpsc::Sender<ObjectEvent>,
}

impl Feed {
    pub(super) fn new(kind: &'static Kind) -> Self {
        Self {
            kind,
            prefix: keys::prefix(kind, None),
            state: Mutex::default(),
            position: watch::Sender::new(0),
        }
    }

    /// Waits until the feed follows the store, but not for long.
    pub(super) async fn started(&self) {
        let mut position = self.position.subscribe();
        let _ = tokio::time::timeout(START_WAIT_MAX, position.wait_for(|position| *position > 0)).await;
    }

    pub(super) fn subscribe(&self, filter: Filter, revision: u64) -> Option<Subscription> {
        let mut state = self.lock();
        if !state.following || revision < state.ring_after {
            return None;
        }
        let first = state.ring.partition_point(|event| event.object.mod_revision <= revision);
        let missed = state.ring.range(first..).filter(|event| event.object.key.starts_with(&filter.prefix));
        let backlog = missed
            .filter_map(|event| filter.view(&Arc::new(SharedEvent::new(self.kind, event.clone()))))
            .collect();
        let (sender, queue) = mpsc::channel(QUEUE_EVENTS_MAX);
        state.watchers.push(Watcher { filter, after: revision, queue: sender });
        Some(Subscription { backlog, queue, position: self.position.subscribe() })
    }

    /// Follows the store until cancelled.
    pub(super) async fn run(self: Arc<Self>, store: SharedStore, cancel: CancellationToken) {
        let follow = async {
            loop {
                if let Err(error) = self.follow(&store).await {
                    tracing::debug!(kind = self.kind.kind, %error, "the watch of the store ended; starting anew");
                }
                self.reset();
                tokio::time::sleep(RESTART_PAUSE).await;
            }
        };
        let _ = cancel.run_until_cancelled(follow).await;
        self.reset();
    }

    async fn follow(&self, store: &SharedStore) -> Result<(), Error> {
        let (_, newest) = store.get(self.prefix.clone(), Consistency::Serializable).await?;
        let from = newest.saturating_sub(HISTORY_REVISIONS).max(1);
        let (mut stream, from) = open(store, &self.prefix, from).await?;
        {
            let mut state = self.lock();
            state.following = true;
            state.ring_after = from - 1;
        }
        self.position.send_replace((from - 1).max(1));
        loop {
            match stream.next().await.transpose()? {
                Some(WatchItem::Progress { revision }) => self.advance(revision),
                Some(WatchItem::Events(events)) => self.dispatch(events),
                None => return Ok(()),
            }
        }
    }

    fn dispatch(&self, events: Vec<WatchEvent>) {
        let Some(revision) = events.last().map(|event| event.object.mod_revision) else { return };
        let mut state = self.lock();
        for event in events {
            let shared = Arc::new(SharedEvent::new(self.kind, event.clone()));
            let revision = event.object.mod_revision;
            if state.ring.len() >= RING_EVENTS_MAX
                && let Some(dropped) = state.ring.pop_front()
            {
                state.ring_after = dropped.object.mod_revision;
            }
            state.ring.push_back(event);
            // A full queue: the watcher is too slow; without its sender it ends once it has drained.
            state.watchers.retain(|watcher| {
                if revision <= watcher.after {
                    return !watcher.queue.is_closed();
                }
                match watcher.filter.view(&shared) {
                    Some(view) => watcher.queue.try_send(view).is_ok(),
                    None => !watcher.queue.is_closed(),
                }
            });
        }
        drop(state);
        self.advance(revision);
    }

    fn advance(&self, revision: u64) {
        self.position.send_if_modified(|position| {
            let newer = revision > *position;
            *position = revision.max(*position);
            newer
        });
    }

    fn reset(&self) {
        *self.lock() = State::default();
        self.position.send_replace(0);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn open(store: &SharedStore, prefix: &Bytes, from: u64) -> Result<(WatchStream, u64), Error> {
    match store.watch(prefix.clone(), from).await {
        Err(Error::Compacted { compact_revision, .. }) => {
            let from = compact_revision + 1;
            Ok((store.watch(prefix.clone(), from).await?, from))
        }
        stream => Ok((stream?, from)),
    }
}
