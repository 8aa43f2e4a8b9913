//! Image layers: an archive becomes a directory that overlayfs can take as a lower one ([`unpack_layer`]); files, or
//! what a container wrote, become an archive ([`LayerWriter`], [`pack_upper`]); unpacked layers are looked into
//! without being mounted ([`LayerStack`]).
//!
//! Owns nothing. Promises: nothing is read, written or linked outside the destination, whatever the
//! archive says; memory and disk are bounded by [`LayerLimits`], however little the archive weighs; whiteouts
//! become what overlayfs understands; the digest is that of the whole uncompressed stream. Does not: verify digests, sync to disk (`syncfs` once per image is cheaper), or
//! remove a destination that was half filled when an error came.

mod pack;
mod stack;
mod stream;
mod unpack;

use std::io;
use std::path::{Path, PathBuf};

pub use self::pack::{EntryAttributes, LayerWriter, Packed, pack_upper};
pub use self::stack::{LayerStack, StackEntry};
use self::stream::{Budget, HashingReader};
use self::unpack::Unpacker;

/// What a layer may come to at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerLimits {
    /// Bytes of the uncompressed archive, and bytes of file content.
    pub bytes: u64,
    /// Entries of the archive.
    pub entries: u64,
}

impl Default for LayerLimits {
    fn default() -> Self {
        Self { bytes: 64 << 30, entries: 4_000_000 }
    }
}

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
    #[error("the layer is compressed with {algorithm}, which is not supported; use zstd, gzip or none")]
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
        /// `bytes`, `entries`, and the like.
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

/// Unpacks a layer (tar, plain, gzip or zstd) into a directory, which is made if it is missing and should be
/// empty. Needs root: owners, devices and attributes are kept.
pub fn unpack_layer(reader: impl io::Read, dest: &Path, limits: LayerLimits) -> Result<Unpacked, Error> {
    std::fs::create_dir_all(dest).map_err(|error| Error::io("create directory", dest, error))?;
    let budget = Budget::new(limits);
    let stream = HashingReader::new(stream::decompress(reader)?, budget.clone());
    let mut archive = tar::Archive::new(stream);
    let unpacked = unpack_entries(&mut archive, &budget, Unpacker::new(dest, limits)?);
    // A reader that refused to go on looks like a damaged archive from the outside.
    let (bytes, entries) = unpacked.map_err(|error| budget.exceeded().unwrap_or(error))?;
    let diff_id = archive.into_inner().finish();
    let diff_id = diff_id.map_err(|error| budget.exceeded().unwrap_or(Error::Archive(error)))?;
    Ok(Unpacked { diff_id, bytes, entries })
}

/// Whether a file of a layer hides what is below: overlayfs' own mark.
fn is_whiteout(metadata: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
    metadata.file_type().is_char_device() && metadata.rdev() == 0
}

fn unpack_entries(
    archive: &mut tar::Archive<impl io::Read>,
    budget: &Budget,
    mut unpacker: Unpacker,
) -> Result<(u64, u64), Error> {
    let mut entries = archive.entries().map_err(Error::Archive)?;
    loop {
        budget.headers_follow();
        let Some(entry) = entries.next() else { return unpacker.finish() };
        let mut entry = entry.map_err(Error::Archive)?;
        budget.content_follows();
        unpacker.apply(&mut entry)?;
        // What an entry carries that should carry nothing.
        let rest = &mut io::Read::take(&mut entry, unpacker.limits().bytes);
        io::copy(rest, &mut io::sink()).map_err(Error::Archive)?;
    }
}
