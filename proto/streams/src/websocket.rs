//! WebSocket connections of clients: messages whose first byte names a channel (processes), or messages that
//! together are one byte stream (a tunnelled connection).
//!
//! Promises: messages are bounded; pings are answered while somebody reads.

use std::io;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use super::ClientFrame;
use super::remote_command::{CLOSE_TIMEOUT, window};

/// Longest message taken; Kubernetes' clients send 32 KiB.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// What a write to the connection may gather.
const WRITE_BYTES_MAX: usize = 4 << 20;
/// One read of a tunnelled connection.
const READ_BYTES: usize = 32 << 10;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;
/// The rest of the message names the channel that the client closes.
const CLOSE: u8 = 255;

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// What a client sends.
pub(crate) struct Incoming {
    stream: SplitStream<Socket>,
}

/// What a client is sent.
pub(crate) struct Outgoing {
    sink: SplitSink<Socket, Message>,
}

/// Both directions of an upgraded connection.
pub(crate) async fn open(io: TokioIo<Upgraded>) -> (Incoming, Outgoing) {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX))
        .max_write_buffer_size(WRITE_BYTES_MAX);
    let socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await;
    let (sink, stream) = socket.split();
    (Incoming { stream }, Outgoing { sink })
}

impl Incoming {
    /// The next thing that concerns the process; `None` when the client is gone.
    pub(crate) async fn next(&mut self) -> Option<ClientFrame> {
        loop {
            let mut bytes = self.message().await?;
            if bytes.is_empty() {
                continue;
            }
            let channel = bytes.split_to(1)[0];
            match channel {
                STDIN if !bytes.is_empty() => return Some(ClientFrame::Stdin(bytes)),
                CLOSE if bytes.first() == Some(&STDIN) => return Some(ClientFrame::StdinEnd),
                RESIZE => {
                    if let Some(resize) = window(&bytes) {
                        return Some(resize);
                    }
                }
                _ => {}
            }
        }
    }

    async fn message(&mut self) -> Option<Bytes> {
        loop {
            match self.stream.next().await? {
                Ok(Message::Binary(bytes)) => return Some(bytes),
                Ok(Message::Text(text)) => return Some(text.into()),
                Ok(Message::Close(_)) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }
}

impl Outgoing {
    /// Tells the client that the process is there.
    pub(crate) async fn greet(&mut self) -> io::Result<()> {
        self.send(STDOUT, &[]).await
    }

    /// Sends output.
    pub(crate) async fn output(&mut self, is_error: bool, bytes: &[u8]) -> io::Result<()> {
        self.send(if is_error { STDERR } else { STDOUT }, bytes).await
    }

    /// Sends how it ended, and ends the connection.
    pub(crate) async fn finish(&mut self, status: &[u8]) -> io::Result<()> {
        if !status.is_empty() {
            self.send(STATUS, status).await?;
        }
        self.close().await
    }

    async fn close(&mut self) -> io::Result<()> {
        // Without a code, clients take the end for a failure.
        let normal = CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::default() };
        self.sink.send(Message::Close(Some(normal))).await.map_err(io::Error::other)
    }

    async fn send(&mut self, channel: u8, bytes: &[u8]) -> io::Result<()> {
        let mut message = BytesMut::with_capacity(1 + bytes.len());
        message.extend_from_slice(&[channel]);
        message.extend_from_slice(bytes);
        self.sink.send(Message::Binary(message.freeze())).await.map_err(io::Error::other)
    }
}

/// Carries a connection that is tunnelled in messages, until either side ends.
pub(crate) async fn tunnel(io: TokioIo<Upgraded>, far: DuplexStream) {
    let (mut incoming, mut outgoing) = open(io).await;
    let (mut reader, mut writer) = tokio::io::split(far);
    let taken = async {
        while let Some(bytes) = incoming.message().await {
            if writer.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _closed = writer.shutdown().await;
    };
    let sent = async {
        loop {
            let mut chunk = BytesMut::with_capacity(READ_BYTES);
            if reader.read_buf(&mut chunk).await.unwrap_or(0) == 0 {
                break;
            }
            if outgoing.sink.send(Message::Binary(chunk.freeze())).await.is_err() {
                return;
            }
        }
        let _closed = outgoing.close().await;
    };
    tokio::pin!(taken);
    tokio::select! {
        () = &mut taken => {}
        () = sent => {
            let _late = tokio::time::timeout(CLOSE_TIMEOUT, taken).await;
        }
    }
}
