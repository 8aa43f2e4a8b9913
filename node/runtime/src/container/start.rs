//! Starting: claim a state directory, write the plan, run the shim, hear its report. What fails is
//! cleaned up before the error is returned.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};

use super::plan::Bundle;
use super::state::{self, Running};
use crate::error::Error;
use crate::process::channel::Report;
use crate::syscall;

/// How long a shim may take until the program runs: a loaded host is slow, a hung mount is for ever.
pub(crate) const START_TIME_MAX: Duration = Duration::from_secs(30);
/// As much of a shim's own log as an error carries.
const LOG_TAIL_BYTES: usize = 512;
/// A directory that was removed while its lock was awaited is looked for again so often.
const LOCK_TRIES_MAX: u32 = 8;

/// A state directory that nobody else starts or deletes in, until this is dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    _lock: Flock<File>,
}

/// Makes the state directory of an id and claims it. `None`: it was there already.
pub(crate) fn claim_new(bundle: &Bundle) -> Result<Option<Claim>, Error> {
    match DirBuilder::new().mode(0o700).create(&bundle.dir) {
        Ok(()) => claim(bundle),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(None),
        Err(error) => Err(Error::io("create state directory", &bundle.dir, error)),
    }
}

/// Claims an existing state directory, waiting for whoever has it. `None`: it is not there.
pub(crate) fn claim(bundle: &Bundle) -> Result<Option<Claim>, Error> {
    for _ in 0..LOCK_TRIES_MAX {
        let file = match File::open(&bundle.dir) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("open", &bundle.dir, error)),
        };
        let lock = Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, error)| Error::io("lock", &bundle.dir, error))?;
        if is_at(&lock, &bundle.dir) {
            return Ok(Some(Claim { _lock: lock }));
        }
    }
    Ok(None)
}

/// Whether somebody has claimed a state directory at this moment.
pub(crate) fn is_claimed(bundle: &Bundle) -> bool {
    File::open(&bundle.dir).is_ok_and(|file| Flock::lock(file, FlockArg::LockSharedNonblock).is_err())
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(held), Ok(found)) => (held.dev(), held.ino()) == (found.dev(), found.ino()),
        _ => false,
    }
}

/// What starts a shim. Its program is executed by way of a mount of its own that can only be read: whoever gets
/// hold of the program's file through `/proc/<pid>/exe`, which may be somebody in a container, cannot write to it.
#[derive(Clone, Debug)]
pub(crate) struct ShimCommand {
    program: OsString,
    args: Vec<OsString>,
    /// The read-only mount; without, where the kernel cannot make one, the program is executed as it is.
    guarded: Option<Arc<OwnedFd>>,
}

impl ShimCommand {
    pub(crate) fn new(command: &[OsString]) -> Result<ShimCommand, Error> {
        let (program, args) =
            command.split_first().ok_or_else(|| Error::invalid("shim_command", "it is empty"))?;
        let guarded = syscall::clone_mount(Path::new(program))
            .and_then(|copy| syscall::make_mount_read_only(&copy).map(|()| copy));
        Ok(ShimCommand { program: program.clone(), args: args.to_vec(), guarded: guarded.ok().map(Arc::new) })
    }

    fn command(&self) -> Command {
        let path = match &self.guarded {
            // The child has the descriptor until it executes.
            Some(guarded) => format!("/proc/self/fd/{}", guarded.as_raw_fd()).into(),
            None => self.program.clone(),
        };
        let mut command = Command::new(path);
        command.arg0(&self.program).args(&self.args);
        command
    }
}

/// Writes the plan and runs a shim on it; what it made is recorded when this returns.
pub(crate) fn run_shim<T: serde::Serialize>(
    command: &ShimCommand,
    kind: &str,
    bundle: &Bundle,
    plan: &T,
) -> Result<Running, Error> {
    state::write(&bundle.plan(), plan)?;
    let broken = |reason: String| Error::Shim {
        id: bundle.dir.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        reason,
        log: log_tail(&bundle.shim_log()),
    };
    let log = bundle.shim_log();
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .open(&log)
        .map_err(|error| Error::io("create shim log", &log, error))?;
    let program = PathBuf::from(&command.program);
    let mut child = command
        .command()
        .arg(kind)
        .arg(&bundle.dir)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(|error| Error::io("execute shim", &program, error))?;
    let pipe: OwnedFd = child.stdout.take().expect("standard output was asked to be a pipe").into();
    let report = Report::receive(pipe, START_TIME_MAX);
    if report.is_err() {
        // Too late or nonsense: this process is the shim until it has daemonized, and is ended with the
        // rest of the clean-up after that.
        let _ = child.kill();
    }
    child.wait().map_err(|error| Error::io("wait for shim", program, error))?;
    match report {
        Ok(Some(Report::Running(running))) => Ok(running),
        Ok(Some(Report::Refused(error))) => Err(error.into()),
        Ok(Some(Report::Broken(reason))) => Err(broken(reason)),
        Ok(None) => Err(broken("it ended without a report".to_owned())),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            Err(broken(format!("it was not ready within {} s", START_TIME_MAX.as_secs())))
        }
        Err(error) => Err(broken(error.to_string())),
    }
}

fn log_tail(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let tail = &bytes[bytes.len().saturating_sub(LOG_TAIL_BYTES)..];
    String::from_utf8_lossy(tail).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_directory_has_one_claimant() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = Bundle::new(dir.path().join("c1"));
        assert!(claim(&bundle).unwrap().is_none(), "not there yet");
        let held = claim_new(&bundle).unwrap().unwrap();
        assert!(claim_new(&bundle).unwrap().is_none());
        assert!(is_claimed(&bundle));
        drop(held);
        assert!(!is_claimed(&bundle));
        assert!(claim(&bundle).unwrap().is_some());
    }

    #[test]
    fn a_claim_awaited_in_vain_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = Bundle::new(dir.path().join("c1"));
        let held = claim_new(&bundle).unwrap();
        let waiter = std::thread::spawn({
            let bundle = bundle.clone();
            move || claim(&bundle).unwrap().is_none()
        });
        std::thread::sleep(Duration::from_millis(30));
        fs::remove_dir(&bundle.dir).unwrap();
        drop(held);
        assert!(waiter.join().unwrap());
    }
}
