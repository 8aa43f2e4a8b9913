//! Which running container, or which pod's network, a stream is about, and why a stream cannot be.

use std::path::PathBuf;

use proto::node::ContainerTarget;

use crate::pods::containers::ContainerError;
use crate::pods::roster::Roster;

/// Why a stream cannot be given.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError {
    #[error("the node agent does not know this kind of stream")]
    Unknown,
    #[error("pods \"{0}\" not found")]
    NoPod(String),
    /// In the kubelet's words.
    #[error("container not found (\"{0}\")")]
    NoContainer(String),
    /// In the kubelet's words.
    #[error("unable to do port forwarding: pod {0} is not running")]
    NotRunning(String),
    #[error("{0}")]
    Container(#[from] ContainerError),
    #[error("{0}")]
    Connect(String),
    #[error("cannot carry the stream: {0}")]
    Io(#[from] std::io::Error),
    /// Nobody listens any more.
    #[error("the other side hung up")]
    HungUp,
}

impl StreamError {
    /// The Status code that the error is answered with.
    pub(super) fn code(&self) -> i32 {
        match self {
            Self::Unknown => 400,
            Self::NoPod(_) => 404,
            _ => 500,
        }
    }
}

/// The id of the container's running instance. Its process counts, also while its postStart hook still runs.
pub(super) fn running(roster: &Roster, target: &ContainerTarget) -> Result<String, StreamError> {
    if roster.get(&target.pod_uid).is_none() {
        return Err(StreamError::NoPod(target.pod.clone()));
    }
    let id = roster.running(&target.pod_uid, &target.container);
    id.ok_or_else(|| StreamError::NoContainer(target.container.clone()))
}

/// The pod's network namespace; `None`: the host's.
pub(super) fn network(roster: &Roster, uid: &str, pod: &str) -> Result<Option<PathBuf>, StreamError> {
    if roster.get(uid).is_none() {
        return Err(StreamError::NoPod(pod.to_owned()));
    }
    roster.network(uid).ok_or_else(|| StreamError::NotRunning(pod.to_owned()))
}
