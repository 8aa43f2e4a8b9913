//! Watches: what is there, then what changes.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use api::{Kind, Status};
use futures_util::Stream;
use tokio::sync::mpsc;

pub use super::cacher::{Change, ObjectEvent};
use super::cacher::{Filter, SharedEvent};
use super::list::{Selection, parse_version};
use super::{ListOptions, Registry, WatchOptions, error, keys};
use crate::object_store::{Error, ObjectStore, WatchItem, WatchStream};

/// An element of a [`Watch`].
#[derive(Debug, Clone)]
pub enum Notice {
    /// An object came, changed or went.
    Event(ObjectEvent),
    /// Nothing is missing up to this revision.
    Bookmark {
        /// The revision reached.
        revision: u64,
        /// Whether this marks the end of the objects that were there when the watch began.
        initial_events_end: bool,
    },
}

/// A stream of changes. An error item says why it cannot go on (`Expired`: list again) and is the last one.
/// A stream that ends without one was cut off (too slow a reader, or the replica restarts its feed): watch
/// again from the last revision seen.
pub struct Watch {
    kind: &'static Kind,
    /// Given before anything else.
    backlog: VecDeque<Notice>,
    source: Source,
    /// The newest revision that the reader has seen or is known not to miss.
    revision: u64,
}

enum Source {
    /// The kind's shared feed.
    Feed { queue: mpsc::Receiver<ObjectEvent>, position: tokio::sync::watch::Receiver<u64> },
    /// A store watch of its own, for a reader that comes from before the shared feed's memory.
    Store { stream: WatchStream, filter: Filter },
    /// Nothing follows the backlog but this error.
    Failed(Option<Status>),
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Watch")
            .field("kind", &self.kind.kind)
            .field("revision", &self.revision)
            .finish()
    }
}

impl Registry {
    /// Watches the objects of a kind, in one namespace or in all.
    pub async fn watch(
        &self,
        kind: &'static Kind,
        namespace: Option<&str>,
        options: &WatchOptions,
    ) -> Result<Watch, Status> {
        let selection = Selection::new(kind, &options.labels, &options.fields)?;
        let asked = options.resource_version.as_deref().unwrap_or_default();
        let revision = if asked.is_empty() { 0 } else { parse_version(asked)? };
        let mut backlog = VecDeque::new();
        let mut after = revision;
        if revision == 0 || options.send_initial_events {
            let list = ListOptions {
                labels: options.labels.clone(),
                fields: options.fields.clone(),
                resource_version: options.resource_version.clone(),
                ..ListOptions::default()
            };
            let listed = self.list(kind, namespace, &list).await?;
            after = listed.revision;
            backlog.extend(listed.items.into_iter().map(|object| {
                let shared = Arc::new(SharedEvent::initial(object));
                Notice::Event(ObjectEvent::new(Change::Added, shared))
            }));
            if options.send_initial_events {
                backlog.push_back(Notice::Bookmark { revision: after, initial_events_end: true });
            }
        }
        let filter = Filter { prefix: keys::prefix(kind, namespace), selection };
        let source = self.watch_source(kind, filter, after, &mut backlog).await?;
        Ok(Watch { kind, backlog, source, revision: after })
    }

    async fn watch_source(
        &self,
        kind: &'static Kind,
        filter: Filter,
        after: u64,
        backlog: &mut VecDeque<Notice>,
    ) -> Result<Source, Status> {
        if let Some(subscription) = self.inner.cachers.subscribe(kind, filter.clone(), after).await {
            backlog.extend(subscription.backlog.into_iter().map(Notice::Event));
            return Ok(Source::Feed { queue: subscription.queue, position: subscription.position });
        }
        match self.store().watch(filter.prefix.clone(), after + 1).await {
            Ok(stream) => Ok(Source::Store { stream, filter }),
            Err(Error::Compacted { compact_revision, .. }) => {
                Ok(Source::Failed(Some(error::watch_expired(after, compact_revision))))
            }
            Err(other) => Err(error::from_store(other)),
        }
    }
}

impl Watch {
    /// The kind watched.
    pub fn kind(&self) -> &'static Kind {
        self.kind
    }

    /// A bookmark for a reader that has taken everything so far: the revision up to which nothing is
    /// missing. `None` while something still waits to be read.
    pub fn bookmark(&mut self) -> Option<u64> {
        if !self.backlog.is_empty() {
            return None;
        }
        if let Source::Feed { queue, position } = &mut self.source {
            let reached = *position.borrow();
            // Events are queued before the position moves, so an empty queue now means none up to there.
            if !queue.is_empty() {
                return None;
            }
            self.revision = self.revision.max(reached);
        }
        Some(self.revision)
    }

    fn deliver(&mut self, notice: Notice) -> Poll<Option<Result<Notice, Status>>> {
        let reached = match &notice {
            Notice::Event(event) => event.object().revision(),
            Notice::Bookmark { revision, .. } => *revision,
        };
        self.revision = self.revision.max(reached);
        Poll::Ready(Some(Ok(notice)))
    }

    fn fail(&mut self, error: Error) -> Poll<Option<Result<Notice, Status>>> {
        self.source = Source::Failed(None);
        Poll::Ready(Some(Err(match error {
            Error::Compacted { requested, compact_revision } => {
                error::watch_expired(requested, compact_revision)
            }
            other => error::from_store(other),
        })))
    }
}

impl Stream for Watch {
    type Item = Result<Notice, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(notice) = this.backlog.pop_front() {
                return this.deliver(notice);
            }
            match &mut this.source {
                Source::Failed(status) => return Poll::Ready(status.take().map(Err)),
                Source::Feed { queue, .. } => match queue.poll_recv(context) {
                    Poll::Ready(Some(event)) => return this.deliver(Notice::Event(event)),
                    Poll::Ready(None) => return Poll::Ready(None),
                    Poll::Pending => return Poll::Pending,
                },
                Source::Store { stream, filter } => match stream.as_mut().poll_next(context) {
                    Poll::Ready(Some(Ok(WatchItem::Events(events)))) => {
                        let kind = this.kind;
                        let shared = events.into_iter().map(|event| Arc::new(SharedEvent::new(kind, event)));
                        this.backlog
                            .extend(shared.filter_map(|event| filter.view(&event)).map(Notice::Event));
                    }
                    Poll::Ready(Some(Ok(WatchItem::Progress { revision }))) => {
                        this.revision = this.revision.max(revision);
                    }
                    Poll::Ready(Some(Err(error))) => return this.fail(error),
                    Poll::Ready(None) => return Poll::Ready(None),
                    Poll::Pending => return Poll::Pending,
                },
            }
        }
    }
}
