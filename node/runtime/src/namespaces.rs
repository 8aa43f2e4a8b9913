//! Joining and making namespaces of the calling, single-threaded process.

use std::fs::File;
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::Pid;

use crate::container::plan::ContainerPlan;
use crate::container::spec::{NamespaceMode, PidMode};
use crate::process::failure::Failure;

/// Sees to it that the next child is in the pid namespace that the plan asks for.
pub(crate) fn prepare_pid(plan: &ContainerPlan) -> Result<(), Failure> {
    if let Some(target) = &plan.pid_of {
        if !target.is_alive() {
            return Err(Failure::rule(format!(
                "the process {} whose processes it is to see is gone",
                target.pid
            )));
        }
        return join(target.pid, "pid", CloneFlags::CLONE_NEWPID);
    }
    match plan.sandbox.pid {
        PidMode::Host => Ok(()),
        PidMode::Container => {
            unshare(CloneFlags::CLONE_NEWPID).map_err(|error| Failure::io("create", "pid namespace", error))
        }
        PidMode::Sandbox => join(plan.pause.pid, "pid", CloneFlags::CLONE_NEWPID),
    }
}

/// Joins the sandbox's namespaces: those that are its own.
pub(crate) fn join_sandbox(plan: &ContainerPlan) -> Result<(), Failure> {
    if !plan.pause.is_alive() {
        let pid = plan.pause.pid;
        return Err(Failure::rule(format!("the pause process {pid} of sandbox {} is gone", plan.sandbox.id)));
    }
    if plan.sandbox.ipc == NamespaceMode::Own {
        join(plan.pause.pid, "ipc", CloneFlags::CLONE_NEWIPC)?;
    }
    if plan.sandbox.network == NamespaceMode::Own {
        join(plan.pause.pid, "uts", CloneFlags::CLONE_NEWUTS)?;
        join(plan.pause.pid, "net", CloneFlags::CLONE_NEWNET)?;
    }
    Ok(())
}

fn join(pid: i32, kind: &str, flag: CloneFlags) -> Result<(), Failure> {
    let path = format!("/proc/{pid}/ns/{kind}");
    let file = File::open(&path).map_err(|error| Failure::io("open namespace", &path, error))?;
    setns(file, flag).map_err(|error| Failure::io("join namespace", &path, error))
}

/// Joins all namespaces of a running process that are not the caller's already, but for the pid namespace,
/// in which the caller was born. The mount namespace brings the process's root; the user namespace comes
/// last, for the others may belong to the host's.
pub(crate) fn join_process(process: Pid) -> Result<(), Failure> {
    let kinds = [
        ("cgroup", CloneFlags::CLONE_NEWCGROUP),
        ("ipc", CloneFlags::CLONE_NEWIPC),
        ("uts", CloneFlags::CLONE_NEWUTS),
        ("net", CloneFlags::CLONE_NEWNET),
        ("mnt", CloneFlags::CLONE_NEWNS),
        ("user", CloneFlags::CLONE_NEWUSER),
    ];
    let mut found = Vec::with_capacity(kinds.len());
    for (kind, flag) in kinds {
        let (path, own) = (format!("/proc/{process}/ns/{kind}"), format!("/proc/self/ns/{kind}"));
        let open = |path: &str| File::open(path).map_err(|error| Failure::io("open namespace", path, error));
        let (theirs, own) = match (open(&path), std::fs::metadata(&own)) {
            (theirs, Ok(own)) => (theirs?, own.ino()),
            // A kernel without this kind.
            (_, Err(_)) => continue,
        };
        let number = theirs.metadata().map_err(|error| Failure::io("look at", &path, error))?.ino();
        if number != own {
            found.push((theirs, flag, path));
        }
    }
    // All are open before the mount namespace changes what /proc is.
    for (file, flag, path) in found {
        setns(file, flag).map_err(|error| Failure::io("join namespace", &path, error))?;
    }
    Ok(())
}

/// Makes a mount namespace and, where the kernel has them, a cgroup namespace whose root is the group
/// that the process is in. Returns whether there is one.
pub(crate) fn make_own() -> Result<bool, Failure> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(|error| Failure::io("create", "mount namespace", error))?;
    match unshare(CloneFlags::CLONE_NEWCGROUP) {
        Ok(()) => Ok(true),
        Err(Errno::EINVAL) => Ok(false),
        Err(error) => Err(Failure::io("create", "cgroup namespace", error)),
    }
}
