//! Why the engine does not do what it is asked.

use std::path::PathBuf;

use super::options::BadOption;
use crate::ConfigError;
use crate::images::{ImageError, InvalidReference};
use crate::network::NetworkError;

/// See the module. Messages are for the user as they are; tools know some of them.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Options that mean nothing, or not together.
    #[error(transparent)]
    Option(#[from] BadOption),
    /// No container has this name or id.
    #[error("No such container: {0}")]
    NoSuchContainer(String),
    /// The ids of several containers begin so.
    #[error("several containers' ids begin with {0:?}: give more of it")]
    Ambiguous(String),
    /// There is no such image here.
    #[error("No such image: {0}")]
    NoSuchImage(String),
    /// Another container has the name.
    #[error(
        "the container name \"/{name}\" is already in use by container {id}: remove or rename that one first"
    )]
    NameTaken {
        /// The name.
        name: String,
        /// Whose it is.
        id: String,
    },
    /// Another container, or a program of the host, has the port.
    #[error("port is already allocated: {port} is {by}'s")]
    PortTaken {
        /// Address, number and protocol.
        port: String,
        /// Whose it is.
        by: String,
    },
    /// It only makes sense with a running container.
    #[error("Container {0} is not running")]
    NotRunning(String),
    /// A container that runs is not removed unless that is said.
    #[error("cannot remove the running container {0}: stop it first, or force it")]
    Running(String),
    /// The container's program cannot be executed.
    #[error("{message}")]
    Start {
        /// What a shell would exit with: 126 or 127.
        exit_code: i32,
        /// Why.
        message: String,
    },
    /// The end of a container is awaited in vain.
    #[error("container {0} was killed and does not end")]
    DoesNotEnd(String),
    /// The image's name cannot be one.
    #[error(transparent)]
    Reference(#[from] InvalidReference),
    /// The image store failed.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The network cannot be made.
    #[error("{0}")]
    Network(String),
    /// The runtime refused.
    #[error(transparent)]
    Runtime(#[from] runtime::Error),
    /// A record cannot be read.
    #[error("{path} is damaged: {problem}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A file operation failed.
    #[error("cannot {operation} {path}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl EngineError {
    pub(super) fn io(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { operation, path, source }
    }
}

impl From<NetworkError> for EngineError {
    fn from(error: NetworkError) -> Self {
        Self::Network(error.to_string())
    }
}
