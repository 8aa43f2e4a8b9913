//! Barque's container runtime: the Linux half of the node agent. It makes sandboxes and containers out
//! of namespaces, cgroups and overlayfs, starts and watches processes, plumbs networks and unpacks image
//! layers. It is synchronous, needs no other program, and is the one crate in which `unsafe` is allowed.
//!
//! Owns: everything below its state directory, its cgroups, the mounts it makes there.
//! Promises: a call that fails leaves nothing behind; a call that is repeated succeeds; containers
//! outlive the process that started them and are found again by [`Runtime::list`].
//! Does not: know pods, images or the API; decide when to restart; delete logs or volumes.
//!
//! ```text
//! caller (agent) ── exec ──► shim (one per container, single thread, outlives the caller)
//!                              └─ fork ──► init: namespaces, root, user ── exec ──► the program
//!           ── exec ──► pause (one per sandbox, holds the namespaces)
//! ```

mod capabilities;
mod cgroups;
mod container;
mod error;
pub mod layers;
mod namespaces;
pub mod net;
pub mod pause;
pub mod power;
mod process;
mod rlimits;
mod rootfs;
mod runtime;
pub mod seccomp;
pub mod shim;
mod syscall;
mod time;

pub use capabilities::CAPABILITIES_DEFAULT;
pub use cgroups::{OutsideGroups, Stats};

pub use container::exec::{
    AttachSpec, Attachment, ExecExit, ExecProcess, ExecSpec, ExecStreams, resize_terminal, terminal_size,
};
pub use container::spec::{
    CapabilitiesSpec, CgroupSpec, ContainerSpec, ID_BYTES_MAX, Identity, IoLimit, LOG_FILE_BYTES_DEFAULT,
    LOG_FILES_DEFAULT, LogSpec, Mount, MountKind, NamespaceMode, PATH_DEFAULT, PidMode, ProcessSpec,
    Propagation, Rlimit, RootfsSpec, SHM_BYTES_DEFAULT, SandboxSpec, TerminalSize, UserIds, UserSpec,
    default_masked_paths, default_readonly_paths,
};
pub use container::state::{
    ContainerState, Exit, Observed, ObservedSandbox, ProcessId, Sandbox, Started, Unenforced,
};
pub use error::{
    EXIT_CODE_NOT_EXECUTABLE, EXIT_CODE_NOT_FOUND, EXIT_CODE_START_FAILED, Error, Stage, StartError,
};
pub use runtime::{Runtime, RuntimeConfig};
pub use time::Timestamp;
