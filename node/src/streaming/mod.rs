//! Streams that a control-plane replica asked for: the node opens them back on the replica's own connection.
//!
//! ```text
//! replica ── OpenStream (session) ──► answer ─┬─ logs           frames up
//!         ◄─ Stream call, frames ───────────  ├─ measurements   frames up
//!                                             ├─ exec, attach   frames both ways (see `pump`)
//!                                             └─ port-forward   one connection, frames both ways
//! ```
//!
//! Promises: every queue is bounded and waits when it is full; when either side goes away, what the stream
//! had (a program, a connection) is ended. Does not: authorize; the replica has.

mod attach;
mod exec;
pub(crate) mod local;
pub(crate) mod log_files;
pub(crate) mod logs;
mod port_forward;
mod pump;
mod target;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{Stream, StreamExt as _};
use proto::node::measurements_request::Form;
use proto::node::node_sessions_client::NodeSessionsClient;
use proto::node::{OpenStream, StreamError, StreamFrame, open_stream, stream_frame};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::measurements::Measurements;
use crate::pods::containers::ContainerRuntime;
pub(crate) use pump::Terminal;

use logs::{LogError, LogSource};
use target::StreamError as Refusal;

/// Frames on their way; the reader of a file waits when it is full.
const FRAMES_MAX: usize = 16;
/// Most bytes of numbers in a frame.
const CHUNK_BYTES_MAX: usize = 64 * 1024;
/// How long the other side may take to end a call after the last frame.
const LINGER: Duration = Duration::from_secs(10);

/// What streams are made from.
#[derive(Clone)]
pub(crate) struct Sources {
    pub(crate) logs: LogSource,
    pub(crate) runtime: Arc<dyn ContainerRuntime>,
    pub(crate) measurements: Measurements,
}

/// What the other side sends.
type Incoming = Pin<Box<dyn Stream<Item = Result<StreamFrame, tonic::Status>> + Send + Sync>>;

/// Both directions of one stream.
struct Link {
    out: mpsc::Sender<StreamFrame>,
    incoming: Incoming,
}

impl Link {
    async fn send(&self, frame: stream_frame::Frame) -> Result<(), Refusal> {
        self.out.send(self::frame(frame)).await.map_err(|_| Refusal::HungUp)
    }
}

/// Answers in a task of its own, which ends when the other side hangs up.
pub(crate) fn answer(client: NodeSessionsClient<Channel>, sources: Sources, open: OpenStream) {
    tokio::spawn(async move {
        let id = open.stream_id.clone();
        if let Err(error) = serve(client, sources, open).await {
            tracing::debug!(stream = %id, %error, "stream ended early");
        }
    });
}

async fn serve(
    mut client: NodeSessionsClient<Channel>,
    sources: Sources,
    open: OpenStream,
) -> Result<(), tonic::Status> {
    let (sender, receiver) = mpsc::channel(FRAMES_MAX);
    let first = frame(stream_frame::Frame::StreamId(open.stream_id));
    sender.try_send(first).expect("the queue is empty");
    let incoming = client.stream(ReceiverStream::new(receiver)).await?.into_inner();
    let mut link = Link { out: sender, incoming: Box::pin(incoming) };
    let ended = match open.request {
        Some(open_stream::Request::Logs(request)) => return read_logs(sources.logs, request, link).await,
        Some(open_stream::Request::Exec(request)) => exec::serve(&sources, request, &mut link).await,
        Some(open_stream::Request::Attach(request)) => attach::serve(&sources, request, &mut link).await,
        Some(open_stream::Request::PortForward(request)) => {
            port_forward::serve(&sources, request, &mut link).await
        }
        Some(open_stream::Request::Measurements(request)) => {
            tell_measurements(sources.measurements, request.form(), &link).await
        }
        None => Err(Refusal::Unknown),
    };
    match ended {
        Err(Refusal::HungUp) => return Ok(()),
        Err(error) => {
            let error = StreamError { code: error.code(), message: error.to_string() };
            drop(link.send(stream_frame::Frame::Error(error)).await);
        }
        Ok(()) => {}
    }
    linger(link).await;
    Ok(())
}

/// The last frame must leave before the call is dropped; the other side ends it.
async fn linger(link: Link) {
    let Link { out, mut incoming } = link;
    drop(out);
    let hung_up = async { while let Some(Ok(_)) = incoming.next().await {} };
    let _late = tokio::time::timeout(LINGER, hung_up).await;
}

async fn tell_measurements(measurements: Measurements, form: Form, link: &Link) -> Result<(), Refusal> {
    let measured = tokio::task::spawn_blocking(move || measurements.tell(form)).await;
    let mut text = Bytes::from(measured.expect("measuring does not panic"));
    while !text.is_empty() {
        let chunk = text.split_to(text.len().min(CHUNK_BYTES_MAX));
        link.send(stream_frame::Frame::Stdout(chunk)).await?;
    }
    link.send(stream_frame::Frame::End(true)).await
}

async fn read_logs(
    logs: LogSource,
    request: proto::node::LogsRequest,
    link: Link,
) -> Result<(), tonic::Status> {
    let Link { out, mut incoming } = link;
    let hung_up = async { while let Some(Ok(_)) = incoming.next().await {} };
    let read = async move {
        let last = match logs.read(request, &out).await {
            Ok(()) => stream_frame::Frame::End(true),
            Err(LogError::HungUp) => return,
            Err(error) => {
                stream_frame::Frame::Error(StreamError { code: error.code(), message: error.to_string() })
            }
        };
        drop(out.send(frame(last)).await);
        drop(out);
        // The last frame must leave before the call is dropped; the other side ends it.
        tokio::time::sleep(LINGER).await;
    };
    tokio::select! {
        () = hung_up => {}
        () = read => {}
    }
    Ok(())
}

pub(crate) fn frame(frame: stream_frame::Frame) -> StreamFrame {
    StreamFrame { frame: Some(frame) }
}
