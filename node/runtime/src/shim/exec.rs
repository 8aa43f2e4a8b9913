//! Further processes in the container, as children of its shim: one per client connection.
//!
//! ```text
//! request ─ fork ─► setting up ──(executes)──► running ──► ended ─► told, forgotten
//!                      │ failed: told, forgotten    ▲ │
//!                      └────────────────────────────┴─┴─ client hangs up or says kill: session killed
//! ```
//!
//! Promises: the shim never waits for one; a process is told of once (`started` or `failed`, then `ended`);
//! when its client goes away, everything in its session is killed, unless it was started detached. What left the session (a daemon) stays,
//! until the container ends.
//! Does not: touch its input and output, which the client made and holds.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::unistd::Pid;

use super::control;
use crate::container::exec::{EXEC_BYTES_MAX, ExecExit, ExecRequest};
use crate::container::plan::ContainerPlan;
use crate::container::spec::ProcessSpec;
use crate::error::{Stage, StartError};
use crate::process::channel::{InitChannel, InitMessage};
use crate::process::enter;
use crate::process::failure::Failure;
use crate::process::init::Stdio;
use crate::syscall::{self, Forked};

/// A session that still makes processes after so many rounds of killing is left to the next kill.
const KILL_ROUNDS_MAX: u32 = 16;

/// One process and how far it is.
#[derive(Debug)]
pub(super) struct Exec {
    pid: Pid,
    /// Until it executes its program.
    channel: Option<InitChannel>,
    executing: bool,
    terminal: Option<OwnedFd>,
    failure: Option<StartError>,
    started: bool,
    /// It does not end with its client.
    detached: bool,
    exit: Option<ExecExit>,
}

impl Exec {
    /// Forks the process that a client asks for. `passed` are the request's file and, without a terminal,
    /// standard input, output and error.
    pub(super) fn start(plan: &ContainerPlan, init: Pid, passed: Vec<OwnedFd>) -> io::Result<Exec> {
        let mut passed = passed.into_iter();
        let request = read_request(passed.next().ok_or(Errno::EINVAL)?)?;
        let stdio = match (request.terminal, passed.next(), passed.next(), passed.next()) {
            (Some(size), None, None, None) => Stdio::Terminal { size: Some(size), console: false },
            (None, Some(stdin), Some(stdout), Some(stderr)) => Stdio::Pipes { stdin, stdout, stderr },
            _ => return Err(Errno::EINVAL.into()),
        };
        let detached = request.detached;
        let process = ProcessSpec {
            args: request.args,
            terminal: request.terminal.is_some(),
            ..plan.spec.process.clone()
        };
        let (near, far) = InitChannel::pair()?;
        near.set_nonblocking()?;
        let (forked, birth) = plan.cgroup.fork(CloneFlags::empty())?;
        match forked {
            Forked::Child => {
                drop(near);
                enter::run(plan, birth, &process, init, &far, stdio)
            }
            Forked::Parent { child } => Ok(Exec {
                pid: child,
                channel: Some(near),
                executing: false,
                terminal: None,
                failure: None,
                started: false,
                detached,
                exit: None,
            }),
        }
    }

    /// Whether it goes on without its client.
    pub(super) fn is_detached(&self) -> bool {
        self.detached
    }

    /// What is readable when the process has something to say.
    pub(super) fn channel(&self) -> Option<BorrowedFd<'_>> {
        self.channel.as_ref().map(AsFd::as_fd)
    }

    /// Whether this is the process; if so, it has ended like this and is reaped.
    pub(super) fn ended(&mut self, pid: Pid, code: i32, signal: Option<i32>) -> bool {
        let is_it = pid == self.pid && self.exit.is_none();
        if is_it {
            self.exit = Some(ExecExit { code, signal });
        }
        is_it
    }

    /// Takes in what the process has said and tells the client. Returns whether all has been told.
    pub(super) fn advance(&mut self, client: &OwnedFd) -> bool {
        self.listen();
        if self.channel.is_none() && self.executing && !self.started {
            self.started = true;
            control::answer_with(client, "started", self.terminal.take().as_ref());
        }
        let Some(exit) = self.exit else { return false };
        if self.started {
            control::answer(client, &format!("ended {}", exit.encode()));
        } else {
            let failure = self.failure.take().unwrap_or_else(|| {
                let how =
                    exit.signal.map_or_else(String::new, |signal| format!(" (killed by signal {signal})"));
                Failure::rule(format!("the process ended before it could execute its program{how}"))
                    .at(Stage::Clone)
            });
            control::answer(
                client,
                &format!("failed {}", serde_json::to_string(&failure).unwrap_or_default()),
            );
        }
        true
    }

    fn listen(&mut self) {
        while let Some(channel) = &self.channel {
            match channel.receive() {
                Ok(Some((InitMessage::Terminal, passed))) => self.terminal = passed,
                Ok(Some((InitMessage::Executing, _))) => self.executing = true,
                // Said before it executes nothing: it has failed after all.
                Ok(Some((InitMessage::Failed(error), _))) => {
                    self.executing = false;
                    self.failure = Some(error);
                }
                // The container's own start has reported it.
                Ok(Some((InitMessage::Unenforced(_), _))) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Ok(None) | Err(_) => self.channel = None,
            }
        }
    }

    /// Kills the process and everything in its session.
    pub(super) fn kill(&self, plan: &ContainerPlan) {
        if self.exit.is_none() {
            // Not reaped yet, so the pid is its own; it may not have reached its group.
            let _ = syscall::kill(self.pid.as_raw(), libc::SIGKILL);
        }
        let mut killed = Vec::new();
        for _ in 0..KILL_ROUNDS_MAX {
            let before = killed.len();
            for pid in plan.cgroup.processes() {
                if !killed.contains(&pid) && session_of(pid) == Some(self.pid.as_raw()) {
                    let _ = syscall::kill(pid, libc::SIGKILL);
                    killed.push(pid);
                }
            }
            if killed.len() == before {
                return;
            }
        }
    }
}

fn read_request(file: OwnedFd) -> io::Result<ExecRequest> {
    let mut file = File::from(file);
    file.rewind()?;
    let mut bytes = Vec::new();
    file.take(EXEC_BYTES_MAX as u64).read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}

/// The session of a process, as its leader's pid.
fn session_of(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Behind the name, which may hold anything: state, parent, group, session.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_found() {
        let own = nix::unistd::getsid(None).unwrap();
        assert_eq!(session_of(std::process::id() as i32), Some(own.as_raw()));
        assert_eq!(session_of(-1), None);
    }
}
