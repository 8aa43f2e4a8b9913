//! The interface between pods and whatever runs containers. Pod logic knows nothing else of a runtime, so
//! that it is tested with a fake and can be given another runtime.
//!
//! Specifications are the runtime crate's data types; calls block and may be repeated after any failure.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use runtime::{ContainerSpec, ExecProcess, ExecSpec, ExecStreams, SandboxSpec};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The label that ties sandboxes and containers to their pod.
pub(crate) const POD_UID_LABEL: &str = "io.kubernetes.pod.uid";

/// How long a start that was begun may take to succeed or fail before it counts as stuck.
const SETTLE_TIME_MAX: Duration = Duration::from_secs(30);
const SETTLE_PAUSE: Duration = Duration::from_millis(2);

/// Why a call of the runtime failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContainerError {
    /// There is no such sandbox or container, or it does not run.
    #[error("{0}")]
    Gone(String),
    /// The container's process could not be started.
    #[error("{message}")]
    Start { exit_code: i32, message: String },
    /// The host or the runtime refused; trying again may help.
    #[error("{0}")]
    Refused(String),
}

/// What a container does, as the runtime sees it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Seen {
    /// A start that is stuck half-way.
    Half,
    Running {
        started_at: Timestamp,
    },
    Exited {
        started_at: Option<Timestamp>,
        exit_code: i32,
        oom_killed: bool,
        finished_at: Timestamp,
    },
    /// It ended and nobody saw how.
    Lost {
        started_at: Option<Timestamp>,
    },
}

/// A container that the runtime lists.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SeenContainer {
    pub(crate) id: String,
    pub(crate) pod_uid: String,
    pub(crate) seen: Seen,
}

/// A sandbox that the runtime lists.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SeenSandbox {
    pub(crate) id: String,
    pub(crate) pod_uid: String,
    pub(crate) alive: bool,
}

/// Resolves when a container has ended.
pub(crate) type ExitFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Runs sandboxes and containers.
pub(crate) trait ContainerRuntime: Send + Sync + 'static {
    /// Makes a sandbox; returns the path of its network namespace, if it has one of its own.
    fn create_sandbox(&self, spec: &SandboxSpec) -> Result<Option<PathBuf>, ContainerError>;
    /// Ends a sandbox with all its containers. A sandbox that is not there is no error.
    fn delete_sandbox(&self, id: &str) -> Result<(), ContainerError>;
    /// Starts a container; returns when its program was executed.
    fn start_container(&self, spec: &ContainerSpec) -> Result<Timestamp, ContainerError>;
    /// One container, if it is there. A start that another agent began and its shim is about to finish is
    /// waited for: what already runs is adopted, not started a second time.
    fn observe(&self, id: &str) -> Result<Option<Seen>, ContainerError>;
    /// Sends a signal to a container's first process.
    fn signal(&self, id: &str, signal: i32) -> Result<(), ContainerError>;
    /// Waits for a container's end (or for nothing in particular: look, and watch again). May block; must be
    /// called within the async runtime's context.
    fn exit_watch(&self, id: &str) -> Result<ExitFuture, ContainerError>;
    /// Starts a further program in a running container; returns when it was executed.
    fn exec(&self, id: &str, spec: &ExecSpec) -> Result<(ExecProcess, ExecStreams), ContainerError>;
    /// Removes a container. One that is not there is no error.
    fn delete_container(&self, id: &str) -> Result<(), ContainerError>;
    /// Everything that exists.
    fn list(&self) -> Result<(Vec<SeenSandbox>, Vec<SeenContainer>), ContainerError>;
}

impl ContainerRuntime for runtime::Runtime {
    fn create_sandbox(&self, spec: &SandboxSpec) -> Result<Option<PathBuf>, ContainerError> {
        let sandbox = Self::create_sandbox(self, spec)?;
        tell_unenforced(&spec.id, &sandbox.unenforced);
        Ok(sandbox.netns)
    }

    fn delete_sandbox(&self, id: &str) -> Result<(), ContainerError> {
        absent_is_fine(Self::delete_sandbox(self, id))
    }

    fn start_container(&self, spec: &ContainerSpec) -> Result<Timestamp, ContainerError> {
        let started = Self::start_container(self, spec)?;
        tell_unenforced(&spec.id, &started.unenforced);
        Ok(time(started.started_at))
    }

    fn observe(&self, id: &str) -> Result<Option<Seen>, ContainerError> {
        let deadline = Instant::now() + SETTLE_TIME_MAX;
        loop {
            let seen = Self::observe(self, id)?.map(|o| seen(o.state));
            if seen != Some(Seen::Half) || Instant::now() > deadline {
                return Ok(seen);
            }
            std::thread::sleep(SETTLE_PAUSE);
        }
    }

    fn signal(&self, id: &str, signal: i32) -> Result<(), ContainerError> {
        Ok(Self::signal(self, id, signal)?)
    }

    fn exit_watch(&self, id: &str) -> Result<ExitFuture, ContainerError> {
        let fd = Self::exit_watch(self, id)?;
        #[expect(
            deprecated,
            reason = "the unsafe replacement is for types whose descriptor may change; OwnedFd's does not"
        )]
        let fd = AsyncFd::with_interest(fd, Interest::READABLE)
            .map_err(|e| ContainerError::Refused(format!("cannot watch container {id}: {e}")))?;
        Ok(Box::pin(async move {
            // An error here means that the descriptor is of no use any more: look at the container then, too.
            drop(fd.readable().await);
        }))
    }

    fn exec(&self, id: &str, spec: &ExecSpec) -> Result<(ExecProcess, ExecStreams), ContainerError> {
        Ok(Self::exec(self, id, spec)?)
    }

    fn delete_container(&self, id: &str) -> Result<(), ContainerError> {
        absent_is_fine(Self::delete_container(self, id))
    }

    fn list(&self) -> Result<(Vec<SeenSandbox>, Vec<SeenContainer>), ContainerError> {
        let uid = |labels: &BTreeMap<String, String>| labels.get(POD_UID_LABEL).cloned().unwrap_or_default();
        let sandboxes = Self::sandboxes(self)?.into_iter().map(|s| SeenSandbox {
            pod_uid: uid(&s.spec.labels),
            alive: s.pause.is_some(),
            id: s.id,
        });
        let containers = Self::list(self)?.into_iter().map(|c| SeenContainer {
            pod_uid: uid(&c.spec.labels),
            id: c.id,
            seen: seen(c.state),
        });
        Ok((sandboxes.collect(), containers.collect()))
    }
}

impl From<runtime::Error> for ContainerError {
    fn from(error: runtime::Error) -> Self {
        match error {
            runtime::Error::NotFound { .. } | runtime::Error::NotRunning { .. } => {
                Self::Gone(error.to_string())
            }
            runtime::Error::Start(start) => {
                Self::Start { exit_code: start.exit_code(), message: start.to_string() }
            }
            other => Self::Refused(other.to_string()),
        }
    }
}

fn absent_is_fine(result: Result<(), runtime::Error>) -> Result<(), ContainerError> {
    match result {
        Err(runtime::Error::NotFound { .. }) => Ok(()),
        other => Ok(other?),
    }
}

fn tell_unenforced(id: &str, limits: &[runtime::Unenforced]) {
    for limit in limits {
        tracing::debug!(id, limit = %limit.limit, reason = %limit.reason, "limit is not enforced on this host");
    }
}

fn seen(state: runtime::ContainerState) -> Seen {
    use runtime::ContainerState as State;
    match state {
        State::Creating => Seen::Half,
        State::Running { started_at, .. } => Seen::Running { started_at: time(started_at) },
        State::Exited { started_at, exit } => Seen::Exited {
            started_at: started_at.map(time),
            exit_code: exit.code,
            oom_killed: exit.oom_killed,
            finished_at: time(exit.finished_at),
        },
        State::Lost { started_at } => Seen::Lost { started_at: started_at.map(time) },
    }
}

fn time(at: runtime::Timestamp) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(at.unix_nanos())).expect("64-bit nanoseconds are in range")
}
