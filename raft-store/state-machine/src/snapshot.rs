//! The whole state at one applied position, for another member.
//!
//! Reading it holds nothing up: since old versions are kept anyway, a [`Snapshot`] is a revision and a
//! cursor. Its records are read chunk by chunk from the state while that goes on being changed; until the
//! snapshot is dropped the state only puts off trimming what compactions leave behind.
//!
//! ```text
//! file    = magic version frame(header) frame(records)* frame(trailer)
//! frame   = length:u32 crc32c:u32 kind:u8 payload       (crc over kind and payload; little-endian)
//! records = { key mod_revision body }*                  ascending by key, then revision
//! trailer = count state_hash
//! ```

use std::io::{self, Read, Write};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use crate::machine::StateMachine;
use crate::rebuild::{Rebuild, RebuildError, StateHeader};
use crate::record::{Record, RecordRef};
use crate::wire::{DecodeError, Reader, SliceReader, Writer};

const MAGIC: &[u8; 8] = b"BARQSNAP";
const VERSION: u32 = 1;

/// A frame of records is closed when it has this many bytes.
const FRAME_BYTES: usize = 256 * 1024;

const FRAME_HEADER: u8 = 1;
const FRAME_RECORDS: u8 = 2;
const FRAME_TRAILER: u8 = 3;

/// Why a snapshot cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The reader or writer failed, or the input ended early.
    #[error("snapshot: {operation}: {source}")]
    Io {
        /// What was being done.
        operation: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The input is no snapshot.
    #[error("the input does not begin as a snapshot does")]
    NotASnapshot,
    /// Written by a newer version than this one.
    #[error("snapshot format {version} is not known here (newest known: {VERSION}); upgrade this member")]
    UnknownVersion {
        /// What the input says.
        version: u32,
    },
    /// A frame is damaged.
    #[error("frame {frame} of the snapshot is damaged (checksum)")]
    Checksum {
        /// Which, from 0.
        frame: u64,
    },
    /// A frame of another kind should stand here.
    #[error("frame {frame} of the snapshot has kind {kind}, which does not belong there")]
    UnexpectedFrame {
        /// Which, from 0.
        frame: u64,
        /// Its kind.
        kind: u8,
    },
    /// A record or the header makes no sense.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The records are not the state that the header names.
    #[error(transparent)]
    Rebuild(#[from] RebuildError),
    /// The trailer differs from the header.
    #[error("the snapshot's trailer is not its header's")]
    Trailer,
    /// A frame would be too large to write.
    #[error("{bytes} bytes do not fit into one frame of a snapshot")]
    FrameTooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The snapshot was taken of another state, which was replaced meanwhile.
    #[error("the state that the snapshot was taken of has been replaced")]
    Superseded,
}

fn io_error(operation: &'static str) -> impl FnOnce(io::Error) -> SnapshotError {
    move |source| SnapshotError::Io { operation, source }
}

/// Counts the snapshots that are being read, and tells one state from another.
#[derive(Debug, Default)]
pub(crate) struct SnapshotPins(Arc<()>);

impl SnapshotPins {
    pub(crate) fn any(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

/// A state at one position, to be read in chunks. Drop it when done: it holds trimming back.
#[derive(Debug)]
pub struct Snapshot {
    header: StateHeader,
    pin: Arc<()>,
    /// The last key read.
    after: Option<Bytes>,
}

impl StateMachine {
    /// The state as it is now. Costs next to nothing; the records are read by [`Snapshot::read_chunk`].
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { header: self.header(), pin: self.pins.0.clone(), after: None }
    }

    /// Reads a snapshot that [`SnapshotWriter`] wrote. The whole is verified.
    ///
    /// # Errors
    /// When reading fails, or anything about the input is not as it was written.
    pub fn restore(input: impl Read) -> Result<Self, SnapshotError> {
        let mut frames = Frames::begin(input)?;
        let header = match frames.next()? {
            (FRAME_HEADER, payload) => StateHeader::decode(payload)?,
            (kind, _) => return Err(frames.unexpected(kind)),
        };
        let named = (header.records, header.state_hash);
        let mut rebuild = Rebuild::new(header);
        loop {
            match frames.next()? {
                (FRAME_RECORDS, payload) => {
                    let mut reader = SliceReader::new(&payload);
                    while reader.remaining() > 0 {
                        rebuild.insert(RecordRef::read(&mut reader)?)?;
                    }
                }
                (FRAME_TRAILER, payload) => {
                    let mut reader = Reader::new(payload);
                    if (reader.varint()?, reader.u64_fixed()?) != named {
                        return Err(SnapshotError::Trailer);
                    }
                    break;
                }
                (kind, _) => return Err(frames.unexpected(kind)),
            }
        }
        let mut machine = rebuild.finish()?;
        machine.forget_checkpoint();
        Ok(machine)
    }
}

impl Snapshot {
    /// Describes the state.
    pub fn header(&self) -> &StateHeader {
        &self.header
    }

    /// The next records, from about `keys_max` keys; `None` when there are no more. `machine` must be the
    /// state that the snapshot was taken of; it may have changed since.
    ///
    /// # Errors
    /// When `machine` is another state.
    pub fn read_chunk(
        &mut self,
        machine: &StateMachine,
        keys_max: usize,
    ) -> Result<Option<Vec<Arc<Record>>>, SnapshotError> {
        self.read(machine, keys_max.max(1), u64::MAX)
    }

    /// The same, by bytes.
    pub(crate) fn read_bytes(
        &mut self,
        machine: &StateMachine,
        bytes_max: u64,
    ) -> Result<Option<Vec<Arc<Record>>>, SnapshotError> {
        self.read(machine, usize::MAX, bytes_max)
    }

    /// Whether the snapshot was taken of this state.
    pub(crate) fn check_origin(&self, machine: &StateMachine) -> Result<(), SnapshotError> {
        if Arc::ptr_eq(&self.pin, &machine.pins.0) { Ok(()) } else { Err(SnapshotError::Superseded) }
    }

    fn read(
        &mut self,
        machine: &StateMachine,
        keys_max: usize,
        bytes_max: u64,
    ) -> Result<Option<Vec<Arc<Record>>>, SnapshotError> {
        self.check_origin(machine)?;
        let StateHeader { revision, compact_revision, .. } = self.header;
        let from = self.after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let (mut records, mut bytes) = (Vec::new(), 0);
        let mut last = None;
        for versions in machine.keyspace.index.range((from, Bound::Unbounded)).take(keys_max) {
            let then = versions.versions_since(compact_revision);
            for record in then.take_while(|record| record.mod_revision <= revision) {
                bytes += record.bytes();
                records.push(record.to_record());
            }
            last = Some(versions.key());
            if bytes >= bytes_max {
                break;
            }
        }
        let Some(last) = last else { return Ok(None) };
        self.after = Some(Bytes::copy_from_slice(last));
        Ok(Some(records))
    }

    /// Writes the whole snapshot from a state that is not shared; otherwise see [`SnapshotWriter`].
    ///
    /// # Errors
    /// When writing fails or `machine` is another state.
    pub fn write_all<W: Write>(mut self, machine: &StateMachine, output: W) -> Result<W, SnapshotError> {
        let mut writer = SnapshotWriter::begin(output, &self.header)?;
        while let Some(records) = self.read_chunk(machine, usize::MAX)? {
            writer.write(&records)?;
        }
        writer.finish()
    }
}

/// Writes a snapshot's bytes: [`begin`](Self::begin), [`write`](Self::write) each chunk (read under whatever
/// lock guards the state, written outside it), [`finish`](Self::finish).
#[derive(Debug)]
pub struct SnapshotWriter<W> {
    output: W,
    records: Writer,
    count: u64,
    state_hash: u64,
}

impl<W: Write> SnapshotWriter<W> {
    /// Writes the beginning.
    ///
    /// # Errors
    /// When writing fails.
    pub fn begin(mut output: W, header: &StateHeader) -> Result<Self, SnapshotError> {
        output.write_all(MAGIC).map_err(io_error("write"))?;
        output.write_all(&VERSION.to_le_bytes()).map_err(io_error("write"))?;
        write_frame(&mut output, FRAME_HEADER, &header.encode())?;
        let records = Writer::with_capacity(FRAME_BYTES);
        Ok(Self { output, records, count: 0, state_hash: header.state_hash })
    }

    /// Writes the next records.
    ///
    /// # Errors
    /// When writing fails.
    pub fn write(&mut self, records: &[Arc<Record>]) -> Result<(), SnapshotError> {
        for record in records {
            record.write(&mut self.records);
            self.count += 1;
            if self.records.len() >= FRAME_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Writes the end, and flushes.
    ///
    /// # Errors
    /// When writing fails.
    pub fn finish(mut self) -> Result<W, SnapshotError> {
        self.flush()?;
        let mut trailer = Writer::with_capacity(20);
        trailer.varint(self.count);
        trailer.u64_fixed(self.state_hash);
        write_frame(&mut self.output, FRAME_TRAILER, &trailer.finish())?;
        self.output.flush().map_err(io_error("flush"))?;
        Ok(self.output)
    }

    fn flush(&mut self) -> Result<(), SnapshotError> {
        if self.records.len() == 0 {
            return Ok(());
        }
        write_frame(&mut self.output, FRAME_RECORDS, self.records.as_slice())?;
        self.records.clear();
        Ok(())
    }
}

fn write_frame(output: &mut impl Write, kind: u8, payload: &[u8]) -> Result<(), SnapshotError> {
    let bytes = payload.len();
    let length = u32::try_from(bytes).map_err(|_| SnapshotError::FrameTooLarge { bytes })?;
    let mut head = [0u8; 9];
    head[..4].copy_from_slice(&length.to_le_bytes());
    head[4..8].copy_from_slice(&checksum(kind, payload).to_le_bytes());
    head[8] = kind;
    output.write_all(&head).and_then(|()| output.write_all(payload)).map_err(io_error("write"))
}

fn checksum(kind: u8, payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&[kind]), payload)
}

/// Reads frames, checked.
struct Frames<R> {
    input: R,
    next: u64,
}

impl<R: Read> Frames<R> {
    fn begin(mut input: R) -> Result<Self, SnapshotError> {
        let mut head = [0u8; 12];
        input.read_exact(&mut head).map_err(io_error("read the beginning"))?;
        if &head[..8] != MAGIC {
            return Err(SnapshotError::NotASnapshot);
        }
        let version = u32::from_le_bytes(head[8..].try_into().expect("the slice is 4 bytes long"));
        if version != VERSION {
            return Err(SnapshotError::UnknownVersion { version });
        }
        Ok(Self { input, next: 0 })
    }

    fn next(&mut self) -> Result<(u8, Bytes), SnapshotError> {
        let mut head = [0u8; 9];
        self.input.read_exact(&mut head).map_err(io_error("read a frame's head"))?;
        let word = |at: usize| [head[at], head[at + 1], head[at + 2], head[at + 3]];
        let length = u64::from(u32::from_le_bytes(word(0)));
        let expected = u32::from_le_bytes(word(4));
        let kind = head[8];
        // Grows as bytes arrive: a damaged length reserves nothing.
        let mut payload = Vec::new();
        self.input.by_ref().take(length).read_to_end(&mut payload).map_err(io_error("read a frame"))?;
        if (payload.len() as u64) < length {
            return Err(io_error("read a frame")(io::ErrorKind::UnexpectedEof.into()));
        }
        if checksum(kind, &payload) != expected {
            return Err(SnapshotError::Checksum { frame: self.next });
        }
        self.next += 1;
        Ok((kind, payload.into()))
    }

    fn unexpected(&self, kind: u8) -> SnapshotError {
        SnapshotError::UnexpectedFrame { frame: self.next.saturating_sub(1), kind }
    }
}
