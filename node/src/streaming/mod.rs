//! Streams that a control-plane replica asked for: the node opens them back on the replica's own connection.

mod log_files;
pub(crate) mod logs;

use std::time::Duration;

use proto::node::node_sessions_client::NodeSessionsClient;
use proto::node::{OpenStream, StreamError, StreamFrame, open_stream, stream_frame};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use logs::{LogError, LogSource};

/// Frames on their way; the reader of a file waits when it is full.
const FRAMES_MAX: usize = 16;
/// How long the other side may take to end a call after the last frame.
const LINGER: Duration = Duration::from_secs(10);

/// Answers in a task of its own, which ends when the other side hangs up.
pub(crate) fn answer(client: NodeSessionsClient<Channel>, logs: LogSource, open: OpenStream) {
    tokio::spawn(async move {
        let id = open.stream_id.clone();
        if let Err(error) = serve(client, logs, open).await {
            tracing::debug!(stream = %id, %error, "stream ended early");
        }
    });
}

async fn serve(
    mut client: NodeSessionsClient<Channel>,
    logs: LogSource,
    open: OpenStream,
) -> Result<(), tonic::Status> {
    let (sender, receiver) = mpsc::channel(FRAMES_MAX);
    let first = frame(stream_frame::Frame::StreamId(open.stream_id));
    sender.try_send(first).expect("the queue is empty");
    let mut answers = client.stream(ReceiverStream::new(receiver)).await?.into_inner();
    let request = match open.request {
        Some(open_stream::Request::Logs(request)) => request,
        None => {
            let message = "the node agent does not know this kind of stream".to_owned();
            let error = stream_frame::Frame::Error(StreamError { code: 400, message });
            drop(sender.send(frame(error)).await);
            return Ok(());
        }
    };
    let hung_up = async { while let Ok(Some(_)) = answers.message().await {} };
    let read = async move {
        let last = match logs.read(request, &sender).await {
            Ok(()) => stream_frame::Frame::End(true),
            Err(LogError::HungUp) => return,
            Err(error) => {
                stream_frame::Frame::Error(StreamError { code: error.code(), message: error.to_string() })
            }
        };
        drop(sender.send(frame(last)).await);
        drop(sender);
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
