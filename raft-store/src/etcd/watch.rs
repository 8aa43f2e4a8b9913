//! `etcdserverpb.Watch`: many watches over one stream.
//!
//! A stream is polled by its connection and does its work then: it takes the client's requests, looks where
//! its watches have something, and answers. So a client that does not read is not worked for; it
//! holds the few frames of one chunk, and its watches go on from history when it reads again. The answers to
//! one client are in the order of the history: a progress answer follows every event up to its revision.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, Stream, StreamExt};
use proto::etcd::etcdserverpb as pb;
use proto::etcd::etcdserverpb::watch_create_request::FilterType;
use proto::etcd::etcdserverpb::watch_request::RequestUnion;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tonic::{Request, Status, Streaming};

use super::access::Caller;
use super::watch_codec::{Frame, Variant, WatchServer};
use super::{convert, status};
use crate::error::Error;
use crate::store::Store;
use crate::watch::{Chunk, Cursor, Mailbox};

/// In answers that are about no watch.
const NO_WATCH: i64 = -1;
/// How often a stream whose client asks for a leader makes sure that there is one, with a majority behind it.
const LEADER_CHECK_PERIOD: Duration = Duration::from_secs(2);
/// Metadata with which a client asks for that.
const REQUIRE_LEADER: &str = "hasleader";

pub(crate) fn service(store: Store) -> WatchServer {
    WatchServer { store }
}

struct Watch {
    /// Names this watch in the mailbox; ids may be used again.
    token: u64,
    cursor: Cursor,
    variant: Variant,
    fragment: bool,
    /// It asked for progress…
    progress_notify: bool,
    /// …and had no event since the last.
    progress_due: bool,
}

/// See the module's head.
pub(crate) struct WatchStream {
    store: Store,
    caller: Caller,
    requests: Option<Streaming<pb::WatchRequest>>,
    watches: HashMap<i64, Watch>,
    ids_by_token: HashMap<u64, i64>,
    tokens: u64,
    next_id: i64,
    mailbox: Arc<Mailbox>,
    /// Answers that wait to be sent; filled only while empty.
    frames: VecDeque<Frame>,
    progress_ticks: Option<Interval>,
    /// The client asked for progress: to be answered when every change up to now is published, and looked at.
    progress_asked: Option<BoxFuture<'static, ()>>,
    progress_published: bool,
    /// Why the stream ends, when it does.
    end: BoxFuture<'static, Status>,
    ended: bool,
}

impl WatchStream {
    pub(super) fn begin(store: Store, request: Request<Streaming<pb::WatchRequest>>) -> Result<Self, Status> {
        let caller = Caller::of(&store, &request)?;
        let needs_leader = request.metadata().get(REQUIRE_LEADER).is_some_and(|value| value == "true");
        Ok(Self {
            end: end(store.clone(), needs_leader).boxed(),
            store,
            caller,
            requests: Some(request.into_inner()),
            watches: HashMap::new(),
            ids_by_token: HashMap::new(),
            tokens: 0,
            next_id: 0,
            mailbox: Arc::default(),
            frames: VecDeque::new(),
            progress_ticks: None,
            progress_asked: None,
            progress_published: false,
            ended: false,
        })
    }

    fn say(&mut self, revision: u64, head: pb::WatchResponse) {
        let header = Some(self.store.etcd_header(revision));
        self.frames.push_back(Frame { head: pb::WatchResponse { header, ..head }, events: Bytes::new() });
    }

    fn handle(&mut self, request: pb::WatchRequest) {
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => self.create(create),
            Some(RequestUnion::CancelRequest(cancel)) => self.cancel(cancel.watch_id),
            Some(RequestUnion::ProgressRequest(_)) => {
                // Requests that come meanwhile share the answer.
                let revision = self.store.revision();
                let mut published = self.store.shared().hub.watch_published();
                self.progress_published = false;
                let reached = async move {
                    // The other end is gone only when the store is.
                    let _ = published.wait_for(|published| *published >= revision).await;
                };
                self.progress_asked = Some(reached.boxed());
            }
            None => {}
        }
    }

    /// As in etcd, nothing is said of a watch that is not there.
    fn cancel(&mut self, watch_id: i64) {
        if self.remove(watch_id) {
            let revision = self.store.revision();
            self.say(revision, pb::WatchResponse { watch_id, canceled: true, ..Default::default() });
        }
    }

    fn create(&mut self, mut create: pb::WatchCreateRequest) {
        if create.key.is_empty() {
            // The smallest key there is.
            create.key = Bytes::from_static(b"\0");
        }
        if let Err(denied) = self.caller.may_range(&self.store, &create.key, &create.range_end) {
            let reason = format!("rpc error: code = {:?} desc = {}", denied.code(), denied.message());
            return self.refuse(create.watch_id, reason);
        }
        if !create.range_end.is_empty() && *create.range_end != [0] && create.range_end <= create.key {
            return self.refuse(NO_WATCH, "mvcc: watcher range is empty".to_owned());
        }
        let id = match create.watch_id {
            0 => {
                while self.watches.contains_key(&self.next_id) {
                    self.next_id += 1;
                }
                self.next_id += 1;
                self.next_id - 1
            }
            taken if self.watches.contains_key(&taken) => {
                let reason = "mvcc: duplicate watch ID provided on the WatchStream";
                return self.refuse(NO_WATCH, reason.to_owned());
            }
            given => given,
        };
        let from = match create.start_revision {
            0 => 0,
            revision => u64::try_from(revision).unwrap_or(1),
        };
        self.tokens += 1;
        let place = (Arc::clone(&self.mailbox), self.tokens);
        let cursor =
            Cursor::start(Arc::clone(self.store.shared()), (create.key, create.range_end), from, place);
        let began_at = cursor.began_at;
        let filters = |filter| create.filters.contains(&i32::from(filter));
        let variant = Variant {
            prev_kv: create.prev_kv,
            no_put: filters(FilterType::Noput),
            no_delete: filters(FilterType::Nodelete),
        };
        if create.progress_notify && self.progress_ticks.is_none() {
            let period = self.store.config().watch_progress_interval;
            let mut ticks = tokio::time::interval_at(Instant::now() + period, period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            self.progress_ticks = Some(ticks);
        }
        let watch = Watch {
            token: self.tokens,
            cursor,
            variant,
            fragment: create.fragment,
            progress_notify: create.progress_notify,
            progress_due: true,
        };
        self.ids_by_token.insert(watch.token, id);
        self.watches.insert(id, watch);
        self.say(began_at, pb::WatchResponse { watch_id: id, created: true, ..Default::default() });
    }

    /// Created and canceled in one, as etcd says that it does not take a watch.
    fn refuse(&mut self, watch_id: i64, cancel_reason: String) {
        let head = pb::WatchResponse {
            watch_id,
            created: true,
            canceled: true,
            cancel_reason,
            ..Default::default()
        };
        self.say(self.store.revision(), head);
    }

    fn remove(&mut self, id: i64) -> bool {
        let Some(watch) = self.watches.remove(&id) else { return false };
        self.ids_by_token.remove(&watch.token);
        true
    }

    /// Looks for one watch; whatever there is becomes frames.
    fn look(&mut self, token: u64) {
        let Some(&id) = self.ids_by_token.get(&token) else { return };
        let Some(watch) = self.watches.get_mut(&id) else { return };
        match watch.cursor.step() {
            Ok(None) => {}
            Ok(Some(chunk)) => self.send_events(id, &chunk),
            Err(Error::Compacted { compact_revision, .. }) => {
                self.remove(id);
                let compact_revision = convert::signed(compact_revision);
                let head = pb::WatchResponse {
                    watch_id: id,
                    canceled: true,
                    compact_revision,
                    ..Default::default()
                };
                // etcd names no revision here.
                self.say(0, head);
            }
            Err(error) => {
                self.remove(id);
                let cancel_reason = status::of_error(&error).message().to_owned();
                let head =
                    pb::WatchResponse { watch_id: id, canceled: true, cancel_reason, ..Default::default() };
                self.say(self.store.revision(), head);
            }
        }
    }

    fn send_events(&mut self, watch_id: i64, chunk: &Chunk) {
        let Some(watch) = self.watches.get_mut(&watch_id) else { return };
        let variant = watch.variant;
        let encoded = chunk.encoded(variant.number(), |batches| variant.encode(batches));
        if encoded.ends.is_empty() {
            return;
        }
        watch.progress_due = false;
        let bytes_max = if watch.fragment { self.store.config().request_bytes_max } else { usize::MAX };
        let header = Some(self.store.etcd_header(chunk.through));
        let mut start = 0;
        let mut end = 0;
        for &next in &encoded.ends {
            if next - start > bytes_max && end > start {
                let head = pb::WatchResponse { header, watch_id, fragment: true, ..Default::default() };
                self.frames.push_back(Frame { head, events: encoded.bytes.slice(start..end) });
                start = end;
            }
            end = next;
        }
        let head = pb::WatchResponse { header, watch_id, ..Default::default() };
        self.frames.push_back(Frame { head, events: encoded.bytes.slice(start..end) });
    }

    /// The period has passed: says how far the watches are that had nothing to say since the last time.
    fn notify_progress(&mut self) {
        let mut due = Vec::new();
        for (id, watch) in self.watches.iter_mut().filter(|(_, watch)| watch.progress_notify) {
            if std::mem::replace(&mut watch.progress_due, true)
                && let Some(revision) = watch.cursor.synced()
            {
                due.push((*id, revision));
            }
        }
        due.sort_unstable();
        for (watch_id, revision) in due {
            self.say(revision, pb::WatchResponse { watch_id, ..Default::default() });
        }
    }

    /// Answers a request for progress if every watch is synced.
    fn answer_progress(&mut self) -> bool {
        let mut revision = self.store.shared().hub.published();
        for watch in self.watches.values() {
            let Some(synced) = watch.cursor.synced() else { return false };
            revision = revision.min(synced);
        }
        self.progress_published = false;
        self.say(revision, pb::WatchResponse { watch_id: NO_WATCH, ..Default::default() });
        true
    }

    /// Does one thing that there is to do; pending when there is nothing.
    fn poll_work(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if let Some(requests) = &mut self.requests
            && let Poll::Ready(request) = requests.poll_next_unpin(context)
        {
            match request {
                Some(Ok(request)) => self.handle(request),
                // A client that has nothing more to ask may still listen.
                Some(Err(_)) | None => self.requests = None,
            }
            return Poll::Ready(());
        }
        if let Some(ticks) = &mut self.progress_ticks
            && ticks.poll_tick(context).is_ready()
        {
            self.notify_progress();
            return Poll::Ready(());
        }
        if let Some(asked) = &mut self.progress_asked
            && asked.poll_unpin(context).is_ready()
        {
            self.progress_asked = None;
            self.progress_published = true;
        }
        if let Poll::Ready(token) = self.mailbox.poll(context) {
            self.look(token);
            return Poll::Ready(());
        }
        if self.progress_published && self.answer_progress() {
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

impl Stream for WatchStream {
    type Item = Result<Frame, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        if let Poll::Ready(status) = this.end.poll_unpin(context) {
            this.ended = true;
            this.watches.clear();
            return Poll::Ready(Some(Err(status)));
        }
        loop {
            if let Some(frame) = this.frames.pop_front() {
                return Poll::Ready(Some(Ok(frame)));
            }
            std::task::ready!(this.poll_work(context));
        }
    }
}

/// Waits until a stream must end, and says why.
async fn end(store: Store, needs_leader: bool) -> Status {
    let leaderless = async {
        if !needs_leader {
            return std::future::pending().await;
        }
        // A member that is cut off may go on believing in its leader: so ask. Streams share the answers.
        loop {
            tokio::time::sleep(LEADER_CHECK_PERIOD).await;
            if store.linearize().await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = store.stopping() => status::stopped(),
        () = leaderless => status::no_leader(),
    }
}
