//! The processes that the runtime starts from its caller's own program: a *shim* per container, which is
//! its parent, keeps its output and its exit code, and outlives the caller; and the maker of a sandbox,
//! whose child is the pause process.
//!
//! ```text
//! shim container <dir>:  read plan ─ daemonize ─ shim.json ─ cgroup ─ fork init ─ running.json ─ socket
//!                        ─ report ─┬─► output → log
//!                                  ├─► socket: wait, signal, reopen, exec, attach
//!                                  ├─► attached: output beside the log, input (see `attach`)
//!                                  ├─► exec: fork, join the container, its program (see `exec`)
//!                                  └─► init ended ─ drain output ─ exit.json ─ tell waiters ─ sync ─ exit
//! shim sandbox <dir>:    read plan ─ cgroup ─ namespaces ─ pin ─ fork pause ─ running.json ─ report ─ exit
//! ```
//!
//! Promises: one thread, below 1 MiB of memory of its own; the container does not outlive its shim; an
//! exit is recorded before anybody is told of it, and once it is recorded the output is in the log.
//! Does not: restart anything, or remove anything.

pub(crate) mod attach;
mod client;
mod container;
pub(crate) mod control;
mod exec;
mod log;
mod sandbox;

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nix::unistd::{dup2_stdin, dup2_stdout};

use crate::error::Error;
use crate::process::channel::Report;
use crate::syscall;

pub use log::LINE_BYTES_MAX;

/// Argument for making a container.
pub(crate) const CONTAINER: &str = "container";
/// Argument for making a sandbox.
pub(crate) const SANDBOX: &str = "sandbox";

/// Runs a shim: `args` are what follows the configured shim command. To be called before anything else
/// in the process: it must have one thread. Standard output is the pipe to the starter.
pub fn main(args: impl Iterator<Item = OsString>) -> ! {
    let mut args = args;
    let (kind, dir) = (args.next(), args.next().map(PathBuf::from));
    let report = match take_report_pipe() {
        Ok(report) => report,
        Err(error) => fail(&error.to_string()),
    };
    match (kind.as_ref().and_then(|kind| kind.to_str()), dir) {
        (Some(CONTAINER), Some(dir)) => container::run(dir, report),
        (Some(SANDBOX), Some(dir)) => sandbox::run(dir, report),
        _ => {
            Report::Broken("usage: shim container|sandbox <state directory>".to_owned()).send(report);
            fail("usage: shim container|sandbox <state directory>")
        }
    }
}

/// Keeps the pipe that standard output is, and nothing else that was inherited.
fn take_report_pipe() -> Result<OwnedFd, Error> {
    let failed = |error: std::io::Error| Error::io("take over", "standard output", error);
    syscall::close_on_exec_from(3).map_err(failed)?;
    let report = syscall::inherited(1).map_err(failed)?;
    let null = File::options().read(true).write(true).open("/dev/null").map_err(failed)?;
    dup2_stdin(&null).map_err(|error| failed(error.into()))?;
    dup2_stdout(&null).map_err(|error| failed(error.into()))?;
    Ok(report)
}

/// Says why in the shim's own log (standard error) and ends.
#[expect(clippy::print_stderr, reason = "the shim's standard error is its log file")]
fn fail(why: &str) -> ! {
    eprintln!("{} {why}", crate::time::Timestamp::now());
    std::process::exit(1)
}

/// Notes something in the shim's own log.
#[expect(clippy::print_stderr, reason = "the shim's standard error is its log file")]
fn note(what: &str) {
    eprintln!("{} {what}", crate::time::Timestamp::now());
}
