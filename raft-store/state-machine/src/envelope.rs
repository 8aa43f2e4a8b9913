//! What an entry of the log holds: a command, and whose and which it is.
//!
//! ```text
//! entry = version:u8 command                                          nobody's: a member's own
//!       | version:u8 64 flags:u8 [user auth_revision] [client sequence] command
//! bundle = version:u8 65 count:varint (length:varint entry)…            several entries, to be applied in turn
//! ```
//!
//! Bit 0 of the flags says that an author follows, bit 1 that a request id does.

use std::fmt;

use bytes::Bytes;

use crate::auth_codec::read_text;
use crate::command::Command;
use crate::command_codec::{read_command, read_version, size_hint, write_command, write_version};
use crate::wire::{DecodeError, Reader, Writer};

/// Stands where a command's tag would.
const TAG: u8 = 64;

/// Stands there in a bundle.
const BUNDLE_TAG: u8 = 65;

const HAS_AUTHOR: u8 = 1;
const HAS_REQUEST_ID: u8 = 2;

/// Room for the length of an entry in a bundle, and for the bundle's head.
const BUNDLE_OVERHEAD_BYTES: usize = 8;

/// Room that author and request id usually need.
const OVERHEAD_BYTES: usize = 48;

/// Who a command comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Author {
    /// The user; empty: nobody known.
    pub user: String,
    /// The auth revision under which the user was established; see [`Auth`](crate::Auth).
    pub auth_revision: u64,
}

/// Names one request of one client, so that sending it again does not do it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId {
    /// The client: a UUID of version 7 as a number. Later clients have greater ones.
    pub client: u128,
    /// Counts the client's requests, from 1.
    pub sequence: u64,
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}:{}", self.client, self.sequence)
    }
}

/// See the module's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// Whose permissions count; `None`: a member's own command, which may do everything.
    pub author: Option<Author>,
    /// Which request, if its client named it.
    pub request_id: Option<RequestId>,
    /// What to do.
    pub command: Command,
}

impl Envelope {
    /// A member's own command.
    pub fn of(command: Command) -> Self {
        Self { author: None, request_id: None, command }
    }

    /// The entry's bytes.
    pub fn encode(&self) -> Bytes {
        Self::encode_parts(self.author.as_ref(), self.request_id.as_ref(), &self.command)
    }

    /// The bytes of an entry with these parts.
    pub fn encode_parts(author: Option<&Author>, id: Option<&RequestId>, command: &Command) -> Bytes {
        if author.is_none() && id.is_none() {
            return command.encode();
        }
        let user_bytes = author.map_or(0, |author| author.user.len());
        let mut writer = Writer::with_capacity(OVERHEAD_BYTES + user_bytes + size_hint(command));
        write_version(&mut writer);
        writer.u8(TAG);
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        writer.u8(flag(author.is_some(), HAS_AUTHOR) | flag(id.is_some(), HAS_REQUEST_ID));
        if let Some(author) = author {
            writer.bytes(author.user.as_bytes());
            writer.varint(author.auth_revision);
        }
        if let Some(id) = id {
            writer.u64_fixed((id.client >> 64) as u64);
            writer.u64_fixed(id.client as u64);
            writer.varint(id.sequence);
        }
        write_command(&mut writer, command);
        writer.finish()
    }

    /// Reads what [`encode`](Self::encode) wrote; keys and values are slices of `bytes`.
    ///
    /// # Errors
    /// When the bytes are not an entry that this version knows.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        read_version(&mut reader)?;
        let mut envelope = Self::of(Command::Batch(Vec::new()));
        if reader.peek()? == TAG {
            reader.u8()?;
            let flags = reader.u8()?;
            if flags & !(HAS_AUTHOR | HAS_REQUEST_ID) != 0 {
                return Err(DecodeError::UnknownTag { what: "flag", tag: flags });
            }
            if flags & HAS_AUTHOR != 0 {
                let (user, auth_revision) = (read_text(&mut reader)?, reader.varint()?);
                envelope.author = Some(Author { user, auth_revision });
            }
            if flags & HAS_REQUEST_ID != 0 {
                let (high, low) = (reader.u64_fixed()?, reader.u64_fixed()?);
                let client = u128::from(high) << 64 | u128::from(low);
                envelope.request_id = Some(RequestId { client, sequence: reader.varint()? });
            }
        }
        envelope.command = read_command(&mut reader)?;
        reader.finish()?;
        Ok(envelope)
    }

    /// Several encoded entries as one, which [`decode_all`](Self::decode_all) takes apart.
    pub fn bundle(entries: &[Bytes]) -> Bytes {
        if let [entry] = entries {
            return entry.clone();
        }
        let bytes: usize = entries.iter().map(|entry| entry.len() + BUNDLE_OVERHEAD_BYTES).sum();
        let mut writer = Writer::with_capacity(BUNDLE_OVERHEAD_BYTES + bytes);
        write_version(&mut writer);
        writer.u8(BUNDLE_TAG);
        writer.list(entries, |writer, entry| writer.bytes(entry));
        writer.finish()
    }

    /// Reads one entry, or all entries of a bundle.
    ///
    /// # Errors
    /// When the bytes are not what this version knows.
    pub fn decode_all(bytes: Bytes) -> Result<Vec<Self>, DecodeError> {
        if bytes.get(1) != Some(&BUNDLE_TAG) {
            return Ok(vec![Self::decode(bytes)?]);
        }
        let mut reader = Reader::new(bytes);
        read_version(&mut reader)?;
        reader.u8()?;
        let entries = reader.list(|reader| Self::decode(reader.bytes()?))?;
        reader.finish()?;
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(revision: u64) -> Envelope {
        Envelope {
            author: Some(Author { user: format!("user{revision}"), auth_revision: revision }),
            request_id: None,
            command: Command::Compact { revision },
        }
    }

    #[test]
    fn bundles_come_apart_in_order() {
        for count in [1, 2, 300] {
            let entries: Vec<_> = (0..count).map(entry).collect();
            let encoded: Vec<_> = entries.iter().map(Envelope::encode).collect();
            assert_eq!(Envelope::decode_all(Envelope::bundle(&encoded)).unwrap(), entries);
        }
    }

    #[test]
    fn a_bundle_that_is_cut_or_holds_a_bundle_is_refused() {
        let bundle = Envelope::bundle(&[entry(1).encode(), entry(2).encode()]);
        for cut in 0..bundle.len() {
            assert!(Envelope::decode_all(bundle.slice(..cut)).is_err(), "cut at {cut}");
        }
        let nested = Envelope::bundle(&[bundle.clone(), bundle]);
        assert!(Envelope::decode_all(nested).is_err());
    }
}
