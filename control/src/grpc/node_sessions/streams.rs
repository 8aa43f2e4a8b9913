//! Streams that the control plane asks of nodes: container logs.
//!
//! The request goes down the node's session at this replica; the node opens a `Stream` call back, whose
//! first frame names the request. Owns the table of requests that wait for that. Promises that a request is
//! answered, refused or timed out; that a stream reaches only the node it was asked of; that a reader who
//! goes away ends the stream at the node.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::Status;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use proto::node::{LogsRequest, OpenStream, StreamError, StreamFrame, open_stream, stream_frame};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

use super::NodeSessions;
use crate::rest::{LogFuture, LogRequest, LogStream, PodLogs};

/// How long a node may take to open a stream that it was asked for.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a call may take to send its first frame.
const FIRST_FRAME_TIMEOUT: Duration = Duration::from_secs(5);
/// Most frames between a node and a slow reader.
const FRAMES_MAX: usize = 16;

type Frames = mpsc::Receiver<Result<Bytes, Status>>;

#[derive(Debug)]
struct Waiting {
    node: String,
    ready: oneshot::Sender<Frames>,
}

/// Requests that their nodes have not answered yet.
#[derive(Debug, Clone, Default)]
pub(super) struct StreamTable {
    waiting: Arc<Mutex<HashMap<String, Waiting>>>,
}

/// Takes a request out of the table when nobody waits for it any more.
struct Entry<'a> {
    table: &'a StreamTable,
    stream_id: &'a str,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.table.take(self.stream_id);
    }
}

impl StreamTable {
    fn take(&self, stream_id: &str) -> Option<Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(stream_id)
    }

    fn insert(&self, stream_id: String, waiting: Waiting) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(stream_id, waiting);
    }
}

impl NodeSessions {
    /// Asks a node for a stream and waits until the node has opened it.
    pub async fn open(&self, node: &str, request: open_stream::Request) -> Result<LogStream, Status> {
        let unreachable = |why: String| Status::internal(&format!("cannot reach node {node}: {why}"));
        let Some(mailbox) = self.mailbox(node) else {
            return Err(unreachable("it has no session at this replica; try again in a moment".to_owned()));
        };
        let stream_id = format!("{:032x}", rand::random::<u128>());
        let (ready, opened) = oneshot::channel();
        self.inner.streams.insert(stream_id.clone(), Waiting { node: node.to_owned(), ready });
        let _entry = Entry { table: &self.inner.streams, stream_id: &stream_id };
        if !mailbox.open(OpenStream { stream_id: stream_id.clone(), request: Some(request) }) {
            return Err(Status::too_many_requests(
                format!("too many streams are being asked of node {node}"),
                1,
            ));
        }
        let frames = tokio::select! {
            frames = tokio::time::timeout(OPEN_TIMEOUT, opened) => frames,
            () = mailbox.closed.cancelled() => {
                return Err(unreachable("its session ended".to_owned()));
            }
        };
        match frames {
            Ok(Ok(frames)) => Ok(Box::pin(ReceiverStream::new(frames))),
            Ok(Err(_)) => Err(unreachable("it gave up the stream".to_owned())),
            Err(_) => Err(unreachable(format!("it did not answer within {} s", OPEN_TIMEOUT.as_secs()))),
        }
    }

    /// A node's call: matches it with its request and passes its frames on until either side ends.
    pub(super) async fn serve_stream<S>(&self, node: String, mut frames: S) -> Result<(), tonic::Status>
    where
        S: Stream<Item = Result<StreamFrame, tonic::Status>> + Send + Unpin + 'static,
    {
        let first = tokio::time::timeout(FIRST_FRAME_TIMEOUT, frames.next())
            .await
            .map_err(|_| tonic::Status::deadline_exceeded("the first frame did not come in time"))?;
        let Some(Ok(StreamFrame { frame: Some(stream_frame::Frame::StreamId(stream_id)) })) = first else {
            return Err(tonic::Status::invalid_argument("the first frame must name the stream"));
        };
        let unknown = || tonic::Status::not_found("nobody waits for this stream");
        let waiting = self.inner.streams.take(&stream_id).ok_or_else(unknown)?;
        if waiting.node != node {
            return Err(tonic::Status::permission_denied("the stream was asked of another node"));
        }
        let (sender, receiver) = mpsc::channel(FRAMES_MAX);
        waiting.ready.send(receiver).map_err(|_| unknown())?;
        loop {
            let frame = tokio::select! {
                frame = frames.next() => frame,
                () = sender.closed() => return Ok(()),
            };
            let item = match frame {
                Some(Ok(StreamFrame { frame })) => match frame {
                    Some(stream_frame::Frame::Stdout(bytes)) => Ok(bytes),
                    Some(stream_frame::Frame::End(_)) => return Ok(()),
                    Some(stream_frame::Frame::Error(error)) => Err(stream_status(&error)),
                    Some(stream_frame::Frame::StreamId(_)) | None => continue,
                },
                Some(Err(status)) => Err(Status::internal(&format!("node {node}: {}", status.message()))),
                None => Err(Status::internal(&format!("node {node} broke the stream off"))),
            };
            let last = item.is_err();
            if sender.send(item).await.is_err() || last {
                return Ok(());
            }
        }
    }
}

fn stream_status(error: &StreamError) -> Status {
    match error.code {
        400 | 404 => Status::bad_request(error.message.clone()),
        _ => Status::internal(&error.message),
    }
}

impl PodLogs for NodeSessions {
    fn open(&self, request: LogRequest) -> LogFuture<'_> {
        let logs = LogsRequest {
            namespace: request.namespace,
            pod: request.pod,
            pod_uid: request.pod_uid,
            container: request.container,
            follow: request.follow,
            previous: request.previous,
            timestamps: request.timestamps,
            tail_lines: request.tail_lines,
            limit_bytes: request.limit_bytes,
            since_time: request.since.map(|since| since.to_string()).unwrap_or_default(),
        };
        let node = request.node;
        Box::pin(async move { self.open(&node, open_stream::Request::Logs(logs)).await })
    }
}
