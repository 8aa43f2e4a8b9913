//! Why the node agent cannot start or had to stop.

use std::path::PathBuf;

use crate::ConfigError;
use crate::images::ImageError;
use crate::join::JoinError;
use crate::network::NetworkError;
use crate::user_ids::UserIdsError;

/// Why [`run`](crate::run) ended before it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An image could not be imported or the image store cannot be used.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The node could not join the cluster.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The container runtime cannot work on this host.
    #[error("the container runtime cannot start: {0}")]
    Runtime(#[from] runtime::Error),
    /// Another container runtime, which the configuration names, cannot be used.
    #[error("the container runtime at {endpoint} (containerRuntimeEndpoint) cannot be used: {problem}")]
    Endpoint {
        /// As the configuration names it.
        endpoint: String,
        /// What came of it.
        problem: String,
    },
    /// The host swaps.
    #[error(
        "running with swap on is not supported: this host swaps to {devices}; switch it off (swapoff -a), or set failSwapOn to false"
    )]
    Swap {
        /// Where to.
        devices: String,
    },
    /// The node's network cannot be made.
    #[error("the node's network cannot be made: {0}")]
    Network(String),
    /// What says which pod has which user ids cannot be used.
    #[error("the pods' user ids cannot be kept: {0}")]
    UserIds(String),
    /// Another agent uses the same data directory.
    #[error("another node agent runs with this data directory ({path} is locked: {source})")]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file operation without which the agent cannot work failed.
    #[error("cannot {operation} {path}: {source}")]
    Io {
        /// What was tried, for example "create".
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl Error {
    /// For `map_err`: an io error with what was tried on which path.
    pub(crate) fn io(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { operation, path, source }
    }
}

impl From<UserIdsError> for Error {
    fn from(error: UserIdsError) -> Self {
        Self::UserIds(error.to_string())
    }
}

impl From<NetworkError> for Error {
    fn from(error: NetworkError) -> Self {
        Self::Network(error.to_string())
    }
}
