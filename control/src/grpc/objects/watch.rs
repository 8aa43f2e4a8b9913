//! Watches: the lines of REST as messages.
//!
//! The stream of lines is read when the client takes a message; one that takes none is cut off by the cacher, as
//! any slow watcher is.

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, BoxStream, StreamExt};
use http::Method;
use http_body_util::BodyExt;
use proto::objects::watch_response::Type;
use proto::objects::{Encoding, WatchRequest, WatchResponse};
use serde::Deserialize;
use serde_json::value::RawValue;
use tonic::Status;

use super::answer::{self, unreadable};
use super::error;
use super::request::{Asked, Caller};
use crate::rest::{Body, INITIAL_EVENTS_END};

#[derive(Deserialize)]
struct Line<'a> {
    r#type: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

struct Events {
    body: Body,
    /// Read, and not yet a whole line.
    partial: BytesMut,
    caller: Caller,
    encoding: Encoding,
    ended: bool,
}

/// The request that a watch stands for.
pub(super) fn asked(request: WatchRequest) -> Result<Asked, Status> {
    let resource = request.resource.clone();
    let is_one = resource.as_ref().is_some_and(|resource| !resource.name.is_empty());
    let asked = if is_one { Asked::one(Method::GET, resource) } else { Asked::all(Method::GET, resource) };
    let mut asked = asked?.answered_in(request.encoding)?;
    asked.add("watch", "true");
    asked.add("labelSelector", &request.label_selector);
    asked.add("fieldSelector", &request.field_selector);
    asked.add("resourceVersion", &request.resource_version);
    if request.bookmarks {
        asked.add("allowWatchBookmarks", "true");
    }
    if request.send_initial_events {
        asked.add("sendInitialEvents", "true");
        asked.add("resourceVersionMatch", "NotOlderThan");
    }
    if request.timeout_seconds > 0 {
        asked.add("timeoutSeconds", &request.timeout_seconds.to_string());
    }
    Ok(asked)
}

/// What follows.
pub(super) fn stream(
    body: Body,
    caller: Caller,
    encoding: Encoding,
) -> BoxStream<'static, Result<WatchResponse, Status>> {
    let events = Events { body, partial: BytesMut::new(), caller, encoding, ended: false };
    stream::unfold(events, |mut events| async move {
        let event = events.next().await?;
        events.ended = event.is_err();
        Some((event, events))
    })
    .boxed()
}

impl Events {
    async fn next(&mut self) -> Option<Result<WatchResponse, Status>> {
        if self.ended {
            return None;
        }
        loop {
            if let Some(end) = self.partial.iter().position(|byte| *byte == b'\n') {
                let line = self.partial.split_to(end + 1).freeze();
                return Some(event(&line, self.encoding));
            }
            let data = match self.caller.in_time(self.body.frame()).await {
                Ok(frame) => frame?.ok()?.into_data().ok()?,
                Err(late) => return Some(Err(late)),
            };
            // Mostly a frame is a line.
            if self.partial.is_empty() && data.iter().position(|byte| *byte == b'\n') == Some(data.len() - 1)
            {
                return Some(event(&data, self.encoding));
            }
            self.partial.extend_from_slice(&data);
        }
    }
}

fn event(line: &Bytes, encoding: Encoding) -> Result<WatchResponse, Status> {
    let Line { r#type, object } = serde_json::from_slice(line).map_err(unreadable)?;
    let json = line.slice_ref(object.get().as_bytes());
    let r#type = match r#type {
        "ADDED" => Type::Added,
        "MODIFIED" => Type::Modified,
        "DELETED" => Type::Deleted,
        "BOOKMARK" => Type::Bookmark,
        _ => return Err(error::of_status(&serde_json::from_slice(&json).map_err(unreadable)?)),
    };
    let encoding = if r#type == Type::Bookmark { Encoding::None } else { encoding };
    let object = answer::of_json(json, encoding)?;
    let annotations = object.metadata.as_ref().map(|metadata| &metadata.annotations);
    let initial_events_end =
        r#type == Type::Bookmark && annotations.is_some_and(|all| all.contains_key(INITIAL_EVENTS_END));
    Ok(WatchResponse { r#type: r#type.into(), object: Some(object), initial_events_end })
}

#[cfg(test)]
mod tests {
    use http_body_util::StreamBody;
    use hyper::body::Frame;

    use super::*;
    use crate::rest::BoxError;

    #[tokio::test]
    async fn lines_are_events_however_they_are_cut() {
        let added = r#"{"type":"ADDED","object":{"kind":"Pod","metadata":{"name":"a"}}}"#;
        let bookmark = r#"{"type":"BOOKMARK","object":{"kind":"Pod","metadata":{"resourceVersion":"7",
            "annotations":{"k8s.io/initial-events-end":"true"}}}}"#
            .replace('\n', " ");
        let gone = r#"{"type":"ERROR","object":{"kind":"Status","code":410,"message":"too old"}}"#;
        let text = format!("{added}\n{bookmark}\n{gone}\n");
        for size in [1, 7, 100, 10_000] {
            let frames: Vec<_> = text.as_bytes().chunks(size).map(Bytes::copy_from_slice).collect();
            let frames = stream::iter(frames).map(|bytes| Ok::<_, BoxError>(Frame::data(bytes)));
            let body = StreamBody::new(frames).boxed_unsync();
            let caller = Caller::of(&tonic::Request::new(()));
            let events: Vec<_> = super::stream(body, caller, Encoding::Json).collect().await;
            let [Ok(first), Ok(second), Err(last)] = &events[..] else { panic!("{events:?}") };
            assert_eq!(first.object.as_ref().unwrap().metadata.as_ref().unwrap().name, "a");
            assert!(second.r#type() == Type::Bookmark && second.initial_events_end);
            assert_eq!(last.code(), tonic::Code::OutOfRange);
        }
    }
}
