//! What the caller asks for: sandboxes and containers as plain data, kept as JSON in their state
//! directories, read by the shim. It decides nothing; [`SandboxSpec::check`] and
//! [`ContainerSpec::check`] refuse what could not mean anything or could escape.

mod groups;
mod mounts;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::capabilities::Set;
use crate::error::Error;
use crate::seccomp::{Filters, Seccomp};

pub use groups::{CgroupSpec, IoLimit};
pub use mounts::{Mount, MountKind, Propagation, default_masked_paths, default_readonly_paths};

/// Longest id of a sandbox or container.
pub const ID_BYTES_MAX: usize = 128;
/// Size of `/dev/shm` when the caller names none.
pub const SHM_BYTES_DEFAULT: u64 = 64 << 20;
/// A log file is rotated at this size.
pub const LOG_FILE_BYTES_DEFAULT: u64 = 10 << 20;
/// Log files kept, the current one included.
pub const LOG_FILES_DEFAULT: u32 = 5;
/// The search path of a container whose environment names none.
pub const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Whose namespace is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamespaceMode {
    /// One of the sandbox's own.
    #[default]
    Own,
    /// That of the process that creates the sandbox (`hostNetwork`, `hostIPC`).
    Host,
}

/// Which processes a container sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PidMode {
    /// Its own only: it is pid 1.
    #[default]
    Container,
    /// Those of all the sandbox's containers; the pause process is pid 1 (`shareProcessNamespace`).
    Sandbox,
    /// Those of the host (`hostPID`).
    Host,
}

/// A sandbox's own user namespace: inside, ids begin at 0; on the host they are these. Its other namespaces
/// belong to it, so that root inside has no rights outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserIds {
    /// The host's user and group id that is 0 inside.
    pub first: u32,
    /// How many ids there are.
    pub length: u32,
}

/// A pod's shared namespaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Unique among the runtime's sandboxes.
    pub id: String,
    /// Host name inside. Ignored with the host's network, whose name is the host's.
    pub hostname: String,
    /// Network and host name.
    pub network: NamespaceMode,
    /// Id of another sandbox whose network this one has as well, under a host name of its own. The network outlives
    /// the other sandbox. Only with a `network` of its own.
    #[serde(default)]
    pub network_of: Option<String>,
    /// System V IPC, POSIX queues and `/dev/shm`.
    pub ipc: NamespaceMode,
    /// Process ids.
    pub pid: PidMode,
    /// A user namespace of its own (`hostUsers: false`); `None`: users are the host's. Needs own network and
    /// ipc namespaces, and other process ids than the host's.
    #[serde(default)]
    pub users: Option<UserIds>,
    /// Size of `/dev/shm` in bytes; `None`: [`SHM_BYTES_DEFAULT`].
    pub shm_bytes: Option<u64>,
    /// Settings written inside the sandbox's namespaces, by dotted name.
    pub sysctls: BTreeMap<String, String>,
    /// The group that holds the sandbox and all its containers.
    pub cgroup: CgroupSpec,
    /// OOM score adjustment of the pause process.
    pub oom_score_adj: Option<i32>,
    /// Free data of the caller, given back by listings.
    pub labels: BTreeMap<String, String>,
}

/// One container: a root filesystem, a process, limits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Unique among the runtime's containers.
    pub id: String,
    /// Id of the sandbox whose namespaces it joins.
    pub sandbox: String,
    /// Id of a running container whose processes it sees, instead of what the sandbox says; it ends with
    /// that one.
    #[serde(default)]
    pub pid_of: Option<String>,
    /// Where its files come from.
    pub rootfs: RootfsSpec,
    /// What it runs.
    pub process: ProcessSpec,
    /// Mounts over the root filesystem, in this order, after the standard ones (`/proc`, `/dev`, ..).
    pub mounts: Vec<Mount>,
    /// Paths hidden from a container that is not privileged.
    pub masked_paths: Vec<PathBuf>,
    /// Paths that a container that is not privileged can only read.
    pub readonly_paths: Vec<PathBuf>,
    /// Its limits.
    pub cgroup: CgroupSpec,
    /// OOM score adjustment of its processes.
    pub oom_score_adj: Option<i32>,
    /// Where stdout and stderr go; `None`: nowhere.
    pub log: Option<LogSpec>,
    /// Signal that asks it to stop, by number; `None`: SIGTERM. Kept for the caller.
    pub stop_signal: Option<i32>,
    /// All capabilities, all host devices, nothing masked, no system call filtered.
    pub privileged: bool,
    /// Free data of the caller, given back by listings.
    pub labels: BTreeMap<String, String>,
    /// A command of the host that the shim starts, and does not wait for, once it has recorded the container's end;
    /// empty: none. Without environment; what it says goes to the shim's log.
    #[serde(default)]
    pub on_exit: Vec<String>,
}

/// An overlay root filesystem. `upper`, `work` and `merged` are made if missing and removed with the
/// container; the lower directories are only read. The overlay is mounted in the container's own mount
/// namespace: the host sees `merged` empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootfsSpec {
    /// Layer directories, the topmost first (as overlayfs wants them).
    pub lower_dirs: Vec<PathBuf>,
    /// Takes the container's writes.
    pub upper: PathBuf,
    /// Scratch of overlayfs, on the same filesystem as `upper`.
    pub work: PathBuf,
    /// Where the overlay is mounted.
    pub merged: PathBuf,
    /// Whether the container may only read its root (`readOnlyRootFilesystem`).
    pub read_only: bool,
    /// Skip syncing the upper directory: the container's own files need not survive a power cut, and
    /// without it the end of a container waits for the whole disk. Volumes are not affected.
    pub volatile: bool,
    /// Whether `upper` stays when the container is deleted, for another one. It is the caller's to remove then.
    #[serde(default)]
    pub keep_upper: bool,
}

impl Default for RootfsSpec {
    fn default() -> Self {
        RootfsSpec {
            lower_dirs: Vec::new(),
            upper: PathBuf::new(),
            work: PathBuf::new(),
            merged: PathBuf::new(),
            read_only: false,
            volatile: true,
            keep_upper: false,
        }
    }
}

/// What a container runs, and as whom.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// Program and arguments. A program without a slash is looked for in the container's `PATH`.
    pub args: Vec<String>,
    /// `NAME=value` entries; a later one wins.
    pub env: Vec<String>,
    /// Working directory, made if missing; empty: `/`.
    pub cwd: String,
    /// User and groups.
    pub user: UserSpec,
    /// Changes to the default capabilities.
    pub capabilities: CapabilitiesSpec,
    /// Whether exec may no longer grant privileges (`allowPrivilegeEscalation: false`).
    pub no_new_privileges: bool,
    /// What filters its system calls; nothing does in a privileged container.
    pub seccomp: Seccomp,
    /// Resource limits; those not named are inherited.
    pub rlimits: Vec<Rlimit>,
    /// A terminal instead of pipes; all output is then stdout.
    pub terminal: bool,
    /// Whether its input is kept open for those who attach; otherwise it is empty.
    #[serde(default)]
    pub stdin: bool,
    /// Whether its input ends when the first attacher with input has left.
    #[serde(default)]
    pub stdin_once: bool,
    /// Whether its output is left where it is until somebody has attached (or nobody has for some seconds), so that
    /// the first attacher hears all of it.
    #[serde(default)]
    pub await_attach: bool,
}

/// The window of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// A user or group, by number or by a name of the container's `/etc/passwd` or `/etc/group`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Identity {
    /// By number.
    Id(u32),
    /// By name.
    Name(String),
}

impl Identity {
    /// Numbers are ids, the rest names.
    pub fn parse(text: &str) -> Identity {
        text.parse().map_or_else(|_| Identity::Name(text.to_owned()), Identity::Id)
    }
}

/// As whom a process runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserSpec {
    /// The user.
    pub user: Identity,
    /// The primary group; `None`: the user's in `/etc/passwd`, or 0.
    pub group: Option<Identity>,
    /// Further groups, beside those that `/etc/group` gives the user.
    pub additional_gids: Vec<u32>,
}

impl Default for UserSpec {
    fn default() -> Self {
        UserSpec { user: Identity::Id(0), group: None, additional_gids: Vec::new() }
    }
}

impl UserSpec {
    /// Reads an image's `User`: `user`, `uid`, `user:group`, `uid:gid`; empty is root.
    pub fn parse(text: &str) -> UserSpec {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        UserSpec {
            user: if user.is_empty() { Identity::Id(0) } else { Identity::parse(user) },
            group: group.filter(|group| !group.is_empty()).map(Identity::parse),
            additional_gids: Vec::new(),
        }
    }
}

/// Changes to the default set, as Kubernetes writes them: names with or without `CAP_`, any case, or
/// `ALL`. `drop` wins over `add` for the same name; `drop: ALL` empties the set before `add`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapabilitiesSpec {
    /// To be added.
    pub add: Vec<String>,
    /// To be dropped.
    pub drop: Vec<String>,
}

/// A resource limit (`setrlimit`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// Which one: `RLIMIT_NOFILE` and so on.
    pub kind: String,
    /// The soft limit.
    pub soft: u64,
    /// The hard limit.
    pub hard: u64,
}

/// Where and how output is logged (the CRI log format).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogSpec {
    /// The current log file. Its directory must exist. Files rotated away lie beside it with the time as
    /// a suffix, so that they sort by age. What is left when the container is deleted is the caller's to
    /// remove.
    pub path: PathBuf,
    /// Size in bytes at which it is rotated.
    pub file_bytes_max: u64,
    /// Files kept, the current one included.
    pub files_max: u32,
}

impl LogSpec {
    /// A log with the default rotation.
    pub fn new(path: impl Into<PathBuf>) -> LogSpec {
        LogSpec { path: path.into(), file_bytes_max: LOG_FILE_BYTES_DEFAULT, files_max: LOG_FILES_DEFAULT }
    }
}

impl SandboxSpec {
    /// Refuses what cannot be made.
    pub fn check(&self) -> Result<(), Error> {
        check_id(&self.id)?;
        self.cgroup.check()?;
        if self.network_of.is_some() && self.network == NamespaceMode::Host {
            let why = "the host's network is not that of another sandbox";
            return Err(Error::invalid("network_of", why));
        }
        let Some(users) = self.users else { return Ok(()) };
        let of_host = [
            ("network", self.network == NamespaceMode::Host),
            ("ipc", self.ipc == NamespaceMode::Host),
            ("pid", self.pid == PidMode::Host),
        ];
        if let Some((name, _)) = of_host.iter().find(|(_, host)| *host) {
            let why = format!("a user namespace of its own has no rights over the host's {name} namespace");
            return Err(Error::invalid("users", why));
        }
        users.check()
    }
}

impl UserIds {
    /// Refuses ranges that hold the host's root, or no id.
    fn check(self) -> Result<(), Error> {
        if self.first == 0 || self.length == 0 || self.first.checked_add(self.length).is_none() {
            let why = format!("{} ids from {} are no range of unprivileged ids", self.length, self.first);
            return Err(Error::invalid("users", why));
        }
        Ok(())
    }

    /// The host's id for one inside.
    pub(crate) fn on_host(self, id: u32) -> Option<u32> {
        (id < self.length).then(|| self.first + id)
    }
}

impl ContainerSpec {
    /// Refuses what cannot be made.
    pub fn check(&self) -> Result<(), Error> {
        check_id(&self.id)?;
        check_id(&self.sandbox)?;
        self.cgroup.check()?;
        if self.process.args.first().is_none_or(String::is_empty) {
            return Err(Error::invalid("process.args", "there is no command to run"));
        }
        if self.rootfs.lower_dirs.is_empty() {
            return Err(Error::invalid("rootfs.lower_dirs", "a root filesystem needs a layer"));
        }
        for path in [&self.rootfs.upper, &self.rootfs.work, &self.rootfs.merged] {
            if !path.is_absolute() {
                return Err(Error::invalid("rootfs", format!("{} is not absolute", path.display())));
            }
        }
        self.mounts.iter().try_for_each(Mount::check)?;
        let gives_back = |mount: &Mount| mount.propagation == Propagation::Bidirectional;
        if !self.privileged && self.mounts.iter().any(gives_back) {
            let why = "Bidirectional is for privileged containers only";
            return Err(Error::invalid("mounts.propagation", why));
        }
        self.process.capabilities.set(self.privileged)?;
        for rlimit in &self.process.rlimits {
            crate::rlimits::resource(&rlimit.kind)?;
        }
        Ok(())
    }
}

impl ProcessSpec {
    /// What filters its system calls, which it makes with these capabilities.
    pub(crate) fn system_call_filters(&self, privileged: bool, capabilities: Set) -> Result<Filters, Error> {
        let asked = if privileged { &Seccomp::Unconfined } else { &self.seccomp };
        asked.filters(capabilities)
    }
}

/// Ids become file names.
pub(crate) fn check_id(id: &str) -> Result<(), Error> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let fits = !id.is_empty() && id.len() <= ID_BYTES_MAX && !id.starts_with('.');
    if fits && id.bytes().all(plain) {
        return Ok(());
    }
    Err(Error::invalid("id", format!("{id:?} is not 1 to {ID_BYTES_MAX} of A-Z a-z 0-9 - _ .")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_of_images_are_read() {
        assert_eq!(UserSpec::parse(""), UserSpec::default());
        let numbers = UserSpec::parse("1000:2000");
        assert_eq!((numbers.user, numbers.group), (Identity::Id(1000), Some(Identity::Id(2000))));
        let names = UserSpec::parse("nobody:staff");
        assert_eq!(names.user, Identity::Name("nobody".into()));
        assert_eq!(names.group, Some(Identity::Name("staff".into())));
        assert_eq!(UserSpec::parse("7:").group, None);
    }

    #[test]
    fn a_user_namespace_needs_unprivileged_ids_and_own_namespaces() {
        let users = |first, length| Some(UserIds { first, length });
        let sandbox = |users| SandboxSpec {
            id: "s".into(),
            users,
            cgroup: CgroupSpec { path: "s".into(), ..CgroupSpec::default() },
            ..SandboxSpec::default()
        };
        assert!(sandbox(users(65536, 65536)).check().is_ok());
        for range in [users(0, 65536), users(65536, 0), users(u32::MAX, 2)] {
            assert!(sandbox(range).check().is_err(), "{range:?}");
        }
        let host = NamespaceMode::Host;
        let own = sandbox(users(65536, 65536));
        for spec in [
            SandboxSpec { network: host, ..own.clone() },
            SandboxSpec { ipc: host, ..own.clone() },
            SandboxSpec { pid: PidMode::Host, ..own.clone() },
        ] {
            assert!(spec.check().unwrap_err().to_string().starts_with("invalid users"));
        }
        let range = UserIds { first: 100, length: 10 };
        assert_eq!((range.on_host(0), range.on_host(9), range.on_host(10)), (Some(100), Some(109), None));
    }

    #[test]
    fn ids_stay_file_names() {
        for id in ["a", "0b1c", "pod-1_x.y"] {
            assert!(check_id(id).is_ok(), "{id}");
        }
        for id in ["", ".", "..", ".hidden", "a/b", "a b", "ä", &"x".repeat(129)] {
            assert!(check_id(id).is_err(), "{id}");
        }
    }
}
