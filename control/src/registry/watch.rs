//! Watches: what is there, then what changes.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use api::crd::CustomKind;
use api::{Kind, Status};
use futures_util::Stream;
use tokio::sync::mpsc;

pub use super::cacher::{Change, ObjectEvent};
use super::cacher::{Filter, SharedEvent};
use super::conversion::Converter;
use super::list::{Selection, parse_version};
use super::{ListOptions, Registry, Rules, WatchOptions, error, keys};
use crate::object_store::{Error, ObjectStore, WatchEvent, WatchItem, WatchStream};

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
    rules: Rules,
    converter: Converter,
    /// Given before anything else.
    backlog: VecDeque<Notice>,
    source: Source,
    /// The newest revision that the reader has seen or is known not to miss.
    revision: u64,
}

type Conversion = Pin<Box<dyn Future<Output = Result<Vec<WatchEvent>, Status>> + Send>>;

enum Source {
    /// The kind's shared feed.
    Feed { queue: mpsc::Receiver<Result<ObjectEvent, Status>>, position: tokio::sync::watch::Receiver<u64> },
    /// A store watch of its own, for a reader that comes from before the shared feed's memory.
    Store { stream: WatchStream, filter: Filter },
    /// The same, whose newest events a webhook is converting.
    Converting { events: Conversion, stream: WatchStream, filter: Filter },
    /// Nothing follows the backlog but this error.
    Failed(Option<Status>),
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Watch")
            .field("kind", &self.rules.kind().kind)
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
        let rules = self.rules(kind)?;
        let selection = Selection::new(&rules, &options.labels, &options.fields)?;
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
        Ok(Watch { rules, converter: self.converter().clone(), backlog, source, revision: after })
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
        self.rules.kind()
    }

    /// Its rules, if a definition made them.
    pub(crate) fn custom_kind(&self) -> Option<&Arc<CustomKind>> {
        self.rules.custom()
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

    /// Has events of the store converted, mostly at once.
    fn convert(&mut self, events: Vec<WatchEvent>) {
        let (converter, rules) = (self.converter.clone(), self.rules.clone());
        let events: Conversion = Box::pin(async move { converter.events(&rules, events).await });
        self.source = match std::mem::replace(&mut self.source, Source::Failed(None)) {
            Source::Store { stream, filter } => Source::Converting { events, stream, filter },
            other => other,
        };
    }

    /// Takes events in that are in the version watched.
    fn converted(&mut self, events: Vec<WatchEvent>) {
        if let Source::Converting { stream, filter, .. } =
            std::mem::replace(&mut self.source, Source::Failed(None))
        {
            let shared = events.into_iter().map(|event| Arc::new(SharedEvent::new(&self.rules, event)));
            self.backlog.extend(shared.filter_map(|event| filter.view(&event)).map(Notice::Event));
            self.source = Source::Store { stream, filter };
        }
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
                Source::Converting { events, .. } => match events.as_mut().poll(context) {
                    Poll::Ready(Ok(events)) => this.converted(events),
                    Poll::Ready(Err(status)) => {
                        this.source = Source::Failed(None);
                        return Poll::Ready(Some(Err(status)));
                    }
                    Poll::Pending => return Poll::Pending,
                },
                Source::Failed(status) => return Poll::Ready(status.take().map(Err)),
                Source::Feed { queue, .. } => match queue.poll_recv(context) {
                    Poll::Ready(Some(Ok(event))) => return this.deliver(Notice::Event(event)),
                    Poll::Ready(Some(Err(status))) => {
                        this.source = Source::Failed(None);
                        return Poll::Ready(Some(Err(status)));
                    }
                    Poll::Ready(None) => return Poll::Ready(None),
                    Poll::Pending => return Poll::Pending,
                },
                Source::Store { stream, .. } => match stream.as_mut().poll_next(context) {
                    Poll::Ready(Some(Ok(WatchItem::Events(events)))) => this.convert(events),
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
