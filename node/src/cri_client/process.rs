//! Streams of another runtime as descriptors: what carries the node's own runtime's programs carries theirs.
//!
//! A task copies between the connection and the far ends of pipes, or of a terminal of the agent's own in raw mode,
//! whose window is looked at now and then. Dropping the process ends the connection, and with it the program.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::BytesMut;
use nix::fcntl::OFlag;
use nix::pty::openpty;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::pipe2;
use runtime::{AttachSpec, Attachment, ExecExit, ExecSpec, ExecStreams, TerminalSize};
use streams::{ClientFrame, NodeFrame, NodeStream};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::pods::containers::Process;
use crate::streaming::Terminal;

/// One read of input.
const READ_BYTES: usize = 32 << 10;
/// How often a terminal's window is looked at.
const WINDOW_INTERVAL: Duration = Duration::from_millis(200);
/// What a program that was killed ends with: 128 + KILL.
const KILLED: ExecExit = ExecExit { code: 137, signal: Some(9) };
/// What stands for a failure that the other side put into words.
const FAILED: ExecExit = ExecExit { code: 126, signal: None };

/// A program in a container of another runtime.
#[derive(Debug)]
struct Remote {
    /// Its end is the program's.
    ended: OwnedFd,
    exit: Arc<Mutex<Option<ExecExit>>>,
    kill: CancellationToken,
}

impl AsRawFd for Remote {
    fn as_raw_fd(&self) -> RawFd {
        self.ended.as_raw_fd()
    }
}

impl Process for Remote {
    fn try_exit(&self) -> io::Result<Option<ExecExit>> {
        Ok(*self.exit.lock().expect("no holder of an exit panics"))
    }

    fn kill(&self) -> io::Result<()> {
        self.kill.cancel();
        Ok(())
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.kill.cancel();
    }
}

type Writer = Box<dyn AsyncWrite + Send + Unpin>;
type Reader = Box<dyn AsyncRead + Send + Unpin>;

/// The far ends that the task copies to and from.
#[derive(Default)]
struct Far {
    input: Option<Reader>,
    stdout: Option<Writer>,
    stderr: Option<Writer>,
    window: Option<Terminal>,
}

/// A program whose streams are there.
pub(super) fn run(stream: NodeStream, spec: &ExecSpec) -> io::Result<(Box<dyn Process>, ExecStreams)> {
    let (near, far) = match spec.terminal {
        Some(size) => {
            let (near, terminal) = terminal(Some(size))?;
            let far = Far {
                input: Some(Box::new(terminal.clone())),
                stdout: Some(Box::new(terminal.clone())),
                stderr: None,
                window: Some(terminal),
            };
            (ExecStreams::Terminal(near), far)
        }
        None => {
            let (stdout, stdout_far) = output()?;
            let (stderr, stderr_far) = output()?;
            let (stdin, input) =
                if spec.stdin { input().map(|(near, far)| (Some(near), Some(far)))? } else { (None, None) };
            let far = Far { input, stdout: Some(stdout_far), stderr: Some(stderr_far), window: None };
            (ExecStreams::Pipes { stdin, stdout, stderr }, far)
        }
    };
    let remote = carry(stream, far)?;
    Ok((Box::new(remote), near))
}

/// A main process whose streams are there.
pub(super) fn attach(stream: NodeStream, spec: AttachSpec, tty: bool) -> io::Result<Attachment> {
    let mut far = Far::default();
    let (mut stdin, mut stdout, mut stderr, mut terminal_near) = (None, None, None, None);
    if spec.stdin {
        let (near, end) = input()?;
        (stdin, far.input) = (Some(near), Some(end));
    }
    if spec.stdout {
        let (near, end) = output()?;
        (stdout, far.stdout) = (Some(near), Some(end));
    }
    if spec.stderr {
        let (near, end) = output()?;
        (stderr, far.stderr) = (Some(near), Some(end));
    }
    if tty {
        let (near, end) = terminal(None)?;
        (terminal_near, far.window) = (Some(near), Some(end));
    }
    let kill = CancellationToken::new();
    let (line, line_far) = pipe2(OFlag::O_CLOEXEC)?;
    // The caller's end of the line is what keeps the connection: its going is seen as this end's error.
    let gone = pipe::Sender::from_owned_fd(line_far)?;
    tokio::spawn(async move {
        tokio::select! {
            _ended = copy(stream, far, kill) => {}
            () = closed(&gone) => {}
        }
    });
    Ok(Attachment { connection: line, stdin, stdout, stderr, terminal: terminal_near })
}

/// Resolves when nobody holds the reading end any more.
async fn closed(line: &pipe::Sender) {
    loop {
        match line.ready(tokio::io::Interest::ERROR).await {
            Ok(ready) if !ready.is_error() && !ready.is_write_closed() => {
                tokio::time::sleep(WINDOW_INTERVAL).await
            }
            _ => return,
        }
    }
}

/// A pipe that the caller reads.
fn output() -> io::Result<(OwnedFd, Writer)> {
    let (near, far) = pipe2(OFlag::O_CLOEXEC)?;
    Ok((near, Box::new(pipe::Sender::from_owned_fd(far)?)))
}

/// A pipe that the caller writes.
fn input() -> io::Result<(OwnedFd, Reader)> {
    let (far, near) = pipe2(OFlag::O_CLOEXEC)?;
    Ok((near, Box::new(pipe::Receiver::from_owned_fd(far)?)))
}

/// Both sides of a terminal that changes nothing of what passes through.
fn terminal(size: Option<TerminalSize>) -> io::Result<(OwnedFd, Terminal)> {
    let pair = openpty(None, None)?;
    for fd in [&pair.master, &pair.slave] {
        nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
    }
    let mut modes = tcgetattr(&pair.slave)?;
    cfmakeraw(&mut modes);
    tcsetattr(&pair.slave, SetArg::TCSANOW, &modes)?;
    if let Some(size) = size {
        runtime::resize_terminal(pair.slave.as_fd(), size)?;
    }
    Ok((pair.master, Terminal::new(pair.slave)?))
}

fn carry(stream: NodeStream, far: Far) -> io::Result<Remote> {
    let (ended, ended_far) = pipe2(OFlag::O_CLOEXEC)?;
    let (exit, kill) = (Arc::new(Mutex::new(None)), CancellationToken::new());
    let remote = Remote { ended, exit: Arc::clone(&exit), kill: kill.clone() };
    tokio::spawn(async move {
        let how = copy(stream, far, kill).await;
        *exit.lock().expect("no holder of an exit panics") = Some(how);
        drop(ended_far);
    });
    Ok(remote)
}

/// Copies until the other side has said how it ended, or until it is killed.
async fn copy(stream: NodeStream, far: Far, kill: CancellationToken) -> ExecExit {
    let NodeStream { mut incoming, outgoing } = stream;
    let Far { input, mut stdout, mut stderr, window } = far;
    let down = send(input, window, outgoing);
    let up = async {
        loop {
            match incoming.recv().await {
                Some(Ok(NodeFrame::Stdout(bytes))) => write(&mut stdout, &bytes).await,
                Some(Ok(NodeFrame::Stderr(bytes))) => write(&mut stderr, &bytes).await,
                Some(Ok(NodeFrame::Started)) => {}
                Some(Ok(NodeFrame::Exit(code))) => return ExecExit { code, signal: None },
                Some(Ok(NodeFrame::End)) => return ExecExit { code: 0, signal: None },
                Some(Err(failure)) => {
                    let into = if stderr.is_some() { &mut stderr } else { &mut stdout };
                    write(into, format!("{}\n", failure.message).as_bytes()).await;
                    return FAILED;
                }
                None => return KILLED,
            }
        }
    };
    tokio::select! {
        exit = up => exit,
        () = down => KILLED,
        () = kill.cancelled() => KILLED,
    }
}

/// A reader that is gone takes no more.
async fn write(into: &mut Option<Writer>, bytes: &[u8]) {
    if let Some(writer) = into
        && writer.write_all(bytes).await.is_err()
    {
        *into = None;
    }
}

/// Takes what our side says; never ends.
async fn send(input: Option<Reader>, window: Option<Terminal>, outgoing: mpsc::Sender<ClientFrame>) {
    let typed = async {
        let Some(mut input) = input else { return };
        loop {
            let mut chunk = BytesMut::with_capacity(READ_BYTES);
            // An error is its end.
            let length = input.read_buf(&mut chunk).await.unwrap_or(0);
            let frame = if length == 0 { ClientFrame::StdinEnd } else { ClientFrame::Stdin(chunk.freeze()) };
            if outgoing.send(frame).await.is_err() || length == 0 {
                return;
            }
        }
    };
    let resized = async {
        let Some(window) = window else { return };
        let mut last = None;
        loop {
            let size = window.size();
            if let Some(TerminalSize { rows, columns }) = size.filter(|size| Some(*size) != last) {
                last = size;
                if rows > 0 && outgoing.send(ClientFrame::Resize { rows, columns }).await.is_err() {
                    return;
                }
            }
            tokio::time::sleep(WINDOW_INTERVAL).await;
        }
    };
    tokio::join!(typed, resized);
    // The other side's end is what counts; it is told of ours by the frames above.
    let _kept = outgoing;
    std::future::pending().await
}
