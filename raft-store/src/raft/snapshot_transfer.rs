//! Raft snapshots: how a state is encoded, and the checksummed file that a receiver or an operator gets.
//!
//! The leader encodes a view of its state straight into a stream (`snapshot_send`); nothing is written on its disk.
//! The receiver writes a file (`snapshot_receive`), makes it durable and only then hands it to the state machine.
//! The file is
//!
//! ```text
//! magic (8) | length of meta (4, LE) | meta (SnapshotHeader) | CRC-32C of meta (4, LE) | encoded state
//! ```
//!
//! and the encoded state carries its own checksums and trailer (see `state_machine`), so that a damaged or
//! cut file is refused.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use prost::Message;
use proto::raft as wire;
use state_machine::{SnapshotError, SnapshotWriter, StateMachine};
use tokio_stream::wrappers::ReceiverStream;

use super::codec;
use super::state_machine::State;
use super::types::{CommittedLeaderId, Member, MemberId, SnapshotMeta};
use crate::blocking::{self, Pieces};

const MAGIC: &[u8; 8] = b"BARQSNP1";
/// Of the encoded state, in one message.
pub(crate) const CHUNK_BYTES: usize = 256 * 1024;
/// A file for an operator is a multiple of this, and its hash: so etcd's clients see that the hash is there.
const FILE_BLOCK_BYTES: usize = 512;
/// Keys read under one hold of the state's lock.
const KEYS_PER_STEP: usize = 1024;
/// Chunks that wait for the network before encoding pauses.
pub(crate) const CHUNKS_IN_FLIGHT_MAX: usize = 8;
/// No group has a membership near this size; larger means damage.
const META_BYTES_MAX: usize = 1024 * 1024;

/// The content of a raft snapshot, as the consensus library passes it around.
pub(crate) enum SnapshotData {
    /// This member's state, at whatever log id it has when it is sent.
    Live(Arc<RwLock<State>>),
    /// A complete, durable file that came from the leader.
    File(PathBuf),
}

/// A raft snapshot with its description.
pub(crate) type Snapshot = openraft::Snapshot<CommittedLeaderId, MemberId, Member, SnapshotData>;

/// Why a snapshot file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotFileError {
    /// Reading or writing failed.
    #[error("snapshot file {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The content is not what was written.
    #[error("snapshot file {path} is damaged: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
}

/// Encodes the state, in steps, so that applying goes on meanwhile.
pub(crate) fn encode_live<W: Write>(
    state: &RwLock<State>,
    output: &mut W,
    head: impl FnOnce(&SnapshotMeta, &mut W) -> io::Result<()>,
) -> io::Result<()> {
    let read = || state.read().expect("no code panics while it holds the state's lock");
    let (meta, mut snapshot) = {
        let state = read();
        (state.meta(), state.machine.snapshot())
    };
    head(&meta, output)?;
    let mut writer = SnapshotWriter::begin(output, snapshot.header()).map_err(io::Error::other)?;
    loop {
        let records = snapshot.read_chunk(&read().machine, KEYS_PER_STEP).map_err(io::Error::other)?;
        let Some(records) = records else { break };
        writer.write(&records).map_err(io::Error::other)?;
    }
    writer.finish().map(drop).map_err(io::Error::other)
}

/// The state as a file for an operator: a snapshot file, zeros up to a whole block, and the SHA-256 of it all;
/// etcd's clients take nothing else for whole. Memory is bounded by the chunks in flight, and applying goes on
/// meanwhile.
pub(crate) fn stream_file(
    state: Arc<RwLock<State>>,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let pieces = blocking::make_pieces(CHUNKS_IN_FLIGHT_MAX, move |pieces| {
        let hash = ring::digest::Context::new(&ring::digest::SHA256);
        let mut file = FileWriter { pieces, hash, bytes: 0, buffer: BytesMut::with_capacity(CHUNK_BYTES) };
        let written = encode_live(&state, &mut file, |meta, file| file.write_all(&file_head(meta)));
        let sent = written.and_then(|()| file.finish());
        if let Err(error) = sent {
            tracing::warn!(%error, "a snapshot for a client was not sent to its end");
            // The client, if it is still there, must not take what it has for a whole file.
            let _ = file.pieces.put(Err(error));
        }
    });
    ReceiverStream::new(pieces)
}

/// Cuts what is written into pieces and hashes it.
struct FileWriter {
    pieces: Pieces<io::Result<Bytes>>,
    hash: ring::digest::Context,
    bytes: usize,
    buffer: BytesMut,
}

impl FileWriter {
    fn send(&mut self) -> io::Result<()> {
        let piece = self.buffer.split().freeze();
        self.hash.update(&piece);
        self.pieces.put(Ok(piece))
    }

    fn finish(&mut self) -> io::Result<()> {
        self.write_all(&[0; FILE_BLOCK_BYTES][..self.bytes.next_multiple_of(FILE_BLOCK_BYTES) - self.bytes])?;
        self.flush()?;
        let hash = Bytes::copy_from_slice(self.hash.clone().finish().as_ref());
        self.pieces.put(Ok(hash))
    }
}

impl Write for FileWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK_BYTES - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        self.bytes += taken;
        if self.buffer.len() == CHUNK_BYTES {
            self.send()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() { Ok(()) } else { self.send() }
    }
}

/// Writes a state into a snapshot file, durably.
pub(crate) fn write_installed(
    directory: &Path,
    meta: &SnapshotMeta,
    machine: &StateMachine,
) -> Result<(), SnapshotFileError> {
    let path = installed_path(directory);
    let io = |source| SnapshotFileError::Io { path: path.clone(), source };
    let mut file = io::BufWriter::with_capacity(CHUNK_BYTES, File::create(&path).map_err(io)?);
    file.write_all(&file_head(meta)).map_err(io)?;
    let written = machine.snapshot().write_all(machine, &mut file);
    written.map_err(|error| io(io::Error::other(error)))?;
    file.flush().and_then(|()| file.get_ref().sync_all()).map_err(io)?;
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(io)
}

/// A name for a received file until it is installed.
pub(crate) fn next_file(directory: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    directory.join(format!("incoming-{}-{number}.snapshot", std::process::id()))
}

/// What stands before the encoded state in a file.
pub(crate) fn file_head(meta: &SnapshotMeta) -> Vec<u8> {
    let meta = codec::meta_to_record(meta);
    let mut head = MAGIC.to_vec();
    head.extend_from_slice(&(meta.len() as u32).to_le_bytes());
    head.extend_from_slice(&meta);
    head.extend_from_slice(&crc32c::crc32c(&meta).to_le_bytes());
    head
}

/// Reads the head; what follows is the encoded state.
pub(crate) fn open_file(path: &Path) -> Result<(SnapshotMeta, BufReader<File>), SnapshotFileError> {
    let io = |source| SnapshotFileError::Io { path: path.to_owned(), source };
    let damaged = |reason: String| SnapshotFileError::Damaged { path: path.to_owned(), reason };
    let mut file = BufReader::with_capacity(CHUNK_BYTES, File::open(path).map_err(io)?);
    let mut fixed = [0; 12];
    file.read_exact(&mut fixed).map_err(io)?;
    if &fixed[..8] != MAGIC {
        return Err(damaged("it does not begin as a snapshot file".into()));
    }
    let length = u32::from_le_bytes([fixed[8], fixed[9], fixed[10], fixed[11]]) as usize;
    if length > META_BYTES_MAX {
        return Err(damaged(format!("its head claims {length} bytes")));
    }
    let mut meta = vec![0; length];
    file.read_exact(&mut meta).map_err(io)?;
    let mut crc = [0; 4];
    file.read_exact(&mut crc).map_err(io)?;
    if u32::from_le_bytes(crc) != crc32c::crc32c(&meta) {
        return Err(damaged("the checksum of its head does not fit".into()));
    }
    let meta = wire::SnapshotHeader::decode(Bytes::from(meta))
        .map_err(codec::DecodeError::from)
        .and_then(|header| codec::meta_from_wire(&header))
        .map_err(|e| damaged(e.to_string()))?;
    Ok((meta, file))
}

/// Reads a snapshot file back into a state machine, checking every checksum.
pub(crate) fn restore(path: &Path) -> Result<(SnapshotMeta, StateMachine), SnapshotFileError> {
    let (meta, state) = open_file(path)?;
    let machine = StateMachine::restore(state).map_err(|error| match error {
        SnapshotError::Io { source, .. } if source.kind() != io::ErrorKind::UnexpectedEof => {
            SnapshotFileError::Io { path: path.to_owned(), source }
        }
        error => SnapshotFileError::Damaged { path: path.to_owned(), reason: error.to_string() },
    })?;
    Ok((meta, machine))
}

/// Where the newest installed snapshot lies until a checkpoint supersedes it.
pub(crate) fn installed_path(directory: &Path) -> PathBuf {
    directory.join("installed.snapshot")
}

/// Makes a received file the installed one, durably.
pub(crate) fn keep(received: &Path, directory: &Path) -> Result<PathBuf, SnapshotFileError> {
    let installed = installed_path(directory);
    std::fs::rename(received, &installed)
        .and_then(|()| File::open(directory)?.sync_all())
        .map_err(|source| SnapshotFileError::Io { path: installed.clone(), source })?;
    Ok(installed)
}
