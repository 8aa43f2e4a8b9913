//! Entries of an archive become files. Every path is resolved inside the destination only (see
//! [`Root`]); the last component is never followed.
//!
//! Whiteouts: `.wh.<name>` becomes a character device 0/0 of that name, `.wh..wh..opq` the attribute
//! `trusted.overlay.opaque` of its directory. They hide what is in layers below and never what this layer
//! itself brings, in whichever order the two stand in the archive.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstatat, futimens, makedev,
    mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, linkat, symlinkat, unlinkat};
use tar::{Entry, EntryType, Header};

use super::{Error, LayerLimits};
use crate::rootfs::resolve::Root;
use crate::syscall;

pub(super) const WHITEOUT: &[u8] = b".wh.";
/// Names of the union filesystem's own, of which only the opaque mark means something.
const WHITEOUT_META: &[u8] = b".wh..wh.";
pub(super) const OPAQUE: &[u8] = b".wh..wh..opq";
pub(super) const OPAQUE_ATTRIBUTE: &CStr = c"trusted.overlay.opaque";
/// Names of directories that are kept until the end, together.
const DIR_NAMES_BYTES_MAX: usize = 64 << 20;
const COPY_BUFFER_BYTES: usize = 64 << 10;
/// How archives name extended attributes.
pub(super) const ATTRIBUTE_KEY: &str = "SCHILY.xattr.";

/// Fills a directory from an archive's entries.
pub(super) struct Unpacker {
    root: Root,
    /// The directory of the entry before: most entries stand beside their predecessor.
    parent: Option<(PathBuf, OwnedFd)>,
    /// Times of directories, which filling them changes.
    dir_times: Vec<(PathBuf, i64)>,
    dir_names_bytes: usize,
    limits: LayerLimits,
    bytes: u64,
    entries: u64,
}

/// What every kind of entry has.
struct Attributes {
    mode: Mode,
    uid: Uid,
    gid: Gid,
    mtime: i64,
    extended: Vec<(CString, Vec<u8>)>,
}

impl Unpacker {
    pub(super) fn new(dest: &Path, limits: LayerLimits) -> Result<Unpacker, Error> {
        let root = Root::open(dest).map_err(|error| Error::io("open", dest, error))?;
        let dir_times = Vec::new();
        Ok(Unpacker { root, parent: None, dir_times, dir_names_bytes: 0, limits, bytes: 0, entries: 0 })
    }

    pub(super) fn limits(&self) -> LayerLimits {
        self.limits
    }

    /// Makes one entry.
    pub(super) fn apply(&mut self, entry: &mut Entry<'_, impl Read>) -> Result<(), Error> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(Error::TooLarge { what: "entries", limit: self.limits.entries });
        }
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader | EntryType::XHeader) {
            return Ok(());
        }
        let named = PathBuf::from(OsStr::from_bytes(&entry.path_bytes()));
        let path = inside(&named)?;
        let attributes = attributes(entry)?;
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
            return self.finish_dir(&path, &attributes);
        };
        if name.as_bytes().starts_with(WHITEOUT) {
            return self.white_out(dir, name, &path);
        }
        let name = name.to_owned();
        match kind {
            EntryType::Directory => self.make_dir(&path, &name, &attributes),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.make_file(&path, &name, &attributes, entry)
            }
            EntryType::Symlink => self.make_symlink(&path, &name, &attributes, entry),
            EntryType::Link => self.make_link(&path, &name, entry),
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                self.make_node(&path, &name, &attributes, entry.header())
            }
            other => Err(Error::UnknownKind { path, kind: other.as_byte() }),
        }
    }

    /// Sets the directories' times. Returns bytes and entries.
    pub(super) fn finish(self) -> Result<(u64, u64), Error> {
        for (path, mtime) in self.dir_times.iter().rev() {
            // A later entry may have taken its place.
            let parent = path.parent().unwrap_or(Path::new(""));
            let name = path.file_name().unwrap_or(OsStr::new("."));
            let Ok(parent) = self.root.find(dot_if_empty(parent)) else { continue };
            let times = TimeSpec::new(*mtime, 0);
            match utimensat(&parent, name, &times, &times, UtimensatFlags::NoFollowSymlink) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(error) => return Err(Error::io("set times of", path, error)),
            }
        }
        Ok((self.bytes, self.entries))
    }

    /// The directory that an entry stands in.
    fn parent(&mut self, path: &Path) -> Result<&OwnedFd, Error> {
        let dir = path.parent().unwrap_or(Path::new(""));
        if self.parent.as_ref().is_none_or(|(known, _)| known != dir) {
            let opened =
                self.root.make_dir(dir).map_err(|error| Error::io("create directory", dir, error))?;
            self.parent = Some((dir.to_owned(), opened));
        }
        let (_, opened) = self.parent.as_ref().expect("set above if it was not");
        Ok(opened)
    }

    /// Takes what stands at an entry's place away, for the entry to replace it.
    fn clear(&mut self, path: &Path, name: &OsStr) -> Result<(), Error> {
        let parent = self.parent(path)?;
        let Some(found) = look_at(parent, name, path)? else { return Ok(()) };
        if is(&found, SFlag::S_IFDIR) {
            remove_tree(parent, name).map_err(|error| Error::io("replace", path, error))?;
            self.parent = None;
            return Ok(());
        }
        let removed = unlinkat(parent, name, UnlinkatFlags::NoRemoveDir);
        // What was reached through a link may be elsewhere now.
        self.parent = self.parent.take().filter(|_| !is(&found, SFlag::S_IFLNK));
        removed.map_err(|error| Error::io("replace", path, error))
    }

    fn make_dir(&mut self, path: &Path, name: &OsStr, attributes: &Attributes) -> Result<(), Error> {
        let parent = self.parent(path)?;
        let found = look_at(parent, name, path)?;
        if !found.as_ref().is_some_and(|found| is(found, SFlag::S_IFDIR)) {
            self.clear(path, name)?;
            mkdirat(self.parent(path)?, name, Mode::S_IRWXU)
                .map_err(|error| Error::io("create directory", path, error))?;
            if found.as_ref().is_some_and(is_whiteout) {
                self.make_opaque(path)?;
            }
        }
        self.finish_dir(path, attributes)
    }

    fn finish_dir(&mut self, path: &Path, attributes: &Attributes) -> Result<(), Error> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let opened = match path.file_name() {
            Some(name) => openat(self.parent(path)?, name, flags, Mode::empty()),
            None => openat(&self.root, ".", flags, Mode::empty()),
        };
        let dir = opened.map_err(|error| Error::io("open", path, error))?;
        attributes.set(&dir, path)?;
        self.dir_names_bytes += path.as_os_str().len();
        if self.dir_names_bytes > DIR_NAMES_BYTES_MAX {
            let limit = DIR_NAMES_BYTES_MAX as u64;
            return Err(Error::TooLarge { what: "bytes of directory names", limit });
        }
        self.dir_times.push((path.to_owned(), attributes.mtime));
        Ok(())
    }

    fn make_file(
        &mut self,
        path: &Path,
        name: &OsStr,
        attributes: &Attributes,
        content: &mut Entry<'_, impl Read>,
    ) -> Result<(), Error> {
        self.clear(path, name)?;
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(self.parent(path)?, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)
            .map_err(|error| Error::io("create", path, error))?;
        let mut file = File::from(file);
        let room = self.limits.bytes - self.bytes;
        let sparse = content.header().entry_type() == EntryType::GNUSparse;
        let content = &mut content.take(room.saturating_add(1));
        let written =
            if sparse { copy_sparse(content, &mut file, path) } else { copy(content, &mut file, path) }?;
        if written > room {
            return Err(Error::TooLarge { what: "bytes", limit: self.limits.bytes });
        }
        self.bytes += written;
        attributes.set(&file, path)?;
        let times = TimeSpec::new(attributes.mtime, 0);
        futimens(&file, &times, &times).map_err(|error| Error::io("set times of", path, error))
    }

    fn make_symlink(
        &mut self,
        path: &Path,
        name: &OsStr,
        attributes: &Attributes,
        entry: &Entry<'_, impl Read>,
    ) -> Result<(), Error> {
        self.clear(path, name)?;
        // Where it points to is the container's business: it is followed only inside its root.
        let to = entry.link_name_bytes().unwrap_or_default();
        let parent = self.parent(path)?;
        symlinkat(OsStr::from_bytes(&to), parent, name)
            .map_err(|error| Error::io("create link", path, error))?;
        attributes.set_named(parent, name, path)
    }

    fn make_link(&mut self, path: &Path, name: &OsStr, entry: &Entry<'_, impl Read>) -> Result<(), Error> {
        let to = inside(Path::new(OsStr::from_bytes(&entry.link_name_bytes().unwrap_or_default())))?;
        let failed = |error: io::Error| Error::io("create hard link", path, error);
        let (Some(to_dir), Some(to_name)) = (to.parent(), to.file_name()) else {
            return Err(Error::Escape { path: to });
        };
        if to == path {
            return Ok(());
        }
        self.clear(path, name)?;
        let to_dir = self.root.find(dot_if_empty(to_dir)).map_err(failed)?;
        linkat(&to_dir, to_name, self.parent(path)?, name, AtFlags::empty())
            .map_err(|error| failed(error.into()))
    }

    fn make_node(
        &mut self,
        path: &Path,
        name: &OsStr,
        attributes: &Attributes,
        header: &Header,
    ) -> Result<(), Error> {
        self.clear(path, name)?;
        let number = |part: io::Result<Option<u32>>| part.map(|part| u64::from(part.unwrap_or(0)));
        let device = match header.entry_type() {
            EntryType::Fifo => 0,
            _ => makedev(
                number(header.device_major()).map_err(Error::Archive)?,
                number(header.device_minor()).map_err(Error::Archive)?,
            ),
        };
        let kind = match header.entry_type() {
            EntryType::Char => SFlag::S_IFCHR,
            EntryType::Block => SFlag::S_IFBLK,
            _ => SFlag::S_IFIFO,
        };
        let parent = self.parent(path)?;
        mknodat(parent, name, kind, Mode::S_IRUSR, device)
            .map_err(|error| Error::io("create device", path, error))?;
        attributes.set_named(parent, name, path)?;
        fchmodat(parent, name, attributes.mode, FchmodatFlags::FollowSymlink)
            .map_err(|error| Error::io("set mode of", path, error))
    }

    fn white_out(&mut self, dir: &Path, name: &OsStr, path: &Path) -> Result<(), Error> {
        if name.as_bytes() == OPAQUE {
            self.parent(path)?;
            return self.make_opaque(dir);
        }
        if name.as_bytes().starts_with(WHITEOUT_META) {
            return Ok(());
        }
        let hidden = OsStr::from_bytes(&name.as_bytes()[WHITEOUT.len()..]).to_owned();
        if hidden.is_empty() || hidden == "." || hidden == ".." {
            return Err(Error::Escape { path: path.to_owned() });
        }
        let parent = self.parent(path)?;
        match look_at(parent, &hidden, path)? {
            // This layer has a directory there: it hides the one below as a whole.
            Some(found) if is(&found, SFlag::S_IFDIR) => self.make_opaque(&dir.join(&hidden)),
            Some(_) => Ok(()),
            None => mknodat(parent, hidden.as_os_str(), SFlag::S_IFCHR, Mode::empty(), makedev(0, 0))
                .map_err(|error| Error::io("create whiteout", path, error)),
        }
    }

    fn make_opaque(&mut self, dir: &Path) -> Result<(), Error> {
        let failed = |error: io::Error| Error::io("make opaque", dir, error);
        let opened = self.root.find(dot_if_empty(dir)).map_err(failed)?;
        syscall::set_xattr(opened.as_fd(), OPAQUE_ATTRIBUTE, b"y").map_err(failed)
    }
}

impl Attributes {
    /// Sets them on an open file or directory. Owner first: changing it takes set-uid and capabilities
    /// away.
    fn set(&self, fd: &impl AsFd, path: &Path) -> Result<(), Error> {
        fchown(fd, Some(self.uid), Some(self.gid)).map_err(|error| Error::io("set owner of", path, error))?;
        fchmod(fd, self.mode).map_err(|error| Error::io("set mode of", path, error))?;
        for (name, value) in &self.extended {
            match syscall::set_xattr(fd.as_fd(), name, value) {
                Ok(()) => {}
                // A file system without them: the file is still right for those who do not look.
                Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => {}
                Err(error) => return Err(Error::io("set attribute of", path, error)),
            }
        }
        Ok(())
    }

    /// Sets owner and times of what cannot be opened.
    fn set_named(&self, parent: &OwnedFd, name: &OsStr, path: &Path) -> Result<(), Error> {
        fchownat(parent, name, Some(self.uid), Some(self.gid), AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(|error| Error::io("set owner of", path, error))?;
        let times = TimeSpec::new(self.mtime, 0);
        utimensat(parent, name, &times, &times, UtimensatFlags::NoFollowSymlink)
            .map_err(|error| Error::io("set times of", path, error))
    }
}

fn attributes(entry: &mut Entry<'_, impl Read>) -> Result<Attributes, Error> {
    let mut extended = Vec::new();
    if let Some(extensions) = entry.pax_extensions().map_err(Error::Archive)? {
        for extension in extensions {
            let extension = extension.map_err(Error::Archive)?;
            let name = extension.key().ok().and_then(|key| key.strip_prefix(ATTRIBUTE_KEY));
            if let Some(name) = name.filter(|name| is_kept(name))
                && let Ok(name) = CString::new(name)
            {
                extended.push((name, extension.value_bytes().to_vec()));
            }
        }
    }
    let header = entry.header();
    let old = header.as_old();
    let id = |value: io::Result<u64>, field: &[u8]| blank_is_zero(value, field).map(|id| id as u32);
    let mode = blank_is_zero(header.mode().map(u64::from), &old.mode)? as u32;
    Ok(Attributes {
        mode: Mode::from_bits_truncate(mode & 0o7777),
        uid: Uid::from_raw(id(header.uid(), &old.uid)?),
        gid: Gid::from_raw(id(header.gid(), &old.gid)?),
        mtime: i64::try_from(blank_is_zero(header.mtime(), &old.mtime)?).unwrap_or(0),
        extended,
    })
}

/// Some archivers leave numbers out that are 0.
fn blank_is_zero(value: io::Result<u64>, field: &[u8]) -> Result<u64, Error> {
    match value {
        Err(_) if field.iter().all(|byte| matches!(byte, 0 | b' ')) => Ok(0),
        value => value.map_err(Error::Archive),
    }
}

/// Attributes that are the file's. Others speak to the host: `trusted.overlay.*` would redirect the
/// overlay itself.
pub(super) fn is_kept(name: &str) -> bool {
    name.starts_with("user.") || name == "security.capability"
}

/// An entry's name as a path relative to the destination.
fn inside(named: &Path) -> Result<PathBuf, Error> {
    let mut path = PathBuf::new();
    for component in named.components() {
        match component {
            Component::Normal(part) => path.push(part),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(Error::Escape { path: named.to_owned() });
            }
        }
    }
    Ok(path)
}

fn dot_if_empty(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

fn look_at(parent: &OwnedFd, name: &OsStr, path: &Path) -> Result<Option<FileStat>, Error> {
    match fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::ENOENT) => Ok(None),
        Err(error) => Err(Error::io("look at", path, error)),
    }
}

fn is(found: &FileStat, kind: SFlag) -> bool {
    SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == kind
}

fn is_whiteout(found: &FileStat) -> bool {
    is(found, SFlag::S_IFCHR) && found.st_rdev == 0
}

/// Tells reading errors (the archive's) from writing errors (the disk's).
fn copy(from: &mut impl Read, to: &mut File, path: &Path) -> Result<u64, Error> {
    let mut read_error = None;
    let mut source = Watched { inner: from, error: &mut read_error };
    match io::copy(&mut source, to) {
        Ok(length) => Ok(length),
        Err(error) => Err(match read_error {
            Some(read_error) => Error::Archive(read_error),
            None => Error::io("write", path, error),
        }),
    }
}

/// Leaves holes where the archive says that there are some: a name may claim any size.
fn copy_sparse(from: &mut impl Read, to: &mut File, path: &Path) -> Result<u64, Error> {
    let failed = |error| Error::io("write", path, error);
    let mut buffer = vec![0; COPY_BUFFER_BYTES];
    let mut total = 0;
    loop {
        let length = from.read(&mut buffer).map_err(Error::Archive)?;
        if length == 0 {
            to.set_len(total).map_err(failed)?;
            return Ok(total);
        }
        let chunk = &buffer[..length];
        if chunk.iter().all(|byte| *byte == 0) {
            to.seek(SeekFrom::Current(length as i64)).map_err(failed)?;
        } else {
            to.write_all(chunk).map_err(failed)?;
        }
        total += length as u64;
    }
}

struct Watched<'a, R> {
    inner: &'a mut R,
    error: &'a mut Option<io::Error>,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buffer).map_err(|error| {
            let kind = error.kind();
            if kind != io::ErrorKind::Interrupted {
                *self.error = Some(error);
            }
            kind.into()
        })
    }
}

/// Removes a directory with all in it, links not followed.
fn remove_tree(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let dir = openat(parent, name, flags, Mode::empty())?;
    let mut names: Vec<OsString> = Vec::new();
    for entry in nix::dir::Dir::from_fd(dir.try_clone()?)?.iter() {
        let name = OsStr::from_bytes(entry?.file_name().to_bytes()).to_owned();
        if name != "." && name != ".." {
            names.push(name);
        }
    }
    for name in names {
        match unlinkat(&dir, name.as_os_str(), UnlinkatFlags::NoRemoveDir) {
            Err(Errno::EISDIR) => remove_tree(&dir, &name)?,
            removed => removed?,
        }
    }
    Ok(unlinkat(parent, name, UnlinkatFlags::RemoveDir)?)
}
