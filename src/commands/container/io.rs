//! The user's terminal, signals and standard streams on one side, a process in a container on the other.
//!
//! Each direction has a thread. What is read is passed on whole; an output that nobody takes any more is read on, so
//! that the process is not held up. The terminal is itself again when a [`RawTerminal`] is dropped.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::Context as _;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use runtime::{TerminalSize, resize_terminal, terminal_size};

/// One read.
const READ_BYTES: usize = 16 << 10;
/// The window of a terminal that nobody sees.
const WINDOW: TerminalSize = TerminalSize { rows: 24, columns: 80 };
/// Signals that are passed on to the process.
const PASSED_ON: [Signal; 6] =
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];

/// The user's terminal, as long as each key goes to the process as it is.
pub(super) struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Makes standard input raw, if it is a terminal.
    pub(super) fn enter() -> anyhow::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(&stdin).context("cannot look at the terminal")?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&stdin, SetArg::TCSANOW, &raw).context("cannot change the terminal")?;
        Ok(Some(Self { before }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Without a terminal there is nobody to be sorry.
        let _gone = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.before);
    }
}

/// The window of the user's terminal.
pub(super) fn window() -> TerminalSize {
    match terminal_size(io::stdin().as_fd()) {
        Ok(size) if size.rows > 0 && size.columns > 0 => size,
        _ => WINDOW,
    }
}

/// Takes signals in, so that they can be passed on. Before any thread or process is started.
pub(super) fn hold_signals() -> anyhow::Result<SigSet> {
    let mut set = SigSet::empty();
    PASSED_ON.iter().chain(&[Signal::SIGWINCH]).for_each(|signal| set.add(*signal));
    set.thread_block().context("cannot hold signals")?;
    Ok(set)
}

/// Passes signals on for as long as this process lives; the terminal follows the user's window.
pub(super) fn pass_signals_on(
    set: SigSet,
    terminal: Option<OwnedFd>,
    send: impl Fn(Signal) + Send + 'static,
) {
    if let Some(terminal) = &terminal {
        let _gone = resize_terminal(terminal.as_fd(), window());
    }
    std::thread::spawn(move || {
        while let Ok(signal) = set.wait() {
            match (signal, &terminal) {
                (Signal::SIGWINCH, Some(terminal)) => {
                    let _gone = resize_terminal(terminal.as_fd(), window());
                }
                (Signal::SIGWINCH, None) => {}
                (signal, _) => send(signal),
            }
        }
    });
}

/// Which of the user's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Output {
    Standard,
    Error,
}

impl Output {
    /// Writes all of it at once.
    pub(super) fn write(self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Standard => {
                let mut out = io::stdout().lock();
                out.write_all(bytes).and_then(|()| out.flush())
            }
            Self::Error => io::stderr().lock().write_all(bytes),
        }
    }
}

/// Carries what a process writes to the user, to its end.
pub(super) fn carry_output(from: OwnedFd, to: Output) -> JoinHandle<()> {
    carry(Arc::new(File::from(from)), to)
}

/// The same of a terminal, which is written as well.
pub(super) fn carry(from: Arc<File>, to: Output) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut buffer = vec![0; READ_BYTES];
        let mut wanted = true;
        loop {
            match (&*from).read(&mut buffer) {
                // A terminal answers EIO at its end.
                Ok(0) => return,
                Ok(length) => wanted = wanted && to.write(&buffer[..length]).is_ok(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait_readable(&*from);
                }
                Err(_) => return,
            }
        }
    })
}

/// Carries what the user writes to a process. Ends with the process, by the end of this one.
pub(super) fn carry_input(to: Arc<File>) {
    std::thread::spawn(move || {
        let mut buffer = vec![0; READ_BYTES];
        let mut stdin = io::stdin().lock();
        loop {
            match stdin.read(&mut buffer) {
                Ok(0) => return,
                Ok(length) => {
                    if write_all(&to, &buffer[..length]).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    });
}

fn write_all(file: &File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match (&*file).write(bytes) {
            Ok(length) => bytes = &bytes[length..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                poll_for(file, PollFlags::POLLOUT);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Waits until something can be read, or is at its end.
pub(super) fn wait_readable(fd: impl AsFd) {
    poll_for(fd, PollFlags::POLLIN);
}

fn poll_for(fd: impl AsFd, flags: PollFlags) {
    let mut fds = [PollFd::new(fd.as_fd(), flags)];
    while poll(&mut fds, PollTimeout::NONE) == Err(Errno::EINTR) {}
}
