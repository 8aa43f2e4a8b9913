//! `portforward`: pairs a client's streams into connections and carries each to the pod.
//!
//! A connection is a data stream and an error stream with the same request id. The error stream carries words
//! for the user if the connection fails. One that is slow slows the others of the same client: the framing has
//! no flow control.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, duplex, split};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::spdy::{self, Event, Headers};
use super::upgrade::Transport;
use super::{ClientFrame, NodeFrame, NodeStream, PodStreams, StreamRequest, StreamTarget, websocket};

/// How long a client may take to finish the upgrade.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections of one client at once.
const CONNECTIONS_MAX: usize = 256;
/// Frames of a client that wait for the node.
const FRAMES_MAX: usize = 16;
/// Bytes of a tunnelled connection on their way.
const TUNNEL_BYTES: usize = 64 << 10;

/// What connections are made with.
pub struct Session {
    /// Where connections to the pod come from.
    pub streams: Arc<dyn PodStreams>,
    /// The pod.
    pub target: StreamTarget,
}

/// Serves a connection until the client ends it.
pub async fn serve(upgrade: OnUpgrade, transport: Transport, session: Session) {
    let io: TokioIo<Upgraded> = match tokio::time::timeout(OPEN_TIMEOUT, upgrade).await {
        Ok(Ok(upgraded)) => TokioIo::new(upgraded),
        Ok(Err(error)) => return tracing::debug!(%error, "a stream's connection was not upgraded"),
        Err(_) => return tracing::debug!("a stream's connection was not upgraded in time"),
    };
    let served = match transport {
        Transport::Spdy => forward(io, session).await,
        Transport::WebSocket => {
            let (near, far) = duplex(TUNNEL_BYTES);
            let ((), served) = tokio::join!(websocket::tunnel(io, far), forward(near, session));
            served
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a port-forward ended early");
    }
}

/// A connection whose streams are not both there.
#[derive(Debug, Default)]
struct Half {
    data: Option<(u32, mpsc::Receiver<Bytes>)>,
    error: Option<u32>,
    port: u16,
}

/// The client's side of a connection.
#[derive(Debug)]
struct Input {
    /// Where its data goes; dropping it ends that direction.
    data: Option<mpsc::Sender<Bytes>>,
    /// Cancelled when the client broke the connection off.
    reset: CancellationToken,
}

struct Forward<W> {
    session: Session,
    writer: spdy::Writer<W>,
    halves: HashMap<String, Half>,
    /// By data stream.
    inputs: HashMap<u32, Input>,
    connections: JoinSet<u32>,
}

async fn forward<T>(io: T, session: Session) -> io::Result<()>
where
    T: AsyncRead + AsyncWrite + Send + 'static,
{
    let (reader, writer) = split(io);
    let (mut reader, writer) = spdy::connection(reader, writer)?;
    let mut forward = Forward {
        session,
        writer,
        halves: HashMap::new(),
        inputs: HashMap::new(),
        connections: JoinSet::new(),
    };
    // Not in a select with anything: a frame that was read half-way must be read on.
    while let Some(event) = reader.next().await? {
        while let Some(ended) = forward.connections.try_join_next() {
            if let Ok(stream) = ended {
                forward.inputs.remove(&stream);
            }
        }
        forward.take(event).await?;
    }
    Ok(())
}

impl<W: AsyncWrite + Send + Unpin + 'static> Forward<W> {
    async fn take(&mut self, event: Event) -> io::Result<()> {
        match event {
            Event::Opened { stream, headers, fin } => self.opened(stream, &headers, fin).await,
            Event::Data { stream, bytes, fin } => {
                let Some(input) = self.inputs.get_mut(&stream) else { return Ok(()) };
                if let (Some(data), false) = (&input.data, bytes.is_empty()) {
                    // A connection that has ended takes no more.
                    let _ended = data.send(bytes).await;
                }
                if fin {
                    input.data = None;
                }
                Ok(())
            }
            Event::Reset { stream } => {
                if let Some(input) = self.inputs.remove(&stream) {
                    input.reset.cancel();
                }
                Ok(())
            }
        }
    }

    async fn opened(&mut self, stream: u32, headers: &Headers, fin: bool) -> io::Result<()> {
        let port = headers.get("port").and_then(|port| port.parse().ok()).filter(|port| *port != 0);
        let is_data = match headers.get("streamtype") {
            Some("data") => true,
            Some("error") => false,
            _ => return self.writer.reset(stream, spdy::REFUSED_STREAM).await,
        };
        let full = self.connections.len() + self.halves.len() >= CONNECTIONS_MAX;
        let (Some(port), false) = (port, full) else {
            return self.writer.reset(stream, spdy::REFUSED_STREAM).await;
        };
        // Clients that name no request open the error stream right before the data stream.
        let id = headers.get("requestid").map_or_else(String::new, str::to_owned);
        let half = self.halves.entry(id.clone()).or_default();
        half.port = port;
        if is_data {
            let (sender, receiver) = mpsc::channel(FRAMES_MAX);
            half.data = Some((stream, receiver));
            let data = (!fin).then_some(sender);
            self.inputs.insert(stream, Input { data, reset: CancellationToken::new() });
        } else {
            half.error = Some(stream);
        }
        self.writer.accept(stream).await?;
        if let Some(Half { data: Some((data, input)), error: Some(error), port }) =
            self.halves.remove(&id).and_then(|half| match half {
                Half { data: Some(_), error: Some(_), .. } => Some(half),
                half => {
                    self.halves.insert(id.clone(), half);
                    None
                }
            })
        {
            let request = StreamRequest::PortForward { target: self.session.target.clone(), port };
            let (streams, writer) = (Arc::clone(&self.session.streams), self.writer.clone());
            // Gone already, if the client broke it off in between.
            let reset = self.inputs.get(&data).map(|input| input.reset.clone()).unwrap_or_default();
            self.connections.spawn(async move {
                let failure = tokio::select! {
                    done = connect(&*streams, request, &writer, data, input) => done.err(),
                    () = reset.cancelled() => None,
                };
                if let Some(words) = failure {
                    let _gone = writer.data(error, words.as_bytes()).await;
                }
                // Clients wait for the end of both.
                let _gone = writer.finish(data).await;
                let _gone = writer.finish(error).await;
                data
            });
        }
        Ok(())
    }
}

/// Carries one connection; the error is what the user sees.
async fn connect<W: AsyncWrite + Unpin>(
    streams: &dyn PodStreams,
    request: StreamRequest,
    writer: &spdy::Writer<W>,
    stream: u32,
    mut input: mpsc::Receiver<Bytes>,
) -> Result<(), String> {
    let port = match &request {
        StreamRequest::PortForward { port, .. } => *port,
        StreamRequest::Exec { .. } | StreamRequest::Attach { .. } => 0,
    };
    let (pod, uid) = (request.target().pod.clone(), request.target().pod_uid.clone());
    let told = |why: &str| format!("error forwarding port {port} to pod {pod}, uid {uid}: {why}");
    let mut node = streams.open(request).await.map_err(|status| told(status.message()))?;
    node.started().await.map_err(|failure| told(&failure.message))?;
    let NodeStream { incoming: mut from_node, outgoing: to_node } = node;
    let down = async {
        while let Some(bytes) = input.recv().await {
            if to_node.send(ClientFrame::Stdin(bytes)).await.is_err() {
                break;
            }
        }
        let _ended = to_node.send(ClientFrame::StdinEnd).await;
        std::future::pending::<()>().await;
    };
    let up = async {
        loop {
            match from_node.recv().await {
                Some(Ok(NodeFrame::Stdout(bytes))) => {
                    writer.data(stream, &bytes).await.map_err(|error| error.to_string())?;
                }
                Some(Ok(NodeFrame::End)) => return Ok(()),
                Some(Ok(_)) => {}
                Some(Err(failure)) => return Err(told(&failure.message)),
                None => return Err(told("the node broke the stream off")),
            }
        }
    };
    tokio::select! {
        () = down => Ok(()),
        done = up => done,
    }
}
