//! The shim of one container: start it, carry its output to the log, answer the socket, record its exit.

mod edges;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid, setsid};

use super::attach::{Attachment, Input, nonblocking};
use super::client::{Client, Role, readable, writable};
use super::control::{self, CLIENTS_MAX, Request};
use super::exec::Exec;
use super::log::{Log, Stream};
use super::{fail, note};
use crate::container::plan::{Bundle, ContainerPlan};
use crate::container::state::{self, Exit, ProcessId, Running};
use crate::error::{Error, Stage, StartError};
use crate::process::channel::Report;
use crate::process::failure::Failure;
use crate::process::parent;
use crate::syscall::{self, Forked};
use crate::time::Timestamp;

/// After the container has ended, output that others still hold open is waited for so long.
const DRAIN_TIME_MAX: Duration = Duration::from_millis(500);
/// One read of output.
const READ_BYTES: usize = 16 << 10;
/// When nothing has happened for so long, nothing is expected soon.
const SETTLE_TIME: Duration = Duration::from_millis(250);
/// Reads of one stream before the others are looked at.
const READS_PER_ROUND: usize = 8;

/// Waits for one of the descriptors, or until then.
fn wait_until(fds: &mut [PollFd<'_>], until: Option<Instant>) -> nix::Result<i32> {
    // A millisecond more, so that the time has come when this returns.
    let left = until.map(|until| until.saturating_duration_since(Instant::now()) + Duration::from_millis(1));
    let timeout = PollTimeout::try_from(left.unwrap_or(SETTLE_TIME)).unwrap_or(PollTimeout::MAX);
    match poll(fds, timeout)? {
        // Most of what was done last is not needed again soon.
        0 if until.is_none() => syscall::in_few_pages(|| poll(fds, PollTimeout::NONE)),
        ready => Ok(ready),
    }
}

/// Runs the shim of the container in a state directory.
pub(super) fn run(dir: PathBuf, report: OwnedFd) -> ! {
    match daemonize() {
        Ok(()) => {}
        Err(error) => fail(&format!("cannot leave the starter's session: {error}")),
    }
    let bundle = Bundle::new(dir);
    let (mut shim, running) = match start(&bundle) {
        Ok(started) => started,
        Err(Broken::Refused(error)) => {
            Report::Refused(error.clone()).send(report);
            fail(&error.message)
        }
        Err(Broken::Shim(error)) => {
            Report::Broken(error.to_string()).send(report);
            fail(&error.to_string())
        }
    };
    Report::Running(running).send(report);
    match shim.await_attacher().and_then(|()| shim.watch()) {
        Ok(()) => syscall::exit_now(0),
        Err(error) => fail(&error.to_string()),
    }
}

enum Broken {
    Refused(StartError),
    Shim(Error),
}

impl From<Error> for Broken {
    fn from(error: Error) -> Broken {
        Broken::Shim(error)
    }
}

/// Leaves the starter: a child in a session of its own goes on, the process that was started ends.
fn daemonize() -> io::Result<()> {
    if let Forked::Parent { .. } = syscall::fork_single_threaded()? {
        syscall::exit_now(0);
    }
    setsid()?;
    // The name that process listings show; the command line stays that of the caller's program.
    nix::sys::prctl::set_name(c"barque-shim")?;
    std::env::set_current_dir("/")
}

fn start(bundle: &Bundle) -> Result<(Shim, Running), Broken> {
    let own = ProcessId::of(getpid().as_raw())
        .map_err(|error| Error::io("look at", "the shim's own process", error))?;
    state::write(&bundle.shim(), &own)?;
    let plan: ContainerPlan = state::read(&bundle.plan())?
        .ok_or_else(|| Error::State { path: bundle.plan(), reason: "it is missing".to_owned() })?;
    let signals = catch_signals().map_err(|error| Error::io("catch", "signals", error))?;
    let refused = |stage: Stage| move |failure: Failure| Broken::Refused(failure.at(stage));
    let log = match &plan.spec.log {
        Some(spec) => Some(
            Log::open(spec)
                .map_err(|error| Failure::io("open log", &spec.path, error))
                .map_err(refused(Stage::Prepare))?,
        ),
        None => None,
    };
    let mut unenforced = plan
        .cgroup
        .create(&plan.spec.cgroup)
        .map_err(|error| refused(Stage::Cgroup)(Failure::from(error)))?;
    let launched = parent::launch(&plan).map_err(Broken::Refused)?;
    unenforced.extend(launched.unenforced.iter().cloned());
    let running = Running { process: launched.process, started_at: Timestamp::now(), unenforced };
    let listener = control::serve(bundle).map_err(|error| Error::io("listen in", &bundle.dir, error))?;
    state::write(&bundle.running(), &running)?;
    let prepared = |error: io::Error| Error::io("prepare", "input and output", error);
    let terminal = match launched.stderr {
        None => Some(syscall::duplicate(&launched.stdout).map_err(prepared)?),
        Some(_) => None,
    };
    let process = &plan.spec.process;
    let input = match (launched.stdin, &terminal) {
        (None, Some(terminal)) if process.stdin => Some(syscall::duplicate(terminal).map_err(prepared)?),
        (stdin, _) => stdin,
    };
    let input = input.map(|fd| Input::new(fd, process.stdin_once)).transpose().map_err(prepared)?;
    let outputs = outputs_of(launched.stdout, launched.stderr).map_err(prepared)?;
    let shim = Shim {
        bundle: bundle.clone(),
        plan,
        init: Pid::from_raw(running.process.pid),
        signals,
        listener,
        clients: Vec::new(),
        input,
        terminal,
        outputs,
        log,
        buffer: vec![0; READ_BYTES],
    };
    Ok((shim, running))
}

/// The shim reads the end of children as a file, and ignores what asks it to stop: it ends with its
/// container.
fn catch_signals() -> nix::Result<SignalFd> {
    let mut caught = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGPIPE] {
        caught.add(signal);
    }
    caught.thread_block()?;
    let mut read = SigSet::empty();
    read.add(Signal::SIGCHLD);
    SignalFd::with_flags(&read, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}

struct Output {
    file: File,
    stream: Stream,
    /// 0 standard output, 1 standard error.
    number: usize,
}

fn outputs_of(stdout: OwnedFd, stderr: Option<OwnedFd>) -> io::Result<Vec<Output>> {
    let named = [("stdout", Some(stdout)), ("stderr", stderr)];
    let mut outputs = Vec::new();
    for (number, (name, fd)) in named.into_iter().enumerate() {
        if let Some(fd) = fd {
            outputs.push(Output { file: nonblocking(fd)?, stream: Stream::new(name), number });
        }
    }
    Ok(outputs)
}

/// What a polled descriptor belongs to.
#[derive(Clone, Copy)]
enum Source {
    Children,
    Listener,
    Input,
    Output(usize),
    Connection(usize),
    /// Something else of a client's.
    Client(usize),
}

struct Shim {
    bundle: Bundle,
    plan: ContainerPlan,
    init: Pid,
    signals: SignalFd,
    listener: OwnedFd,
    clients: Vec<Client>,
    /// The container's standard input, while it is open.
    input: Option<Input>,
    /// The controlling side of its terminal, for those who attach.
    terminal: Option<OwnedFd>,
    outputs: Vec<Output>,
    log: Option<Log>,
    buffer: Vec<u8>,
}

impl Shim {
    /// Does its work until the container has ended and everybody knows.
    fn watch(&mut self) -> Result<(), Error> {
        loop {
            let ready = self.poll(None)?;
            self.carry_all(&ready);
            for source in &ready {
                if let Source::Connection(index) = *source {
                    self.serve(index);
                }
            }
            self.clients.retain(|client| !client.gone);
            for source in ready {
                match source {
                    Source::Listener => self.accept(),
                    Source::Children => {
                        if let Some((code, signal)) = self.reap() {
                            return self.end(code, signal);
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    /// Waits until something is ready, or somebody has been behind for too long, or until the deadline.
    fn poll(&self, deadline: Option<Instant>) -> Result<Vec<Source>, Error> {
        let mut fds = vec![
            (Source::Children, readable(self.signals.as_fd())),
            (Source::Listener, readable(self.listener.as_fd())),
        ];
        if let Some(fd) = self.input.as_ref().and_then(Input::waiting) {
            fds.push((Source::Input, writable(fd)));
        }
        // Output is read on when all who are attached have taken what was read.
        if deadline.is_some() || !self.clients.iter().any(Client::is_behind) {
            let outputs = self.outputs.iter().enumerate();
            fds.extend(outputs.map(|(index, out)| (Source::Output(index), readable(out.file.as_fd()))));
        }
        let input_has_room = self.input.as_ref().is_none_or(Input::has_room);
        for (index, client) in self.clients.iter().enumerate() {
            fds.push((Source::Connection(index), readable(client.connection.as_fd())));
            let own = client.watched(input_has_room).into_iter();
            fds.extend(own.map(|fd| (Source::Client(index), fd)));
        }
        let (sources, mut fds): (Vec<Source>, Vec<PollFd<'_>>) = fds.into_iter().unzip();
        let stuck = self.clients.iter().filter_map(|client| match &client.role {
            Role::Attached(attachment) => attachment.deadline(),
            _ => None,
        });
        let until = stuck.chain(deadline).min();
        match wait_until(&mut fds, until) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(Error::io("poll in", &self.bundle.dir, error)),
        }
        let ready = sources.into_iter().zip(&fds).filter(|(_, fd)| fd.any() == Some(true));
        Ok(ready.map(|(source, _)| source).collect())
    }

    /// Carries input and output that is ready, and does what processes and attachers have to have done.
    fn carry_all(&mut self, ready: &[Source]) {
        for source in ready.iter().rev() {
            match *source {
                Source::Output(index) => self.carry(index),
                Source::Input => {
                    if self.input.as_mut().is_some_and(|input| !input.flush()) {
                        self.input = None;
                    }
                }
                Source::Client(index) => {
                    let client = &mut self.clients[index];
                    client.advance();
                    if let Role::Attached(attachment) = &mut client.role
                        && self.input.as_ref().is_none_or(Input::has_room)
                    {
                        attachment.carry_input(&mut self.input);
                    }
                }
                Source::Children | Source::Listener | Source::Connection(_) => {}
            }
        }
        for client in &mut self.clients {
            if let Role::Attached(attachment) = &mut client.role
                && !client.gone
                && !attachment.flush()
            {
                attachment.leave(&mut self.input);
                client.gone = true;
            }
        }
    }

    /// Carries output of one stream to the log and to those attached; at its end the stream is dropped.
    fn carry(&mut self, index: usize) {
        let output = &mut self.outputs[index];
        for _ in 0..READS_PER_ROUND {
            match output.file.read(&mut self.buffer) {
                Ok(length) if length > 0 => {
                    if let Some(log) = &mut self.log {
                        output.stream.take(log, &self.buffer[..length], Timestamp::now());
                    }
                    for client in &mut self.clients {
                        if let Role::Attached(attachment) = &mut client.role
                            && !client.gone
                            && !attachment.give(output.number, &self.buffer[..length])
                        {
                            attachment.leave(&mut self.input);
                            client.gone = true;
                        }
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // The end of a pipe; a terminal answers EIO at its end.
                Ok(_) | Err(_) => {
                    if let Some(log) = &mut self.log {
                        output.stream.finish(log);
                    }
                    self.outputs.swap_remove(index);
                    return;
                }
            }
        }
    }

    fn accept(&mut self) {
        while let Some(connection) = control::accept(&self.listener) {
            // Beyond the limit the connection is dropped: its other side sees the end and comes again.
            if self.clients.len() < CLIENTS_MAX {
                self.clients.push(Client { connection, role: Role::Asks, gone: false });
            }
        }
    }

    fn serve(&mut self, index: usize) {
        let client = &mut self.clients[index];
        client.advance();
        let Some(request) = control::receive(&client.connection) else {
            match &client.role {
                Role::Runs(exec) if !client.gone && !exec.is_detached() => exec.kill(&self.plan),
                Role::Attached(attachment) => attachment.leave(&mut self.input),
                _ => {}
            }
            client.gone = true;
            return;
        };
        let done = match (request, &client.role) {
            (Err(Errno::EAGAIN), _) => return,
            (Err(error), _) => Err(io::Error::from(error)),
            (Ok((Request::Kill, _)), Role::Runs(exec)) => return exec.kill(&self.plan),
            // These connections say nothing but what they are for.
            (Ok(_), Role::Runs(_) | Role::Attached(_)) => return,
            (Ok((Request::Attach(ends), passed)), _) => match Attachment::new(ends, passed) {
                Ok(attachment) => {
                    client.role = Role::Attached(attachment);
                    return control::answer_with(&client.connection, "attached", self.terminal.as_ref());
                }
                Err(error) => Err(error),
            },
            (Ok((Request::Kill, _)), _) => Err(Errno::ESRCH.into()),
            (Ok((Request::Wait, _)), _) => {
                client.role = Role::Waits;
                return;
            }
            (Ok((Request::Exec, passed)), _) => match Exec::start(&self.plan, self.init, passed) {
                Ok(exec) => {
                    client.role = Role::Runs(exec);
                    return;
                }
                Err(error) => Err(error),
            },
            // The process is not reaped before this loop sees its end, so the pid is its own.
            (Ok((Request::Signal(number), _)), _) => syscall::kill(self.init.as_raw(), number),
            (Ok((Request::Reopen, _)), _) => self.log.as_mut().map_or(Ok(()), Log::reopen),
        };
        let text = match done {
            Ok(()) => "ok".to_owned(),
            Err(error) => format!("error {} {error}", error.raw_os_error().unwrap_or(libc::EIO)),
        };
        control::answer(&client.connection, &text);
    }

    /// Reaps what has ended and tells whose it was; how init ended, if it has.
    fn reap(&mut self) -> Option<(i32, Option<i32>)> {
        while let Ok(Some(_)) = self.signals.read_signal() {}
        loop {
            let (pid, code, signal) = match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code, None),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32, Some(signal as i32)),
                Ok(WaitStatus::StillAlive) => return None,
                Err(Errno::EINTR) | Ok(_) => continue,
                Err(_) => return None,
            };
            if pid == self.init {
                return Some((code, signal));
            }
            for client in &mut self.clients {
                if let Role::Runs(exec) = &mut client.role
                    && exec.ended(pid, code, signal)
                {
                    client.advance();
                    break;
                }
            }
            self.clients.retain(|client| !client.gone);
        }
    }

    /// Ends what init left, takes the last output, records the exit and tells whoever waits.
    fn end(&mut self, code: i32, signal: Option<i32>) -> Result<(), Error> {
        let finished_at = Timestamp::now();
        // In a pid namespace of its own nothing is left; otherwise its children may be.
        if !self.plan.cgroup.kill_all() {
            note("processes of the container survive its init");
        }
        // The further processes among them; their clients are told before the container's watchers.
        self.reap();
        self.drain()?;
        let exit = Exit {
            code,
            signal,
            oom_killed: self.plan.cgroup.oom_kills() > 0,
            finished_at,
            log_bytes_lost: self.log.as_ref().map_or(0, Log::lost),
        };
        state::write(&self.bundle.exit(), &exit)?;
        // Who connected in the last moment is told as well.
        self.accept();
        for index in 0..self.clients.len() {
            self.serve(index);
        }
        let text = serde_json::to_string(&exit).unwrap_or_default();
        for client in self.clients.iter().filter(|client| matches!(client.role, Role::Waits)) {
            control::answer(&client.connection, &text);
        }
        self.clients.clear();
        self.start_on_exit();
        // A power cut ends every container; what this saves is how one ended that had ended before. On a
        // busy disk it takes longer than anybody should wait for the news.
        match state::sync(&self.bundle.exit()) {
            // Deleted already: there is nothing to keep.
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
            synced => synced,
        }
    }

    fn drain(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + DRAIN_TIME_MAX;
        // Who is attached and behind is waited for likewise.
        while !self.outputs.is_empty() || self.clients.iter().any(Client::is_behind) {
            let ready = self.poll(Some(deadline))?;
            self.carry_all(&ready);
            // Others are served after the exit is recorded; only what is readable wakes this loop early.
            if Instant::now() >= deadline {
                break;
            }
        }
        if let Some(log) = &mut self.log {
            self.outputs.iter_mut().for_each(|output| output.stream.finish(log));
        }
        Ok(())
    }
}
