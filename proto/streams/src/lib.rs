//! Interactive streams on their way to clients: `exec`, `attach`, `portforward`, over WebSocket or SPDY.
//!
//! ```text
//! client ══ upgraded HTTP/1.1 ══► replica, or CRI server ══ NodeStream ══► container
//!   websocket: channels in messages      │ remote_command: stdin, stdout, stderr, resize, status
//!   spdy: streams in frames              │ port_forward: one node stream per connection
//! ```
//!
//! Owns what lies between an upgraded connection and streams of nodes, which come through [`PodStreams`]; both
//! the control plane and the node's CRI server are such a place. [`dial`] is the other side: a client of them.
//! Promises: nothing is buffered beyond a few frames in either direction; when one side goes away, so does
//! the other. Does not: authorize, or know pods.

mod connection;
pub mod dial;
pub mod hops;
pub mod port_forward;
pub mod remote_command;
mod spdy;
pub mod upgrade;
mod websocket;
pub mod wire;

use std::pin::Pin;

use api::Status;
use bytes::Bytes;
use tokio::sync::mpsc;

pub use self::connection::connection;

/// What is asked of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamRequest {
    /// A program in a running container.
    Exec {
        /// Where.
        target: StreamTarget,
        /// Program and arguments.
        command: Vec<String>,
        /// Which of its input and output are wanted.
        ends: StreamEnds,
    },
    /// The input and output of a container's main process.
    Attach {
        /// Which container.
        target: StreamTarget,
        /// Which of its input and output are wanted.
        ends: StreamEnds,
    },
    /// One connection to a port of a pod.
    PortForward {
        /// Which pod; the container does not matter.
        target: StreamTarget,
        /// The port.
        port: u16,
    },
}

/// Whose streams.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StreamTarget {
    /// The pod's node.
    pub node: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod.
    pub pod: String,
    /// Its uid.
    pub pod_uid: String,
    /// The container.
    pub container: String,
}

/// Which ends of a process are wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StreamEnds {
    /// Input will come.
    pub stdin: bool,
    /// Standard output is wanted.
    pub stdout: bool,
    /// Standard error is wanted.
    pub stderr: bool,
    /// A terminal instead of pipes.
    pub tty: bool,
}

/// What a node says on a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeFrame {
    /// What was asked for is there; nothing else comes before it.
    Started,
    /// Output.
    Stdout(Bytes),
    /// Error output.
    Stderr(Bytes),
    /// The program ended with this code. Last.
    Exit(i32),
    /// The stream ended as it should. Last.
    End,
}

/// What a node is told on a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientFrame {
    /// Input.
    Stdin(Bytes),
    /// No more input.
    StdinEnd,
    /// The terminal's window.
    Resize {
        /// Lines.
        rows: u16,
        /// Characters in a line.
        columns: u16,
    },
}

/// Why a node refused or broke off a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamFailure {
    /// As a Status code: 400, 404, 500.
    pub code: u16,
    /// For people.
    pub message: String,
}

/// Both directions of a stream; dropping it ends the stream at the node.
#[derive(Debug)]
pub struct NodeStream {
    /// What the node says. The end without a last frame means that the node went away.
    pub incoming: mpsc::Receiver<Result<NodeFrame, StreamFailure>>,
    /// What it is told.
    pub outgoing: mpsc::Sender<ClientFrame>,
}

impl NodeStream {
    /// The next frame; a node that goes away is a failure.
    pub async fn next(&mut self) -> Result<NodeFrame, StreamFailure> {
        self.incoming.recv().await.unwrap_or_else(|| {
            Err(StreamFailure { code: 500, message: "the node broke the stream off".to_owned() })
        })
    }

    /// Waits until the node says that what was asked for is there.
    pub async fn started(&mut self) -> Result<(), StreamFailure> {
        match self.next().await? {
            NodeFrame::Started => Ok(()),
            other => {
                let message = format!("the node said {other:?} before the stream had started");
                Err(StreamFailure { code: 500, message })
            }
        }
    }
}

/// The future that [`PodStreams::open`] gives.
pub type StreamFuture<'a> = Pin<Box<dyn Future<Output = Result<NodeStream, Status>> + Send + 'a>>;

/// Where interactive streams come from.
pub trait PodStreams: Send + Sync + 'static {
    /// Opens a stream at the target's node. Errors are those that the client should see.
    fn open(&self, request: StreamRequest) -> StreamFuture<'_>;
}

impl StreamRequest {
    /// Whose stream it is.
    pub fn target(&self) -> &StreamTarget {
        match self {
            Self::Exec { target, .. } | Self::Attach { target, .. } | Self::PortForward { target, .. } => {
                target
            }
        }
    }
}
