//! The feed of one kind: follows the store's watch and hands events on.
//!
//! Where a webhook converts between versions, events are converted on their way in; a webhook that fails ends the
//! watchers, who are told why.
//!
//! States: *starting* (nobody is served) → *following* → (store watch ended: every watcher is ended, the ring
//! is dropped) → *starting*, until cancelled.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::{Kind, Status};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{Filter, ObjectEvent, QUEUE_EVENTS_MAX, RING_EVENTS_MAX, SharedEvent, Subscription};
use crate::object_store::{Consistency, Error, ObjectStore, SharedStore, WatchEvent, WatchItem, WatchStream};
use crate::registry::conversion::Converter;
use crate::registry::{Kinds, Rules, keys};

/// How many revisions before now a starting feed reads again, for watchers that come from elsewhere.
const HISTORY_REVISIONS: u64 = 2000;
/// How long a watcher waits for a feed that is starting before it opens a store watch of its own.
const START_WAIT_MAX: Duration = Duration::from_secs(2);
/// Pause before a webhook that failed is asked again.
const CONVERSION_PAUSE: Duration = Duration::from_secs(1);
/// Pause before the store is asked for a watch again.
const RESTART_PAUSE: Duration = Duration::from_millis(100);

/// Why a feed starts anew.
enum Ended {
    Store(Error),
    /// A webhook did not convert what it should.
    Conversion(Status),
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

#[derive(Debug)]
pub(super) struct Feed {
    kind: &'static Kind,
    kinds: Kinds,
    converter: Converter,
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
    queue: mpsc::Sender<Result<ObjectEvent, Status>>,
}

impl Feed {
    pub(super) fn new(kind: &'static Kind, kinds: Kinds, converter: Converter) -> Self {
        Self {
            kind,
            kinds,
            converter,
            prefix: keys::prefix(kind, None),
            state: Mutex::default(),
            position: watch::Sender::new(0),
        }
    }

    /// The rules by which events are shown now. Of a kind whose definition is gone nothing is left to show
    /// but what was stored.
    fn rules(&self) -> Rules {
        let custom = self.kind.is_custom.then(|| self.kinds.current().custom(self.kind).cloned()).flatten();
        custom.map_or(Rules::BuiltIn(self.kind), Rules::Custom)
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
        let rules = self.rules();
        let backlog = missed
            .filter_map(|event| filter.view(&Arc::new(SharedEvent::new(&rules, event.clone()))))
            .collect();
        let (sender, queue) = mpsc::channel(QUEUE_EVENTS_MAX);
        state.watchers.push(Watcher { filter, after: revision, queue: sender });
        Some(Subscription { backlog, queue, position: self.position.subscribe() })
    }

    /// Follows the store until cancelled.
    pub(super) async fn run(self: Arc<Self>, store: SharedStore, cancel: CancellationToken) {
        let follow = async {
            loop {
                let ended = self.follow(&store).await;
                if let Err(Ended::Conversion(status)) = &ended {
                    self.tell(status);
                }
                self.reset();
                let pause = match ended {
                    Err(Ended::Conversion(status)) => {
                        tracing::warn!(kind = self.kind.kind, %status, "objects cannot be shown to watchers");
                        CONVERSION_PAUSE
                    }
                    Err(Ended::Store(error)) => {
                        tracing::debug!(kind = self.kind.kind, %error, "the watch of the store ended; starting anew");
                        RESTART_PAUSE
                    }
                    Ok(()) => RESTART_PAUSE,
                };
                tokio::time::sleep(pause).await;
            }
        };
        let _ = cancel.run_until_cancelled(follow).await;
        self.reset();
    }

    async fn follow(&self, store: &SharedStore) -> Result<(), Ended> {
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
                Some(WatchItem::Events(events)) => {
                    let events = self.converter.events(&self.rules(), events).await;
                    self.dispatch(events.map_err(Ended::Conversion)?);
                }
                None => return Ok(()),
            }
        }
    }

    /// Says to every watcher why it ends. One whose queue is full ends without.
    fn tell(&self, status: &Status) {
        for watcher in &self.lock().watchers {
            drop(watcher.queue.try_send(Err(status.clone())));
        }
    }

    fn dispatch(&self, events: Vec<WatchEvent>) {
        let Some(revision) = events.last().map(|event| event.object.mod_revision) else { return };
        let rules = self.rules();
        let mut state = self.lock();
        for event in events {
            let shared = Arc::new(SharedEvent::new(&rules, event.clone()));
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
                    Some(view) => watcher.queue.try_send(Ok(view)).is_ok(),
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
