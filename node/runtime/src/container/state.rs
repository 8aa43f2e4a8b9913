//! What is: the observed side of containers and sandboxes, and the files that hold it.
//!
//! ```text
//! <state_dir>/containers/<id>/  plan.json      what was asked, and what the runtime decided about it
//!                               shim.json      the shim's pid and start ticks, before anything is made
//!                               running.json   init's pid, start ticks and time: it has executed
//!                               exit.json      how it ended; written last, once, atomically
//!                               shim.sock      signal, wait, reopen, exec, attach (see `shim`)
//!                               shim.log       the shim's own words
//! <state_dir>/sandboxes/<id>/   plan.json  shim.json (its maker)  running.json (pause)  netns  shm/  shim.log
//! ```
//!
//! A pid alone says nothing once its process has ended, so every pid is stored with the process's start
//! time in clock ticks since boot ([`ProcessId`]).

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::container::spec::{ContainerSpec, SandboxSpec};
use crate::error::Error;
use crate::time::Timestamp;

/// A process for as long as the machine is up: its pid, and when it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// The pid, in the pid namespace of the runtime.
    pub pid: i32,
    /// Start time in clock ticks since boot (`/proc/<pid>/stat`, field 22).
    pub start_ticks: u64,
}

impl ProcessId {
    /// The process that has this pid now.
    pub fn of(pid: i32) -> io::Result<ProcessId> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let start_ticks = start_ticks(&stat)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unreadable process status"))?;
        Ok(ProcessId { pid, start_ticks })
    }

    /// Whether this very process is still there and has not ended (a zombie has).
    pub fn is_alive(&self) -> bool {
        let Ok(stat) = fs::read_to_string(format!("/proc/{}/stat", self.pid)) else { return false };
        let ended = after_name(&stat).is_none_or(|rest| rest.starts_with(['Z', 'X', 'x']));
        !ended && start_ticks(&stat) == Some(self.start_ticks)
    }
}

/// The fields behind the process name, which may hold spaces and parentheses itself.
fn after_name(stat: &str) -> Option<&str> {
    stat.rsplit_once(')').map(|(_, rest)| rest.trim_start())
}

fn start_ticks(stat: &str) -> Option<u64> {
    // Field 22 of the file; the state behind the name is field 3.
    after_name(stat)?.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit code; 128 + signal when a signal ended it.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether the kernel killed one of its processes for want of memory.
    pub oom_killed: bool,
    /// When the shim saw it.
    pub finished_at: Timestamp,
    /// Bytes of output that could not be logged (disk full).
    pub log_bytes_lost: u64,
}

/// What a container is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerState {
    /// Being started, or left so by a starter that died: [`crate::Runtime::delete_container`] cleans up.
    Creating,
    /// Its process runs.
    Running {
        /// Its init, in the runtime's pid namespace.
        process: ProcessId,
        /// When it executed its program.
        started_at: Timestamp,
    },
    /// Its process ended and the shim recorded how.
    Exited {
        /// When it had executed its program; `None` when it never did.
        started_at: Option<Timestamp>,
        /// How it ended.
        exit: Exit,
    },
    /// The shim is gone and recorded no exit (killed, or the machine restarted). The container died
    /// with it; how is not known.
    Lost {
        /// When it had executed its program.
        started_at: Option<Timestamp>,
    },
}

impl ContainerState {
    /// One word for messages.
    pub fn word(&self) -> &'static str {
        match self {
            ContainerState::Creating => "creating",
            ContainerState::Running { .. } => "running",
            ContainerState::Exited { .. } => "exited",
            ContainerState::Lost { .. } => "lost",
        }
    }
}

/// A container found in the state directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// Its id.
    pub id: String,
    /// Its sandbox's id.
    pub sandbox: String,
    /// What it is doing.
    pub state: ContainerState,
    /// What was asked for.
    pub spec: ContainerSpec,
}

/// A sandbox found in the state directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedSandbox {
    /// Its id.
    pub id: String,
    /// The pause process, while it is alive.
    pub pause: Option<ProcessId>,
    /// When the pause process started; `None` if it never did.
    pub started_at: Option<Timestamp>,
    /// The pinned network namespace; `None` with the host's network.
    pub netns: Option<PathBuf>,
    /// What was asked for.
    pub spec: SandboxSpec,
}

/// A sandbox that holds its namespaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// The pause process.
    pub process: ProcessId,
    /// When it started.
    pub started_at: Timestamp,
    /// The pinned network namespace; `None` with the host's network.
    pub netns: Option<PathBuf>,
    /// Limits asked for that this host does not enforce.
    pub unenforced: Vec<Unenforced>,
}

/// A container whose program runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// Its init, in the runtime's pid namespace.
    pub process: ProcessId,
    /// When it executed its program.
    pub started_at: Timestamp,
    /// Limits asked for that this host does not enforce.
    pub unenforced: Vec<Unenforced>,
}

/// A limit that was asked for and that this host does not enforce.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unenforced {
    /// Which one: `memory.limit`, `pids.limit`, `oom_score_adj`, ..
    pub limit: String,
    /// Why not.
    pub reason: String,
}

/// `running.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Running {
    pub(crate) process: ProcessId,
    pub(crate) started_at: Timestamp,
    pub(crate) unenforced: Vec<Unenforced>,
}

/// Reads a state file; `None` if it is not there (yet).
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read", path, error)),
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| Error::State { path: path.to_owned(), reason: error.to_string() })
}

/// Reads a state file that tells no more than nothing when it is torn.
pub(crate) fn read_unless_torn<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    match read(path) {
        Err(Error::State { .. }) => Ok(None),
        read => read,
    }
}

/// Writes a state file so that a reader sees all of it or nothing, whoever dies in between. Against a
/// power cut see [`sync`].
pub(crate) fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), Error> {
    let failed = |operation| move |error: io::Error| Error::io(operation, path, error);
    let bytes = serde_json::to_vec(value).map_err(|error| failed("encode")(error.into()))?;
    let scratch = path.with_extension("tmp");
    fs::write(&scratch, bytes).map_err(failed("write"))?;
    fs::rename(&scratch, path).map_err(failed("rename into"))
}

/// Puts a state file on disk, name and content.
pub(crate) fn sync(path: &Path) -> Result<(), Error> {
    let synced = |path: &Path| File::open(path).and_then(|file| file.sync_all());
    synced(path)
        .and_then(|()| path.parent().map_or(Ok(()), synced))
        .map_err(|error| Error::io("sync", path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_ticks_are_found_behind_any_name() {
        let stat = "7 (a) b) c) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 9 10";
        assert_eq!(start_ticks(stat), Some(4242));
        assert_eq!(start_ticks("7 (a"), None);
        assert_eq!(start_ticks("7 (a) S 1"), None);
    }

    #[test]
    fn a_process_is_itself_and_no_other() {
        let own = ProcessId::of(std::process::id() as i32).unwrap();
        assert!(own.is_alive());
        assert!(!ProcessId { start_ticks: own.start_ticks + 1, ..own }.is_alive());
    }

    #[test]
    fn state_files_go_round_and_absence_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("exit.json");
        assert_eq!(read::<Exit>(&path).unwrap(), None);
        let exit = Exit {
            code: 137,
            signal: Some(9),
            oom_killed: true,
            finished_at: Timestamp::from_unix_nanos(5),
            log_bytes_lost: 0,
        };
        write(&path, &exit).unwrap();
        sync(&path).unwrap();
        assert_eq!(read::<Exit>(&path).unwrap(), Some(exit));
        fs::write(&path, "{").unwrap();
        assert!(matches!(read::<Exit>(&path), Err(Error::State { .. })));
    }
}
