//! Network namespaces: making, pinning to a file, opening, entering on a thread of their own, deleting.
//!
//! A namespace is pinned as `ip netns` does it: by a bind mount of its `/proc` file, under `/run/netns`
//! or wherever the caller wants it, so that both tools see each other's work. Entering happens on a
//! thread made for it, which ends with the work; no thread of the caller ever changes its namespace.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::{Path, PathBuf};
use std::thread;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{FsType, statfs};

use super::{Error, Netlink};

/// Where named namespaces are pinned.
pub const NAMED_DIR: &str = "/run/netns";
/// The filesystem type of a pinned namespace (`NSFS_MAGIC`).
const NSFS: FsType = FsType(0x6e73_6673);
/// More mounts than this on one pin is not our doing.
const UNMOUNTS_MAX: usize = 16;

/// An open network namespace. It exists at least as long as this handle.
#[derive(Debug)]
pub struct NetNs {
    file: File,
}

impl NetNs {
    /// Opens a namespace by a path: a pin, or a `/proc/<pid>/ns/net`.
    pub fn open(path: &Path) -> Result<NetNs, Error> {
        let file = File::open(path).map_err(|error| Error::io("open network namespace", path, error))?;
        Ok(NetNs { file })
    }

    /// Opens the namespace of a name made by [`create`] or by `ip netns`.
    pub fn open_named(name: &str) -> Result<NetNs, Error> {
        NetNs::open(&named_path(name)?)
    }

    /// Opens the namespace that a process lives in.
    pub fn of_pid(pid: i32) -> Result<NetNs, Error> {
        NetNs::open(&PathBuf::from(format!("/proc/{pid}/ns/net")))
    }

    /// Opens the namespace of the calling thread.
    pub fn current() -> Result<NetNs, Error> {
        NetNs::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// Runs work inside the namespace, on a thread of its own, and waits for it.
    pub fn run<T, F>(&self, work: F) -> Result<T, Error>
    where
        T: Send,
        F: FnOnce() -> T + Send,
    {
        on_own_thread(move || {
            setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET)
                .map_err(|error| Error::io("enter", "network namespace", error))?;
            Ok(work())
        })
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for NetNs {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Runs work inside the namespace at a path, on a thread of its own, and waits for it.
pub fn run_in_netns<T, F>(path: &Path, work: F) -> Result<T, Error>
where
    T: Send,
    F: FnOnce() -> T + Send,
{
    NetNs::open(path)?.run(work)
}

/// Makes a named namespace with its loopback up, or opens it if it is there.
pub fn create(name: &str) -> Result<NetNs, Error> {
    create_at(&named_path(name)?)
}

/// Makes a namespace pinned at a path of the caller's, with its loopback up, or opens the one there.
pub fn create_at(path: &Path) -> Result<NetNs, Error> {
    if is_pinned(path) {
        return NetNs::open(path);
    }
    let dir = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(dir).map_err(|error| Error::io("create directory", dir, error))?;
    let made = on_own_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|error| Error::io("create", "network namespace", error))?;
        Netlink::open()?.set_up("lo")?;
        pin(Path::new("/proc/thread-self/ns/net"), path)
    });
    match made {
        Ok(()) => NetNs::open(path),
        Err(error) => {
            // The first error is the one to report; what it left is removed as far as possible.
            let _ = delete_at(path);
            Err(error)
        }
    }
}

/// Pins the namespace file of a process or thread at a path, which must not be pinned yet.
pub(crate) fn pin(namespace: &Path, path: &Path) -> Result<(), Error> {
    match OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(_) => {}
        // A file without a mount is what a crash between the two steps leaves.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(Error::io("create", path, error)),
    }
    mount(Some(namespace), path, None::<&OsStr>, MsFlags::MS_BIND, None::<&OsStr>)
        .map_err(|error| Error::io("pin network namespace at", path, error))
}

/// Unpins a named namespace; it ends when its last process does. Returns whether it was there.
pub fn delete(name: &str) -> Result<bool, Error> {
    delete_at(&named_path(name)?)
}

/// Unpins the namespace at a path and removes the file. Returns whether there was anything.
pub fn delete_at(path: &Path) -> Result<bool, Error> {
    for _ in 0..UNMOUNTS_MAX {
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::EINVAL) => break,
            Err(Errno::ENOENT) => return Ok(false),
            Err(error) => return Err(Error::io("unpin network namespace at", path, error)),
        }
    }
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("remove", path, error)),
    }
}

/// The names pinned under [`NAMED_DIR`], sorted.
pub fn list() -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(NAMED_DIR) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("read", NAMED_DIR, error)),
    };
    let mut names: Vec<String> = entries
        .filter_map(Result::ok)
        .filter(|entry| is_pinned(&entry.path()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    Ok(names)
}

/// Whether a namespace is pinned at a path.
pub fn is_pinned(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == NSFS)
}

/// Where a named namespace is pinned.
pub fn named_path(name: &str) -> Result<PathBuf, Error> {
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
        return Err(Error::InvalidName {
            name: name.to_owned(),
            what: "network namespace",
            why: "it must be one plain file name",
        });
    }
    Ok(Path::new(NAMED_DIR).join(name))
}

fn on_own_thread<T, F>(work: F) -> Result<T, Error>
where
    T: Send,
    F: FnOnce() -> Result<T, Error> + Send,
{
    thread::scope(|scope| {
        let spawned = thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, work);
        match spawned {
            Ok(handle) => match handle.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            },
            Err(error) => Err(Error::io("start thread for", "network namespace", error)),
        }
    })
}
