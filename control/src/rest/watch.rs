//! Watches as streams of JSON lines, or of frames in Kubernetes protobuf.
//!
//! A stream ends when its time is up, when the replica stops, or when the registry ends it; before that an
//! error, if there is one, is the last line. Bookmarks come once a minute and just before the end.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use raft_store::chance;
use rand::Rng;
use serde_json::{Value, json};
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::negotiate::{Encoding, Shape};
use super::respond::{Body, BoxError, Style, partial, protobuf};
use crate::registry::{Notice, ObjectEvent, Watch};

/// How often a client that wants bookmarks gets one.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);
/// How long before the end of a watch its last bookmark is sent.
const LAST_BOOKMARK_BEFORE: Duration = Duration::from_secs(2);
/// How long a watch lasts at least, if the client does not say; up to twice that, so that clients do not all
/// come back at once.
const WATCH_TIME_MIN: Duration = Duration::from_secs(30 * 60);
/// Tells the reader that the objects a watch begins with are complete.
pub(crate) const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// The media type of a stream of frames.
const PROTOBUF_STREAM: &str = "application/vnd.kubernetes.protobuf;stream=watch";

struct Lines {
    watch: Watch,
    style: Style,
    bookmarks: bool,
    ticks: Interval,
    deadline: Instant,
    stop: CancellationToken,
    columns_sent: bool,
    ended: bool,
}

/// The answer to a watch.
pub(super) fn respond(
    watch: Watch,
    style: Style,
    bookmarks: bool,
    timeout: Option<Duration>,
    stop: CancellationToken,
) -> Response<Body> {
    let time = timeout.unwrap_or_else(|| WATCH_TIME_MIN.mul_f64(chance::rng().random_range(1.0..2.0)));
    let deadline = Instant::now() + time;
    let mut ticks = tokio::time::interval_at(Instant::now() + BOOKMARK_INTERVAL, BOOKMARK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let media_type = match style.form.encoding {
        Encoding::Protobuf => PROTOBUF_STREAM,
        _ => "application/json",
    };
    let lines = Lines { watch, style, bookmarks, ticks, deadline, stop, columns_sent: false, ended: false };
    let body = StreamBody::new(lines.stream().map(|line| Ok::<_, BoxError>(Frame::data(line))));
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

impl Lines {
    fn stream(self) -> impl Stream<Item = Bytes> + Send {
        stream::unfold(self, |mut lines| async move {
            let line = lines.next().await?;
            Some((line, lines))
        })
    }

    async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let last_bookmark = self.deadline.checked_sub(LAST_BOOKMARK_BEFORE).unwrap_or(self.deadline);
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return None,
                item = self.watch.next() => match item? {
                    Ok(Notice::Event(event)) => return Some(self.event(&event)),
                    Ok(Notice::Bookmark { revision, initial_events_end }) => {
                        return Some(self.bookmark(revision, initial_events_end));
                    }
                    Err(status) => {
                        self.ended = true;
                        return Some(self.line("ERROR", &status.to_value()));
                    }
                },
                _ = self.ticks.tick(), if self.bookmarks => {
                    if let Some(revision) = self.watch.bookmark() {
                        return Some(self.bookmark(revision, false));
                    }
                }
                () = tokio::time::sleep_until(last_bookmark), if self.bookmarks && Instant::now() < last_bookmark => {
                    if let Some(revision) = self.watch.bookmark() {
                        return Some(self.bookmark(revision, false));
                    }
                }
                () = tokio::time::sleep_until(self.deadline) => return None,
            }
        }
    }

    fn event(&mut self, event: &ObjectEvent) -> Bytes {
        let object = match self.style.form.shape {
            Shape::Whole if self.is_protobuf() => return event.protobuf_frame().unwrap_or_default(),
            Shape::Whole => return event.json_line(),
            Shape::Metadata(version) => partial(event.object().value(), version),
            Shape::Table(version) => {
                let object = event.object();
                let meta = json!({"resourceVersion": object.revision().to_string()});
                let rows = [object.value().clone()];
                let mut table = self.style.table(object.kind(), object.custom_kind(), &rows, version, meta);
                // The columns do not change within a stream; clients keep those of the first table.
                if std::mem::replace(&mut self.columns_sent, true) {
                    table["columnDefinitions"] = Value::Null;
                }
                table
            }
        };
        self.line(event.change().as_str(), &object)
    }

    fn bookmark(&mut self, revision: u64, initial_events_end: bool) -> Bytes {
        let kind = self.watch.kind();
        let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if initial_events_end {
            metadata["annotations"] = json!({INITIAL_EVENTS_END: "true"});
        }
        let object = match self.style.form.shape {
            Shape::Whole => {
                json!({"kind": kind.kind, "apiVersion": kind.api_version(), "metadata": metadata})
            }
            Shape::Metadata(version) => json!({
                "kind": "PartialObjectMetadata",
                "apiVersion": format!("meta.k8s.io/{version}"),
                "metadata": metadata,
            }),
            Shape::Table(version) => {
                let custom = self.watch.custom_kind();
                self.style.table(kind, custom, &[], version, json!({"resourceVersion": revision.to_string()}))
            }
        };
        self.line("BOOKMARK", &object)
    }

    fn is_protobuf(&self) -> bool {
        self.style.form.encoding == Encoding::Protobuf
    }

    fn line(&self, change: &str, object: &Value) -> Bytes {
        if self.is_protobuf() {
            let frame = protobuf(object).map(|object| api::protobuf::watch_frame(change, &object));
            return frame.map(Bytes::from).unwrap_or_default();
        }
        Bytes::from(format!("{{\"type\":\"{change}\",\"object\":{object}}}\n"))
    }
}
