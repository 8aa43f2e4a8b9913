//! Programs run in containers, for the async side: their pipes as tokio's, their end as a future, and "run
//! this and tell me what it said" for probes and hooks.
//!
//! Promises: nothing blocks the caller's thread; dropping an [`Exec`] (or the future of [`run`]) kills the
//! program and all of its session; output is kept up to a bound and read on beyond it, so that a talkative
//! program is not held up.
//! Does not: decide what a failure means.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use runtime::{ExecExit, ExecSpec, ExecStreams};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt as _, Interest};
use tokio::net::unix::pipe;

use crate::pods::containers::{ContainerError, ContainerRuntime, Process};

/// How long output is waited for after the program's end, while others hold it open.
pub(crate) const DRAIN_TIME_MAX: Duration = Duration::from_millis(500);
/// How long a killed program may take to end.
const KILL_TIME_MAX: Duration = Duration::from_secs(10);
const READ_BYTES: usize = 8 << 10;
/// 128 + KILL.
const KILLED: i32 = 137;

/// What [`run`] may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) timeout: Duration,
    /// Of standard output and error together.
    pub(crate) output_bytes_max: usize,
}

/// What came of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Its exit code; 128 + signal when a signal ended it.
    pub(crate) exit_code: i32,
    /// The beginning of its standard output and error, as they came.
    pub(crate) output: Vec<u8>,
    /// Up to where in it each piece reaches, and whether it came on standard error.
    pieces: Vec<(usize, bool)>,
    /// Whether it was killed because its time was up.
    pub(crate) timed_out: bool,
}

impl Outcome {
    /// Of a program that another has run to its end.
    pub(crate) fn of([stdout, stderr]: [bytes::Bytes; 2], exit_code: i32, output_bytes_max: usize) -> Self {
        let mut gathered = Gathered { bytes_max: output_bytes_max, ..Gathered::default() };
        gathered.take(&stdout, false);
        gathered.take(&stderr, true);
        Self { exit_code, output: gathered.output, pieces: gathered.pieces, timed_out: false }
    }

    /// Of a program that another has killed because its time was up.
    pub(crate) fn late() -> Self {
        Self { exit_code: KILLED, output: Vec::new(), pieces: Vec::new(), timed_out: true }
    }

    /// Standard output and standard error, each for itself.
    pub(crate) fn split(&self) -> (Vec<u8>, Vec<u8>) {
        let (mut stdout, mut stderr, mut from) = (Vec::new(), Vec::new(), 0);
        for (to, is_error) in &self.pieces {
            let into = if *is_error { &mut stderr } else { &mut stdout };
            into.extend_from_slice(&self.output[from..*to]);
            from = *to;
        }
        (stdout, stderr)
    }
}

/// A program that runs in a container; dropping it kills it.
#[derive(Debug)]
pub(crate) struct Exec {
    process: AsyncFd<Watched>,
}

/// Makes a process's descriptor known to the event loop.
#[derive(Debug)]
struct Watched(Box<dyn Process>);

impl AsRawFd for Watched {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Exec {
    /// Starts a program. [`ContainerError::Start`] says why it could not be executed, with the exit code of
    /// a shell (126, 127).
    pub(crate) async fn start(
        runtime: &Arc<dyn ContainerRuntime>,
        id: &str,
        spec: ExecSpec,
    ) -> Result<(Self, ExecStreams), ContainerError> {
        let (runtime, id) = (Arc::clone(runtime), id.to_owned());
        let started = tokio::task::spawn_blocking(move || runtime.exec(&id, &spec));
        let (process, streams) = started.await.expect("starting a program does not panic")?;
        #[expect(
            deprecated,
            reason = "the unsafe replacement is for types whose descriptor may change; a process's does not"
        )]
        let process = AsyncFd::with_interest(Watched(process), Interest::READABLE)
            .map_err(|e| ContainerError::Refused(format!("cannot watch a program: {e}")))?;
        Ok((Self { process }, streams))
    }

    /// Resolves when the program has ended. May be dropped and called again until then.
    pub(crate) async fn exit(&self) -> io::Result<ExecExit> {
        loop {
            let mut ready = self.process.readable().await?;
            match self.process.get_ref().0.try_exit()? {
                Some(exit) => return Ok(exit),
                None => ready.clear_ready(),
            }
        }
    }

    /// Kills the program and all of its session.
    pub(crate) fn kill(&self) -> io::Result<()> {
        self.process.get_ref().0.kill()
    }
}

/// Runs a program to its end, or to its time's end.
pub(crate) async fn run(
    runtime: &Arc<dyn ContainerRuntime>,
    id: &str,
    args: Vec<String>,
    limits: Limits,
) -> Result<Outcome, ContainerError> {
    if let Some(running) = runtime.exec_sync(id, &args, limits) {
        return running.await;
    }
    let deadline = Instant::now() + limits.timeout;
    let failed = |error: io::Error| ContainerError::Refused(format!("cannot follow a program: {error}"));
    let spec = ExecSpec { args, ..ExecSpec::default() };
    let (exec, streams) = Exec::start(runtime, id, spec).await?;
    let ExecStreams::Pipes { stdout, stderr, .. } = streams else {
        return Err(ContainerError::Refused("the runtime made a terminal that nobody asked for".into()));
    };
    let mut stdout = pipe::Receiver::from_owned_fd(stdout).map_err(failed)?;
    let mut stderr = pipe::Receiver::from_owned_fd(stderr).map_err(failed)?;
    let mut gathered = Gathered { bytes_max: limits.output_bytes_max, ..Gathered::default() };
    let (mut exit, mut timed_out) = (None, false);
    {
        let gather = gather(&mut stdout, &mut stderr, &mut gathered);
        tokio::pin!(gather);
        let mut closed = false;
        let mut until = deadline;
        while !(closed && exit.is_some()) {
            tokio::select! {
                // What is there is read before the end of the wait counts.
                biased;
                () = &mut gather, if !closed => closed = true,
                ended = exec.exit(), if exit.is_none() => {
                    exit = Some(ended.map_err(failed)?);
                    until = Instant::now() + DRAIN_TIME_MAX;
                }
                () = tokio::time::sleep_until(until.into()) => {
                    if exit.is_some() || timed_out {
                        break;
                    }
                    timed_out = true;
                    exec.kill().map_err(failed)?;
                    until = Instant::now() + KILL_TIME_MAX;
                }
            }
        }
    }
    match exit {
        Some(exit) => {
            let Gathered { output, pieces, .. } = gathered;
            Ok(Outcome { exit_code: exit.code, output, pieces, timed_out })
        }
        None => Err(ContainerError::Refused("a killed program does not end".into())),
    }
}

/// What a program has said so far.
#[derive(Debug, Default)]
struct Gathered {
    output: Vec<u8>,
    pieces: Vec<(usize, bool)>,
    bytes_max: usize,
}

impl Gathered {
    fn take(&mut self, chunk: &[u8], is_error: bool) {
        let room = self.bytes_max.saturating_sub(self.output.len());
        self.output.extend_from_slice(&chunk[..chunk.len().min(room)]);
        match self.pieces.last_mut() {
            Some((to, last)) if *last == is_error => *to = self.output.len(),
            _ => self.pieces.push((self.output.len(), is_error)),
        }
    }
}

/// Reads both until their ends.
async fn gather(stdout: &mut pipe::Receiver, stderr: &mut pipe::Receiver, gathered: &mut Gathered) {
    let (mut out_open, mut err_open) = (true, true);
    let (mut out, mut err) = (vec![0; READ_BYTES], vec![0; READ_BYTES]);
    while out_open || err_open {
        let (chunk, open, is_error) = tokio::select! {
            read = read_some(stdout, &mut out), if out_open => (&out[..read], &mut out_open, false),
            read = read_some(stderr, &mut err), if err_open => (&err[..read], &mut err_open, true),
        };
        *open = !chunk.is_empty();
        // Beyond the bound nothing is kept, and nothing is noted.
        if gathered.output.len() < gathered.bytes_max {
            gathered.take(chunk, is_error);
        }
    }
}

/// An error of a pipe is its end.
async fn read_some(from: &mut (impl AsyncRead + Unpin), into: &mut [u8]) -> usize {
    from.read(into).await.unwrap_or(0)
}
