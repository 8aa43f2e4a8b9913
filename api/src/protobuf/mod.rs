//! Kubernetes protobuf: bodies of `application/vnd.kubernetes.protobuf`.
//!
//! Owns the tables of the messages that are read and a reader that they drive. A body is the
//! magic `k8s\0` and an envelope (`runtime.Unknown`) that names the kind; what is inside becomes the JSON that
//! a client would have sent instead: what nobody set is left out.
//!
//! Promises not to panic, not to nest deeper than the tables do, and not to take more memory than a small
//! multiple of [`BYTES_MAX`]. Fields that no table knows are skipped; values of the wrong form are errors that
//! name their field. Does not write protobuf, and does not judge the object.

mod messages;
mod read;
mod wire;

use serde_json::{Map, Value};

use wire::{Fields, Wire};

/// Largest body that is read.
pub const BYTES_MAX: usize = 3 * 1024 * 1024;

/// What a body begins with.
const MAGIC: &[u8] = b"k8s\0";

/// Why a body is not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Another client or another format.
    #[error("it does not begin with the magic number of Kubernetes protobuf, k8s\\x00")]
    Magic,
    /// More than [`BYTES_MAX`].
    #[error("it has {bytes} bytes, and the limit is {BYTES_MAX}")]
    TooLarge {
        /// How many it has.
        bytes: usize,
    },
    /// The envelope does not say what is inside.
    #[error("its envelope does not name a kind")]
    NoKind,
    /// The kind is known at most in other formats.
    #[error("{kind:?} of {api_version:?} is not read as Kubernetes protobuf; send it as application/json")]
    UnknownKind {
        /// What the envelope names.
        api_version: String,
        /// What the envelope names.
        kind: String,
    },
    /// The content is compressed, or in a format of its own.
    #[error("its content is {content:?}, and only plain protobuf is read")]
    Content {
        /// The encoding or the media type that the envelope names.
        content: String,
    },
    /// The bytes make no sense.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// Bytes that make no sense, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{problem}", self.place())]
pub struct Malformed {
    /// The names of fields, the innermost first.
    path: Vec<&'static str>,
    problem: Problem,
}

/// What is wrong with bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A length or a number goes beyond the end.
    #[error("the bytes end in the middle of a value")]
    CutOff,
    /// More than 64 bits.
    #[error("a number has more than 64 bits")]
    Varint,
    /// Zero, or too large.
    #[error("a field has an impossible number")]
    FieldNumber,
    /// Another form than the field's type has, or one that does not exist.
    #[error("a value has the wrong wire type")]
    WireType,
    /// Text in another encoding.
    #[error("a text is not UTF-8")]
    Utf8,
    /// Beyond what the field's type or RFC 3339 can say.
    #[error("a number or time is out of range")]
    Range,
}

impl Malformed {
    /// What is wrong.
    pub fn problem(&self) -> Problem {
        self.problem
    }

    fn within(mut self, name: &'static str) -> Self {
        self.path.push(name);
        self
    }

    fn place(&self) -> String {
        let names: Vec<&str> = self.path.iter().rev().copied().collect();
        if names.is_empty() { String::new() } else { format!("{}: ", names.join(".")) }
    }
}

impl From<Problem> for Malformed {
    fn from(problem: Problem) -> Self {
        Self { path: Vec::new(), problem }
    }
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        Self::Malformed(problem.into())
    }
}

/// Reads an object.
pub fn decode(bytes: &[u8]) -> Result<Value, Error> {
    if bytes.len() > BYTES_MAX {
        return Err(Error::TooLarge { bytes: bytes.len() });
    }
    let envelope = Envelope::read(bytes.strip_prefix(MAGIC).ok_or(Error::Magic)?)?;
    if envelope.kind.is_empty() {
        return Err(Error::NoKind);
    }
    let Envelope { api_version, kind, raw } = envelope;
    let Some(fields) = messages::message(&api_version, &kind) else {
        return Err(Error::UnknownKind { api_version, kind });
    };
    let mut object = Map::new();
    read::message(fields, raw, &mut object)?;
    object.insert("apiVersion".to_owned(), Value::from(api_version));
    object.insert("kind".to_owned(), Value::from(kind));
    Ok(Value::Object(object))
}

/// `runtime.Unknown`.
#[derive(Default)]
struct Envelope<'a> {
    api_version: String,
    kind: String,
    raw: &'a [u8],
}

impl<'a> Envelope<'a> {
    const MEDIA_TYPE: &'static str = "application/vnd.kubernetes.protobuf";

    fn read(bytes: &'a [u8]) -> Result<Self, Error> {
        let mut envelope = Self::default();
        for wire in Fields(bytes) {
            match wire? {
                (1, Wire::Delimited(bytes)) => envelope.read_type(bytes)?,
                (2, Wire::Delimited(bytes)) => envelope.raw = bytes,
                (3 | 4, Wire::Delimited(bytes)) => {
                    let content = read::text(bytes)?;
                    if !content.is_empty() && content != Self::MEDIA_TYPE {
                        return Err(Error::Content { content });
                    }
                }
                (1..=4, _) => return Err(Problem::WireType.into()),
                _ => {}
            }
        }
        Ok(envelope)
    }

    fn read_type(&mut self, bytes: &[u8]) -> Result<(), Problem> {
        for wire in Fields(bytes) {
            match wire? {
                (1, Wire::Delimited(bytes)) => self.api_version = read::text(bytes)?,
                (2, Wire::Delimited(bytes)) => self.kind = read::text(bytes)?,
                (1 | 2, _) => return Err(Problem::WireType),
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
