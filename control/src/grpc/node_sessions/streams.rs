//! Streams that the control plane asks of nodes: container logs, exec, attach, port-forward, numbers.
//!
//! The request goes down the node's session at this replica; the node opens a `Stream` call back, whose
//! first frame names the request. Owns the table of requests that wait for that. Promises that a request is
//! answered, refused or timed out; that a stream reaches only the node it was asked of; that a reader who
//! goes away ends the stream at the node, and a node that goes away the reader's stream.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::Status;
use futures_util::{Stream, StreamExt};
use proto::node::stream_frame::Frame;
use proto::node::{
    AttachRequest, ContainerTarget, ExecRequest, LogsRequest, MeasurementsRequest, OpenStream,
    PortForwardRequest, StreamFrame, measurements_request, open_stream,
};
use raft_store::chance;
use rand::Rng as _;
use streams::wire;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

use super::NodeSessions;
use crate::rest::{
    ClientFrame, LogRequest, Measurements, NodeBytes, NodeBytesFuture, NodeFrame, NodeReads, NodeStream,
    PodStreams, StreamFailure, StreamFuture, StreamRequest, StreamTarget,
};

/// How long a node may take to open a stream that it was asked for.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a call may take to send its first frame.
const FIRST_FRAME_TIMEOUT: Duration = Duration::from_secs(5);
/// Most frames between a node and a slow reader.
pub(super) const FRAMES_MAX: usize = 16;

#[derive(Debug)]
struct Waiting {
    node: String,
    ready: oneshot::Sender<NodeStream>,
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
    pub async fn open(&self, node: &str, request: open_stream::Request) -> Result<NodeStream, Status> {
        let unreachable = |why: String| Status::internal(&format!("cannot reach node {node}: {why}"));
        let Some(mailbox) = self.mailbox(node) else {
            return Err(unreachable("it has no session at this replica; try again in a moment".to_owned()));
        };
        let stream_id = format!("{:032x}", chance::rng().random::<u128>());
        let (ready, opened) = oneshot::channel();
        self.inner.streams.insert(stream_id.clone(), Waiting { node: node.to_owned(), ready });
        let _entry = Entry { table: &self.inner.streams, stream_id: &stream_id };
        if !mailbox.open(OpenStream { stream_id: stream_id.clone(), request: Some(request) }) {
            return Err(Status::too_many_requests(
                format!("too many streams are being asked of node {node}"),
                1,
            ));
        }
        let stream = tokio::select! {
            stream = tokio::time::timeout(OPEN_TIMEOUT, opened) => stream,
            () = mailbox.closed.cancelled() => {
                return Err(unreachable("its session ended".to_owned()));
            }
        };
        match stream {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(_)) => Err(unreachable("it gave up the stream".to_owned())),
            Err(_) => Err(unreachable(format!("it did not answer within {} s", OPEN_TIMEOUT.as_secs()))),
        }
    }

    /// A node's call: matches it with its request and passes frames on, both ways, until either side ends.
    pub(super) async fn serve_stream<S>(
        &self,
        node: String,
        mut frames: S,
        down: &mpsc::Sender<Result<StreamFrame, tonic::Status>>,
    ) -> Result<(), tonic::Status>
    where
        S: Stream<Item = Result<StreamFrame, tonic::Status>> + Send + Unpin + 'static,
    {
        let first = tokio::time::timeout(FIRST_FRAME_TIMEOUT, frames.next())
            .await
            .map_err(|_| tonic::Status::deadline_exceeded("the first frame did not come in time"))?;
        let Some(Ok(StreamFrame { frame: Some(Frame::StreamId(stream_id)) })) = first else {
            return Err(tonic::Status::invalid_argument("the first frame must name the stream"));
        };
        let unknown = || tonic::Status::not_found("nobody waits for this stream");
        let waiting = self.inner.streams.take(&stream_id).ok_or_else(unknown)?;
        if waiting.node != node {
            return Err(tonic::Status::permission_denied("the stream was asked of another node"));
        }
        let (sender, receiver) = mpsc::channel(FRAMES_MAX);
        let (outgoing, client) = mpsc::channel(FRAMES_MAX);
        waiting.ready.send(NodeStream { incoming: receiver, outgoing }).map_err(|_| unknown())?;
        let told = tell(client, down);
        let heard = async move {
            loop {
                let frame = tokio::select! {
                    frame = frames.next() => frame,
                    () = sender.closed() => return,
                };
                let failed = |message: String| Err(StreamFailure { code: 500, message });
                let item = match frame {
                    Some(Ok(StreamFrame { frame: Some(frame) })) => match wire::from_node(frame) {
                        Some(item) => item,
                        None => continue,
                    },
                    Some(Ok(StreamFrame { frame: None })) => continue,
                    Some(Err(status)) => failed(format!("node {node}: {}", status.message())),
                    None => failed(format!("node {node} broke the stream off")),
                };
                let last =
                    !matches!(item, Ok(NodeFrame::Started | NodeFrame::Stdout(_) | NodeFrame::Stderr(_)));
                if sender.send(item).await.is_err() || last {
                    return;
                }
            }
        };
        tokio::select! {
            () = heard => Ok(()),
            never = told => match never {},
        }
    }
}

/// Passes on what the client says; never ends by itself.
async fn tell(
    mut client: mpsc::Receiver<ClientFrame>,
    down: &mpsc::Sender<Result<StreamFrame, tonic::Status>>,
) -> std::convert::Infallible {
    while let Some(frame) = client.recv().await {
        if down.send(Ok(wire::to_node(frame))).await.is_err() {
            break;
        }
    }
    std::future::pending().await
}

/// A read's failure as its reader sees it.
fn read_status(failure: &StreamFailure) -> Status {
    match failure.code {
        400 | 404 => Status::bad_request(failure.message.clone()),
        _ => Status::internal(&failure.message),
    }
}

/// The bytes of a read; the node's side is told nothing, but sees when nobody reads any more.
fn bytes_of(stream: NodeStream) -> NodeBytes {
    let NodeStream { incoming, outgoing } = stream;
    let bytes = ReceiverStream::new(incoming).filter_map(move |item| {
        let _open = &outgoing;
        let item = match item {
            Ok(NodeFrame::Stdout(bytes)) => Some(Ok(bytes)),
            Ok(_) => None,
            Err(failure) => Some(Err(read_status(&failure))),
        };
        std::future::ready(item)
    });
    Box::pin(bytes)
}

fn container_target(target: StreamTarget) -> ContainerTarget {
    ContainerTarget {
        namespace: target.namespace,
        pod: target.pod,
        pod_uid: target.pod_uid,
        container: target.container,
    }
}

impl PodStreams for NodeSessions {
    fn open(&self, request: StreamRequest) -> StreamFuture<'_> {
        let node = request.target().node.clone();
        let request = match request {
            StreamRequest::Exec { target, command, ends } => open_stream::Request::Exec(ExecRequest {
                target: Some(container_target(target)),
                command,
                stdin: ends.stdin,
                stdout: ends.stdout,
                stderr: ends.stderr,
                tty: ends.tty,
            }),
            StreamRequest::Attach { target, ends } => open_stream::Request::Attach(AttachRequest {
                target: Some(container_target(target)),
                stdin: ends.stdin,
                stdout: ends.stdout,
                stderr: ends.stderr,
            }),
            StreamRequest::PortForward { target, port } => {
                open_stream::Request::PortForward(PortForwardRequest {
                    namespace: target.namespace,
                    pod: target.pod,
                    pod_uid: target.pod_uid,
                    port: port.into(),
                })
            }
        };
        Box::pin(async move { self.open(&node, request).await })
    }
}

impl NodeReads for NodeSessions {
    fn log(&self, request: LogRequest) -> NodeBytesFuture<'_> {
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
        Box::pin(async move {
            let stream = self.open(&node, open_stream::Request::Logs(logs)).await?;
            Ok(bytes_of(stream))
        })
    }

    fn measurements(&self, node: &str, form: Measurements) -> NodeBytesFuture<'_> {
        let form = match form {
            Measurements::Metrics => measurements_request::Form::Metrics,
            Measurements::Resources => measurements_request::Form::Resources,
            Measurements::Summary => measurements_request::Form::Summary,
        };
        let request = open_stream::Request::Measurements(MeasurementsRequest { form: form.into() });
        let node = node.to_owned();
        Box::pin(async move { Ok(bytes_of(self.open(&node, request).await?)) })
    }
}
