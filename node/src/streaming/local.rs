//! Streams for callers in this process: the same as those that replicas ask for, by container id, as the package
//! `streams` knows them.
//!
//! Promises: frames wait for whoever is slow; dropping the [`NodeStream`] ends what the stream had.

use std::path::PathBuf;
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::StreamExt as _;
use proto::node::stream_frame::Frame;
use proto::node::{AttachRequest, ExecRequest, StreamFrame};
use streams::{NodeStream, StreamEnds, wire};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::target::StreamError;
use super::{FRAMES_MAX, Link, attach, exec, frame, port_forward};
use crate::pods::containers::ContainerRuntime;

/// A program in a running container.
pub(crate) fn exec(
    runtime: Arc<dyn ContainerRuntime>,
    id: String,
    command: Vec<String>,
    ends: StreamEnds,
) -> NodeStream {
    let StreamEnds { stdin, stdout, stderr, tty } = ends;
    let request = ExecRequest { target: None, command, stdin, stdout, stderr, tty };
    open(move |mut link| async move { exec::run_in(&runtime, &id, request, &mut link).await }.boxed())
}

/// A container's main process.
pub(crate) fn attach(runtime: Arc<dyn ContainerRuntime>, id: String, ends: StreamEnds) -> NodeStream {
    let StreamEnds { stdin, stdout, stderr, .. } = ends;
    let request = AttachRequest { target: None, stdin, stdout, stderr };
    open(move |mut link| async move { attach::attach_to(&runtime, id, request, &mut link).await }.boxed())
}

/// One connection to a port of a network; `None`: the host's.
pub(crate) fn port_forward(netns: Option<PathBuf>, port: u16, name: String) -> NodeStream {
    open(move |mut link| async move { port_forward::connect_in(netns, port, name, &mut link).await }.boxed())
}

fn open(
    work: impl FnOnce(Link) -> BoxFuture<'static, Result<(), StreamError>> + Send + 'static,
) -> NodeStream {
    let (outgoing, from_client) = mpsc::channel(FRAMES_MAX);
    let (out, mut from_work) = mpsc::channel::<StreamFrame>(FRAMES_MAX);
    let (to_client, incoming) = mpsc::channel(FRAMES_MAX);
    let frames = ReceiverStream::new(from_client).map(|frame| Ok(wire::to_node(frame)));
    let link = Link { out: out.clone(), incoming: Box::pin(frames) };
    tokio::spawn(async move {
        let last = match work(link).await {
            Ok(()) | Err(StreamError::HungUp) => return,
            Err(error) => proto::node::StreamError { code: error.code(), message: error.to_string() },
        };
        // Nobody to tell means that nobody waits for it.
        let _gone = out.send(frame(Frame::Error(last))).await;
    });
    tokio::spawn(async move {
        let gone = to_client.clone();
        let carry = async {
            while let Some(frame) = from_work.recv().await {
                let Some(frame) = frame.frame.and_then(wire::from_node) else { continue };
                if to_client.send(frame).await.is_err() {
                    return;
                }
            }
        };
        // Dropping the receiver is how the work hears of a client that went away.
        tokio::select! {
            () = carry => {}
            () = gone.closed() => {}
        }
    });
    NodeStream { incoming, outgoing }
}
