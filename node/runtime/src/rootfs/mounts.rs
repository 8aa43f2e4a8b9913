//! What is mounted over the overlay: `/proc`, `/sys`, `/dev` and below, cgroups, the caller's mounts, and
//! what hides or protects paths. Targets are found through [`Root`], so they cannot lie outside.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sys::statvfs::{FsFlags, fstatvfs};

use super::resolve::{Root, fd_path, is_dir};
use crate::container::spec::{ContainerSpec, Mount, MountKind, Propagation};
use crate::namespaces::Users;
use crate::process::failure::Failure;
use crate::syscall;

/// No programs, no devices, no set-uid: for filesystems of the kernel.
const INERT: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC).union(MsFlags::MS_NODEV);
const DEV_OPTIONS: &str = "mode=755,size=65536k";
const PTS_OPTIONS: &str = "newinstance,ptmxmode=0666,mode=0620";
/// Terminals belong to this group (`tty`) on every distribution.
const TTY_GROUP: u32 = 5;
/// A directory is hidden behind an empty one.
const MASK_OPTIONS: &str = "size=0,mode=755";

/// Keeps mounts made from here on from reaching the host's mount namespace; those of the host still
/// arrive, for the caller's mounts to pass on.
pub(crate) fn detach_from_host() -> Result<(), Failure> {
    let flags = MsFlags::MS_SLAVE | MsFlags::MS_REC;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
        .map_err(|error| Failure::io("make private", "/", error))
}

/// Mounts `/proc`, `/sys`, `/dev` and the filesystems below it. `shm` is the sandbox's shared memory,
/// `cgroups` the container's own view of its hierarchies (empty: none).
pub(crate) fn mount_standard(
    root: &Root,
    spec: &ContainerSpec,
    (shm, cgroups): (&Path, &[(String, PathBuf)]),
    users: Option<&Users>,
) -> Result<(), Failure> {
    let guarded = if spec.privileged { MsFlags::empty() } else { MsFlags::MS_RDONLY };
    fs_at(root, "/proc", "proc", INERT, None)?;
    fs_at(root, "/sys", "sysfs", INERT | guarded, None)?;
    if !cgroups.is_empty() {
        mount_cgroups(root, cgroups, INERT | guarded)?;
    }
    // Device nodes work only where they are bound from the host one by one (see `devices`).
    let nodes = if spec.privileged { MsFlags::empty() } else { MsFlags::MS_NODEV };
    fs_at(root, "/dev", "tmpfs", MsFlags::MS_NOSUID | MsFlags::MS_STRICTATIME | nodes, Some(DEV_OPTIONS))?;
    let devices = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let group = users.map_or(TTY_GROUP, |users| users.ids().first + TTY_GROUP);
    fs_at(root, "/dev/pts", "devpts", devices, Some(&format!("{PTS_OPTIONS},gid={group}")))?;
    fs_at(root, "/dev/mqueue", "mqueue", INERT, None)?;
    let target = dir_at(root, Path::new("/dev/shm"))?;
    bind_onto(shm, &target)
}

fn mount_cgroups(root: &Root, views: &[(String, PathBuf)], flags: MsFlags) -> Result<(), Failure> {
    let top = "/sys/fs/cgroup";
    if let [(controllers, _)] = views
        && controllers.is_empty()
    {
        return fs_at(root, top, "cgroup2", flags, None);
    }
    fs_at(root, top, "tmpfs", flags & !MsFlags::MS_RDONLY, Some("mode=755,size=64k"))?;
    for (controllers, _) in views {
        if controllers.is_empty() {
            fs_at(root, &format!("{top}/unified"), "cgroup2", flags, None)?;
        } else {
            let place = controllers.trim_start_matches("name=");
            fs_at(root, &format!("{top}/{place}"), "cgroup", flags, Some(controllers))?;
        }
    }
    if flags.contains(MsFlags::MS_RDONLY) {
        restrict(root, Path::new(top), flags)?;
    }
    Ok(())
}

/// Copies of the mounts that give back to the host what is mounted in them, one for each of the caller's
/// mounts. Taken before [`detach_from_host`]: afterwards nothing reaches the host any more.
pub(crate) fn copy_shared(
    spec: &ContainerSpec,
    users: Option<&Users>,
) -> Result<Vec<Option<OwnedFd>>, Failure> {
    let copy = |wanted: &Mount| -> Result<Option<OwnedFd>, Failure> {
        if wanted.kind != MountKind::Bind || wanted.propagation != Propagation::Bidirectional {
            return Ok(None);
        }
        if users.is_some() {
            let why = "mounts of a user namespace cannot reach the host: Bidirectional needs hostUsers: true";
            return Err(Failure::rule(why));
        }
        let (source, _held) = source(wanted)?;
        let copied = syscall::clone_mount(&source);
        copied.map(Some).map_err(|error| Failure::io("copy mount", &wanted.source, error))
    };
    spec.mounts.iter().map(copy).collect()
}

/// Makes the caller's mounts, in their order; `shared` is from [`copy_shared`].
pub(crate) fn mount_all(
    root: &Root,
    spec: &ContainerSpec,
    shared: Vec<Option<OwnedFd>>,
    users: Option<&Users>,
) -> Result<(), Failure> {
    for (wanted, shared) in spec.mounts.iter().zip(shared) {
        match wanted.kind {
            MountKind::Tmpfs => mount_tmpfs(root, wanted)?,
            MountKind::Bind => {
                mount_bind(root, wanted, (shared.as_ref(), users), spec.privileged)?;
            }
        }
    }
    Ok(())
}

/// What is bound: the source, or what lies in it, found or made without leaving it. The open file keeps the
/// path good.
fn source(wanted: &Mount) -> Result<(PathBuf, Option<OwnedFd>), Failure> {
    let Some(sub_path) = &wanted.sub_path else { return Ok((wanted.source.clone(), None)) };
    let failed = |error: io::Error| Failure::io("prepare subPath of", &wanted.source, error);
    let volume = Root::open(&wanted.source).map_err(failed)?;
    let found = match volume.find(sub_path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // Whoever may use the volume may use what is made in it.
            let mode = std::fs::metadata(&wanted.source).map_err(failed)?.permissions().mode() & 0o7777;
            volume.make_dir_with(sub_path, Some(mode))
        }
        found => found,
    };
    let found = found.map_err(|error| Failure::io("prepare subPath", sub_path, error))?;
    Ok((fd_path(&found), Some(found)))
}

fn mount_tmpfs(root: &Root, wanted: &Mount) -> Result<(), Failure> {
    let target = dir_at(root, &wanted.target)?;
    let read_only = if wanted.read_only { MsFlags::MS_RDONLY } else { MsFlags::empty() };
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | read_only;
    let options = wanted.options.join(",");
    mount(Some("tmpfs"), &fd_path(&target), Some("tmpfs"), flags, Some(options.as_str()))
        .map_err(|error| Failure::io("mount tmpfs at", &wanted.target, error))
}

fn mount_bind(
    root: &Root,
    wanted: &Mount,
    (shared, users): (Option<&OwnedFd>, Option<&Users>),
    privileged: bool,
) -> Result<(), Failure> {
    // What is made in a volume is the host's, as the volume is.
    let (source, _held) = match users {
        Some(users) => users.as_host(|| source(wanted))?,
        None => source(wanted)?,
    };
    let found = std::fs::metadata(&source)
        .map_err(|error| Failure::io("find mount source", &wanted.source, error))?;
    let target = if found.is_dir() {
        dir_at(root, &wanted.target)?
    } else {
        root.make_file(&wanted.target)
            .map_err(|error| Failure::io("make mount point", &wanted.target, error))?
    };
    match (shared, users) {
        (Some(copy), _) => syscall::attach_mount(copy, &target)
            .map_err(|error| Failure::io("attach mount", &wanted.source, error))?,
        (None, Some(users)) => copy_mapped_from((&source, &wanted.source), users, &target)?,
        (None, None) => bind_onto(&source, &target)?,
    }
    let mut flags = MsFlags::empty();
    if wanted.read_only {
        flags |= MsFlags::MS_RDONLY;
    }
    // A device node that appears on a volume must not open the host's disk.
    if !privileged {
        flags |= MsFlags::MS_NODEV;
    }
    if !flags.is_empty() {
        restrict(root, &wanted.target, flags)?;
    }
    let propagation = match wanted.propagation {
        Propagation::Private => MsFlags::MS_PRIVATE,
        Propagation::HostToContainer => MsFlags::MS_SLAVE,
        // The copy shares with what it was copied from; saying so again changes nothing.
        Propagation::Bidirectional => MsFlags::MS_SHARED,
    };
    let mounted = find(root, &wanted.target)?;
    mount(None::<&str>, &fd_path(&mounted), None::<&str>, propagation | MsFlags::MS_REC, None::<&str>)
        .map_err(|error| Failure::io("set propagation of", &wanted.target, error))
}

/// Hides and write-protects what the specification names, where it exists.
pub(crate) fn guard_paths(root: &Root, spec: &ContainerSpec) -> Result<(), Failure> {
    if spec.privileged {
        return Ok(());
    }
    for path in &spec.masked_paths {
        let Some(target) = find_existing(root, path)? else { continue };
        let masked = if is_dir(&target).map_err(|error| Failure::io("look at", path, error))? {
            let flags = INERT | MsFlags::MS_RDONLY;
            mount(Some("tmpfs"), &fd_path(&target), Some("tmpfs"), flags, Some(MASK_OPTIONS))
        } else {
            mount(Some("/dev/null"), &fd_path(&target), None::<&str>, MsFlags::MS_BIND, None::<&str>)
        };
        masked.map_err(|error| Failure::io("mask", path, error))?;
    }
    for path in &spec.readonly_paths {
        let Some(target) = find_existing(root, path)? else { continue };
        bind_onto(&fd_path(&target), &target)?;
        restrict(root, path, MsFlags::MS_RDONLY)?;
    }
    Ok(())
}

/// Binds a host directory onto an open one, its files with the ids of a user namespace. What is mounted below
/// it comes along as it is.
pub(super) fn copy_mapped(source: &Path, users: &Users, target: &OwnedFd) -> Result<(), Failure> {
    copy_mapped_from((source, source), users, target)
}

fn copy_mapped_from((source, named): (&Path, &Path), users: &Users, target: &OwnedFd) -> Result<(), Failure> {
    let copy = syscall::clone_mount(source).map_err(|error| Failure::io("copy mount", named, error))?;
    syscall::map_ids(&copy, users.as_fd()).map_err(|error| {
        let what = "show with the ids of the pod's user namespace (hostUsers: false; the kernel and the \
                    filesystem must support idmapped mounts)";
        Failure::io(what, named, error)
    })?;
    syscall::attach_mount(&copy, target).map_err(|error| Failure::io("attach mount", named, error))
}

/// Binds a host path, with what is mounted below it, onto an open file or directory.
pub(super) fn bind_onto(source: &Path, target: &OwnedFd) -> Result<(), Failure> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(source), &fd_path(target), None::<&str>, flags, None::<&str>)
        .map_err(|error| Failure::io("bind mount", source, error))
}

/// Adds restrictions to the mount at a path, keeping those it has.
fn restrict(root: &Root, path: &Path, flags: MsFlags) -> Result<(), Failure> {
    let mounted = find(root, path)?;
    let failed = |error| Failure::io("restrict mount", path, error);
    let kept = flags_of(&mounted).map_err(|error| Failure::io("look at mount", path, error))?;
    let flags = kept | flags | MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
    mount(None::<&str>, &fd_path(&mounted), None::<&str>, flags, None::<&str>).map_err(failed)
}

fn flags_of(mounted: &OwnedFd) -> io::Result<MsFlags> {
    let found = fstatvfs(mounted)?.flags();
    let pairs = [
        (FsFlags::ST_RDONLY, MsFlags::MS_RDONLY),
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ];
    let kept = pairs.into_iter().filter(|(fs, _)| found.contains(*fs)).map(|(_, ms)| ms);
    Ok(kept.fold(MsFlags::empty(), MsFlags::union))
}

fn fs_at(root: &Root, path: &str, kind: &str, flags: MsFlags, options: Option<&str>) -> Result<(), Failure> {
    let target =
        root.make_plain_dir(Path::new(path)).map_err(|error| Failure::io("make mount point", path, error))?;
    mount(Some(kind), &fd_path(&target), Some(kind), flags, options)
        .map_err(|error| Failure::io(&format!("mount {kind} at"), path, error))
}

fn dir_at(root: &Root, path: &Path) -> Result<OwnedFd, Failure> {
    root.make_dir(path).map_err(|error| Failure::io("make mount point", path, error))
}

fn find(root: &Root, path: &Path) -> Result<OwnedFd, Failure> {
    root.find(path).map_err(|error| Failure::io("find", path, error))
}

fn find_existing(root: &Root, path: &Path) -> Result<Option<OwnedFd>, Failure> {
    match root.find(path) {
        Ok(found) => Ok(Some(found)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(None),
        Err(error) => Err(Failure::io("find", path, error)),
    }
}
