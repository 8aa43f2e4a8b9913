//! Unpacking of image layers: an archive becomes a directory that overlayfs can take as a lower one.
//!
//! Owns nothing. Promises: nothing is read, written or linked outside the destination, whatever the
//! archive says; whiteouts become what overlayfs understands; the digest is that of the whole
//! uncompressed stream. Does not: verify digests, sync to disk (`syncfs` once per image is cheaper), or
//! remove a destination that was half filled when an error came.

mod stream;
mod unpack;

use std::io;
use std::path::{Path, PathBuf};

use self::stream::HashingReader;
use self::unpack::Unpacker;

/// More content than this is no layer but an attack on the disk.
pub const LAYER_BYTES_MAX: u64 = 64 << 30;
/// More entries than this likewise.
pub const LAYER_ENTRIES_MAX: u64 = 10_000_000;

/// What a layer was, once it is unpacked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// Digest of the uncompressed archive, `sha256:<hex>`.
    pub diff_id: String,
    /// Bytes of file content written.
    pub bytes: u64,
    /// Entries of the archive.
    pub entries: u64,
}

/// Why a layer could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The archive is damaged, ends early, or could not be read.
    #[error("cannot read the layer's archive: {0}")]
    Archive(#[source] io::Error),
    /// It is compressed in a way that is not supported.
    #[error("the layer is compressed with {algorithm}, which is not supported; use gzip or none")]
    Compression {
        /// By its usual name.
        algorithm: &'static str,
    },
    /// An entry's name or link leads out of the layer.
    #[error("entry {path:?} leads out of the layer")]
    Escape {
        /// The name or link target.
        path: PathBuf,
    },
    /// An entry is of a kind that file systems do not have.
    #[error("entry {path:?} is of an unknown kind {kind:?}")]
    UnknownKind {
        /// Its name.
        path: PathBuf,
        /// The archive's code for it.
        kind: u8,
    },
    /// The layer is larger than anything reasonable.
    #[error("the layer has more than {limit} {what}")]
    TooLarge {
        /// `bytes` or `entries`.
        what: &'static str,
        /// How many are taken.
        limit: u64,
    },
    /// The file system refused.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// What was done.
        operation: &'static str,
        /// To which entry.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl Error {
    fn io(operation: &'static str, path: &Path, source: impl Into<io::Error>) -> Error {
        Error::Io { operation, path: path.to_owned(), source: source.into() }
    }
}

/// Unpacks a layer (tar, plain or gzip) into a directory, which is made if it is missing and should be
/// empty. Needs root: owners, devices and attributes are kept.
pub fn unpack_layer(reader: impl io::Read, dest: &Path) -> Result<Unpacked, Error> {
    std::fs::create_dir_all(dest).map_err(|error| Error::io("create directory", dest, error))?;
    let mut archive = tar::Archive::new(HashingReader::new(stream::decompress(reader)?));
    let mut unpacker = Unpacker::new(dest)?;
    for entry in archive.entries().map_err(Error::Archive)? {
        unpacker.apply(entry.map_err(Error::Archive)?)?;
    }
    let (bytes, entries) = unpacker.finish()?;
    let diff_id = archive.into_inner().finish().map_err(Error::Archive)?;
    Ok(Unpacked { diff_id, bytes, entries })
}
