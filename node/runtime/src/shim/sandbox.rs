//! The maker of a sandbox: namespaces, host name, sysctls, shared memory, the pinned network namespace,
//! and the pause process, which is its child and holds them all. The maker itself ends.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, getpid, pipe2, sethostname};

use super::fail;
use crate::cgroups::Cgroup;
use crate::container::plan::{Bundle, SandboxPlan};
use crate::container::spec::{CgroupSpec, NamespaceMode, PidMode, SHM_BYTES_DEFAULT, SandboxSpec, UserIds};
use crate::container::state::{self, ProcessId, Running};
use crate::error::{Error, Stage};
use crate::namespaces;
use crate::net::{Netlink, netns, sysctl};
use crate::pause;
use crate::process::channel::Report;
use crate::process::init::set_oom_score_adj;
use crate::syscall::{self, Forked};
use crate::time::Timestamp;

/// The group of the pause process below the sandbox's.
const PAUSE_GROUP: &str = "pause";
/// Those of a sandbox that a maker joins to set them up.
const NAMESPACES: [(&str, CloneFlags); 3] =
    [("net", CloneFlags::CLONE_NEWNET), ("uts", CloneFlags::CLONE_NEWUTS), ("ipc", CloneFlags::CLONE_NEWIPC)];
/// What the pause process says when it holds the namespaces; anything else is why it cannot.
const READY: &str = "ready";

/// Makes the sandbox of a state directory.
pub(super) fn run(dir: PathBuf, report: OwnedFd) -> ! {
    match make(&Bundle::new(dir)) {
        Ok(running) => {
            Report::Running(running).send(report);
            syscall::exit_now(0)
        }
        Err(error) => {
            Report::Broken(error.to_string()).send(report);
            fail(&error.to_string())
        }
    }
}

fn make(bundle: &Bundle) -> Result<Running, Error> {
    let own = ProcessId::of(getpid().as_raw())
        .map_err(|error| Error::io("look at", "the maker's own process", error))?;
    state::write(&bundle.shim(), &own)?;
    let plan: SandboxPlan = state::read(&bundle.plan())?
        .ok_or_else(|| Error::State { path: bundle.plan(), reason: "it is missing".to_owned() })?;
    let mut unenforced = plan.cgroup.create(&plan.spec.cgroup)?;
    let group = plan.cgroup.child(PAUSE_GROUP);
    group.create(&CgroupSpec::default())?;
    if let Some(adjustment) = plan.spec.oom_score_adj {
        unenforced.extend(set_oom_score_adj(adjustment).err());
    }
    if let Some(path) = &plan.netns_of {
        let file = File::open(path).map_err(|error| Error::io("open namespace", path, error))?;
        setns(file, CloneFlags::CLONE_NEWNET).map_err(|error| Error::io("join namespace", path, error))?;
    }
    let process = match plan.spec.users {
        None => {
            unshare(namespaces_of(&plan.spec))
                .map_err(|error| Error::io("create", "the sandbox's namespaces", error))?;
            configure(bundle, &plan.spec)?;
            set_sysctls(&plan.spec)?;
            fork_pause(bundle, &group)?
        }
        Some(users) => fork_pause_with_users(bundle, &group, &plan.spec, users)?,
    };
    let running = Running { process, started_at: Timestamp::now(), unenforced };
    state::write(&bundle.running(), &running)?;
    Ok(running)
}

fn namespaces_of(spec: &SandboxSpec) -> CloneFlags {
    let mut flags = CloneFlags::empty();
    if spec.network == NamespaceMode::Own {
        flags |= CloneFlags::CLONE_NEWUTS;
        // One that is joined is there already.
        flags.set(CloneFlags::CLONE_NEWNET, spec.network_of.is_none());
    }
    if spec.ipc == NamespaceMode::Own {
        flags |= CloneFlags::CLONE_NEWIPC;
    }
    if spec.pid == PidMode::Sandbox {
        flags |= CloneFlags::CLONE_NEWPID;
    }
    flags
}

/// Sets up the namespaces that the calling process is in.
fn configure(bundle: &Bundle, spec: &SandboxSpec) -> Result<(), Error> {
    if spec.network == NamespaceMode::Own {
        if !spec.hostname.is_empty() {
            sethostname(&spec.hostname).map_err(|error| Error::io("set host name", &spec.hostname, error))?;
        }
        Netlink::open()?.set_up("lo")?;
    }
    if spec.network == NamespaceMode::Own {
        netns::pin(Path::new("/proc/self/ns/net"), &bundle.netns())?;
    }
    if spec.ipc == NamespaceMode::Own {
        let owner = spec.users.map_or(0, |users| users.first);
        mount_shm(&bundle.shm(), spec.shm_bytes.unwrap_or(SHM_BYTES_DEFAULT), owner)?;
    }
    Ok(())
}

/// Writes the settings of the namespaces that the calling process is in.
fn set_sysctls(spec: &SandboxSpec) -> Result<(), Error> {
    for (name, value) in &spec.sysctls {
        check_sysctl(name, spec.network, spec.ipc)?;
        sysctl::set(name, value)?;
    }
    Ok(())
}

/// Only settings that belong to a namespace of the sandbox's own may be written: others are the host's.
fn check_sysctl(name: &str, network: NamespaceMode, ipc: NamespaceMode) -> Result<(), Error> {
    let of_network = name.starts_with("net.") || name.starts_with("net/");
    let of_ipc = ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."];
    let of_ipc = of_ipc.iter().any(|prefix| name.starts_with(prefix));
    let own = (of_network && network == NamespaceMode::Own) || (of_ipc && ipc == NamespaceMode::Own);
    if own {
        return Ok(());
    }
    Err(Error::invalid("sysctls", format!("{name} does not belong to a namespace of the sandbox's own")))
}

fn mount_shm(path: &Path, bytes: u64, owner: u32) -> Result<(), Error> {
    fs::create_dir(path).map_err(|error| Error::io("create directory", path, error))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let options = format!("mode=1777,size={bytes},uid={owner},gid={owner}");
    mount(Some("shm"), path, Some("tmpfs"), flags, Some(OsStr::new(&options)))
        .map_err(|error| Error::io("mount shared memory at", path, error))
}

fn failed(error: impl Into<io::Error>) -> Error {
    Error::io("start", "the pause process", error)
}

fn pipe() -> Result<(File, File), Error> {
    let (near, far) = pipe2(OFlag::O_CLOEXEC).map_err(failed)?;
    Ok((near.into(), far.into()))
}

/// Starts the pause process in the namespaces of the calling one and waits until it has shut itself in.
fn fork_pause(bundle: &Bundle, group: &Cgroup) -> Result<ProcessId, Error> {
    let (ready, ready_far) = pipe()?;
    match group.fork_along(CloneFlags::empty())? {
        Forked::Parent { child } => {
            drop(ready_far);
            await_ready(child, ready)
        }
        Forked::Child => {
            drop(ready);
            hold(pause::shut_in(&bundle.dir), ready_far)
        }
    }
}

/// The same with a user namespace, to which the others belong. The kernel makes them for the child; the maker,
/// which keeps the host's rights, joins and sets them up.
fn fork_pause_with_users(
    bundle: &Bundle,
    group: &Cgroup,
    spec: &SandboxSpec,
    users: UserIds,
) -> Result<ProcessId, Error> {
    let (ready, ready_far) = pipe()?;
    let (mut mapped_far, mapped) = pipe()?;
    let flags = namespaces_of(spec);
    let child = match group.fork_along(flags | CloneFlags::CLONE_NEWUSER)? {
        Forked::Parent { child } => child,
        Forked::Child => {
            drop((ready, mapped));
            hold(become_mapped(&mut mapped_far, spec), ready_far)
        }
    };
    drop((ready_far, mapped_far));
    let set_up = || -> Result<(), Error> {
        for map in ["uid_map", "gid_map"] {
            let path = format!("/proc/{child}/{map}");
            fs::write(&path, format!("0 {} {}", users.first, users.length))
                .map_err(|error| Error::io("write", &path, error))?;
        }
        for (kind, flag) in NAMESPACES {
            if flags.contains(flag) {
                let path = format!("/proc/{child}/ns/{kind}");
                let file = File::open(&path).map_err(|error| Error::io("open namespace", &path, error))?;
                setns(file, flag).map_err(|error| Error::io("join namespace", &path, error))?;
            }
        }
        configure(bundle, spec)
    };
    let done = set_up().and_then(|()| (&mapped).write_all(READY.as_bytes()).map_err(failed));
    // Without the word the child ends.
    drop(mapped);
    match (done, await_ready(child, ready)) {
        (Ok(()), outcome) => outcome,
        (Err(error), _) => Err(error),
    }
}

/// Waits for the maker's word, becomes root of the new user namespace, and shuts itself in.
fn become_mapped(mapped: &mut File, spec: &SandboxSpec) -> Result<(), Error> {
    let mut word = [0; READY.len()];
    mapped.read_exact(&mut word).map_err(failed)?;
    namespaces::become_root().map_err(|failure| Error::Start(failure.at(Stage::User)))?;
    // Some are for the root of their namespace only, not for the host's.
    set_sysctls(spec)?;
    // The state directory is out of its reach, but every host has this one.
    pause::shut_in(Path::new("/proc"))
}

/// Tells how shutting in went and, if well, becomes the pause process.
fn hold(outcome: Result<(), Error>, mut ready: File) -> ! {
    let outcome = outcome.map_or_else(|error| error.to_string(), |()| READY.to_owned());
    // Nobody is there to hear why it cannot be said.
    if ready.write_all(outcome.as_bytes()).is_err() || outcome != READY {
        syscall::exit_now(1);
    }
    // The report's pipe among them: the starter waits for its end.
    syscall::close_from_and(3, pause::main)
}

fn await_ready(child: Pid, mut ready: File) -> Result<ProcessId, Error> {
    let mut outcome = String::new();
    ready.read_to_string(&mut outcome).map_err(failed)?;
    match outcome.as_str() {
        READY => ProcessId::of(child.as_raw()).map_err(failed),
        "" => Err(failed(ended_early(child))),
        _ => Err(failed(io::Error::other(outcome))),
    }
}

/// How a pause process ended that never was ready and could not say why.
fn ended_early(child: Pid) -> io::Error {
    let how = match waitpid(child, None) {
        Ok(WaitStatus::Signaled(_, signal, _)) => format!("killed by {signal}"),
        Ok(WaitStatus::Exited(_, code)) => format!("exit code {code}"),
        Ok(status) => format!("{status:?}"),
        Err(error) => error.to_string(),
    };
    io::Error::other(format!("it ended before it was ready ({how})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_the_host_are_refused() {
        let check = |name, network, ipc| check_sysctl(name, network, ipc).is_ok();
        let (own, host) = (NamespaceMode::Own, NamespaceMode::Host);
        assert!(check("net.ipv4.ip_forward", own, host));
        assert!(!check("net.ipv4.ip_forward", host, own));
        assert!(check("kernel.shmmax", host, own));
        assert!(!check("kernel.shmmax", own, host));
        assert!(!check("kernel.panic", own, own));
        assert!(!check("vm.swappiness", own, own));
    }
}
