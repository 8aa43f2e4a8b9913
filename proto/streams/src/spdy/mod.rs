//! SPDY/3.1, as much of it as kubectl and kubelets speak: framing of streams over one byte stream, either side.
//!
//! Owns the frames' form and the header compression. Promises: frames and header blocks are bounded; a frame
//! that breaks a rule ends the connection; pings are answered. Kubernetes' clients do no flow control, so
//! none is done here: a reader that does not go on reading slows the whole connection.
//! Does not: know what the streams are for.

mod headers;

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::sync::Mutex;

pub(crate) use headers::Headers;
use headers::{Packer, Unpacker};

/// Longest frame taken; Kubernetes' clients send 32 KiB.
const FRAME_BYTES_MAX: usize = 1 << 20;
/// Longest control frame taken.
const CONTROL_BYTES_MAX: usize = 32 << 10;
/// Longest frame sent.
const SEND_BYTES_MAX: usize = 64 << 10;

const CONTROL_BIT: u16 = 0x8000;
const VERSION: u16 = 3;
const FLAG_FIN: u8 = 1;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// The status of a stream that is not wanted.
pub(crate) const REFUSED_STREAM: u32 = 3;

/// What a client did.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// It opened a stream.
    Opened { stream: u32, headers: Headers, fin: bool },
    /// It wrote on a stream; with `fin` for the last time.
    Data { stream: u32, bytes: Bytes, fin: bool },
    /// It broke a stream off.
    Reset { stream: u32 },
}

/// The client's frames.
#[derive(Debug)]
pub(crate) struct Reader<R, W> {
    io: BufReader<R>,
    unpacker: Unpacker,
    writer: Writer<W>,
}

/// Frames to the client; clones write on the same connection.
#[derive(Debug)]
pub(crate) struct Writer<W> {
    shared: Arc<Mutex<Output<W>>>,
}

#[derive(Debug)]
struct Output<W> {
    io: W,
    packer: Packer,
}

impl<W> Clone for Writer<W> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

/// Both directions of a connection that has been upgraded.
pub(crate) fn connection<R, W>(reader: R, writer: W) -> io::Result<(Reader<R, W>, Writer<W>)>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let output = Output { io: writer, packer: Packer::new()? };
    let writer = Writer { shared: Arc::new(Mutex::new(output)) };
    let reader = Reader { io: BufReader::new(reader), unpacker: Unpacker::new(), writer: writer.clone() };
    Ok((reader, writer))
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Reader<R, W> {
    /// The next event; `None` at the end of the connection.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Event>> {
        loop {
            let mut head = [0; 8];
            match self.io.read_exact(&mut head).await {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
                read => read?,
            };
            let [a, b, c, d, flags, length @ ..] = head;
            let length = u32::from_be_bytes([0, length[0], length[1], length[2]]) as usize;
            let first = u16::from_be_bytes([a, b]);
            if first & CONTROL_BIT == 0 {
                let stream = u32::from_be_bytes([a, b, c, d]);
                let bytes = self.body(length, FRAME_BYTES_MAX).await?;
                return Ok(Some(Event::Data { stream, bytes, fin: flags & FLAG_FIN != 0 }));
            }
            if first & !CONTROL_BIT != VERSION {
                return Err(bad("a frame of another version of SPDY"));
            }
            let kind = u16::from_be_bytes([c, d]);
            let body = self.body(length, CONTROL_BYTES_MAX).await?;
            if kind == GOAWAY {
                return Ok(None);
            }
            if let Some(event) = self.control(kind, flags, &body).await? {
                return Ok(Some(event));
            }
        }
    }

    async fn body(&mut self, length: usize, bytes_max: usize) -> io::Result<Bytes> {
        if length > bytes_max {
            return Err(bad("a frame is too long"));
        }
        let mut body = BytesMut::zeroed(length);
        self.io.read_exact(&mut body).await?;
        Ok(body.freeze())
    }

    async fn control(&mut self, kind: u16, flags: u8, body: &[u8]) -> io::Result<Option<Event>> {
        match kind {
            SYN_STREAM => {
                // Stream, associated stream, priority and slot.
                let (fixed, block) =
                    body.split_first_chunk::<10>().ok_or_else(|| bad("a stream's frame breaks off"))?;
                let headers = self.unpacker.unpack(block)?;
                let stream = number(fixed)?;
                Ok(Some(Event::Opened { stream, headers, fin: flags & FLAG_FIN != 0 }))
            }
            RST_STREAM => Ok(Some(Event::Reset { stream: number(body)? })),
            PING => {
                self.writer.control(PING, &number(body)?.to_be_bytes()).await?;
                Ok(None)
            }
            // Their headers belong to the compression's history.
            SYN_REPLY | HEADERS => {
                let block = body.get(4..).ok_or_else(|| bad("a frame of headers breaks off"))?;
                self.unpacker.unpack(block)?;
                Ok(None)
            }
            SETTINGS | WINDOW_UPDATE => Ok(None),
            _ => Err(bad("a frame of an unknown kind")),
        }
    }
}

impl<W: AsyncWrite + Unpin> Writer<W> {
    /// Takes a stream that the client opened.
    pub(crate) async fn accept(&self, stream: u32) -> io::Result<()> {
        let mut output = self.shared.lock().await;
        let mut body = id(stream).to_vec();
        // The order of blocks on the wire is that of their compression: both under the lock.
        let block = output.packer.pack(&[])?;
        body.extend_from_slice(&block);
        output.control(SYN_REPLY, &body).await
    }

    /// Opens a stream, as a client; its number is odd and higher than those before it.
    pub(crate) async fn open(&self, stream: u32, headers: &[(&str, &str)]) -> io::Result<()> {
        let mut output = self.shared.lock().await;
        let mut body = id(stream).to_vec();
        // No associated stream, highest priority, no slot.
        body.extend_from_slice(&[0; 6]);
        let block = output.packer.pack(headers)?;
        body.extend_from_slice(&block);
        output.control(SYN_STREAM, &body).await
    }

    /// Breaks a stream off.
    pub(crate) async fn reset(&self, stream: u32, status: u32) -> io::Result<()> {
        let mut body = id(stream).to_vec();
        body.extend_from_slice(&status.to_be_bytes());
        self.control(RST_STREAM, &body).await
    }

    /// Writes on a stream.
    pub(crate) async fn data(&self, stream: u32, bytes: &[u8]) -> io::Result<()> {
        for chunk in bytes.chunks(SEND_BYTES_MAX) {
            self.shared.lock().await.data(stream, chunk, 0).await?;
        }
        Ok(())
    }

    /// Ends this side of a stream.
    pub(crate) async fn finish(&self, stream: u32) -> io::Result<()> {
        self.shared.lock().await.data(stream, &[], FLAG_FIN).await
    }

    /// Ends the connection.
    pub(crate) async fn close(&self) -> io::Result<()> {
        self.shared.lock().await.io.shutdown().await
    }

    async fn control(&self, kind: u16, body: &[u8]) -> io::Result<()> {
        self.shared.lock().await.control(kind, body).await
    }
}

impl<W: AsyncWrite + Unpin> Output<W> {
    async fn control(&mut self, kind: u16, body: &[u8]) -> io::Result<()> {
        let mut frame = Vec::with_capacity(8 + body.len());
        frame.extend_from_slice(&(CONTROL_BIT | VERSION).to_be_bytes());
        frame.extend_from_slice(&kind.to_be_bytes());
        self.send(frame, 0, body).await
    }

    async fn data(&mut self, stream: u32, bytes: &[u8], flags: u8) -> io::Result<()> {
        let mut frame = Vec::with_capacity(8 + bytes.len());
        frame.extend_from_slice(&id(stream));
        self.send(frame, flags, bytes).await
    }

    async fn send(&mut self, mut frame: Vec<u8>, flags: u8, body: &[u8]) -> io::Result<()> {
        // Callers cut bodies to a length that fits 24 bits.
        let length = (body.len() as u32).to_be_bytes();
        frame.push(flags);
        frame.extend_from_slice(&length[1..]);
        frame.extend_from_slice(body);
        self.io.write_all(&frame).await?;
        self.io.flush().await
    }
}

/// A stream's number as frames carry it: 31 bits.
fn id(stream: u32) -> [u8; 4] {
    (stream & 0x7fff_ffff).to_be_bytes()
}

fn number(body: &[u8]) -> io::Result<u32> {
    let bytes = body.first_chunk::<4>().ok_or_else(|| bad("a control frame breaks off"))?;
    Ok(u32::from_be_bytes(*bytes) & 0x7fff_ffff)
}

fn bad(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use tokio::io::{duplex, split};

    use super::*;

    /// A frame as a client writes it.
    fn control(kind: u16, flags: u8, body: &[u8]) -> Vec<u8> {
        let mut frame = vec![0x80, 3];
        frame.extend_from_slice(&kind.to_be_bytes());
        frame.push(flags);
        frame.extend_from_slice(&(body.len() as u32).to_be_bytes()[1..]);
        frame.extend_from_slice(body);
        frame
    }

    fn open(packer: &mut Packer, stream: u32, kind: &str) -> Vec<u8> {
        let mut body = stream.to_be_bytes().to_vec();
        body.extend_from_slice(&[0; 6]);
        body.extend_from_slice(&packer.pack(&[("streamType", kind)]).unwrap());
        control(SYN_STREAM, 0, &body)
    }

    #[tokio::test]
    async fn streams_are_opened_written_and_ended() {
        let (client, server) = duplex(1 << 16);
        let (mut from_server, mut to_server) = split(client);
        let (reader, writer) = split(server);
        let (mut reader, writer) = connection(reader, writer).unwrap();
        let mut packer = Packer::new().unwrap();
        for (stream, kind) in [(1, "error"), (3, "stdin")] {
            to_server.write_all(&open(&mut packer, stream, kind)).await.unwrap();
            let Some(Event::Opened { stream: found, headers, fin }) = reader.next().await.unwrap() else {
                panic!("a stream was opened");
            };
            assert_eq!((found, headers.get("streamtype"), fin), (stream, Some(kind), false));
        }
        to_server.write_all(&control(PING, 0, &9_u32.to_be_bytes())).await.unwrap();
        to_server.write_all(&[0, 0, 0, 3, 1, 0, 0, 2, b'h', b'i']).await.unwrap();
        let data = reader.next().await.unwrap();
        assert_eq!(data, Some(Event::Data { stream: 3, bytes: "hi".into(), fin: true }));
        let mut pong = [0; 12];
        from_server.read_exact(&mut pong).await.unwrap();
        assert_eq!(pong, [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 9]);
        writer.data(3, b"yes").await.unwrap();
        writer.finish(3).await.unwrap();
        let mut frames = [0; 19];
        from_server.read_exact(&mut frames).await.unwrap();
        assert_eq!(frames, *b"\0\0\0\x03\0\0\0\x03yes\0\0\0\x03\x01\0\0\0");
        drop((from_server, to_server));
        assert_eq!(reader.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn what_breaks_the_rules_ends_the_connection() {
        let too_long = [0, 0, 0, 1, 0, 0xff, 0xff, 0xff];
        let other_version = [0x80, 2, 0, 1, 0, 0, 0, 0];
        let unknown = [0x80, 3, 0, 99, 0, 0, 0, 0];
        let short = [0x80, 3, 0, 1, 0, 0, 0, 0];
        for frame in [too_long, other_version, unknown, short] {
            let (mut client, server) = duplex(1 << 10);
            let (reader, writer) = split(server);
            let (mut reader, _writer) = connection(reader, writer).unwrap();
            client.write_all(&frame).await.unwrap();
            assert!(reader.next().await.is_err(), "{frame:?}");
        }
    }
}
