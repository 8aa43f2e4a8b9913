//! What the runtime's calls answer when they fail, by what the caller can do about it.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::net;

/// Why a call of the runtime failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The specification cannot mean anything: change it.
    #[error("invalid {field}: {reason}")]
    Invalid {
        /// The part of the specification.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no such sandbox or container.
    #[error("{what} {id} does not exist")]
    NotFound {
        /// `sandbox` or `container`.
        what: &'static str,
        /// Its id.
        id: String,
    },
    /// The id is taken by another specification, or by one that has ended: delete it first.
    #[error("{what} {id} exists already ({state}); delete it first")]
    Exists {
        /// `sandbox` or `container`.
        what: &'static str,
        /// Its id.
        id: String,
        /// What it is doing.
        state: String,
    },
    /// The container's process could not be started; everything made for it has been removed.
    #[error("failed to start container: {0}")]
    Start(#[from] StartError),
    /// The process is not running, so it can be sent nothing.
    #[error("container {id} is not running")]
    NotRunning {
        /// Its id.
        id: String,
    },
    /// The shim did not do its part in time, or broke off.
    #[error("shim of {id}: {reason} (its own words: {log})")]
    Shim {
        /// Id of the sandbox or container.
        id: String,
        /// What went wrong.
        reason: String,
        /// The tail of what it wrote to its own log.
        log: String,
    },
    /// Something is still in use after all tries to remove it.
    #[error("cannot remove {what} {}: still in use after {tries} tries", path.display())]
    Busy {
        /// What it is.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// How often it was tried.
        tries: u32,
    },
    /// A state file does not say what it should.
    #[error("state file {} cannot be read: {reason}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Network plumbing failed.
    #[error(transparent)]
    Net(#[from] net::Error),
    /// The host refused an operation.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// What was done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn io(
        operation: &'static str,
        path: impl Into<PathBuf>,
        source: impl Into<io::Error>,
    ) -> Error {
        Error::Io { operation, path: path.into(), source: source.into() }
    }

    pub(crate) fn invalid(field: &'static str, reason: impl Into<String>) -> Error {
        Error::Invalid { field, reason: reason.into() }
    }
}

/// How far a start came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// Reading the specification and preparing the shim.
    Prepare,
    /// Making the process.
    Clone,
    /// Entering its cgroups.
    Cgroup,
    /// Joining or making namespaces.
    Namespaces,
    /// Mounting the overlay root.
    Rootfs,
    /// Mounting something over it.
    Mount,
    /// Making devices.
    Devices,
    /// Making the root filesystem the root.
    Pivot,
    /// Finding user and groups, and becoming them.
    User,
    /// Resource limits.
    Rlimits,
    /// Capabilities and privileges.
    Capabilities,
    /// The system call filter.
    Seccomp,
    /// Standard input and output, terminal.
    Stdio,
    /// Entering the working directory.
    Cwd,
    /// Finding and executing the program.
    Exec,
}

/// Why a container's process could not be started, told by the process itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct StartError {
    /// How far it came.
    pub stage: Stage,
    /// The kernel's answer, where it was the kernel's.
    pub errno: Option<i32>,
    /// The path that it concerns.
    pub path: Option<PathBuf>,
    /// All of it in words, in the form that users of container tools know:
    /// `exec: "foo": executable file not found in $PATH`.
    pub message: String,
}

/// Exit code of a container whose program was not found.
pub const EXIT_CODE_NOT_FOUND: i32 = 127;
/// Exit code of a container whose program could not be executed.
pub const EXIT_CODE_NOT_EXECUTABLE: i32 = 126;
/// Exit code of a container that could not be set up.
pub const EXIT_CODE_START_FAILED: i32 = 128;

impl StartError {
    /// The exit code that stands for this failure: 127 program not found, 126 not executable,
    /// 128 anything before that.
    pub fn exit_code(&self) -> i32 {
        match (self.stage, self.errno) {
            (Stage::Exec, None | Some(libc::ENOENT)) => EXIT_CODE_NOT_FOUND,
            (Stage::Exec, Some(_)) => EXIT_CODE_NOT_EXECUTABLE,
            _ => EXIT_CODE_START_FAILED,
        }
    }
}
