//! The shim's side of starting a container's process: pipes, fork, and listening until it has executed
//! its program or has said why it could not.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use nix::fcntl::OFlag;
use nix::sched::CloneFlags;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, pipe2};

use super::channel::{InitChannel, InitMessage};
use super::failure::Failure;
use super::init::{self, Stdio};
use crate::container::plan::ContainerPlan;
use crate::container::state::{ProcessId, Unenforced};
use crate::error::{Stage, StartError};
use crate::namespaces;
use crate::syscall::{self, Forked};

/// A process that has executed its program. It may have ended since, but is not reaped.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) process: ProcessId,
    /// The other end of its input, if it is kept open. A terminal's is `stdout`.
    pub(crate) stdin: Option<OwnedFd>,
    /// With a terminal its controlling side.
    pub(crate) stdout: OwnedFd,
    /// None with a terminal.
    pub(crate) stderr: Option<OwnedFd>,
    pub(crate) unenforced: Vec<Unenforced>,
}

/// Starts the plan's process.
pub(crate) fn launch(plan: &ContainerPlan) -> Result<Launched, StartError> {
    let failed =
        |what: &'static str| move |error: io::Error| Failure::io("create", what, error).at(Stage::Clone);
    let (near, far) = InitChannel::pair().map_err(failed("channel"))?;
    let (stdio, outputs) = if plan.spec.process.terminal {
        (Stdio::Terminal { size: None, console: true }, None)
    } else {
        let pipe = || pipe2(OFlag::O_CLOEXEC).map_err(|error| failed("pipe")(error.into()));
        let (stdout, stdout_far) = pipe()?;
        let (stderr, stderr_far) = pipe()?;
        let (stdin_far, stdin) = match plan.spec.process.stdin {
            true => pipe().map(|(far, near)| (far, Some(near)))?,
            false => (File::open("/dev/null").map_err(failed("standard input"))?.into(), None),
        };
        let stdio = Stdio::Pipes { stdin: stdin_far, stdout: stdout_far, stderr: stderr_far };
        (stdio, Some((stdin, stdout, stderr)))
    };
    namespaces::prepare_pid(plan).map_err(|failure| failure.at(Stage::Namespaces))?;
    let (forked, birth) = plan.cgroup.fork(CloneFlags::empty()).map_err(failed("process"))?;
    let child = match forked {
        Forked::Parent { child } => child,
        Forked::Child => {
            drop(near);
            init::run(plan, birth, &far, stdio)
        }
    };
    drop((far, stdio));
    match listen(&near) {
        Ok((terminal, unenforced)) => {
            let (stdin, stdout, stderr) = match (terminal, outputs) {
                (Some(terminal), _) => (None, terminal, None),
                (None, Some((stdin, stdout, stderr))) => (stdin, stdout, Some(stderr)),
                (None, None) => return Err(abandon(child, Failure::rule("no terminal was opened"))),
            };
            let process = ProcessId::of(child.as_raw()).map_err(failed("record of the process"))?;
            Ok(Launched { process, stdin, stdout, stderr, unenforced })
        }
        Err(Heard::Failed(error)) => {
            reap(child);
            Err(error)
        }
        Err(Heard::Nothing(failure)) => Err(abandon(child, failure)),
    }
}

enum Heard {
    Failed(StartError),
    Nothing(Failure),
}

/// Listens until init executes: then the channel closes.
fn listen(channel: &InitChannel) -> Result<(Option<OwnedFd>, Vec<Unenforced>), Heard> {
    let mut terminal = None;
    let mut unenforced = Vec::new();
    let mut executing = false;
    loop {
        let received = channel
            .receive()
            .map_err(|error| Heard::Nothing(Failure::io("hear from", "the container's process", error)))?;
        match received {
            Some((InitMessage::Unenforced(found), _)) => unenforced.push(found),
            Some((InitMessage::Terminal, passed)) => terminal = passed,
            Some((InitMessage::Executing, _)) => executing = true,
            Some((InitMessage::Failed(error), _)) => return Err(Heard::Failed(error)),
            None if executing => return Ok((terminal, unenforced)),
            None => {
                let why = "the container's process ended before it could execute its program";
                return Err(Heard::Nothing(Failure::rule(why)));
            }
        }
    }
}

/// Ends a process that never became the program, and says how it ended.
fn abandon(child: Pid, failure: Failure) -> StartError {
    // It may have ended by itself.
    let _ = syscall::kill(child.as_raw(), libc::SIGKILL);
    let mut error = failure.at(Stage::Clone);
    if let Some(WaitStatus::Signaled(_, signal, _)) = reap(child) {
        error.message = format!("{} (killed by {signal})", error.message);
    }
    error
}

fn reap(child: Pid) -> Option<WaitStatus> {
    loop {
        match waitpid(child, Some(WaitPidFlag::__WALL)) {
            Err(nix::Error::EINTR) => {}
            status => return status.ok(),
        }
    }
}
