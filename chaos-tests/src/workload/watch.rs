//! A watcher of the keys that [`put_get`](super::put_get) writes: it records each answer, asks now and then how far it is, and begins
//! again at another member where it broke off.

use std::time::Duration;

use bytes::Bytes;
use proto::etcd::etcdserverpb as pb;
use proto::etcd::etcdserverpb::watch_request::RequestUnion;
use proto::etcd::mvccpb;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::put_get::{PREFIX, PREFIX_END};
use super::register::number;
use super::session::Session;

/// Between two questions how far the stream is.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// A stream that says nothing for so long, not even how far it is, is given up.
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// Between two attempts to open a stream.
const PAUSE: Duration = Duration::from_millis(50);
/// Streams are ended on purpose now and then: resuming is what is watched here.
const STREAM_TIME: Duration = Duration::from_secs(4);

pub(super) async fn work(mut session: Session) {
    let (mut from, mut stream) = (1_i64, 0_u64);
    while !session.is_over() {
        stream += 1;
        from = follow(&mut session, from, stream).await.unwrap_or(from);
        session.move_on();
        tokio::time::sleep(PAUSE).await;
    }
}

type Requests = mpsc::Sender<pb::WatchRequest>;

/// Follows one stream to its end; returns where the next must begin.
async fn follow(session: &mut Session, from: i64, stream: u64) -> Option<i64> {
    let (requests, mut answers) = open(session, from).await?;
    let give_up = Instant::now() + STREAM_TIME;
    let mut progress = tokio::time::interval(PROGRESS_INTERVAL);
    let (mut next, mut last_heard) = (from, Instant::now());
    loop {
        let answer = tokio::select! {
            () = session.over() => return Some(next),
            _ = progress.tick() => {
                if last_heard.elapsed() > SILENCE_MAX || Instant::now() > give_up {
                    return Some(next);
                }
                let ask = RequestUnion::ProgressRequest(pb::WatchProgressRequest {});
                // A stream that takes no more questions shows as silent.
                let _full = requests.try_send(pb::WatchRequest { request_union: Some(ask) });
                continue;
            }
            answer = answers.message() => answer,
        };
        let Ok(Some(answer)) = answer else { return Some(next) };
        last_heard = Instant::now();
        if answer.canceled {
            // Compaction went ahead of this watcher: what it missed nobody can tell it any more.
            return Some(next.max(answer.compact_revision));
        }
        if answer.created {
            continue;
        }
        record(session, (from, stream), &answer);
        let reached =
            answer.events.iter().filter_map(|event| event.kv.as_ref()).map(|kv| kv.mod_revision).max();
        // In the middle of a revision's fragments the next stream begins with the same revision.
        next = reached.map_or(next, |reached| if answer.fragment { reached } else { reached + 1 });
    }
}

async fn open(session: &Session, from: i64) -> Option<(Requests, Streaming<pb::WatchResponse>)> {
    let (requests, receiver) = mpsc::channel::<pb::WatchRequest>(8);
    let create = pb::WatchCreateRequest {
        key: Bytes::from_static(PREFIX.as_bytes()),
        range_end: Bytes::from_static(PREFIX_END.as_bytes()),
        start_revision: from,
        prev_kv: true,
        fragment: true,
        progress_notify: true,
        ..Default::default()
    };
    let create = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    requests.send(create).await.ok()?;
    let receiver = ReceiverStream::new(receiver);
    let mut watches = session.watches();
    let answers = session.answer(watches.watch(receiver)).await.ok()?;
    Some((requests, answers))
}

/// Each answer is a call of its own: what it tells is certain.
fn record(session: &Session, (from, stream): (i64, u64), answer: &pb::WatchResponse) {
    let events: Vec<Value> = answer.events.iter().map(event).collect();
    let revision = answer.header.as_ref().map_or(0, |header| header.revision);
    // An answer to the question how far it is bears no event.
    let bookmark = events.is_empty();
    session.invoke("watch", Value::Null);
    session.ok(
        "watch",
        json!({
            "watcher": session.index,
            "stream": stream,
            "from": from,
            "revision": revision,
            "events": events,
            "bookmark": bookmark,
            "fragment": answer.fragment,
        }),
    );
}

fn event(event: &mvccpb::Event) -> Value {
    let empty = mvccpb::KeyValue::default();
    let kv = event.kv.as_ref().unwrap_or(&empty);
    let prev =
        event.prev_kv.as_ref().map(|prev| json!({"value": number(&prev.value), "mod": prev.mod_revision}));
    let is_put = event.r#type() == mvccpb::event::EventType::Put;
    json!({
        "type": if is_put { "put" } else { "delete" },
        "key": String::from_utf8_lossy(&kv.key),
        "value": if is_put { number(&kv.value) } else { Value::Null },
        "mod": kv.mod_revision,
        "create": kv.create_revision,
        "version": kv.version,
        "prev": prev,
    })
}
