//! Watch fan-out: a few writers, many watchers of one range; what counts is events delivered.
//!
//! Watches share streams, one a connection, as etcd's own client library does it. Writers stay at most a window
//! of events ahead of the slowest delivery, so that a fast writer does not turn the measurement into one of
//! queues. An event's latency is from sending the put to reading the event.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream;
use proto::etcd::etcdserverpb as pb;
use proto::etcd::etcdserverpb::kv_client::KvClient;
use proto::etcd::etcdserverpb::watch_client::WatchClient;
use proto::etcd::etcdserverpb::watch_request::RequestUnion;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::client::{ANSWER_BYTES_MAX, Plan, put_request};
use super::connection::{Connection, origin};
use super::load::{Measured, Shape, Tally, Target, Window, observe};

/// Writers; more would only queue.
const WRITERS: usize = 4;
/// How many puts may be ahead of their last delivery.
const WINDOW_PUTS: usize = 16;
/// Longest wait for all watches to be there, and for the last events.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);
const PREFIX: &str = "fanout/";
const PREFIX_END: &str = "fanout0";

/// What writers and watchers share.
struct Board {
    state: Mutex<State>,
    moved: Notify,
    watchers: usize,
}

#[derive(Default)]
struct State {
    window: Option<Window>,
    /// When each put was sent, by number.
    sent: Vec<Instant>,
    delivered: usize,
    watching: usize,
    tally: Tally,
}

impl Board {
    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until `ready` holds.
    async fn wait(&self, what: &str, mut ready: impl FnMut(&State) -> bool) -> anyhow::Result<()> {
        let waiting = async {
            loop {
                let moved = self.moved.notified();
                if self.with(|state| ready(state)) {
                    return;
                }
                moved.await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        waited.map_err(|_| anyhow::anyhow!("not within {} s: {what}", PATIENCE.as_secs()))
    }
}

/// As `load::measure`; `shape.clients` is the number of watchers.
pub(crate) async fn measure(target: &Target, shape: Shape, plan: &Arc<Plan>) -> anyhow::Result<Measured> {
    let board = Arc::new(Board { state: Mutex::default(), moved: Notify::new(), watchers: shape.clients });
    let mut tasks = JoinSet::new();
    let streams = shape.connections.clamp(1, shape.clients);
    for number in 0..streams {
        let endpoint = &target.endpoints[number % target.endpoints.len()];
        let watches = (number..shape.clients).step_by(streams).count();
        let connection = Connection::open(endpoint).await?;
        tasks.spawn(watch(connection, origin(endpoint)?, watches, Arc::clone(&board)));
    }
    let all_there = board.wait("all watches are there", |state| state.watching == shape.clients);
    tokio::select! {
        there = all_there => there?,
        Some(ended) = tasks.join_next() => {
            ended.context("a watch stream ended early")??;
            anyhow::bail!("a watch stream ended before its watches were there");
        }
    }
    let window = Window::from_now(shape.duration);
    board.with(|state| state.window = Some(window));
    let mut writers = JoinSet::new();
    for number in 0..WRITERS {
        let endpoint = &target.endpoints[number % target.endpoints.len()];
        let connection = Connection::open(endpoint).await?;
        writers.spawn(write(connection, origin(endpoint)?, Arc::clone(plan), Arc::clone(&board)));
    }
    let observed = observe(target, window).await;
    while let Some(ended) = writers.join_next().await {
        ended.context("a writer ended early")??;
    }
    let complete = board
        .wait("every event at every watcher", |state| state.delivered >= state.sent.len() * shape.clients);
    if let Err(error) = complete.await {
        board.with(|state| state.tally.error(|| error.to_string()));
    }
    let tally = board.with(|state| state.tally.clone());
    Ok(Measured { tally, window: shape.duration, observed })
}

/// One writer until the window ends. A put's number is the head of its value.
async fn write(
    connection: Connection,
    origin: http::Uri,
    plan: Arc<Plan>,
    board: Arc<Board>,
) -> anyhow::Result<()> {
    let mut kv = KvClient::with_origin(connection, origin);
    loop {
        board
            .wait("room in the window of events", |state| {
                state.sent.len() * board.watchers < state.delivered + WINDOW_PUTS * board.watchers
            })
            .await?;
        let number = board.with(|state| {
            let over = state.window.is_none_or(|window| Instant::now() >= window.ends);
            (!over).then(|| {
                state.sent.push(Instant::now());
                state.sent.len() - 1
            })
        });
        let Some(number) = number else { return Ok(()) };
        let mut value = (number as u64).to_be_bytes().to_vec();
        value.resize(plan.value.len().max(value.len()), b'v');
        let key = Bytes::from(format!("{PREFIX}{}", number % plan.keys.max(1)));
        kv.put(put_request(key, &Bytes::from(value))).await?;
    }
}

/// Creates its watches on one stream and counts what comes.
async fn watch(
    connection: Connection,
    origin: http::Uri,
    watches: usize,
    board: Arc<Board>,
) -> anyhow::Result<()> {
    let create = pb::WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(pb::WatchCreateRequest {
            key: Bytes::from_static(PREFIX.as_bytes()),
            range_end: Bytes::from_static(PREFIX_END.as_bytes()),
            ..pb::WatchCreateRequest::default()
        })),
    };
    // The stream stays open: its end would end the watches.
    let requests = stream::iter(std::iter::repeat_n(create, watches)).chain(stream::pending());
    let mut client = WatchClient::with_origin(connection, origin).max_decoding_message_size(ANSWER_BYTES_MAX);
    let mut answers = client.watch(requests).await?.into_inner();
    while let Some(answer) = answers.message().await? {
        anyhow::ensure!(!answer.canceled, "a watch was cancelled: {}", answer.cancel_reason);
        let now = Instant::now();
        board.with(|state| {
            state.watching += usize::from(answer.created);
            state.delivered += answer.events.len();
            let counts = state.window.is_some_and(|window| window.holds(now));
            for event in answer.events.iter().filter(|_| counts) {
                let head = event.kv.as_ref().and_then(|kv| kv.value.first_chunk::<8>());
                let number = head.map_or(usize::MAX, |head| u64::from_be_bytes(*head) as usize);
                match state.sent.get(number).copied() {
                    Some(sent) => state.tally.latencies.record(now - sent),
                    None => state.tally.error(|| "an event that nobody wrote".to_owned()),
                }
            }
        });
        board.moved.notify_waiters();
    }
    anyhow::bail!("a watch stream ended")
}
