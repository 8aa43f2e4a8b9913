//! Scenarios: watches.

use std::collections::VecDeque;

use proto::etcd::etcdserverpb as pb;
use proto::etcd::etcdserverpb::watch_client::WatchClient;
use proto::etcd::etcdserverpb::watch_request::RequestUnion;
use proto::etcd::mvccpb;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Streaming};

use super::notes::{Scenario, delete, key};
use crate::group::PATIENCE;

/// A watch stream whose answers are taken apart: what says something of a watch, and events.
pub(crate) struct Watching {
    requests: mpsc::Sender<pb::WatchRequest>,
    /// etcd opens a stream when it has something to say.
    opening: Option<JoinHandle<Streaming<pb::WatchResponse>>>,
    responses: Option<Streaming<pb::WatchResponse>>,
    controls: VecDeque<pb::WatchResponse>,
    events: VecDeque<(i64, mvccpb::Event)>,
}

impl Watching {
    pub(crate) fn open(client: &WatchClient<tonic::transport::Channel>) -> Self {
        let (requests, rx) = mpsc::channel(16);
        let mut client = client.clone();
        let opening = tokio::spawn(async move {
            client.watch(ReceiverStream::new(rx)).await.expect("a stream").into_inner()
        });
        Self {
            requests,
            opening: Some(opening),
            responses: None,
            controls: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    pub(crate) async fn ask(&self, request: RequestUnion) {
        let request = pb::WatchRequest { request_union: Some(request) };
        self.requests.send(request).await.expect("the stream is open");
    }

    pub(crate) async fn create(&mut self, create: pb::WatchCreateRequest) -> pb::WatchResponse {
        self.ask(RequestUnion::CreateRequest(create)).await;
        self.control().await
    }

    pub(crate) async fn message(&mut self) -> pb::WatchResponse {
        if let Some(opening) = self.opening.take() {
            self.responses = Some(opening.await.expect("does not panic"));
        }
        let responses = self.responses.as_mut().expect("opened above");
        let message = tokio::time::timeout(PATIENCE, responses.message());
        message.await.expect("an answer in time").expect("goes on").expect("does not end")
    }

    async fn take(&mut self) {
        let message = self.message().await;
        if message.events.is_empty() {
            self.controls.push_back(message);
        } else {
            self.events.extend(message.events.into_iter().map(|event| (message.watch_id, event)));
        }
    }

    /// The next answer that is no event.
    pub(crate) async fn control(&mut self) -> pb::WatchResponse {
        while self.controls.is_empty() {
            self.take().await;
        }
        self.controls.pop_front().expect("just found")
    }

    /// So many events, in the order of the watches.
    pub(crate) async fn events(&mut self, number: usize) -> Vec<(i64, mvccpb::Event)> {
        while self.events.len() < number {
            self.take().await;
        }
        let mut events: Vec<_> = self.events.drain(..number).collect();
        events.sort_by_key(|(watch, _)| *watch);
        events
    }
}

fn on(from: &str, to: &str) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest { key: key(from), range_end: key(to), ..Default::default() }
}

async fn note_create(s: &mut Scenario, stream: &mut Watching, label: &str, create: pb::WatchCreateRequest) {
    let answer = stream.create(create).await;
    s.note(label, &Ok(Response::new(answer)));
}

async fn note_events(s: &mut Scenario, stream: &mut Watching, label: &str, number: usize) {
    for (n, event) in stream.events(number).await.into_iter().enumerate() {
        s.note_text(&format!("{label} {n}"), &format!("{event:?}"));
    }
}

pub(crate) async fn events(s: &mut Scenario) {
    s.put("w/a", "1").await;
    s.put("w/b", "1").await;
    let stream = &mut Watching::open(&s.watch);
    let base = s.base;
    note_create(s, stream, "now, one key", on("w/a", "")).await;
    note_create(
        s,
        stream,
        "past, a range",
        pb::WatchCreateRequest { start_revision: base + 1, ..on("w/", "w0") },
    )
    .await;
    note_events(s, stream, "history", 2).await;
    note_create(s, stream, "future", pb::WatchCreateRequest { start_revision: base + 4, ..on("w/", "w0") })
        .await;
    note_create(s, stream, "prev_kv", pb::WatchCreateRequest { prev_kv: true, ..on("w/a", "") }).await;
    note_create(s, stream, "no puts", pb::WatchCreateRequest { filters: vec![0], ..on("w/", "w0") }).await;
    note_create(s, stream, "no deletions", pb::WatchCreateRequest { filters: vec![1], ..on("w/", "w0") })
        .await;
    note_create(s, stream, "nothing", pb::WatchCreateRequest { filters: vec![1, 0, 7], ..on("w/", "w0") })
        .await;
    note_create(s, stream, "to the end", on("w/b", "\0")).await;
    s.put("w/a", "2").await;
    note_events(s, stream, "a put", 4).await;
    let deleted = s.kv.delete_range(delete("w/", "w0")).await;
    s.note("deleted", &deleted);
    note_events(s, stream, "two deletions", 9).await;
    s.put("w/b", "anew").await;
    note_events(s, stream, "created anew", 4).await;
}

pub(crate) async fn one_response(s: &mut Scenario) {
    let stream = &mut Watching::open(&s.watch);
    note_create(s, stream, "created", on("x/a", "")).await;
    s.put("x/a", "1").await;
    let response = stream.message().await;
    s.note("whole", &Ok(Response::new(response)));
    s.put("other", "1").await;
    s.put("x/a", "2").await;
    let response = stream.message().await;
    s.note("after another key's change", &Ok(Response::new(response)));
}

pub(crate) async fn ids(s: &mut Scenario) {
    let stream = &mut Watching::open(&s.watch);
    note_create(s, stream, "first", on("i/a", "")).await;
    note_create(s, stream, "second", on("i/b", "")).await;
    note_create(s, stream, "given", pb::WatchCreateRequest { watch_id: 2, ..on("i/c", "") }).await;
    note_create(s, stream, "chosen beside it", on("i/d", "")).await;
    note_create(s, stream, "given, again", pb::WatchCreateRequest { watch_id: 2, ..on("i/c", "") }).await;
    note_create(s, stream, "negative", pb::WatchCreateRequest { watch_id: -7, ..on("i/c", "") }).await;
    note_create(s, stream, "inverted", on("i/c", "i/a")).await;
    note_create(s, stream, "empty span", on("i/c", "i/c")).await;
    note_create(s, stream, "no key", on("", "")).await;
    note_create(s, stream, "everything", on("", "\0")).await;
    note_create(s, stream, "from the start", on("", "b")).await;
    stream.ask(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: 2 })).await;
    let canceled = stream.control().await;
    s.note("canceled", &Ok(Response::new(canceled)));
    // Of what is not there nothing is said.
    stream.ask(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: 2 })).await;
    stream.ask(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: 99 })).await;
    note_create(s, stream, "after canceling", on("i/e", "")).await;
    note_create(s, stream, "id free again", pb::WatchCreateRequest { watch_id: 2, ..on("i/c", "") }).await;
    s.put("i/c", "1").await;
    note_events(s, stream, "event", 3).await;
}

pub(crate) async fn progress(s: &mut Scenario) {
    let stream = &mut Watching::open(&s.watch);
    stream.ask(RequestUnion::ProgressRequest(pb::WatchProgressRequest {})).await;
    let progress = stream.control().await;
    s.note("without a watch", &Ok(Response::new(progress)));
    note_create(s, stream, "created", on("y/a", "")).await;
    s.put("y/other", "1").await;
    stream.ask(RequestUnion::ProgressRequest(pb::WatchProgressRequest {})).await;
    let progress = stream.control().await;
    s.note("with a watch", &Ok(Response::new(progress)));
}

pub(crate) async fn fragments(s: &mut Scenario) {
    for n in 0..5 {
        s.put(&format!("f/{n}"), &"v".repeat(700 * 1024)).await;
    }
    let stream = &mut Watching::open(&s.watch);
    let base = s.base;
    let create = pb::WatchCreateRequest { fragment: true, start_revision: base + 1, ..on("f/", "f0") };
    note_create(s, stream, "created", create).await;
    // How they are cut is each store's own matter; all of them must arrive in order, none in too large a message.
    let events = stream.events(5).await;
    let keys: Vec<_> =
        events.iter().filter_map(|(_, event)| event.kv.as_ref()).map(|kv| kv.key.clone()).collect();
    s.note_text("events", &format!("{keys:?}"));
}

pub(crate) async fn compacted(s: &mut Scenario) {
    for n in 0..5 {
        s.put("k/a", &n.to_string()).await;
    }
    let base = s.base;
    s.kv.compact(pb::CompactionRequest { revision: base + 4, physical: false }).await.expect("compacted");
    let stream = &mut Watching::open(&s.watch);
    let at = |revision| pb::WatchCreateRequest { start_revision: revision, prev_kv: true, ..on("k/a", "") };
    note_create(s, stream, "below", at(base + 2)).await;
    let canceled = stream.control().await;
    s.note("is canceled", &Ok(Response::new(canceled)));
    note_create(s, stream, "at the compact revision", at(base + 4)).await;
    note_events(s, stream, "history", 2).await;
    note_create(
        s,
        stream,
        "of nothing, below",
        pb::WatchCreateRequest { start_revision: base + 2, ..on("k/none", "") },
    )
    .await;
    let canceled = stream.control().await;
    s.note("is canceled, too", &Ok(Response::new(canceled)));
}
