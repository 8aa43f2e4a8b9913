//! The watch cache: one store watch per kind, shared by every watcher of that kind at this replica.
//!
//! Owns, per kind, a task that reads the store's watch, keeps the newest events in a ring, and hands each
//! event to the watchers it concerns. Promises that an event is decoded at most once and its JSON text
//! written at most once per kind of change, however many watchers there are; that a watcher sees every event
//! after the revision it named, in order; and that a slow watcher is ended (so that it comes back and lists)
//! rather than slowing the others or growing a queue. Does not keep the objects themselves: lists read the
//! store, which holds them in memory anyway.
//!
//! ```text
//!   store watch ──► [feed task] ──► ring (last RING_EVENTS_MAX)
//!                        │ filtered by key prefix and selectors
//!                        ├──► watcher queue (QUEUE_EVENTS_MAX) ──► REST stream
//!                        └──► watcher queue                    ──► reflector
//! ```

mod event;
mod feed;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use api::{Kind, Status};
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(super) use self::event::SharedEvent;
pub use self::event::{Change, ObjectEvent};
use self::feed::Feed;
use super::Kinds;
use super::conversion::Converter;
use super::list::Selection;
use crate::object_store::SharedStore;

/// Events kept per kind, so that a watcher that comes back finds what it missed.
const RING_EVENTS_MAX: usize = 4096;
/// Events that wait for one watcher before it is ended as too slow.
const QUEUE_EVENTS_MAX: usize = 1024;

/// What a watcher sees.
#[derive(Debug, Clone)]
pub(super) struct Filter {
    /// Keys begin with this.
    pub(super) prefix: Bytes,
    /// And these match.
    pub(super) selection: Selection,
}

impl Filter {
    /// How the event looks through the filter: an object that begins or ceases to match was added or
    /// deleted, as far as this watcher knows.
    pub(super) fn view(&self, event: &Arc<SharedEvent>) -> Option<ObjectEvent> {
        if !event.object().key().starts_with(&self.prefix) {
            return None;
        }
        let change = match self.selection.is_everything() {
            true => event.change(),
            false => {
                let before = event.previous().is_some_and(|object| self.selection.matches(object));
                let after = !event.is_deletion() && self.selection.matches(event.object());
                match (before, after) {
                    (false, false) => return None,
                    (false, true) => Change::Added,
                    (true, true) => Change::Modified,
                    (true, false) => Change::Deleted,
                }
            }
        };
        Some(ObjectEvent::new(change, event.clone()))
    }
}

/// A watcher's end of its queue.
pub(super) struct Subscription {
    /// What the ring still held, oldest first.
    pub(super) backlog: Vec<ObjectEvent>,
    /// What follows; closed when the watcher is ended. An error says why, and is the last item.
    pub(super) queue: mpsc::Receiver<Result<ObjectEvent, Status>>,
    /// How far the feed is: everything up to there was put into the queue.
    pub(super) position: tokio::sync::watch::Receiver<u64>,
}

/// One feed per kind that somebody watches, started with its first watcher.
#[derive(Debug)]
pub(super) struct Cachers {
    store: SharedStore,
    tasks: TaskTracker,
    cancel: CancellationToken,
    kinds: Kinds,
    converter: Converter,
    /// By group, version and plural.
    feeds: Mutex<HashMap<[&'static str; 3], Arc<Feed>>>,
}

impl Cachers {
    pub(super) fn new(
        store: SharedStore,
        kinds: Kinds,
        converter: Converter,
        (tasks, cancel): (TaskTracker, CancellationToken),
    ) -> Self {
        Self { store, tasks, cancel, kinds, converter, feeds: Mutex::new(HashMap::new()) }
    }

    /// Subscribes to events after `revision`. `None`: they are not all in the ring any more.
    pub(super) async fn subscribe(
        &self,
        kind: &'static Kind,
        filter: Filter,
        revision: u64,
    ) -> Option<Subscription> {
        let feed = self.feed(kind);
        feed.started().await;
        feed.subscribe(filter, revision)
    }

    fn feed(&self, kind: &'static Kind) -> Arc<Feed> {
        let mut feeds = self.feeds.lock().unwrap_or_else(PoisonError::into_inner);
        let feed = feeds.entry([kind.group, kind.version, kind.plural]).or_insert_with(|| {
            let feed = Arc::new(Feed::new(kind, self.kinds.clone(), self.converter.clone()));
            self.tasks.spawn(feed.clone().run(self.store.clone(), self.cancel.clone()));
            feed
        });
        feed.clone()
    }
}
