//! Why an image is not built.

use crate::engine::EngineError;
use crate::images::{ImageError, InvalidReference};

/// See the module. Messages are for the user as they are.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The Dockerfile, or what it is to be read for, cannot be used.
    #[error("{0}")]
    Dockerfile(String),
    /// One of its steps cannot be done.
    #[error("{text}: {problem}")]
    Step {
        /// As it is written.
        text: String,
        /// Why.
        problem: String,
    },
    /// A file for a step is not there.
    #[error("{text} failed: {path}: file not found in build context or excluded by .dockerignore")]
    NoSuchFile {
        /// The step.
        text: String,
        /// What it names.
        path: String,
    },
    /// A step names a file that it may not have.
    #[error("{text} failed: forbidden path outside the build context: {path}")]
    Forbidden {
        /// The step.
        text: String,
        /// What it names.
        path: String,
    },
    /// A command did not succeed.
    #[error("The command '{command}' returned a non-zero code: {code}")]
    Command {
        /// The command.
        command: String,
        /// What it exited with.
        code: i32,
    },
    /// What was made or fetched is not there any more.
    #[error("{0} was removed during the build: start it again")]
    Gone(String),
    /// The directory cannot be read.
    #[error("cannot read the build context {path}: {source}")]
    Context {
        /// The directory.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// Whoever builds could not do its part.
    #[error("{0:#}")]
    Desk(Box<dyn std::error::Error + Send + Sync>),
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The image store failed.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A name cannot be one.
    #[error(transparent)]
    Reference(#[from] InvalidReference),
    /// A layer cannot be written.
    #[error(transparent)]
    Layer(#[from] runtime::layers::Error),
}
