//! The client's side of streams: dials an address that a CRI runtime gave for an `exec`, an `attach` or a
//! `portforward`, upgrades the connection to SPDY/3.1, and gives its streams as a [`NodeStream`].
//!
//! Promises: frames wait for whoever is slow; dropping the [`NodeStream`] ends the connection; what the other
//! side says about the process's end is the last frame. Does not: TLS; CRI runtimes stream on loopback, and
//! an address of another scheme is refused.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{ReadHalf, WriteHalf, split};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::spdy::{self, Event};
use crate::{ClientFrame, NodeFrame, NodeStream, StreamEnds, StreamFailure};

/// How long the other side may take to agree.
const DIAL_TIMEOUT: Duration = Duration::from_secs(30);
/// What of a refusal is kept.
const REFUSAL_BYTES_MAX: usize = 4096;
/// What of a status is kept.
const STATUS_BYTES_MAX: usize = 64 << 10;
/// Frames on their way, in either direction.
const FRAMES_MAX: usize = 16;
/// The newest protocol of processes over SPDY.
const REMOTE_COMMAND: &str = "v4.channel.k8s.io";
const PORT_FORWARD: &str = "portforward.k8s.io";

const STATUS: u32 = 1;
const STDIN: u32 = 3;
const STDOUT: u32 = 5;
const STDERR: u32 = 7;
const RESIZE: u32 = 9;

type Io = TokioIo<Upgraded>;
type Reader = spdy::Reader<ReadHalf<Io>, WriteHalf<Io>>;
type Writer = spdy::Writer<WriteHalf<Io>>;

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The address is not one that can be dialled.
    #[error("cannot dial {0:?}: it is not an http:// address")]
    Address(String),
    /// Nobody answers there, or not in time.
    #[error("cannot reach {address}: {source}")]
    Unreachable {
        /// Where.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The other side refused.
    #[error("{address} refused the stream ({code}): {message}")]
    Refused {
        /// Where.
        address: String,
        /// The HTTP status.
        code: u16,
        /// In its words.
        message: String,
    },
}

/// Opens the streams of a process.
pub async fn remote_command(url: &str, ends: StreamEnds) -> Result<NodeStream, DialError> {
    let io = upgrade(url, REMOTE_COMMAND).await?;
    let failed = unreachable(url);
    let (reader, writer) = split(io);
    let (reader, writer) = spdy::connection(reader, writer).map_err(&failed)?;
    let wanted = [
        (STATUS, "error", true),
        (STDIN, "stdin", ends.stdin),
        (STDOUT, "stdout", ends.stdout),
        (STDERR, "stderr", ends.stderr && !ends.tty),
        (RESIZE, "resize", ends.tty),
    ];
    for (stream, kind, _) in wanted.into_iter().filter(|(_, _, wanted)| *wanted) {
        writer.open(stream, &[("streamtype", kind)]).await.map_err(&failed)?;
    }
    Ok(carry(reader, writer, Kind::Process))
}

/// Opens one connection to a port of a sandbox.
pub async fn port_forward(url: &str, port: u16) -> Result<NodeStream, DialError> {
    let io = upgrade(url, PORT_FORWARD).await?;
    let failed = unreachable(url);
    let (reader, writer) = split(io);
    let (reader, writer) = spdy::connection(reader, writer).map_err(&failed)?;
    let port = port.to_string();
    for (stream, kind) in [(STATUS, "error"), (STDIN, "data")] {
        let headers = [("streamtype", kind), ("port", &port), ("requestid", "0")];
        writer.open(stream, &headers).await.map_err(&failed)?;
    }
    // Nothing is ever said to the error stream.
    writer.finish(STATUS).await.map_err(&failed)?;
    Ok(carry(reader, writer, Kind::Connection))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Process,
    Connection,
}

fn unreachable(url: &str) -> impl Fn(io::Error) -> DialError {
    let address = url.to_owned();
    move |source| DialError::Unreachable { address: address.clone(), source }
}

async fn upgrade(url: &str, protocol: &str) -> Result<Io, DialError> {
    let late = || io::Error::new(io::ErrorKind::TimedOut, "no answer in time");
    let dialled = tokio::time::timeout(DIAL_TIMEOUT, ask(url, protocol)).await;
    dialled.unwrap_or_else(|_| Err(unreachable(url)(late())))
}

async fn ask(url: &str, protocol: &str) -> Result<Io, DialError> {
    let bad = || DialError::Address(url.to_owned());
    let uri: Uri = url.parse().map_err(|_| bad())?;
    let authority = uri.authority().filter(|_| uri.scheme_str() == Some("http")).ok_or_else(bad)?;
    let port = authority.port_u16().unwrap_or(80);
    let failed = unreachable(url);
    let connection = TcpStream::connect((authority.host().trim_matches(['[', ']']), port)).await;
    let connection = connection.and_then(|c| c.set_nodelay(true).map(|()| c)).map_err(&failed)?;
    let broken = |error: hyper::Error| failed(io::Error::other(error));
    let (mut sender, driver) =
        hyper::client::conn::http1::handshake(TokioIo::new(connection)).await.map_err(broken)?;
    tokio::spawn(driver.with_upgrades());
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header("host", authority.as_str())
        .header("connection", "Upgrade")
        .header("upgrade", "SPDY/3.1")
        .header("x-stream-protocol-version", protocol)
        .body(Empty::<Bytes>::new())
        .map_err(|_| bad())?;
    let answer = sender.send_request(request).await.map_err(broken)?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let code = answer.status().as_u16();
        let body = http_body_util::Limited::new(answer.into_body(), REFUSAL_BYTES_MAX).collect().await;
        let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let message = String::from_utf8_lossy(&body).trim().to_owned();
        return Err(DialError::Refused { address: url.to_owned(), code, message });
    }
    Ok(TokioIo::new(hyper::upgrade::on(answer).await.map_err(broken)?))
}

/// Carries between the connection and the two ends of a [`NodeStream`], in tasks of their own.
fn carry(reader: Reader, writer: Writer, kind: Kind) -> NodeStream {
    let (to_us, incoming) = mpsc::channel(FRAMES_MAX);
    let (outgoing, from_us) = mpsc::channel(FRAMES_MAX);
    let down = send(writer.clone(), from_us, kind);
    tokio::spawn(async move {
        let gone = to_us.clone();
        tokio::select! {
            last = receive(reader, &to_us, kind) => {
                // Nobody to tell means that nobody waits for it.
                let _gone = to_us.send(last).await;
            }
            () = down => {}
            () = gone.closed() => {}
        }
        let _closed = writer.close().await;
    });
    NodeStream { incoming, outgoing }
}

/// Takes what our side says; does not end before the other side's reader.
async fn send(writer: Writer, mut frames: mpsc::Receiver<ClientFrame>, kind: Kind) {
    while let Some(frame) = frames.recv().await {
        let sent = match frame {
            ClientFrame::Stdin(bytes) => writer.data(STDIN, &bytes).await,
            ClientFrame::StdinEnd => writer.finish(STDIN).await,
            ClientFrame::Resize { rows, columns } if kind == Kind::Process => {
                let size = json!({"Width": columns, "Height": rows}).to_string();
                writer.data(RESIZE, size.as_bytes()).await
            }
            ClientFrame::Resize { .. } => Ok(()),
        };
        if sent.is_err() {
            break;
        }
    }
    std::future::pending().await
}

/// Takes what the other side says, to its end; the last frame.
async fn receive(
    mut reader: Reader,
    frames: &mpsc::Sender<Result<NodeFrame, StreamFailure>>,
    kind: Kind,
) -> Result<NodeFrame, StreamFailure> {
    let failed = |message: String| Err(StreamFailure { code: 500, message });
    let mut status: Vec<u8> = Vec::new();
    let mut over = false;
    loop {
        let event = match reader.next().await {
            Ok(Some(event)) => event,
            Ok(None) if !status.is_empty() || over => return ending(&status, kind),
            Ok(None) => return failed("the container runtime broke the stream off".to_owned()),
            Err(error) => return failed(format!("cannot read the container runtime's stream: {error}")),
        };
        let frame = match event {
            Event::Data { stream: STATUS, bytes, fin } => {
                let room = STATUS_BYTES_MAX.saturating_sub(status.len());
                status.extend_from_slice(&bytes[..bytes.len().min(room)]);
                // A connection's error stream may end before its data.
                if fin && (kind == Kind::Process || !status.is_empty()) {
                    return ending(&status, kind);
                }
                continue;
            }
            Event::Data { stream: STDIN, bytes, fin } if kind == Kind::Connection => {
                over |= fin;
                NodeFrame::Stdout(bytes)
            }
            Event::Data { stream: STDOUT, bytes, .. } => NodeFrame::Stdout(bytes),
            Event::Data { stream: STDERR, bytes, .. } => NodeFrame::Stderr(bytes),
            Event::Reset { stream } if stream == STATUS || stream == STDIN && kind == Kind::Connection => {
                return failed("the container runtime refused the stream".to_owned());
            }
            Event::Data { .. } | Event::Reset { .. } | Event::Opened { .. } => continue,
        };
        let is_empty =
            matches!(&frame, NodeFrame::Stdout(bytes) | NodeFrame::Stderr(bytes) if bytes.is_empty());
        if !is_empty && frames.send(Ok(frame)).await.is_err() {
            return Ok(NodeFrame::End);
        }
        if over {
            return ending(&status, kind);
        }
    }
}

/// What a status says about the end.
fn ending(status: &[u8], kind: Kind) -> Result<NodeFrame, StreamFailure> {
    let words = String::from_utf8_lossy(status).trim().to_owned();
    let failed = |message: String| Err(StreamFailure { code: 500, message });
    if kind == Kind::Connection {
        return if words.is_empty() { Ok(NodeFrame::End) } else { failed(words) };
    }
    let Ok(object) = serde_json::from_slice::<Value>(status) else {
        return if words.is_empty() { Ok(NodeFrame::Exit(0)) } else { failed(words) };
    };
    if object["status"] == "Success" {
        return Ok(NodeFrame::Exit(0));
    }
    let causes = object["details"]["causes"].as_array().cloned().unwrap_or_default();
    let code = causes.iter().find(|cause| cause["reason"] == "ExitCode");
    match code.and_then(|cause| cause["message"].as_str()?.parse().ok()) {
        Some(code) => Ok(NodeFrame::Exit(code)),
        None => failed(object["message"].as_str().unwrap_or(&words).to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_tells_the_end() {
        let of = |text: &str| ending(text.as_bytes(), Kind::Process);
        assert_eq!(of(r#"{"metadata":{},"status":"Success"}"#), Ok(NodeFrame::Exit(0)));
        let failed = r#"{"status":"Failure","reason":"NonZeroExitCode",
            "details":{"causes":[{"reason":"ExitCode","message":"42"}]}}"#;
        assert_eq!(of(failed), Ok(NodeFrame::Exit(42)));
        assert_eq!(of(r#"{"status":"Failure","message":"no"}"#).unwrap_err().message, "no");
        assert_eq!(of(""), Ok(NodeFrame::Exit(0)));
        assert_eq!(ending(b"", Kind::Connection), Ok(NodeFrame::End));
        assert_eq!(ending(b"refused", Kind::Connection).unwrap_err().message, "refused");
    }
}
