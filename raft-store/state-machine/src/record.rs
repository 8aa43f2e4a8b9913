//! One version of one key: what the keyspace is made of.
//!
//! A [`Record`] is immutable once made and shared by `Arc` between the index, the event history, responses,
//! snapshots and checkpoints. It carries the hash of its own content, so that taking it out of the state
//! hash later costs nothing.

use std::fmt;
use std::ops::Deref;

use bytes::Bytes;

use crate::hash;
use crate::revision::Revision;
use crate::wire::{DecodeError, Reader, Writer};

/// A key with its value and versions, as etcd's `KeyValue`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: Bytes,
    /// The value; empty for a tombstone.
    pub value: Bytes,
    /// Revision of the write that created the key; 0 for a tombstone.
    pub create_revision: u64,
    /// Revision of this version.
    pub mod_revision: u64,
    /// Place of this version within its revision.
    pub sub: u32,
    /// How often the key was written since it was created; 0 for a tombstone.
    pub version: u64,
    /// The store lease that the key is attached to; 0: none.
    pub lease: i64,
}

impl KeyValue {
    /// Whether this version says that the key was deleted.
    pub fn is_tombstone(&self) -> bool {
        self.version == 0
    }

    /// The revision with its place.
    pub fn revision(&self) -> Revision {
        Revision { main: self.mod_revision, sub: self.sub }
    }

    /// The version that says `key` was deleted at `revision`.
    pub fn tombstone(key: Bytes, revision: Revision) -> Self {
        Self { key, mod_revision: revision.main, sub: revision.sub, ..Self::default() }
    }

    /// Encodes everything but `key` and `mod_revision`, which stores keep as the record's address.
    pub fn encode_body(&self) -> Bytes {
        let mut writer = Writer::with_capacity(self.value.len() + 32);
        self.write_body(&mut writer);
        writer.finish()
    }

    /// Reads what [`encode_body`](Self::encode_body) wrote. The value is a slice of `body`.
    ///
    /// # Errors
    /// When the bytes are not such an encoding.
    pub fn decode_body(key: Bytes, mod_revision: u64, body: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        let kv = Self::read_body(key, mod_revision, &mut reader)?;
        reader.finish()?;
        Ok(kv)
    }

    pub(crate) fn write_body(&self, writer: &mut Writer) {
        writer.varint(u64::from(self.sub));
        writer.varint(self.version);
        if self.version != 0 {
            writer.varint(self.create_revision);
            writer.i64(self.lease);
            writer.bytes(&self.value);
        }
    }

    pub(crate) fn read_body(key: Bytes, mod_revision: u64, reader: &mut Reader) -> Result<Self, DecodeError> {
        let sub = reader.u32()?;
        let version = reader.varint()?;
        let mut kv = Self::tombstone(key, Revision { main: mod_revision, sub });
        if version != 0 {
            kv.version = version;
            kv.create_revision = reader.varint()?;
            kv.lease = reader.i64()?;
            kv.value = reader.bytes()?;
        }
        Ok(kv)
    }

    /// Writes the whole of it.
    pub(crate) fn write(&self, writer: &mut Writer) {
        writer.bytes(&self.key);
        writer.varint(self.mod_revision);
        self.write_body(writer);
    }

    /// Reads what [`write`](Self::write) wrote.
    pub(crate) fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        let key = reader.bytes()?;
        let mod_revision = reader.varint()?;
        Self::read_body(key, mod_revision, reader)
    }
}

/// A [`KeyValue`] that is, or was, part of the state. Reads like a `KeyValue`.
pub struct Record {
    kv: KeyValue,
    /// Of the content; 0 when detached.
    hash: u64,
}

impl Record {
    /// A record for the state: its content is hashed.
    pub(crate) fn new(kv: KeyValue) -> Self {
        let hash = hash::record(&kv);
        Self { kv, hash }
    }

    /// A record for a response only, never for the state.
    pub fn detached(kv: KeyValue) -> Self {
        Self { kv, hash: 0 }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    /// The bytes that the record is accounted with: key, value, and a flat charge for everything else.
    pub(crate) fn bytes(&self) -> u64 {
        (self.kv.key.len() + self.kv.value.len()) as u64 + RECORD_OVERHEAD_BYTES
    }
}

/// Flat charge per record in the accounting of live bytes: revisions, pointers, allocation headers.
pub const RECORD_OVERHEAD_BYTES: u64 = 64;

impl Deref for Record {
    type Target = KeyValue;

    fn deref(&self) -> &KeyValue {
        &self.kv
    }
}

impl PartialEq for Record {
    fn eq(&self, other: &Self) -> bool {
        self.kv == other.kv
    }
}

impl Eq for Record {}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kv.fmt(f)
    }
}

impl From<Record> for KeyValue {
    fn from(record: Record) -> Self {
        record.kv
    }
}
