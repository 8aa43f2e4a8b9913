//! The kernel's questions to the disk, translated: one lock, no cache in the kernel, so that what it answers is what is.

use std::ffi::OsStr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use super::tree::{About, ROOT, Refusal};
use super::{Shared, lock};

/// The kernel asks again each time.
const TTL: Duration = Duration::ZERO;
/// Size of the disk in blocks of 4 KiB, as it is told.
const BLOCKS: u64 = 1 << 22;
/// A sync that is to be slow waits on a thread of its own; so many at once.
const SLOW_MAX: usize = 64;

pub(super) struct Server {
    shared: Arc<Mutex<Shared>>,
}

impl Server {
    pub(super) fn new(shared: Arc<Mutex<Shared>>) -> Self {
        Self { shared }
    }

    /// Does something to the tree, unless the power is off.
    fn with<T>(&self, act: impl FnOnce(&mut Shared) -> Result<T, Errno>) -> Result<T, Errno> {
        let mut shared = lock(&self.shared);
        if shared.without_power { Err(Errno::EIO) } else { act(&mut shared) }
    }

    /// The same for what changes the disk, which may fail or find no room.
    fn change<T>(&self, act: impl FnOnce(&mut Shared) -> Result<T, Refusal>) -> Result<T, Errno> {
        self.with(|shared| {
            shared.fail()?;
            act(shared).map_err(errno)
        })
    }

    /// The same for what takes room: what a file has already may be written over on a full disk, too.
    fn grow<T>(
        &self,
        end: Option<(u64, u64)>,
        act: impl FnOnce(&mut Shared) -> Result<T, Refusal>,
    ) -> Result<T, Errno> {
        self.with(|shared| {
            shared.fail()?;
            let has =
                |(number, end): (u64, u64)| shared.tree.about(number).is_ok_and(|about| end <= about.len);
            if shared.state.full && !end.is_some_and(has) {
                shared.hits += 1;
                return Err(Errno::ENOSPC);
            }
            act(shared).map_err(errno)
        })
    }

    fn sync(&self, number: u64, reply: ReplyEmpty) {
        let mut shared = lock(&self.shared);
        if shared.without_power {
            return reply.error(Errno::EIO);
        }
        if let Err(error) = shared.fail() {
            return reply.error(error);
        }
        if shared.state.hang {
            shared.hits += 1;
            shared.hanging.push((number, reply));
            return;
        }
        let delay = shared.state.sync_delay;
        if delay.is_zero() || Arc::strong_count(&self.shared) > SLOW_MAX {
            return match shared.tree.sync(number) {
                Ok(()) => reply.ok(),
                Err(refusal) => reply.error(errno(refusal)),
            };
        }
        shared.hits += 1;
        drop(shared);
        let shared = Arc::clone(&self.shared);
        std::thread::spawn(move || {
            std::thread::sleep(delay);
            let mut shared = lock(&shared);
            if shared.without_power || shared.tree.sync(number).is_err() {
                reply.error(Errno::EIO);
            } else {
                reply.ok();
            }
        });
    }
}

impl Shared {
    fn fail(&mut self) -> Result<(), Errno> {
        match &mut self.state.errors {
            Some(left @ 1..) => {
                *left -= 1;
                self.hits += 1;
                Err(Errno::EIO)
            }
            _ => Ok(()),
        }
    }
}

fn errno(refusal: Refusal) -> Errno {
    match refusal {
        Refusal::Missing => Errno::ENOENT,
        Refusal::Exists => Errno::EEXIST,
        Refusal::NotEmpty => Errno::ENOTEMPTY,
        Refusal::NotDirectory => Errno::ENOTDIR,
        Refusal::IsDirectory => Errno::EISDIR,
    }
}

fn attributes(about: About) -> FileAttr {
    let time = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino: INodeNo(about.number),
        size: about.len,
        blocks: about.len.div_ceil(512),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: if about.is_directory { FileType::Directory } else { FileType::RegularFile },
        perm: about.mode,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

fn entry(result: Result<About, Errno>, reply: ReplyEntry) {
    match result {
        Ok(about) => reply.entry(&TTL, &attributes(about), Generation(0)),
        Err(error) => reply.error(error),
    }
}

fn empty(result: Result<(), Errno>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

impl Filesystem for Server {
    fn init(&mut self, _req: &Request, _config: &mut KernelConfig) -> std::io::Result<()> {
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        entry(self.with(|shared| shared.tree.lookup(parent.0, name).map_err(errno)), reply);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.with(|shared| shared.tree.about(ino.0).map_err(errno)) {
            Ok(about) => reply.attr(&TTL, &attributes(about)),
            Err(error) => reply.error(error),
        }
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let done = self.grow(Some((ino.0, size.unwrap_or(0))), |shared| {
            if let Some(mode) = mode {
                shared.tree.set_mode(ino.0, (mode & 0o7777) as u16);
            }
            if let Some(size) = size {
                shared.tree.set_len(ino.0, size)?;
            }
            shared.tree.about(ino.0)
        });
        match done {
            Ok(about) => reply.attr(&TTL, &attributes(about)),
            Err(error) => reply.error(error),
        }
    }

    fn mkdir(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let mode = (mode & 0o7777) as u16;
        entry(self.grow(None, |shared| shared.tree.make(parent.0, name, mode, true)), reply);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let remove = |shared: &mut Shared| shared.tree.remove(parent.0, name, false).map_err(errno);
        empty(self.with(remove), reply);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let remove = |shared: &mut Shared| shared.tree.remove(parent.0, name, true).map_err(errno);
        empty(self.with(remove), reply);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        empty(self.change(|shared| shared.tree.rename((parent.0, name), (newparent.0, newname))), reply);
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn create(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let mode = (mode & 0o7777) as u16;
        match self.grow(None, |shared| shared.tree.make(parent.0, name, mode, false)) {
            Ok(about) => {
                let direct = FopenFlags::FOPEN_DIRECT_IO;
                reply.created(&TTL, &attributes(about), Generation(0), FileHandle(0), direct);
            }
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.with(|shared| shared.tree.read(ino.0, offset, size as usize).map_err(errno)) {
            Ok(data) => reply.data(&data),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let end = offset + data.len() as u64;
        match self.grow(Some((ino.0, end)), |shared| shared.tree.write(ino.0, offset, data)) {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(error),
        }
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.sync(ino.0, reply);
    }

    fn fsyncdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.sync(ino.0, reply);
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let list = match self.with(|shared| shared.tree.list(ino.0).map_err(errno)) {
            Ok(list) => list,
            Err(error) => return reply.error(error),
        };
        let dots = [".", ".."].map(|name| (name.into(), ino.0, FileType::Directory));
        let others = list.into_iter().map(|(name, about)| {
            let kind = if about.is_directory { FileType::Directory } else { FileType::RegularFile };
            (name, about.number, kind)
        });
        let all = dots.into_iter().chain(others).enumerate();
        for (at, (name, number, kind)) in all.skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
            if reply.add(INodeNo(number.max(ROOT)), at as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let mut shared = lock(&self.shared);
        let free = if shared.state.full { 0 } else { BLOCKS };
        // Who asks first, and then leaves it, was met as well.
        shared.hits += u64::from(shared.state.full);
        reply.statfs(BLOCKS, free, free, BLOCKS, BLOCKS, 4096, 255, 4096);
    }
}
