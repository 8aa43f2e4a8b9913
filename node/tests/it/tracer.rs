//! An agent that is killed before a chosen step of its own.
//!
//! The product knows nothing of it. A filter of system calls makes the kernel stop the agent before each call that
//! changes something on the host (a file, a mount, a process, a message to the kernel's network), and a tracer counts
//! the stops. What the agent starts is traced along and not counted; the tracer stays with it until its end.
//!
//! ```text
//! test ── it trace-agent: counts ── it tracee-agent: the agent ── shims, containers
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, exit};

use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use syscalls::Sysno;

/// What is noted when the agent has ended.
const DEAD: &str = "dead";
/// Calls that change something whatever their arguments are.
const STEPS: &[Sysno] = &[
    Sysno::clone3,
    Sysno::vfork,
    Sysno::fork,
    Sysno::chmod,
    Sysno::fchmod,
    Sysno::fchmodat,
    Sysno::chown,
    Sysno::fchown,
    Sysno::fchownat,
    Sysno::link,
    Sysno::linkat,
    Sysno::mkdir,
    Sysno::mkdirat,
    Sysno::mount,
    Sysno::rename,
    Sysno::renameat,
    Sysno::renameat2,
    Sysno::rmdir,
    Sysno::sendmsg,
    Sysno::sendto,
    Sysno::symlink,
    Sysno::symlinkat,
    Sysno::umount2,
    Sysno::unlink,
    Sysno::unlinkat,
];

/// An agent under a tracer. Dropping it ends both, and whatever the tracer still follows.
pub(crate) struct Traced(Child);

impl Traced {
    /// Starts the agent of a configuration file in `dir`; at step `at` (0: none) it is killed. Steps are noted.
    pub(crate) fn spawn(dir: &Path, at: usize) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        drop(fs::remove_file(dir.join("notes")));
        command.current_dir(dir).args(["trace-agent", &at.to_string(), "config.yaml"]);
        Self(command.spawn().unwrap())
    }

    /// The steps so far.
    pub(crate) fn steps(dir: &Path) -> Vec<String> {
        let text = fs::read_to_string(dir.join("notes")).unwrap_or_default();
        text.lines().filter(|line| *line != DEAD).map(str::to_owned).collect()
    }

    /// Whether the agent has ended.
    pub(crate) fn is_dead(dir: &Path) -> bool {
        fs::read_to_string(dir.join("notes")).unwrap_or_default().lines().any(|line| line == DEAD)
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        // It may have ended with the last of what it followed.
        let _gone = self.0.kill();
        let _waited = self.0.wait();
    }
}

/// The agent itself, stopped before each step: `tracee-agent <configuration file>`.
pub(crate) fn tracee(args: impl Iterator<Item = OsString>) -> ! {
    ptrace::traceme().unwrap();
    let creates = SeccompCondition::new(
        2,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::MaskedEq(nix::libc::O_CREAT as u64),
        nix::libc::O_CREAT as u64,
    );
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        STEPS.iter().map(|step| (i64::from(step.id()), Vec::new())).collect();
    rules.insert(i64::from(Sysno::openat.id()), vec![SeccompRule::new(vec![creates.unwrap()]).unwrap()]);
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Trace(0), arch).unwrap();
    let program: seccompiler::BpfProgram = filter.try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
    raise(Signal::SIGSTOP).unwrap();
    crate::host::agent(args)
}

/// The tracer: `trace-agent <step> <configuration file>`. Lives as long as anything that it traces.
#[expect(clippy::zombie_processes, reason = "it is waited for by its pid, with all that it starts")]
pub(crate) fn trace(mut args: impl Iterator<Item = OsString>) -> ! {
    let at = args.next().unwrap().to_str().unwrap().parse().unwrap();
    let agent = Command::new("/proc/self/exe").arg("tracee-agent").args(args).spawn().unwrap();
    let agent = Pid::from_raw(agent.id() as i32);
    assert!(matches!(waitpid(agent, None), Ok(WaitStatus::Stopped(_, Signal::SIGSTOP))));
    let follow = Options::PTRACE_O_TRACEFORK | Options::PTRACE_O_TRACEVFORK | Options::PTRACE_O_TRACECLONE;
    let see = Options::PTRACE_O_TRACESECCOMP | Options::PTRACE_O_TRACEEXEC | Options::PTRACE_O_EXITKILL;
    ptrace::setoptions(agent, follow | see).unwrap();
    let notes = OpenOptions::new().append(true).create(true).open("notes").unwrap();
    let tracer = Tracer { agent, at, notes, count: 0, known: BTreeSet::from([agent]) };
    go_on(agent, None);
    tracer.run()
}

struct Tracer {
    agent: Pid,
    at: usize,
    notes: File,
    count: usize,
    /// Those whose first stop is over.
    known: BTreeSet<Pid>,
}

impl Tracer {
    fn run(mut self) -> ! {
        loop {
            match waitpid(None, Some(WaitPidFlag::__WALL)) {
                Ok(WaitStatus::PtraceEvent(pid, _, nix::libc::PTRACE_EVENT_SECCOMP)) => self.step(pid),
                Ok(WaitStatus::PtraceEvent(pid, ..)) => go_on(pid, None),
                Ok(WaitStatus::Stopped(pid, signal)) => {
                    let is_new = self.known.insert(pid) && signal == Signal::SIGSTOP;
                    go_on(pid, Some(signal).filter(|_| !is_new));
                }
                Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..)) => {
                    self.known.remove(&pid);
                    if pid == self.agent {
                        writeln!(self.notes, "{DEAD}").unwrap();
                    }
                }
                Err(nix::Error::EINTR) | Ok(_) => {}
                Err(_) => exit(0),
            }
        }
    }

    fn step(&mut self, pid: Pid) {
        // It may have been killed while it was stopped.
        let Ok(registers) = ptrace::getregs(pid) else { return };
        let number = Sysno::new(registers.orig_rax as usize);
        if self.is_step(pid, number, registers.rdi) {
            self.count += 1;
            let path = matches!(number, Some(Sysno::openat | Sysno::mkdir | Sysno::rename | Sysno::unlink));
            let address = if number == Some(Sysno::openat) { registers.rsi } else { registers.rdi };
            let path = if path { text_at(pid, address) } else { String::new() };
            writeln!(self.notes, "{} {path}", number.map_or("?", |number| number.name())).unwrap();
            if self.count == self.at {
                kill(self.agent, Signal::SIGKILL).unwrap();
                return;
            }
        }
        go_on(pid, None);
    }

    fn is_step(&self, pid: Pid, number: Option<Sysno>, first: u64) -> bool {
        if !Path::new(&format!("/proc/{}/task/{pid}", self.agent)).exists() {
            return false;
        }
        match number {
            // What the agent says to the control plane changes nothing on the host.
            Some(Sysno::sendmsg | Sysno::sendto) => is_netlink(pid, first),
            // A thread changes nothing either.
            Some(Sysno::clone3) => word_at(pid, first).is_some_and(|flags| flags & THREAD == 0),
            _ => true,
        }
    }
}

const THREAD: u64 = nix::libc::CLONE_THREAD as u64;

fn is_netlink(pid: Pid, fd: u64) -> bool {
    let Ok(link) = fs::read_link(format!("/proc/{pid}/fd/{fd}")) else { return false };
    let inode = link.to_string_lossy().trim_start_matches("socket:[").trim_end_matches(']').to_owned();
    let table = fs::read_to_string(format!("/proc/{pid}/net/netlink")).unwrap_or_default();
    table.lines().any(|line| line.split_ascii_whitespace().last() == Some(&inode))
}

fn word_at(pid: Pid, address: u64) -> Option<u64> {
    ptrace::read(pid, address as ptrace::AddressType).ok().map(|word| word as u64)
}

/// The beginning of a string of the traced process.
fn text_at(pid: Pid, address: u64) -> String {
    let mut bytes = Vec::new();
    for offset in (0..256).step_by(8) {
        let Some(word) = word_at(pid, address + offset) else { break };
        let word = word.to_le_bytes();
        let end = word.iter().position(|byte| *byte == 0);
        bytes.extend(&word[..end.unwrap_or(8)]);
        if end.is_some() {
            break;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn go_on(pid: Pid, signal: Option<Signal>) {
    // A process that was killed meanwhile needs nothing.
    let _gone = ptrace::cont(pid, signal);
}
