//! A shim that fails at a chosen step: the answer of a chosen system call is an error, or the process that
//! was about to make it is killed.
//!
//! The product knows nothing of it. A filter of system calls makes the kernel stop the shim's processes before
//! each call that changes something, and a tracer counts the stops. What comes out is the real behaviour after
//! a real failure, at every step that there is, also at those that somebody adds later.
//!
//! ```text
//! runtime ── it traced ── it trace ── it tracee: the shim
//!            ends with    counts the
//!            the shim's   stops
//!            first process
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio, exit};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, dup2_stdin, dup2_stdout};
use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use syscalls::Sysno;

/// The shim's program has no path of its own any more.
const SELF: &str = "/proc/self/exe";
/// What happens at the chosen step.
pub(crate) const KILL: &str = "kill";
/// The parent of the process that takes the step is killed: init loses its shim.
pub(crate) const ORPHAN: &str = "orphan";
/// Calls that change something, or that a start cannot do without.
const STEPS: &[Sysno] = &[
    Sysno::bind,
    Sysno::capset,
    Sysno::chdir,
    Sysno::chmod,
    Sysno::clone,
    Sysno::clone3,
    Sysno::execve,
    Sysno::fchown,
    Sysno::fork,
    Sysno::link,
    Sysno::listen,
    Sysno::mkdir,
    Sysno::mkdirat,
    Sysno::mknodat,
    Sysno::mount,
    Sysno::mount_setattr,
    Sysno::move_mount,
    Sysno::open_tree,
    Sysno::openat2,
    Sysno::pipe2,
    Sysno::pivot_root,
    Sysno::prlimit64,
    Sysno::rename,
    Sysno::rmdir,
    Sysno::seccomp,
    Sysno::sendmsg,
    Sysno::sendto,
    Sysno::setgroups,
    Sysno::sethostname,
    Sysno::setns,
    Sysno::setresgid,
    Sysno::setresuid,
    Sysno::setsid,
    Sysno::signalfd4,
    Sysno::socket,
    Sysno::socketpair,
    Sysno::symlinkat,
    Sysno::umount2,
    Sysno::unlink,
    Sysno::unlinkat,
    Sysno::unshare,
    Sysno::vfork,
    Sysno::write,
];

/// The runtime's shim command with a fault in it: at step `at` (0: none, only counted) a call answers with the
/// number of an error, or its process is killed. Each step is noted in `notes`.
pub(crate) fn command(fault: &str, at: usize, notes: &Path) -> Vec<OsString> {
    let exe = std::env::current_exe().unwrap().into_os_string();
    vec![exe, "traced".into(), fault.into(), at.to_string().into(), notes.into()]
}

/// The names of the steps in a file of notes.
pub(crate) fn noted(notes: &Path) -> Vec<String> {
    fs::read_to_string(notes).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// What the runtime executes: it ends when the shim's first process has, as that process would.
pub(crate) fn traced(args: impl Iterator<Item = OsString>) -> ! {
    let mut tracer = Command::new(SELF).arg("trace").args(args).stdin(Stdio::piped()).spawn().unwrap();
    let life = tracer.stdin.take().unwrap();
    dup2_stdout(null()).unwrap();
    let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(&life), PollFlags::empty())];
    while poll(&mut fds, PollTimeout::NONE) != Ok(1) {}
    exit(0)
}

/// The shim itself, stopped before each step.
pub(crate) fn tracee(args: impl Iterator<Item = OsString>) -> ! {
    ptrace::traceme().unwrap();
    let creates = SeccompCondition::new(
        2,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::MaskedEq(libc::O_CREAT as u64),
        libc::O_CREAT as u64,
    );
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        STEPS.iter().map(|step| (i64::from(step.id()), Vec::new())).collect();
    let creating = SeccompRule::new(vec![creates.unwrap()]).unwrap();
    rules.insert(i64::from(Sysno::openat.id()), vec![creating]);
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Trace(0), arch).unwrap();
    let program: seccompiler::BpfProgram = filter.try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
    raise(Signal::SIGSTOP).unwrap();
    runtime::shim::main(args)
}

/// The tracer: lives as long as anything that it traces.
#[expect(clippy::zombie_processes, reason = "it is waited for by its pid, with all that it starts")]
pub(crate) fn trace(mut args: impl Iterator<Item = OsString>) -> ! {
    let mut text = || args.next().unwrap().into_string().unwrap();
    let (fault, at, notes) = (text(), text().parse().unwrap(), text());
    let mut command = Command::new(SELF);
    let first = command.arg("tracee").args(args).stdin(Stdio::null()).spawn().unwrap();
    let first = Pid::from_raw(first.id() as i32);
    dup2_stdout(null()).unwrap();
    assert!(matches!(waitpid(first, None), Ok(WaitStatus::Stopped(_, Signal::SIGSTOP))));
    let follow = Options::PTRACE_O_TRACEFORK | Options::PTRACE_O_TRACEVFORK | Options::PTRACE_O_TRACECLONE;
    let see = Options::PTRACE_O_TRACESECCOMP | Options::PTRACE_O_TRACEEXEC | Options::PTRACE_O_EXITKILL;
    ptrace::setoptions(first, follow | see).unwrap();
    let notes = OpenOptions::new().append(true).create(true).open(notes).unwrap();
    let tracer = Tracer { fault, at, notes, count: 0, known: BTreeSet::from([first]), done: BTreeSet::new() };
    let _gone = ptrace::cont(first, None);
    tracer.run(first)
}

struct Tracer {
    fault: String,
    at: usize,
    notes: File,
    count: usize,
    /// Those whose first stop is over.
    known: BTreeSet<Pid>,
    /// Those that have become a program of the container's: what they do is no step.
    done: BTreeSet<Pid>,
}

impl Tracer {
    fn run(mut self, first: Pid) -> ! {
        loop {
            match waitpid(None, Some(WaitPidFlag::__WALL)) {
                Ok(WaitStatus::PtraceEvent(pid, _, libc::PTRACE_EVENT_SECCOMP)) => self.step(pid),
                Ok(WaitStatus::PtraceEvent(pid, _, event)) => {
                    if event == libc::PTRACE_EVENT_EXEC {
                        self.done.insert(pid);
                    }
                    go_on(pid, None);
                }
                Ok(WaitStatus::Stopped(pid, signal)) => {
                    let is_new = self.known.insert(pid) && signal == Signal::SIGSTOP;
                    go_on(pid, Some(signal).filter(|_| !is_new));
                }
                Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..)) if pid == first => {
                    dup2_stdin(null()).unwrap();
                }
                Err(nix::Error::EINTR) | Ok(_) => {}
                Err(_) => exit(0),
            }
        }
    }

    fn step(&mut self, pid: Pid) {
        // It may have been killed while it was stopped.
        let Ok(mut registers) = ptrace::getregs(pid) else { return };
        if self.done.contains(&pid) {
            return go_on(pid, None);
        }
        self.count += 1;
        let name = Sysno::new(registers.orig_rax as usize).map_or("?", |number| number.name());
        writeln!(self.notes, "{name}").unwrap();
        if self.count == self.at {
            if self.fault == KILL {
                kill(pid, Signal::SIGKILL).unwrap();
                return;
            }
            if self.fault == ORPHAN {
                if let Some(parent) = parent_of(pid).filter(|parent| self.known.contains(parent)) {
                    kill(parent, Signal::SIGKILL).unwrap();
                }
                return go_on(pid, None);
            }
            let errno: i64 = self.fault.parse().unwrap();
            registers.orig_rax = u64::MAX;
            registers.rax = (-errno) as u64;
            ptrace::setregs(pid, registers).unwrap();
        }
        go_on(pid, None);
    }
}

fn parent_of(pid: Pid) -> Option<Pid> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let parent = stat.rsplit(')').next()?.split_ascii_whitespace().nth(1)?;
    Some(Pid::from_raw(parent.parse().ok()?))
}

fn go_on(pid: Pid, signal: Option<Signal>) {
    // A process that was killed meanwhile needs nothing.
    let _gone = ptrace::cont(pid, signal);
}

fn null() -> File {
    File::options().read(true).write(true).open("/dev/null").unwrap()
}
