//! Carries frames between a stream and the input and outputs of something that runs: a program, an attached
//! container, a connection.
//!
//! Promises: one read and one write are under way per direction, so that whoever is slow slows the other
//! side and nothing piles up; a side that hangs up is noticed also while the other is stalled.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use nix::errno::Errno;
use proto::node::StreamFrame;
use proto::node::stream_frame::Frame;
use runtime::TerminalSize;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Link;
use super::target::StreamError;
use crate::exec::DRAIN_TIME_MAX;

/// One read of an output; a frame is no longer.
const READ_BYTES: usize = 32 << 10;

/// What is at the node's end of a stream.
pub(super) struct Ends {
    pub(super) input: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    pub(super) stdout: Option<Box<dyn AsyncRead + Send + Unpin>>,
    pub(super) stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Takes resizes.
    pub(super) terminal: Option<Terminal>,
}

impl Ends {
    /// Splits into the way up and the way down, each to be driven until it ends. Once `ended` is cancelled,
    /// outputs that stay silent for a while are not waited for: others may hold them open.
    pub(super) fn carry<'a>(
        self,
        link: &'a mut Link,
        ended: &CancellationToken,
    ) -> (BoxFuture<'a, Result<(), StreamError>>, BoxFuture<'a, StreamError>) {
        let Link { out, incoming } = link;
        let out = out.clone();
        let closed = out.clone();
        let (input, terminal) = (self.input, self.terminal);
        let down = async move {
            let taken = async {
                let mut input = input;
                loop {
                    let frame = match incoming.next().await {
                        Some(Ok(frame)) => frame.frame,
                        None | Some(Err(_)) => return StreamError::HungUp,
                    };
                    match frame {
                        Some(Frame::Stdin(bytes)) => {
                            if let Some(writer) = &mut input
                                && writer.write_all(&bytes).await.is_err()
                            {
                                // Its reader is gone; what else comes is for nobody.
                                input = None;
                            }
                        }
                        Some(Frame::StdinEnd(_)) => {
                            if let Some(mut writer) = input.take() {
                                let _gone = writer.shutdown().await;
                            }
                        }
                        Some(Frame::Resize(size)) => {
                            if let Some(terminal) = &terminal {
                                terminal.resize(size.rows, size.columns);
                            }
                        }
                        _ => {}
                    }
                }
            };
            tokio::select! {
                error = taken => error,
                () = closed.closed() => StreamError::HungUp,
            }
        };
        let outputs = [(self.stdout, false), (self.stderr, true)];
        let ended = ended.clone();
        let up = async move {
            let mut readers: FuturesUnordered<_> = outputs
                .into_iter()
                .filter_map(|(reader, is_error)| {
                    Some(read_all(reader?, is_error, out.clone(), ended.clone()))
                })
                .collect();
            while let Some(read) = readers.next().await {
                read?;
            }
            Ok(())
        };
        (Box::pin(up), Box::pin(down))
    }
}

async fn read_all(
    mut reader: Box<dyn AsyncRead + Send + Unpin>,
    is_error: bool,
    out: mpsc::Sender<StreamFrame>,
    ended: CancellationToken,
) -> Result<(), StreamError> {
    loop {
        let mut chunk = bytes::BytesMut::with_capacity(READ_BYTES);
        let silent = async {
            ended.cancelled().await;
            tokio::time::sleep(DRAIN_TIME_MAX).await;
        };
        // An error of a pipe or a connection is its end. What is there is read before silence is found: on a busy machine
        // the bytes and the end of the wait may be seen at the same time.
        let length = tokio::select! {
            biased;
            read = reader.read_buf(&mut chunk) => read.unwrap_or(0),
            () = silent => 0,
        };
        if length == 0 {
            return Ok(());
        }
        let frame = if is_error { Frame::Stderr(chunk.freeze()) } else { Frame::Stdout(chunk.freeze()) };
        out.send(super::frame(frame)).await.map_err(|_| StreamError::HungUp)?;
    }
}

/// The controlling side of a terminal. Clones share it.
#[derive(Clone)]
pub(crate) struct Terminal {
    fd: Arc<AsyncFd<OwnedFd>>,
}

impl Terminal {
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        #[expect(
            deprecated,
            reason = "the unsafe replacement is for types whose descriptor may change; OwnedFd's does not"
        )]
        let fd = AsyncFd::new(fd)?;
        Ok(Self { fd: Arc::new(fd) })
    }

    /// Its window, if it has one.
    pub(crate) fn size(&self) -> Option<TerminalSize> {
        runtime::terminal_size(self.fd.get_ref().as_fd()).ok()
    }

    fn resize(&self, rows: u32, columns: u32) {
        let narrow = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
        let size = TerminalSize { rows: narrow(rows), columns: narrow(columns) };
        // A terminal that is gone has no size.
        let _gone = runtime::resize_terminal(self.fd.get_ref().as_fd(), size);
    }
}

impl AsyncRead for Terminal {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.fd.poll_read_ready(cx))?;
            let read = guard.try_io(|fd| Ok(nix::unistd::read(fd.get_ref(), buf.initialize_unfilled())?));
            match read {
                Ok(Ok(length)) => {
                    buf.advance(length);
                    return Poll::Ready(Ok(()));
                }
                // A terminal's end.
                Ok(Err(error)) if error.raw_os_error() == Some(Errno::EIO as i32) => {
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.fd.poll_write_ready(cx))?;
            match guard.try_io(|fd| Ok(nix::unistd::write(fd.get_ref(), bytes)?)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(written) => return Poll::Ready(written),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// The end of input is a character on a terminal (Ctrl-D), which the other side sends itself.
    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
