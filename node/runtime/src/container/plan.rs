//! What a starter hands to a shim, and a later clean-up finds again: the specification with everything
//! that the runtime's configuration decided about it. Written before anything is made.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::spec::{ContainerSpec, SandboxSpec};
use super::state::ProcessId;
use crate::cgroups::Cgroup;

/// A container to be made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ContainerPlan {
    pub(crate) spec: ContainerSpec,
    pub(crate) sandbox: SandboxSpec,
    /// The process whose namespaces it joins.
    pub(crate) pause: ProcessId,
    /// The process whose pid namespace it joins instead.
    #[serde(default)]
    pub(crate) pid_of: Option<ProcessId>,
    /// The sandbox's shared memory.
    pub(crate) shm: PathBuf,
    pub(crate) cgroup: Cgroup,
}

/// A sandbox to be made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SandboxPlan {
    pub(crate) spec: SandboxSpec,
    /// The network namespace that it joins instead of making one.
    #[serde(default)]
    pub(crate) netns_of: Option<PathBuf>,
    pub(crate) cgroup: Cgroup,
}

/// The state directory of one container or sandbox, and the files in it.
#[derive(Clone, Debug)]
pub(crate) struct Bundle {
    pub(crate) dir: PathBuf,
}

impl Bundle {
    pub(crate) fn new(dir: impl Into<PathBuf>) -> Bundle {
        Bundle { dir: dir.into() }
    }

    pub(crate) fn plan(&self) -> PathBuf {
        self.dir.join("plan.json")
    }

    /// The process that makes it (for a container: that stays with it).
    pub(crate) fn shim(&self) -> PathBuf {
        self.dir.join("shim.json")
    }

    pub(crate) fn running(&self) -> PathBuf {
        self.dir.join("running.json")
    }

    pub(crate) fn exit(&self) -> PathBuf {
        self.dir.join("exit.json")
    }

    pub(crate) fn shim_log(&self) -> PathBuf {
        self.dir.join("shim.log")
    }

    pub(crate) fn netns(&self) -> PathBuf {
        self.dir.join("netns")
    }

    pub(crate) fn shm(&self) -> PathBuf {
        self.dir.join("shm")
    }

    /// Name of the control socket in the directory.
    pub(crate) fn socket_name() -> &'static Path {
        Path::new("shim.sock")
    }
}
