//! The pause process: it holds a sandbox's namespaces and does nothing else. As pid 1 of a shared pid
//! namespace it also reaps what containers leave behind. It ends on SIGTERM or SIGINT.
//!
//! In a shared pid namespace containers see it, so it shuts itself in first: an empty root directory, no
//! capabilities, no files. There is nothing to be found through its `/proc` entry.

use std::fs::File;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, dup2_stderr, dup2_stdin, dup2_stdout, setsid};

use crate::capabilities::Set;
use crate::error::Error;
use crate::rootfs::pivot;
use crate::syscall;

/// Holds on until it is told to end.
pub fn main() -> ! {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD] {
        signals.add(signal);
    }
    // Blocked signals reach even a pid 1 without handlers, and only through `wait`.
    if signals.thread_block().is_err() {
        syscall::exit_now(1);
    }
    loop {
        match syscall::in_few_pages(|| signals.wait()) {
            Ok(Signal::SIGCHLD) => reap(),
            Ok(_) => syscall::exit_now(0),
            Err(Errno::EINTR) => {}
            Err(_) => syscall::exit_now(1),
        }
    }
}

fn reap() {
    while let Ok(status) = waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            return;
        }
    }
}

/// Gives up everything but the namespaces. `scratch` is a directory onto which an empty root can be
/// mounted, in a mount namespace of its own; any that the process can reach will do.
pub(crate) fn shut_in(scratch: &Path) -> Result<(), Error> {
    let failed = |operation| move |error: nix::Error| Error::io(operation, scratch, error);
    let failed_io = |operation| move |error: io::Error| Error::io(operation, scratch, error);
    setsid().map_err(failed("start session for"))?;
    prctl::set_name(c"pause").map_err(failed("name pause process of"))?;
    prctl::set_dumpable(false).map_err(failed("protect pause process of"))?;
    let null =
        File::options().read(true).write(true).open("/dev/null").map_err(failed_io("open null for"))?;
    unshare(CloneFlags::CLONE_NEWNS).map_err(failed("create mount namespace for"))?;
    let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).map_err(failed("make private for"))?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), scratch, Some("tmpfs"), flags, Some("size=4k,mode=555"))
        .map_err(failed("mount empty root at"))?;
    pivot::enter(scratch).map_err(|failure| Error::Start(failure.at(crate::error::Stage::Pivot)))?;
    prctl::set_no_new_privs().map_err(failed("give up privileges for"))?;
    syscall::set_capabilities(Set::default()).map_err(failed_io("give up capabilities for"))?;
    dup2_stdin(&null).map_err(failed("close files of"))?;
    dup2_stdout(&null).map_err(failed("close files of"))?;
    dup2_stderr(&null).map_err(failed("close files of"))
}
