//! The caller's side of a further process in a running container, and of attaching to its main one. The shim is its parent; the connection to
//! the shim is its life line: when it closes, the shim kills the process and all of its session.
//!
//! Owns: the near ends of its input and output, the connection. Promises: nothing is left when the caller
//! drops this or dies. Does not: copy bytes; wait, unless it is asked to.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::pipe2;
use serde::{Deserialize, Serialize};

use super::plan::Bundle;
use super::spec::TerminalSize;
use super::start::START_TIME_MAX;
use crate::error::{Error, StartError};
use crate::process::channel::wait_readable;
use crate::shim::attach::Ends;
use crate::shim::control::{self, Request};
use crate::syscall;

/// Largest request: the arguments, as JSON.
pub(crate) const EXEC_BYTES_MAX: usize = 1 << 20;
/// Longest name of a program.
const PROGRAM_BYTES_MAX: usize = 4096;

/// A program to run in a running container, with the container's user, rights, environment, working
/// directory, namespaces and cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecSpec {
    /// Program and arguments. A program without a slash is looked for in the container's `PATH`.
    pub args: Vec<String>,
    /// A terminal of this size instead of pipes.
    pub terminal: Option<TerminalSize>,
    /// Whether the caller will write its standard input; otherwise it is empty. Ignored with a terminal.
    pub stdin: bool,
    /// Whether it goes on when the caller has dropped its handle. Its output then goes nowhere, and its end is told to
    /// nobody. Not with a terminal.
    pub detached: bool,
}

impl ExecSpec {
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.detached && (self.terminal.is_some() || self.stdin) {
            return Err(Error::invalid("exec.detached", "nobody is there to use a terminal or input"));
        }
        match self.args.first() {
            None => Err(Error::invalid("exec.args", "there is no command to run")),
            Some(program) if program.is_empty() => {
                Err(Error::invalid("exec.args", "the command is an empty word"))
            }
            Some(program) if program.len() > PROGRAM_BYTES_MAX => Err(Error::invalid(
                "exec.args",
                format!("the command's name is longer than {PROGRAM_BYTES_MAX} bytes"),
            )),
            Some(_) => Ok(()),
        }
    }
}

/// What the shim is asked for, in a file of its own: arguments may be longer than a packet.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ExecRequest {
    pub(crate) args: Vec<String>,
    pub(crate) terminal: Option<TerminalSize>,
    #[serde(default)]
    pub(crate) detached: bool,
}

/// How such a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecExit {
    /// The exit code; 128 + signal when a signal ended it.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
}

impl ExecExit {
    /// It ended with the container, of which nobody could tell any more.
    const WITH_THE_SHIM: ExecExit = ExecExit { code: 128 + libc::SIGKILL, signal: Some(libc::SIGKILL) };

    pub(crate) fn encode(self) -> String {
        serde_json::to_string(&self).unwrap_or_default()
    }
}

/// The near ends of a process's input and output.
#[derive(Debug)]
pub enum ExecStreams {
    /// Pipes.
    Pipes {
        /// Write to it; closing it ends the input. `None` unless asked for.
        stdin: Option<OwnedFd>,
        /// Read from it.
        stdout: OwnedFd,
        /// Read from it.
        stderr: OwnedFd,
    },
    /// The controlling side of a terminal: written and read. Its end is the error EIO.
    Terminal(OwnedFd),
}

/// A process in a container. Dropping it kills the process.
#[derive(Debug)]
pub struct ExecProcess {
    connection: OwnedFd,
}

impl ExecProcess {
    /// How it ended, if it has. Ask when [`ExecProcess::as_fd`] is readable.
    pub fn try_exit(&self) -> io::Result<Option<ExecExit>> {
        let (text, _) = match control::receive_answer(&self.connection, Some(Instant::now())) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => return Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ECONNRESET) => {
                return Ok(Some(ExecExit::WITH_THE_SHIM));
            }
            received => received?,
        };
        match text.strip_prefix("ended ") {
            Some(exit) => Ok(Some(serde_json::from_str(exit)?)),
            None => Err(io::Error::other(format!("unexpected answer of the shim: {text:?}"))),
        }
    }

    /// Waits for its end; `None` at the deadline.
    pub fn wait(&self, deadline: Instant) -> io::Result<Option<ExecExit>> {
        match wait_readable(&self.connection, deadline) {
            Ok(()) => self.try_exit(),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Kills it and everything in its session. Its end is then told as any other.
    pub fn kill(&self) -> io::Result<()> {
        match control::send_request(&self.connection, Request::Kill, &[]) {
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => Ok(()),
            sent => sent,
        }
    }
}

impl AsFd for ExecProcess {
    /// Readable when the process has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

impl AsRawFd for ExecProcess {
    fn as_raw_fd(&self) -> RawFd {
        self.connection.as_raw_fd()
    }
}

/// Sets the window of a terminal, by its controlling side.
pub fn resize_terminal(terminal: BorrowedFd<'_>, size: TerminalSize) -> io::Result<()> {
    syscall::set_terminal_size(terminal, size)
}

/// The window of a terminal, by either side.
pub fn terminal_size(terminal: BorrowedFd<'_>) -> io::Result<TerminalSize> {
    syscall::terminal_size(terminal)
}

/// Why a request to a shim did not lead to a process.
pub(crate) enum Refused {
    /// The process itself said why.
    Start(StartError),
    /// The shim could not be asked, or refused.
    Io(io::Error),
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Refused {
        Refused::Io(error)
    }
}

/// Asks the shim of a bundle for a process.
pub(crate) fn start(bundle: &Bundle, spec: &ExecSpec) -> Result<(ExecProcess, ExecStreams), Refused> {
    let request = ExecRequest { args: spec.args.clone(), terminal: spec.terminal, detached: spec.detached };
    let request = serde_json::to_vec(&request).map_err(io::Error::from)?;
    if request.len() > EXEC_BYTES_MAX {
        return Err(Refused::Io(Errno::E2BIG.into()));
    }
    let mut file = File::from(memfd_create(c"exec", MFdFlags::MFD_CLOEXEC).map_err(io::Error::from)?);
    file.write_all(&request)?;
    if spec.terminal.is_some() {
        let connection = control::request(bundle, Request::Exec, &[file.as_fd()])?;
        let terminal = await_start(&connection)?.ok_or(Errno::EPROTO).map_err(io::Error::from)?;
        return Ok((ExecProcess { connection }, ExecStreams::Terminal(terminal)));
    }
    let pipe = || pipe2(OFlag::O_CLOEXEC).map_err(io::Error::from);
    let null = || File::options().read(true).write(true).open("/dev/null").map(OwnedFd::from);
    let output = || if spec.detached { Ok((null()?, null()?)) } else { pipe() };
    let (stdout, stdout_far) = output()?;
    let (stderr, stderr_far) = output()?;
    let (stdin, stdin_far) = match spec.stdin {
        true => pipe().map(|(far, near)| (Some(near), far))?,
        false => (None, File::open("/dev/null")?.into()),
    };
    let passed = [file.as_fd(), stdin_far.as_fd(), stdout_far.as_fd(), stderr_far.as_fd()];
    let connection = control::request(bundle, Request::Exec, &passed)?;
    drop((stdin_far, stdout_far, stderr_far));
    await_start(&connection)?;
    Ok((ExecProcess { connection }, ExecStreams::Pipes { stdin, stdout, stderr }))
}

fn await_start(connection: &OwnedFd) -> Result<Option<OwnedFd>, Refused> {
    let (text, passed) = control::receive_answer(connection, Some(Instant::now() + START_TIME_MAX))?;
    if text == "started" {
        return Ok(passed);
    }
    if let Some(failure) = text.strip_prefix("failed ") {
        return Err(Refused::Start(serde_json::from_str(failure).map_err(io::Error::from)?));
    }
    Err(Refused::Io(control::error_in(&text)))
}

/// Somebody attached to a container's main process; dropping it detaches.
#[derive(Debug)]
pub struct Attachment {
    /// The life line; readable when the container has ended, or the shim has let this attacher go.
    pub connection: OwnedFd,
    /// Write to it. `None` unless asked for.
    pub stdin: Option<OwnedFd>,
    /// Read from it; its end is the container's, or means that this reader was too slow.
    pub stdout: Option<OwnedFd>,
    /// Read from it.
    pub stderr: Option<OwnedFd>,
    /// The container's terminal, if it has one, for resizes.
    pub terminal: Option<OwnedFd>,
}

/// Which input and output of a container's main process are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttachSpec {
    /// Whether the caller will write its input. Goes nowhere if the container has none.
    pub stdin: bool,
    /// Standard output; everything, with a terminal.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
}

/// Asks the shim of a bundle for an attachment.
pub(crate) fn attach(bundle: &Bundle, spec: AttachSpec) -> io::Result<Attachment> {
    let AttachSpec { stdin, stdout, stderr } = spec;
    let pipe = |wanted: bool| match wanted {
        true => pipe2(OFlag::O_CLOEXEC).map(Some),
        false => Ok(None),
    };
    let (stdin_far, stdin_near) = pipe(stdin)?.unzip();
    let (stdout_near, stdout_far) = pipe(stdout)?.unzip();
    let (stderr_near, stderr_far) = pipe(stderr)?.unzip();
    let passed: Vec<BorrowedFd<'_>> =
        [&stdin_far, &stdout_far, &stderr_far].into_iter().flatten().map(AsFd::as_fd).collect();
    let request = Request::Attach(Ends { stdin, stdout, stderr });
    let connection = control::request(bundle, request, &passed)?;
    drop((stdin_far, stdout_far, stderr_far));
    let (text, terminal) = control::receive_answer(&connection, Some(Instant::now() + START_TIME_MAX))?;
    match text.as_str() {
        "attached" => Ok(Attachment {
            connection,
            stdin: stdin_near,
            stdout: stdout_near,
            stderr: stderr_near,
            terminal,
        }),
        _ => Err(control::error_in(&text)),
    }
}
