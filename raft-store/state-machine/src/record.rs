//! One version of one key: what the keyspace is made of.
//!
//! The state holds records packed together (`heap`); a [`RecordRef`] looks at one there. A [`Record`] is a copy of its
//! own, for responses, events, snapshots and checkpoints: immutable, and shared by `Arc`.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;

use crate::hash;
use crate::revision::Revision;
use crate::wire::{DecodeError, Reader, SliceReader, Writer};

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

/// A version of a key as it lies in the state. It carries the hash of its content, so that taking it out of the
/// state hash later costs nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RecordRef<'a> {
    /// As in [`KeyValue`].
    pub key: &'a [u8],
    /// As in [`KeyValue`].
    pub value: &'a [u8],
    /// As in [`KeyValue`].
    pub create_revision: u64,
    /// As in [`KeyValue`].
    pub mod_revision: u64,
    /// As in [`KeyValue`].
    pub sub: u32,
    /// As in [`KeyValue`].
    pub version: u64,
    /// As in [`KeyValue`].
    pub lease: i64,
    /// Of all of the above; 0 before it is in the state.
    pub(crate) hash: u64,
}

impl<'a> RecordRef<'a> {
    /// Whether this version says that the key was deleted.
    pub fn is_tombstone(&self) -> bool {
        self.version == 0
    }

    /// A copy that lives on its own. Key and value share one buffer.
    pub fn to_record(&self) -> Arc<Record> {
        let mut both = Vec::with_capacity(self.key.len() + self.value.len());
        both.extend_from_slice(self.key);
        both.extend_from_slice(self.value);
        let mut key = Bytes::from(both);
        let value = key.split_off(self.key.len());
        Arc::new(Record(KeyValue {
            key,
            value,
            create_revision: self.create_revision,
            mod_revision: self.mod_revision,
            sub: self.sub,
            version: self.version,
            lease: self.lease,
        }))
    }

    /// The version that says `key` was deleted at `revision`.
    pub(crate) fn tombstone(key: &'a [u8], revision: Revision) -> Self {
        Self { key, mod_revision: revision.main, sub: revision.sub, ..Self::default() }
    }

    /// Reads what [`KeyValue::encode_body`] wrote.
    ///
    /// # Errors
    /// When the bytes are not such an encoding.
    pub fn decode_body(key: &'a [u8], mod_revision: u64, body: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = SliceReader::new(body);
        let record = Self::read_body(key, mod_revision, &mut reader)?;
        reader.finish()?;
        Ok(record)
    }

    /// Reads what [`KeyValue::write`] wrote.
    pub(crate) fn read(reader: &mut SliceReader<'a>) -> Result<Self, DecodeError> {
        let key = reader.bytes()?;
        let mod_revision = reader.varint()?;
        Self::read_body(key, mod_revision, reader)
    }

    fn read_body(
        key: &'a [u8],
        mod_revision: u64,
        reader: &mut SliceReader<'a>,
    ) -> Result<Self, DecodeError> {
        let sub = reader.u32()?;
        let version = reader.varint()?;
        let mut record = Self::tombstone(key, Revision { main: mod_revision, sub });
        if version != 0 {
            record.version = version;
            record.create_revision = reader.varint()?;
            record.lease = reader.i64()?;
            record.value = reader.bytes()?;
        }
        Ok(record)
    }

    /// The revision with its place.
    pub(crate) fn revision(&self) -> Revision {
        Revision { main: self.mod_revision, sub: self.sub }
    }

    /// With its content's hash.
    pub(crate) fn hashed(self) -> Self {
        Self { hash: hash::record(&self), ..self }
    }

    /// The bytes that the record is accounted with: key, value, and a flat charge for everything else.
    pub(crate) fn bytes(&self) -> u64 {
        (self.key.len() + self.value.len()) as u64 + RECORD_OVERHEAD_BYTES
    }
}

impl<'a> From<&'a KeyValue> for RecordRef<'a> {
    fn from(kv: &'a KeyValue) -> Self {
        Self {
            key: &kv.key,
            value: &kv.value,
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
            sub: kv.sub,
            version: kv.version,
            lease: kv.lease,
            hash: 0,
        }
    }
}

/// A copy of a version of a key. Reads like a [`KeyValue`].
#[derive(PartialEq, Eq)]
pub struct Record(KeyValue);

impl Record {
    /// A record that does not come from the state.
    pub fn detached(kv: KeyValue) -> Self {
        Self(kv)
    }
}

/// Flat charge per record in the accounting of live bytes. Equal on all members, so not what one release needs.
pub const RECORD_OVERHEAD_BYTES: u64 = 64;

impl Deref for Record {
    type Target = KeyValue;

    fn deref(&self) -> &KeyValue {
        &self.0
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<Record> for KeyValue {
    fn from(record: Record) -> Self {
        record.0
    }
}
