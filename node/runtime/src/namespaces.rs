//! Joining and making namespaces of the calling, single-threaded process.
//!
//! A process that is to end in a user namespace enters it late: mounts, cgroups and the joining of others take the
//! host's rights. Until then it makes files as the namespace's root ([`Users::own_files`]), so that they belong
//! to whoever will use them.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Pid, Uid, setfsgid, setfsuid, setgroups, setresgid, setresuid};

use crate::container::plan::ContainerPlan;
use crate::container::spec::{NamespaceMode, PidMode, UserIds};
use crate::process::failure::Failure;
use crate::process::users::Resolved;
use crate::syscall;

/// A user namespace that the calling process is going to enter.
#[derive(Debug)]
pub(crate) struct Users {
    file: File,
    ids: UserIds,
    /// Whether the mounts are made for it, and not joined.
    owns_mounts: bool,
}

impl Users {
    /// That of the sandbox, if it has one of its own.
    pub(crate) fn of_sandbox(plan: &ContainerPlan) -> Result<Option<Users>, Failure> {
        let Some(ids) = plan.sandbox.users else { return Ok(None) };
        let path = format!("/proc/{}/ns/user", plan.pause.pid);
        let file = File::open(&path).map_err(|error| Failure::io("open namespace", &path, error))?;
        if !plan.pause.is_alive() {
            return Err(Failure::rule(format!("the pause process of sandbox {} is gone", plan.sandbox.id)));
        }
        Ok(Some(Users { file, ids, owns_mounts: true }))
    }

    /// Whose numbers they are on the host.
    pub(crate) fn ids(&self) -> UserIds {
        self.ids
    }

    /// From here on files are made as the namespace's root makes them; all rights stay.
    pub(crate) fn own_files(&self) -> Result<(), Failure> {
        act_as(Uid::from_raw(self.ids.first), Gid::from_raw(self.ids.first))
    }

    /// Does something as the host's root, for files that are the host's.
    pub(crate) fn as_host<T>(&self, act: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
        act_as(Uid::from_raw(0), Gid::from_raw(0))?;
        let done = act();
        self.own_files()?;
        done
    }

    /// Refuses a user that does not exist inside, and names the others by the host's numbers.
    pub(crate) fn user_on_host(&self, user: &Resolved) -> Result<Uid, Failure> {
        let groups = user.groups.iter().map(|group| ("group", group.as_raw()));
        for (what, id) in [("user", user.uid), ("group", user.gid)].into_iter().chain(groups) {
            if self.ids.on_host(id).is_none() {
                return Err(Failure::rule(format!(
                    "{what} {id} is not in the pod's user namespace, which has 0 to {}: choose one of these, or \
                     hostUsers: true",
                    self.ids.length - 1
                )));
            }
        }
        Ok(Uid::from_raw(self.ids.first + user.uid))
    }

    /// Becomes root of the namespace. The host's rights are gone for good. Mounts made so far are locked there,
    /// and whoever has the right to mount there may add to them.
    pub(crate) fn enter(self) -> Result<(), Failure> {
        setns(self.file, CloneFlags::CLONE_NEWUSER)
            .map_err(|error| Failure::io("join", "the pod's user namespace", error))?;
        become_root()?;
        // The change of user cleared it.
        prctl::set_pdeathsig(Signal::SIGKILL)
            .map_err(|error| Failure::io("set", "parent death signal", error))?;
        if !self.owns_mounts {
            return Ok(());
        }
        unshare(CloneFlags::CLONE_NEWNS)
            .map_err(|error| Failure::io("create", "mount namespace of the user namespace", error))
    }
}

impl AsFd for Users {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Makes the calling process, which is in a user namespace with all rights there, its root by number.
pub(crate) fn become_root() -> Result<(), Failure> {
    let failed = |error| Failure::io("become", "root of the user namespace", error);
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    setgroups(&[]).map_err(failed)?;
    setresgid(gid, gid, gid).map_err(failed)?;
    setresuid(uid, uid, uid).map_err(failed)
}

fn act_as(uid: Uid, gid: Gid) -> Result<(), Failure> {
    setfsgid(gid);
    setfsuid(uid);
    // The kernel takes away the rights over files together with root's number.
    let permitted = syscall::permitted_capabilities();
    permitted.and_then(syscall::set_capabilities).map_err(|error| Failure::io("keep", "capabilities", error))
}

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
/// in which the caller was born, and the user namespace, which comes last: the caller enters it when it needs no
/// more rights of the host's. The mount namespace brings the process's root.
pub(crate) fn join_process(process: Pid, ids: Option<UserIds>) -> Result<Option<Users>, Failure> {
    let kinds = [
        ("cgroup", CloneFlags::CLONE_NEWCGROUP),
        ("ipc", CloneFlags::CLONE_NEWIPC),
        ("uts", CloneFlags::CLONE_NEWUTS),
        ("net", CloneFlags::CLONE_NEWNET),
        ("mnt", CloneFlags::CLONE_NEWNS),
    ];
    let users = match ids {
        Some(ids) => {
            let path = format!("/proc/{process}/ns/user");
            let file = File::open(&path).map_err(|error| Failure::io("open namespace", &path, error))?;
            Some(Users { file, ids, owns_mounts: false })
        }
        None => None,
    };
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
    Ok(users)
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
