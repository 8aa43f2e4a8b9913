//! Making of image layers: files, or a writable layer as overlayfs leaves it, become an archive.
//!
//! The inverse of unpacking: a character device 0/0 becomes `.wh.<name>`, the attribute `trusted.overlay.opaque` of a
//! directory `.wh..wh..opq` in it (OCI image specification, "Representing Changes"). Entries come in the order of
//! their names, so that the same files give the same digest.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};
use ring::digest::{Context, SHA256};
use tar::{Builder, EntryType, Header};

use super::unpack::{ATTRIBUTE_KEY, OPAQUE, OPAQUE_ATTRIBUTE, WHITEOUT, is_kept};
use super::{Error, is_whiteout};
use crate::container::spec::UserIds;
use crate::syscall;

/// What every entry has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryAttributes {
    /// Permissions, with set-uid and the like.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: u64,
}

impl EntryAttributes {
    /// Those of a file.
    pub fn of(metadata: &Metadata) -> Self {
        Self {
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
            mtime: u64::try_from(metadata.mtime()).unwrap_or(0),
        }
    }

    fn header(&self, kind: EntryType) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(self.mode);
        header.set_uid(self.uid.into());
        header.set_gid(self.gid.into());
        header.set_mtime(self.mtime);
        header.set_size(0);
        header
    }
}

/// A layer's archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    /// Digest of the archive, `sha256:<hex>`.
    pub diff_id: String,
    /// Bytes of the archive.
    pub bytes: u64,
    /// How many files, directories, links and whiteouts are in it.
    pub entries: u64,
}

/// Writes a layer's archive, entry by entry. Paths are relative to the root.
pub struct LayerWriter<W: Write> {
    builder: Builder<Hashing<W>>,
    entries: u64,
}

impl<W: Write> LayerWriter<W> {
    /// An empty layer.
    pub fn new(output: W) -> Self {
        let output = Hashing { inner: output, digest: Context::new(&SHA256), bytes: 0 };
        Self { builder: Builder::new(output), entries: 0 }
    }

    /// Adds a directory.
    pub fn directory(&mut self, path: &Path, attributes: &EntryAttributes) -> Result<(), Error> {
        self.entries += 1;
        let mut header = attributes.header(EntryType::Directory);
        let added = self.builder.append_data(&mut header, path, io::empty());
        added.map_err(|error| Error::io("pack", path, error))
    }

    /// Adds a file of so many bytes.
    pub fn file(
        &mut self,
        path: &Path,
        attributes: &EntryAttributes,
        size: u64,
        content: impl Read,
    ) -> Result<(), Error> {
        self.entries += 1;
        let mut header = attributes.header(EntryType::Regular);
        header.set_size(size);
        let mut content = Counted { inner: content.take(size), count: 0 };
        let added = self.builder.append_data(&mut header, path, &mut content);
        added.map_err(|error| Error::io("pack", path, error))?;
        match content.count == size {
            true => Ok(()),
            // The archive is not one any more: its header promised the rest.
            false => Err(Error::io("pack", path, io::Error::other("it became shorter meanwhile"))),
        }
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &Path, attributes: &EntryAttributes, target: &Path) -> Result<(), Error> {
        self.link(path, attributes, target, EntryType::Symlink)
    }

    fn link(
        &mut self,
        path: &Path,
        attributes: &EntryAttributes,
        target: &Path,
        kind: EntryType,
    ) -> Result<(), Error> {
        self.entries += 1;
        let mut header = attributes.header(kind);
        let added = self.builder.append_link(&mut header, path, target);
        added.map_err(|error| Error::io("pack", path, error))
    }

    fn empty_file(&mut self, path: &Path) -> Result<(), Error> {
        self.file(path, &EntryAttributes { mode: 0, uid: 0, gid: 0, mtime: 0 }, 0, io::empty())
    }

    fn extended(&mut self, extended: &[(String, Vec<u8>)], path: &Path) -> Result<(), Error> {
        if extended.is_empty() {
            return Ok(());
        }
        let named = extended.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
        self.builder.append_pax_extensions(named).map_err(|error| Error::io("pack", path, error))
    }

    /// Ends the archive.
    pub fn finish(self) -> Result<Packed, Error> {
        let failed = |error| Error::io("pack", Path::new("the layer's end"), error);
        let mut output = self.builder.into_inner().map_err(failed)?;
        output.flush().map_err(failed)?;
        let diff_id = format!("sha256:{}", hex::encode(output.digest.finish()));
        Ok(Packed { diff_id, bytes: output.bytes, entries: self.entries })
    }
}

/// Packs what a container has written: the upper directory of its overlay, which nobody writes any more. `left_out`
/// says of a path whether it is not the container's own. With `users` owners are told as they are inside.
pub fn pack_upper(
    upper: &Path,
    output: impl Write,
    users: Option<&UserIds>,
    left_out: impl Fn(&Path, &Metadata) -> bool,
) -> Result<Packed, Error> {
    let mut packer =
        Packer { writer: LayerWriter::new(output), users, left_out, first_names: HashMap::new() };
    packer.directory(upper, Path::new(""))?;
    packer.writer.finish()
}

struct Packer<'a, W: Write, F> {
    writer: LayerWriter<W>,
    users: Option<&'a UserIds>,
    left_out: F,
    /// Of files with several names, by device and number.
    first_names: HashMap<(u64, u64), PathBuf>,
}

impl<W: Write, F: Fn(&Path, &Metadata) -> bool> Packer<'_, W, F> {
    fn directory(&mut self, host: &Path, path: &Path) -> Result<(), Error> {
        let failed = |error| Error::io("list", host, error);
        let entries = fs::read_dir(host).map_err(failed)?.collect::<io::Result<Vec<_>>>().map_err(failed)?;
        let mut names: Vec<OsString> = entries.iter().map(fs::DirEntry::file_name).collect();
        names.sort();
        for name in names {
            let (host, path) = (host.join(&name), path.join(&name));
            let metadata = fs::symlink_metadata(&host).map_err(|error| Error::io("look at", &host, error))?;
            if is_whiteout(&metadata) {
                let hidden = [WHITEOUT, name.as_bytes()].concat();
                self.writer.empty_file(&path.with_file_name(std::ffi::OsStr::from_bytes(&hidden)))?;
            } else if !(self.left_out)(&path, &metadata) {
                self.entry(&host, &path, &metadata)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, host: &Path, path: &Path, metadata: &Metadata) -> Result<(), Error> {
        let attributes = self.attributes(metadata);
        let kind = metadata.file_type();
        let failed = |operation: &'static str| move |error: io::Error| Error::io(operation, host, error);
        if kind.is_symlink() {
            let target = fs::read_link(host).map_err(failed("read link"))?;
            return self.writer.symlink(path, &attributes, &target);
        }
        if kind.is_dir() {
            self.extended(host, path)?;
            self.writer.directory(path, &attributes)?;
            let opaque = syscall::get_xattr(host, OPAQUE_ATTRIBUTE).map_err(failed("read attributes of"))?;
            if opaque.is_some_and(|value| value == b"y") {
                self.writer.empty_file(&path.join(std::ffi::OsStr::from_bytes(OPAQUE)))?;
            }
            return self.directory(host, path);
        }
        if metadata.nlink() > 1 {
            let number = (metadata.dev(), metadata.ino());
            if let Some(first) = self.first_names.get(&number).cloned() {
                return self.writer.link(path, &attributes, &first, EntryType::Link);
            }
            self.first_names.insert(number, path.to_owned());
        }
        if kind.is_file() {
            self.extended(host, path)?;
            let file = File::options().read(true).custom_flags(libc_nofollow()).open(host);
            return self.writer.file(path, &attributes, metadata.len(), file.map_err(failed("open"))?);
        }
        let kind = match kind {
            kind if kind.is_fifo() => EntryType::Fifo,
            kind if kind.is_char_device() => EntryType::Char,
            kind if kind.is_block_device() => EntryType::Block,
            // Sockets lead nowhere once their listener is gone.
            _ => return Ok(()),
        };
        self.writer.entries += 1;
        let mut header = attributes.header(kind);
        let number = |part: u64| u32::try_from(part).unwrap_or(u32::MAX);
        header
            .set_device_major(number(major(metadata.rdev())))
            .and_then(|()| header.set_device_minor(number(minor(metadata.rdev()))))
            .and_then(|()| self.writer.builder.append_data(&mut header, path, io::empty()))
            .map_err(failed("pack"))
    }

    fn attributes(&self, metadata: &Metadata) -> EntryAttributes {
        let attributes = EntryAttributes::of(metadata);
        let inside = |id: u32| match self.users {
            Some(users) => id.checked_sub(users.first).filter(|id| *id < users.length).unwrap_or(id),
            None => id,
        };
        EntryAttributes { uid: inside(attributes.uid), gid: inside(attributes.gid), ..attributes }
    }

    fn extended(&mut self, host: &Path, path: &Path) -> Result<(), Error> {
        let failed = |error| Error::io("read attributes of", host, error);
        let mut extended = Vec::new();
        for name in syscall::list_xattrs(host).map_err(failed)? {
            let Some(text) = name.to_str().ok().filter(|name| is_kept(name)) else { continue };
            if let Some(value) = syscall::get_xattr(host, &name).map_err(failed)? {
                extended.push((format!("{ATTRIBUTE_KEY}{text}"), value));
            }
        }
        self.writer.extended(&extended, path)
    }
}

fn libc_nofollow() -> i32 {
    nix::fcntl::OFlag::O_NOFOLLOW.bits()
}

struct Counted<R> {
    inner: R,
    count: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.count += length as u64;
        Ok(length)
    }
}

struct Hashing<W> {
    inner: W,
    digest: Context,
    bytes: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.inner.write(bytes)?;
        self.digest.update(&bytes[..length]);
        self.bytes += length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
