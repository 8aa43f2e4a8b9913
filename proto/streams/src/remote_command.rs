//! `exec` and `attach`: carries a process's input and output between a client's connection and a node's
//! stream, and says how it ended.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{ReadHalf, WriteHalf, split};

use super::spdy::{self, Event};
use super::upgrade::{RemoteCommand, Transport};
use super::{ClientFrame, NodeFrame, NodeStream, StreamEnds, websocket};

/// How long a client may take to finish the upgrade and open its streams.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client may take to close a connection on which everything was said.
pub(crate) const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long nothing is sent to a client of `v5.channel.k8s.io` after the upgrade. client-go (kubectl up to 1.33) reads at once
/// and makes its streams beside that: it drops what comes before they are there, and then says "closed all streams".
const SETTLE_TIME: Duration = Duration::from_millis(10);
/// Longest message of a resize, and what is kept of one that came in pieces.
const RESIZE_BYTES_MAX: usize = 1024;

type Reader = spdy::Reader<ReadHalf<TokioIo<Upgraded>>, WriteHalf<TokioIo<Upgraded>>>;
type Writer = spdy::Writer<WriteHalf<TokioIo<Upgraded>>>;

/// How a process ended.
#[derive(Debug, PartialEq, Eq)]
enum Ending {
    Exit(i32),
    Detached,
    Failed(String),
}

/// Serves a connection until the process or the client ends.
pub async fn serve(upgrade: OnUpgrade, protocol: RemoteCommand, ends: StreamEnds, node: NodeStream) {
    let io = match tokio::time::timeout(OPEN_TIMEOUT, upgrade).await {
        Ok(Ok(upgraded)) => TokioIo::new(upgraded),
        Ok(Err(error)) => return tracing::debug!(%error, "a stream's connection was not upgraded"),
        Err(_) => return tracing::debug!("a stream's connection was not upgraded in time"),
    };
    let served = match protocol.transport {
        Transport::WebSocket => {
            if protocol.version >= 5 {
                tokio::time::sleep(SETTLE_TIME).await;
            }
            let (incoming, mut outgoing) = websocket::open(io).await;
            match outgoing.greet().await {
                Ok(()) => {
                    let outgoing = Outgoing::WebSocket(outgoing);
                    bridge(Incoming::WebSocket(incoming), outgoing, protocol.version, node).await
                }
                Err(error) => Err(error),
            }
        }
        Transport::Spdy => over_spdy(io, protocol.version, ends, node).await,
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a stream ended early");
    }
}

async fn over_spdy(io: TokioIo<Upgraded>, version: u8, ends: StreamEnds, node: NodeStream) -> io::Result<()> {
    let (reader, writer) = split(io);
    let (mut reader, writer) = spdy::connection(reader, writer)?;
    let streams =
        match tokio::time::timeout(OPEN_TIMEOUT, Streams::collect(&mut reader, &writer, version, ends)).await
        {
            Ok(streams) => streams?,
            Err(_) => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "not all streams were opened in time"));
            }
        };
    let incoming =
        SpdyIncoming { reader, writer: writer.clone(), streams, due: VecDeque::new(), resize: Vec::new() };
    let outgoing = Outgoing::Spdy { writer, streams };
    bridge(Incoming::Spdy(Box::new(incoming)), outgoing, version, node).await
}

/// The client's streams by their purpose.
#[derive(Debug, Clone, Copy, Default)]
struct Streams {
    status: Option<u32>,
    stdin: Option<u32>,
    stdout: Option<u32>,
    stderr: Option<u32>,
    resize: Option<u32>,
}

impl Streams {
    /// Waits until the client has opened all that its request speaks of.
    async fn collect(
        reader: &mut Reader,
        writer: &Writer,
        version: u8,
        ends: StreamEnds,
    ) -> io::Result<Self> {
        let mut streams = Self::default();
        // With a terminal there is no standard error.
        let stderr = ends.stderr && !ends.tty;
        loop {
            let all = streams.status.is_some()
                && streams.stdin.is_some() == ends.stdin
                && streams.stdout.is_some() == ends.stdout
                && (streams.stderr.is_some() || !stderr)
                && (streams.resize.is_some() || !(ends.tty && version >= 3));
            if all {
                return Ok(streams);
            }
            match reader.next().await? {
                Some(Event::Opened { stream, headers, .. }) => {
                    let slot = match headers.get("streamtype").unwrap_or_default() {
                        "error" => &mut streams.status,
                        "stdin" if ends.stdin => &mut streams.stdin,
                        "stdout" if ends.stdout => &mut streams.stdout,
                        "stderr" if ends.stderr => &mut streams.stderr,
                        "resize" => &mut streams.resize,
                        _ => {
                            writer.reset(stream, spdy::REFUSED_STREAM).await?;
                            continue;
                        }
                    };
                    *slot = Some(stream);
                    writer.accept(stream).await?;
                }
                // Input before the streams are complete: no client of Kubernetes does that.
                Some(Event::Data { .. } | Event::Reset { .. }) => {}
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    }
}

enum Incoming {
    Spdy(Box<SpdyIncoming>),
    WebSocket(websocket::Incoming),
}

impl Incoming {
    /// The next thing that concerns the process; `None` when the client is gone.
    async fn next(&mut self) -> Option<ClientFrame> {
        match self {
            Self::Spdy(incoming) => incoming.next().await,
            Self::WebSocket(incoming) => incoming.next().await,
        }
    }
}

struct SpdyIncoming {
    reader: Reader,
    writer: Writer,
    streams: Streams,
    due: VecDeque<ClientFrame>,
    /// The beginning of a resize.
    resize: Vec<u8>,
}

impl SpdyIncoming {
    async fn next(&mut self) -> Option<ClientFrame> {
        loop {
            if let Some(frame) = self.due.pop_front() {
                return Some(frame);
            }
            match self.reader.next().await.ok()?? {
                Event::Data { stream, bytes, fin } if Some(stream) == self.streams.stdin => {
                    if !bytes.is_empty() {
                        self.due.push_back(ClientFrame::Stdin(bytes));
                    }
                    if fin {
                        self.due.push_back(ClientFrame::StdinEnd);
                    }
                }
                Event::Data { stream, bytes, .. } if Some(stream) == self.streams.resize => {
                    self.resize.extend_from_slice(&bytes[..bytes.len().min(RESIZE_BYTES_MAX)]);
                    if let Some(resize) = window(&self.resize) {
                        self.due.push_back(resize);
                        self.resize.clear();
                    } else if self.resize.len() > RESIZE_BYTES_MAX {
                        self.resize.clear();
                    }
                }
                Event::Reset { stream } if Some(stream) == self.streams.stdin => {
                    self.due.push_back(ClientFrame::StdinEnd);
                }
                Event::Opened { stream, .. } => {
                    self.writer.reset(stream, spdy::REFUSED_STREAM).await.ok()?;
                }
                Event::Data { .. } | Event::Reset { .. } => {}
            }
        }
    }
}

enum Outgoing {
    Spdy { writer: Writer, streams: Streams },
    WebSocket(websocket::Outgoing),
}

impl Outgoing {
    async fn output(&mut self, is_error: bool, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::WebSocket(outgoing) => outgoing.output(is_error, bytes).await,
            Self::Spdy { writer, streams } => {
                let stream = if is_error { streams.stderr } else { streams.stdout };
                match stream {
                    Some(stream) => writer.data(stream, bytes).await,
                    None => Ok(()),
                }
            }
        }
    }

    async fn finish(&mut self, status: &[u8]) -> io::Result<()> {
        match self {
            Self::WebSocket(outgoing) => outgoing.finish(status).await,
            Self::Spdy { writer, streams } => {
                for stream in [streams.stdout, streams.stderr].into_iter().flatten() {
                    writer.finish(stream).await?;
                }
                if let Some(stream) = streams.status {
                    writer.data(stream, status).await?;
                    writer.finish(stream).await?;
                }
                Ok(())
            }
        }
    }

    async fn close(&mut self) {
        if let Self::Spdy { writer, .. } = self {
            let _gone = writer.close().await;
        }
    }
}

/// Carries frames both ways until the process ends or the client goes away.
async fn bridge(
    mut incoming: Incoming,
    mut outgoing: Outgoing,
    version: u8,
    node: NodeStream,
) -> io::Result<()> {
    let NodeStream { incoming: mut from_node, outgoing: to_node } = node;
    let down = async {
        while let Some(frame) = incoming.next().await {
            // A node that takes no more has said why, or is about to; the client's end is still awaited.
            let _ended = to_node.send(frame).await;
        }
    };
    let up = async {
        let ending = loop {
            match from_node.recv().await {
                Some(Ok(NodeFrame::Stdout(bytes))) => outgoing.output(false, &bytes).await?,
                Some(Ok(NodeFrame::Stderr(bytes))) => outgoing.output(true, &bytes).await?,
                Some(Ok(NodeFrame::Exit(code))) => break Ending::Exit(code),
                Some(Ok(NodeFrame::End)) => break Ending::Detached,
                Some(Ok(NodeFrame::Started)) => {}
                Some(Err(failure)) => break Ending::Failed(failure.message),
                None => break Ending::Failed("the node broke the stream off".to_owned()),
            }
        };
        outgoing.finish(&status(&ending, version)).await
    };
    tokio::pin!(down);
    tokio::select! {
        () = &mut down => return Ok(()),
        done = up => done?,
    }
    // Read on where it was, so that no frame is taken for the middle of another.
    let _late = tokio::time::timeout(CLOSE_TIMEOUT, down).await;
    outgoing.close().await;
    Ok(())
}

/// How it ended, as the protocol's version says it: an object, or words for failures only.
fn status(ending: &Ending, version: u8) -> Vec<u8> {
    let words = match ending {
        Ending::Exit(0) | Ending::Detached => String::new(),
        Ending::Exit(code) => format!("command terminated with non-zero exit code: exit status {code}"),
        Ending::Failed(message) => message.clone(),
    };
    if version < 4 {
        return words.into_bytes();
    }
    let object: Value = match ending {
        Ending::Exit(0) | Ending::Detached => json!({"metadata": {}, "status": "Success"}),
        Ending::Exit(code) => json!({
            "metadata": {}, "status": "Failure", "message": words, "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Ending::Failed(_) => json!({
            "metadata": {}, "status": "Failure", "message": words, "reason": "InternalError",
            "details": {"causes": [{"message": words}]}, "code": 500,
        }),
    };
    object.to_string().into_bytes()
}

/// A client's word about its window; `None` if it is none (yet). Of several the last counts.
pub(crate) fn window(text: &[u8]) -> Option<ClientFrame> {
    let sizes = serde_json::Deserializer::from_slice(text).into_iter::<Value>();
    let size = sizes.map_while(Result::ok).last()?;
    let number = |name: &str| u16::try_from(size[name].as_u64()?).ok();
    Some(ClientFrame::Resize { rows: number("Height")?, columns: number("Width")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_are_told_as_the_protocol_says() {
        let text = |ending, version| String::from_utf8(status(&ending, version)).unwrap();
        assert_eq!(text(Ending::Exit(0), 4), r#"{"metadata":{},"status":"Success"}"#);
        let failed: Value = serde_json::from_str(&text(Ending::Exit(42), 5)).unwrap();
        assert_eq!(failed["reason"], "NonZeroExitCode");
        assert_eq!(failed["details"]["causes"][0], json!({"reason": "ExitCode", "message": "42"}));
        assert_eq!(text(Ending::Exit(0), 1), "");
        assert_eq!(text(Ending::Failed("gone".into()), 2), "gone");
    }

    #[test]
    fn windows_are_read_and_nonsense_is_not() {
        assert_eq!(
            window(br#"{"Width":80,"Height":24}{"Width":100,"Height":40}"#),
            Some(ClientFrame::Resize { rows: 40, columns: 100 })
        );
        assert_eq!(window(br#"{"Width":80,"#), None);
        assert_eq!(window(br#"{"Width":70000,"Height":1}"#), None);
    }
}
