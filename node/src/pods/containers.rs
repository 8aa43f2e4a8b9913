//! The interface between pods and whatever runs containers. Pod logic knows nothing else of a runtime, so
//! that it is tested with a fake and can be given another runtime.
//!
//! Specifications are the runtime crate's data types; calls block and may be repeated after any failure.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use runtime::{
    AttachSpec, Attachment, ContainerSpec, ExecExit, ExecProcess, ExecSpec, ExecStreams, SandboxSpec,
};
use streams::NodeStream;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::admission::HostPort;
use crate::exec::{Limits, Outcome};
use crate::images::{Image, ImageSummary, Keyring, Pulled, Reference, RegistryError};
use crate::resource_usage::Counted;

/// The label that ties sandboxes and containers to their pod. This and the next are what the kubelet uses.
pub(crate) const POD_UID_LABEL: &str = "io.kubernetes.pod.uid";
/// The pod's name.
pub(crate) const POD_NAME_LABEL: &str = "io.kubernetes.pod.name";
/// The pod's namespace.
pub(crate) const POD_NAMESPACE_LABEL: &str = "io.kubernetes.pod.namespace";
/// The container's name in its pod.
pub(crate) const CONTAINER_NAME_LABEL: &str = "io.kubernetes.container.name";
/// The image as the pod names it.
pub(crate) const IMAGE_LABEL: &str = "io.barque.image";

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

/// A sandbox that was made.
#[derive(Debug, Clone, Default)]
pub(crate) struct MadeSandbox {
    /// The path of its network namespace, if it has one of its own that the agent is to connect.
    pub(crate) netns: Option<PathBuf>,
    /// Its address, where the runtime makes networks itself.
    pub(crate) ip: Option<IpAddr>,
}

/// What a runtime with images of its own needs to know of a container besides its specification.
#[derive(Debug, Clone, Default)]
pub(crate) struct Beside {
    /// The image, by its repository with digest or its id.
    pub(crate) image: String,
    /// How many instances were before it.
    pub(crate) attempt: u32,
    /// What the pod says in place of the image's entrypoint.
    pub(crate) command: Vec<String>,
    /// What the pod says in place of the image's arguments.
    pub(crate) args: Vec<String>,
    /// The file of a seccomp profile of type `Localhost`.
    pub(crate) seccomp_profile: Option<PathBuf>,
}

/// A further program in a container. Dropping it kills it; its descriptor is readable when it has ended.
pub(crate) trait Process: AsRawFd + fmt::Debug + Send + Sync {
    /// How it ended, if it has.
    fn try_exit(&self) -> io::Result<Option<ExecExit>>;
    /// Kills it; its end is then told as any other.
    fn kill(&self) -> io::Result<()>;
}

impl Process for ExecProcess {
    fn try_exit(&self) -> io::Result<Option<ExecExit>> {
        Self::try_exit(self)
    }

    fn kill(&self) -> io::Result<()> {
        Self::kill(self)
    }
}

/// The images of a runtime that has its own.
pub(crate) trait RuntimeImages: Send + Sync {
    /// The image of this name, if it is there. Blocks.
    fn get(&self, name: &str) -> Option<Image>;
    /// What was there a moment ago.
    fn listed(&self) -> Vec<ImageSummary>;
    /// Makes it be there as its registry has it now.
    fn pull(
        &self,
        reference: &Reference,
        keyring: &Keyring,
    ) -> BoxFuture<'static, Result<Pulled, Arc<RegistryError>>>;
}

/// What comes of a program that the runtime runs to its end itself.
pub(crate) type ExecSyncFuture = BoxFuture<'static, Result<Outcome, ContainerError>>;

/// Resolves when a container has ended.
pub(crate) type ExitFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Runs sandboxes and containers.
pub(crate) trait ContainerRuntime: Send + Sync + 'static {
    /// Makes a sandbox. The host's ports are for a runtime that makes networks itself.
    fn create_sandbox(&self, spec: &SandboxSpec, ports: &[HostPort]) -> Result<MadeSandbox, ContainerError>;
    /// Ends a sandbox with all its containers. A sandbox that is not there is no error.
    fn delete_sandbox(&self, id: &str) -> Result<(), ContainerError>;
    /// Starts a container; returns when its program was executed.
    fn start_container(&self, spec: &ContainerSpec, beside: &Beside) -> Result<Timestamp, ContainerError>;
    /// One container, if it is there. A start that another agent began and its shim is about to finish is
    /// waited for: what already runs is adopted, not started a second time.
    fn observe(&self, id: &str) -> Result<Option<Seen>, ContainerError>;
    /// Sends a signal to a container's first process.
    fn signal(&self, id: &str, signal: i32) -> Result<(), ContainerError>;
    /// Waits for a container's end (or for nothing in particular: look, and watch again). May block; must be
    /// called within the async runtime's context.
    fn exit_watch(&self, id: &str) -> Result<ExitFuture, ContainerError>;
    /// Starts a further program in a running container; returns when it was executed.
    fn exec(&self, id: &str, spec: &ExecSpec) -> Result<(Box<dyn Process>, ExecStreams), ContainerError>;
    /// Runs a program to its end, if the runtime does that itself.
    fn exec_sync(&self, _id: &str, _args: &[String], _limits: Limits) -> Option<ExecSyncFuture> {
        None
    }
    /// One connection to a port of a pod, if the runtime makes them itself. The error is for people.
    fn connect(&self, _pod_uid: &str, _port: u16) -> Option<BoxFuture<'static, Result<NodeStream, String>>> {
        None
    }
    /// Attaches to a running container's main process.
    fn attach(&self, id: &str, spec: AttachSpec) -> Result<Attachment, ContainerError>;
    /// Removes a container. One that is not there is no error.
    fn delete_container(&self, id: &str) -> Result<(), ContainerError>;
    /// Everything that exists.
    fn list(&self) -> Result<(Vec<SeenSandbox>, Vec<SeenContainer>), ContainerError>;
    /// What a container that runs has used, if that is counted.
    fn counted(&self, id: &str) -> Option<Counted>;
    /// Whether sandboxes come with their network.
    fn makes_network(&self) -> bool {
        false
    }
    /// Hears which range of addresses the control plane wants this node's pods to have. May be repeated.
    fn set_pod_range(&self, _pod_cidr: &str) -> Result<(), ContainerError> {
        Ok(())
    }
    /// Its images, if it has its own.
    fn own_images(&self) -> Option<Arc<dyn RuntimeImages>> {
        None
    }
    /// `name://version`, if it is not the agent's own.
    fn version(&self) -> Option<String> {
        None
    }
}

impl ContainerRuntime for runtime::Runtime {
    fn create_sandbox(&self, spec: &SandboxSpec, _ports: &[HostPort]) -> Result<MadeSandbox, ContainerError> {
        let sandbox = Self::create_sandbox(self, spec)?;
        tell_unenforced(&spec.id, &sandbox.unenforced);
        Ok(MadeSandbox { netns: sandbox.netns, ip: None })
    }

    fn delete_sandbox(&self, id: &str) -> Result<(), ContainerError> {
        absent_is_fine(Self::delete_sandbox(self, id))
    }

    fn start_container(&self, spec: &ContainerSpec, _beside: &Beside) -> Result<Timestamp, ContainerError> {
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

    fn exec(&self, id: &str, spec: &ExecSpec) -> Result<(Box<dyn Process>, ExecStreams), ContainerError> {
        let (process, streams) = Self::exec(self, id, spec)?;
        Ok((Box::new(process), streams))
    }

    fn attach(&self, id: &str, spec: AttachSpec) -> Result<Attachment, ContainerError> {
        Ok(Self::attach(self, id, spec)?)
    }

    fn delete_container(&self, id: &str) -> Result<(), ContainerError> {
        absent_is_fine(Self::delete_container(self, id))
    }

    fn counted(&self, id: &str) -> Option<Counted> {
        let stats = Self::stats(self, id).ok()?;
        Some(Counted { cpu_ns: stats.cpu_usage_ns?, memory_bytes: stats.memory_working_set_bytes? })
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

pub(crate) fn tell_unenforced(id: &str, limits: &[runtime::Unenforced]) {
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
