//! Deleting: end what runs, remove what was made, the plan last, so that a deletion which was broken off
//! anywhere can be done again.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use super::plan::{Bundle, ContainerPlan, SandboxPlan};
use super::state::{self, ProcessId, Running, read_unless_torn};
use crate::error::Error;
use crate::net::netns;
use crate::process::channel::wait_readable;
use crate::shim::control::{self, Request};
use crate::syscall;

/// How long a killed process may take to end: it may be writing to a slow disk.
const KILL_TIME_MAX: Duration = Duration::from_secs(10);
/// How long a shim may take to record its container's end, before it is ended itself.
const RECORD_TIME_MAX: Duration = Duration::from_secs(2);
/// More mounts than this on one directory are not our doing.
const UNMOUNTS_MAX: u32 = 16;

/// Removes a container whose bundle the caller has claimed.
pub(crate) fn container(bundle: &Bundle) -> Result<(), Error> {
    let shim: Option<ProcessId> = state::read(&bundle.shim()).unwrap_or_default();
    // Without its plan its group goes with the sandbox's, and its files are the caller's to remove.
    let plan: Option<ContainerPlan> = read_unless_torn(&bundle.plan())?;
    if let Some(running) = state::read::<Running>(&bundle.running()).unwrap_or_default() {
        kill(running.process, Duration::ZERO)?;
    }
    if let Some(shim) = shim {
        // It records its container's end and ends, unless it has no container yet, or hangs. Once the end
        // is recorded it only syncs to disk, which a deletion makes pointless.
        if bundle.running().exists() {
            await_record(bundle);
        }
        let patience = if bundle.exit().exists() { Duration::ZERO } else { KILL_TIME_MAX };
        kill(shim, patience)?;
    }
    if let Some(plan) = plan {
        plan.cgroup.kill_all();
        plan.cgroup.remove()?;
        let rootfs = &plan.spec.rootfs;
        let upper = (!rootfs.keep_upper).then_some(&rootfs.upper);
        for dir in [&rootfs.merged, &rootfs.work].into_iter().chain(upper) {
            remove_tree(dir)?;
        }
    }
    remove_bundle(bundle)
}

/// Removes a sandbox whose bundle the caller has claimed and whose containers are gone.
pub(crate) fn sandbox(bundle: &Bundle) -> Result<(), Error> {
    let maker: Option<ProcessId> = state::read(&bundle.shim()).unwrap_or_default();
    let plan: Option<SandboxPlan> = read_unless_torn(&bundle.plan())?;
    if let Some(maker) = maker {
        kill(maker, KILL_TIME_MAX)?;
    }
    if let Some(pause) = state::read::<Running>(&bundle.running()).unwrap_or_default() {
        kill(pause.process, KILL_TIME_MAX)?;
    }
    if let Some(plan) = plan {
        plan.cgroup.kill_all();
        plan.cgroup.remove()?;
    }
    netns::delete_at(&bundle.netns())?;
    unmount(&bundle.shm())?;
    remove_bundle(bundle)
}

/// Kills a process and waits for its end, up to a limit; none is waited for with a limit of zero. One
/// that has ended, or whose pid has another process now, is left alone.
fn kill(process: ProcessId, patience: Duration) -> Result<(), Error> {
    let failed = |error: io::Error| Error::io("kill", format!("process {}", process.pid), error);
    let Ok(pidfd) = syscall::pidfd_open(process.pid) else { return Ok(()) };
    // The descriptor pins whichever process has the pid; only now can it be compared.
    if !process.is_alive() {
        return Ok(());
    }
    match syscall::pidfd_send_signal(std::os::fd::AsFd::as_fd(&pidfd), libc::SIGKILL) {
        Err(error) if error.raw_os_error() != Some(libc::ESRCH) => return Err(failed(error)),
        _ => {}
    }
    if patience.is_zero() {
        return Ok(());
    }
    wait_readable(&pidfd, Instant::now() + patience).map_err(failed)
}

/// Waits until a shim has recorded its container's end, or is gone, or has had time enough.
fn await_record(bundle: &Bundle) {
    if bundle.exit().exists() {
        return;
    }
    // Whether it could be asked and what it says makes no difference: what comes next does not trust it.
    if let Ok(connection) = control::request(bundle, Request::Wait, &[]) {
        let _ = wait_readable(&connection, Instant::now() + RECORD_TIME_MAX);
    }
}

fn unmount(path: &Path) -> Result<(), Error> {
    for _ in 0..UNMOUNTS_MAX {
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(error) => return Err(Error::io("unmount", path, error)),
        }
    }
    Err(Error::Busy { what: "mount", path: path.to_owned(), tries: UNMOUNTS_MAX })
}

fn remove_tree(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io("remove", path, error)),
    }
}

/// Removes a state directory, the plan last.
fn remove_bundle(bundle: &Bundle) -> Result<(), Error> {
    let failed = |error: io::Error| Error::io("remove", &bundle.dir, error);
    let plan = bundle.plan();
    for entry in fs::read_dir(&bundle.dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.path() == plan {
            continue;
        }
        if entry.file_type().map_err(failed)?.is_dir() {
            // What was mounted here is unmounted: what is left is empty, or is not ours to remove.
            fs::remove_dir(entry.path()).map_err(failed)?;
        } else {
            fs::remove_file(entry.path()).map_err(failed)?;
        }
    }
    match fs::remove_file(&plan) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    fs::remove_dir(&bundle.dir).map_err(failed)
}
