//! Paths inside a root that is not ours to trust. Every step is an `openat2` that treats the root as `/`,
//! so absolute and relative symbolic links and `..` stay inside, even while somebody changes them.

use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{Mode, mkdirat};

/// How often a lookup is tried again that the kernel broke off because of a concurrent rename.
const TRIES_MAX: u32 = 32;

/// An open root directory.
#[derive(Debug)]
pub(crate) struct Root {
    dir: OwnedFd,
}

impl Root {
    pub(crate) fn open(path: &Path) -> io::Result<Root> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Root { dir: nix::fcntl::open(path, flags, Mode::empty())? })
    }

    /// Opens a path inside the root for naming it (`O_PATH`), links followed.
    pub(crate) fn find(&self, path: &Path) -> io::Result<OwnedFd> {
        self.open_with(path, OFlag::O_PATH, ResolveFlag::empty())
    }

    /// Opens a path inside the root for naming it; a link anywhere in it is refused (ELOOP).
    pub(crate) fn find_plain(&self, path: &Path) -> io::Result<OwnedFd> {
        self.open_with(path, OFlag::O_PATH, ResolveFlag::RESOLVE_NO_SYMLINKS)
    }

    /// Makes a directory inside the root, with all that lead to it, and opens it. Links are followed.
    pub(crate) fn make_dir(&self, path: &Path) -> io::Result<OwnedFd> {
        self.make_dir_with(path, None)
    }

    /// The same, and what was made gets this mode, whatever the umask is.
    pub(crate) fn make_dir_with(&self, path: &Path, mode: Option<u32>) -> io::Result<OwnedFd> {
        let mut reached = self.dir.try_clone()?;
        let mut prefix = PathBuf::new();
        for part in plain_components(path)? {
            prefix.push(part);
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
            reached = match self.open_with(&prefix, flags, ResolveFlag::empty()) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    match mkdirat(&reached, part, Mode::from_bits_truncate(0o755)) {
                        Ok(()) => {
                            let plain = ResolveFlag::empty();
                            let made = self.open_with(&prefix, flags | OFlag::O_NOFOLLOW, plain)?;
                            if let Some(mode) = mode {
                                std::fs::set_permissions(fd_path(&made), Permissions::from_mode(mode))?;
                            }
                            made
                        }
                        // Exists, though not found: a dangling link. The second look says so.
                        Err(Errno::EEXIST) => self.open_with(&prefix, flags, ResolveFlag::empty())?,
                        Err(error) => return Err(error.into()),
                    }
                }
                found => found?,
            };
        }
        Ok(reached)
    }

    /// Makes an empty file inside the root, with the directories that lead to it, unless something is
    /// there, and opens it for naming.
    pub(crate) fn make_file(&self, path: &Path) -> io::Result<OwnedFd> {
        match self.find(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            found => return found,
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Errno::EISDIR.into());
        };
        let parent = self.make_dir(parent)?;
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        match openat(&parent, name, flags, Mode::from_bits_truncate(0o644)) {
            Ok(_) | Err(Errno::EEXIST) => self.find(path),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens a directory inside the root that is no link, making it if it is missing; for `/proc` and
    /// the like, which an image must not redirect.
    pub(crate) fn make_plain_dir(&self, path: &Path) -> io::Result<OwnedFd> {
        self.make_dir(path)?;
        self.find_plain(path)
    }

    fn open_with(&self, path: &Path, flags: OFlag, resolve: ResolveFlag) -> io::Result<OwnedFd> {
        let resolve = resolve | ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve);
        for _ in 0..TRIES_MAX {
            match openat2(self.dir.as_fd(), path, how) {
                Err(Errno::EAGAIN) => {}
                opened => return Ok(opened?),
            }
        }
        Err(Errno::EAGAIN.into())
    }
}

impl From<Root> for OwnedFd {
    fn from(root: Root) -> OwnedFd {
        root.dir
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

/// A path by which mount calls reach an open file.
pub(crate) fn fd_path(fd: &impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}

/// Whether an open file is a directory.
pub(crate) fn is_dir(fd: &OwnedFd) -> io::Result<bool> {
    Ok(File::from(fd.try_clone()?).metadata()?.is_dir())
}

fn plain_components(path: &Path) -> io::Result<Vec<&std::ffi::OsStr>> {
    let mut parts = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(Errno::EINVAL.into()),
        }
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn root() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("inside")).unwrap();
        std::fs::create_dir(dir.path().join("inside/run")).unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        let root = Root::open(&dir.path().join("inside")).unwrap();
        (dir, root)
    }

    #[test]
    fn links_are_followed_inside_the_root_only() {
        let (dir, root) = root();
        symlink("/etc", dir.path().join("inside/absolute")).unwrap();
        symlink("../../etc", dir.path().join("inside/relative")).unwrap();
        symlink("/run", dir.path().join("inside/var-run")).unwrap();
        assert!(root.find(Path::new("/absolute")).is_err(), "/etc of the root is not there yet");
        root.make_file(Path::new("/var-run/a/b")).unwrap();
        assert!(dir.path().join("inside/run/a/b").exists());
        root.make_dir(Path::new("/etc")).unwrap();
        root.make_file(Path::new("/relative/passwd")).unwrap();
        root.make_file(Path::new("/absolute/shadow")).unwrap();
        assert!(dir.path().join("inside/etc/passwd").exists());
        assert!(dir.path().join("inside/etc/shadow").exists());
        assert_eq!(std::fs::read_dir(dir.path().join("etc")).unwrap().count(), 0, "nothing outside");
    }

    #[test]
    fn parents_and_dangling_links_are_refused() {
        let (dir, root) = root();
        assert!(root.make_dir(Path::new("/a/../../b")).is_err());
        symlink("/nowhere", dir.path().join("inside/dangling")).unwrap();
        assert!(root.make_dir(Path::new("/dangling/x")).is_err());
        assert!(root.make_file(Path::new("/dangling")).is_err());
        assert!(!dir.path().join("inside/nowhere").exists());
    }

    #[test]
    fn a_redirected_plain_directory_is_refused() {
        let (dir, root) = root();
        symlink("/run", dir.path().join("inside/proc")).unwrap();
        assert_eq!(root.make_plain_dir(Path::new("/proc")).unwrap_err().raw_os_error(), Some(libc::ELOOP));
        root.make_plain_dir(Path::new("/sys")).unwrap();
        assert!(dir.path().join("inside/sys").is_dir());
    }

    #[test]
    fn what_is_there_is_taken_as_it_is() {
        let (dir, root) = root();
        std::fs::write(dir.path().join("inside/hosts"), "x").unwrap();
        let file = root.make_file(Path::new("hosts")).unwrap();
        assert!(!is_dir(&file).unwrap());
        assert_eq!(std::fs::read_to_string(dir.path().join("inside/hosts")).unwrap(), "x");
        assert!(is_dir(&root.make_file(Path::new("/run")).unwrap()).unwrap());
    }
}
