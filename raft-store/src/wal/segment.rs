//! Segment files: their names, their header block, and the file that says whose log this is.
//!
//! A segment is one file of fixed size: a 4 KiB header block, then records. The header is written once, before the
//! file gets its name, and never again; it is the only place where a file's *life* is described (a recycled file
//! gets a new header with a new random nonce, to which all its records are bound).
//!
//! ```text
//! offset  bytes                              offset  bytes
//!  0      8    magic "BARQWAL\n"              40     8    nonce of this life of the file
//!  8      4    format version                 48     8    nonce of the segment before it
//! 12      4    CRC-32C of the block, this 0   56     8    size of the file
//! 16      16   cluster id                     64     1    1: the file was used before
//! 32      8    member id                      65     …    zeros
//! 72      8    sequence number
//! ```

use std::path::{Path, PathBuf};

use super::disk::{Disk, DiskFile};
use super::error::{Damage, Error};

/// Version of the format of segments and of the identity file.
pub(super) const VERSION: u32 = 1;
/// Size of the header block; records follow.
pub(super) const HEADER_BYTES: usize = 4096;
/// Writes are whole blocks of this size, so that the kernel never has to read before it writes.
pub(super) const BLOCK_BYTES: usize = 4096;

const MAGIC: &[u8; 8] = b"BARQWAL\n";
const IDENTITY_NAME: &str = "IDENTITY";
const IDENTITY_TEMPORARY_NAME: &str = "IDENTITY.tmp";

/// Whose log it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster_id: [u8; 16],
    /// The member.
    pub member_id: u64,
}

/// What a segment's header block says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) identity: Identity,
    pub(super) sequence: u64,
    pub(super) nonce: u64,
    pub(super) previous_nonce: u64,
    pub(super) segment_bytes: u64,
    pub(super) recycled: bool,
}

/// An open segment.
#[derive(Debug)]
pub(super) struct Segment<F> {
    pub(super) header: SegmentHeader,
    pub(super) file: F,
}

/// File name of segment `sequence`.
pub(super) fn segment_name(sequence: u64) -> String {
    format!("{sequence:020}.wal")
}

/// File name of a spare that was segment `sequence`.
pub(super) fn spare_name(sequence: u64) -> String {
    format!("{sequence:020}.spare")
}

/// File name of segment `sequence` while it is being prepared.
pub(super) fn temporary_name(sequence: u64) -> String {
    format!("{sequence:020}.tmp")
}

/// What a file in the directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileKind {
    Segment(u64),
    Spare(u64),
    Temporary(u64),
}

/// Tells our files from others, which are left alone.
pub(super) fn classify(name: &str) -> Option<FileKind> {
    let (number, suffix) = name.split_once('.')?;
    if number.len() != 20 {
        return None;
    }
    let sequence = number.parse().ok()?;
    match suffix {
        "wal" => Some(FileKind::Segment(sequence)),
        "spare" => Some(FileKind::Spare(sequence)),
        "tmp" => Some(FileKind::Temporary(sequence)),
        _ => None,
    }
}

impl SegmentHeader {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut block = vec![0; HEADER_BYTES];
        block[..8].copy_from_slice(MAGIC);
        block[8..12].copy_from_slice(&VERSION.to_le_bytes());
        block[16..32].copy_from_slice(&self.identity.cluster_id);
        for (at, value) in [
            (32, self.identity.member_id),
            (40, self.nonce),
            (48, self.previous_nonce),
            (56, self.segment_bytes),
            (72, self.sequence),
        ] {
            block[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        block[64] = u8::from(self.recycled);
        let crc = crc32c::crc32c(&block);
        block[12..16].copy_from_slice(&crc.to_le_bytes());
        block
    }

    /// Reads the header of the file that is named as segment `sequence`, and checks that it is ours.
    pub(super) fn read<D: Disk>(
        disk: &D,
        file: &D::File,
        sequence: u64,
        identity: Identity,
    ) -> Result<Self, Error> {
        let path = disk.dir().join(segment_name(sequence));
        let mut block = vec![0; HEADER_BYTES];
        let read = file.read_at(0, &mut block).map_err(|e| Error::io("read", &path, e))?;
        let damaged = |damage| Error::Damaged { path: path.clone(), offset: 0, damage };
        if read < HEADER_BYTES || block[..8] != *MAGIC {
            return Err(damaged(Damage::Header));
        }
        let version = u32_at(&block, 8);
        if version != VERSION {
            return Err(Error::UnsupportedVersion {
                path: path.to_owned(),
                found: version,
                supported: VERSION,
            });
        }
        let header = Self::decode(&mut block).ok_or_else(|| damaged(Damage::Header))?;
        check_identity(path.clone(), identity, header.identity)?;
        if header.sequence != sequence {
            return Err(damaged(Damage::Renamed { found: header.sequence }));
        }
        Ok(header)
    }

    fn decode(block: &mut [u8]) -> Option<Self> {
        let crc = u32_at(block, 12);
        block[12..16].fill(0);
        if crc32c::crc32c(block) != crc {
            return None;
        }
        Some(Self {
            identity: Identity { cluster_id: block[16..32].try_into().ok()?, member_id: u64_at(block, 32) },
            nonce: u64_at(block, 40),
            previous_nonce: u64_at(block, 48),
            segment_bytes: u64_at(block, 56),
            recycled: block[64] != 0,
            sequence: u64_at(block, 72),
        })
    }
}

/// Makes the identity file. From now on a directory without segments is known to have lost them.
pub(super) fn write_identity<D: Disk>(disk: &D, identity: Identity) -> Result<(), Error> {
    let text = format!(
        "barque write-ahead log\nversion = {VERSION}\ncluster_id = {}\nmember_id = {}\n",
        hex(identity.cluster_id),
        identity.member_id
    );
    let path = disk.dir().join(IDENTITY_TEMPORARY_NAME);
    let names = disk.list().map_err(|e| Error::io("list", disk.dir(), e))?;
    if names.iter().any(|name| name == IDENTITY_TEMPORARY_NAME) {
        disk.remove(IDENTITY_TEMPORARY_NAME).map_err(|e| Error::io("remove", &path, e))?;
    }
    let file = disk.create(IDENTITY_TEMPORARY_NAME).map_err(|e| Error::io("create", &path, e))?;
    file.write_at(0, text.as_bytes()).map_err(|e| Error::io("write", &path, e))?;
    file.sync_data().map_err(|e| Error::io("sync", &path, e))?;
    disk.rename(IDENTITY_TEMPORARY_NAME, IDENTITY_NAME).map_err(|e| Error::io("rename", &path, e))?;
    disk.sync_dir().map_err(|e| Error::io("sync the directory", disk.dir(), e))
}

/// Whether the log has been set up here, for the right owner.
pub(super) fn read_identity<D: Disk>(disk: &D, names: &[String], expected: Identity) -> Result<bool, Error> {
    if !names.iter().any(|name| name == IDENTITY_NAME) {
        return Ok(false);
    }
    let path = disk.dir().join(IDENTITY_NAME);
    let file = disk.open(IDENTITY_NAME).map_err(|e| Error::io("open", &path, e))?;
    let mut text = vec![0; 512];
    let read = file.read_at(0, &mut text).map_err(|e| Error::io("read", &path, e))?;
    let found = parse_identity(&path, &text[..read])?;
    check_identity(path, expected, found)?;
    Ok(true)
}

/// Whose log lies in a directory, without opening it; `None`: there is none.
///
/// # Errors
/// When the identity is there and cannot be read.
pub fn identity_in(dir: &Path) -> Result<Option<Identity>, Error> {
    let path = dir.join(IDENTITY_NAME);
    match std::fs::read(&path) {
        Ok(text) => parse_identity(&path, &text).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", &path, error)),
    }
}

fn parse_identity(path: &Path, text: &[u8]) -> Result<Identity, Error> {
    let text = String::from_utf8_lossy(text);
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "));
    let damaged = || Error::Damaged { path: path.to_owned(), offset: 0, damage: Damage::Header };
    let version = value("version").and_then(|text| text.parse().ok()).ok_or_else(damaged)?;
    if version != VERSION {
        return Err(Error::UnsupportedVersion { path: path.to_owned(), found: version, supported: VERSION });
    }
    Ok(Identity {
        cluster_id: value("cluster_id").and_then(unhex).ok_or_else(damaged)?,
        member_id: value("member_id").and_then(|text| text.parse().ok()).ok_or_else(damaged)?,
    })
}

fn check_identity(path: PathBuf, expected: Identity, found: Identity) -> Result<(), Error> {
    if expected == found {
        return Ok(());
    }
    Err(Error::WrongIdentity {
        path,
        expected_cluster: hex(expected.cluster_id),
        expected_member: expected.member_id,
        found_cluster: hex(found.cluster_id),
        found_member: found.member_id,
    })
}

fn hex(id: [u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(id))
}

fn unhex(text: &str) -> Option<[u8; 16]> {
    (text.len() == 32).then(|| u128::from_str_radix(text, 16).ok()).flatten().map(u128::to_be_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("a slice of four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("a slice of eight bytes"))
}
