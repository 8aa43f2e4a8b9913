//! Which system calls a container's programs may make.
//!
//! A profile is data in the form that Docker, the OCI runtime specification and Kubernetes' `Localhost` profiles
//! share ([`Profile`]); the default one is such a file too. It becomes BPF programs, which the kernel asks
//! before each call. Calls that are newer than this crate answer ENOSYS, so that programs fall back on older ones.
//!
//! Owns: the default profile, the meaning of profiles. Does not: find profiles on a host's disk.

mod compile;
mod profile;

use serde::{Deserialize, Serialize};

pub use profile::Profile;

use crate::capabilities::Set;
use crate::error::Error;
use crate::process::failure::Failure;
use crate::syscall;

/// What filters a container's system calls.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    /// Nothing.
    Unconfined,
    /// This crate's own profile: about what every container runtime allows.
    #[default]
    RuntimeDefault,
    /// One of the caller's.
    Profile(Box<Profile>),
}

/// Programs for the kernel, in the order in which they are to be installed.
#[derive(Debug)]
pub(crate) struct Filters(Vec<compile::Program>);

impl Seccomp {
    /// The programs for a container with these capabilities.
    pub(crate) fn filters(&self, capabilities: Set) -> Result<Filters, Error> {
        match self {
            Seccomp::Unconfined => Ok(Filters(Vec::new())),
            Seccomp::RuntimeDefault => compile::filters(&Profile::default(), capabilities).map(Filters),
            Seccomp::Profile(profile) => compile::filters(profile, capabilities).map(Filters),
        }
    }
}

impl Filters {
    /// Puts them into force for the calling thread and all that it becomes.
    pub(crate) fn install(&self) -> Result<(), Failure> {
        for program in &self.0 {
            syscall::install_filter(program)
                .map_err(|error| Failure::io("install", "the system call filter", error))?;
        }
        Ok(())
    }
}
