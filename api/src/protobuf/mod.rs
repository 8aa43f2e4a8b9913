//! Kubernetes protobuf: bodies of `application/vnd.kubernetes.protobuf`.
//!
//! Owns the table of the messages, and a reader and a writer that it drives. A body is the magic `k8s\0` and an
//! envelope (`runtime.Unknown`) that names the kind; what is inside becomes the JSON that a client would have
//! sent instead: what nobody set is left out. An answer is written from an object's JSON text.
//!
//! Promises not to panic, that nesting and the number of values are bounded, and that reading takes no more
//! memory than a multiple of that bound. Fields that the table does not know are skipped; values of the wrong
//! form are errors that name their field. Does not judge the object, and does not know kinds that clients define.

mod read;
pub(crate) mod table;
mod wire;
mod write;

use serde::de::DeserializeSeed;
use serde_json::{Map, Value};

use table::MessageId;
use wire::{Fields, Wire, Writer};

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
    /// Text that should be JSON.
    #[error("a value is no valid JSON")]
    Json,
    /// An object within the object.
    #[error("an enveloped object inside cannot be read")]
    Embedded,
    /// A hundred messages in one another.
    #[error("messages are nested too deeply")]
    Depth,
    /// So many that JSON would take too much memory.
    #[error("there are too many values")]
    Values,
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
        let names = self.path.iter().rev().copied();
        let names: Vec<&str> = names.filter(|name| !name.is_empty()).collect();
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
    enveloped(bytes, &mut read::Reader::new())
}

/// Reads an object in its envelope.
fn enveloped(bytes: &[u8], reader: &mut read::Reader) -> Result<Value, Error> {
    let envelope = Envelope::read(bytes.strip_prefix(MAGIC).ok_or(Error::Magic)?)?;
    if envelope.kind.is_empty() {
        return Err(Error::NoKind);
    }
    let Envelope { api_version, kind, raw } = envelope;
    let Some(message) = table::message(&api_version, &kind) else {
        return Err(Error::UnknownKind { api_version, kind });
    };
    let mut object = Map::new();
    reader.message(message, raw, &mut object)?;
    object.insert("apiVersion".to_owned(), Value::from(api_version));
    object.insert("kind".to_owned(), Value::from(kind));
    Ok(Value::Object(object))
}

/// Whether objects of a kind can be read and written.
pub fn is_known(api_version: &str, kind: &str) -> bool {
    table::message(api_version, kind).is_some()
}

/// Why an object is not written: its JSON does not fit its kind, which only a fault elsewhere can cause.
#[derive(Debug, thiserror::Error)]
#[error("{kind} {problem}; ask for application/json")]
pub struct WriteError {
    kind: String,
    problem: serde_json::Error,
}

/// Writes objects of one kind.
#[derive(Debug)]
pub struct Encoder {
    api_version: String,
    kind: String,
    message: MessageId,
}

impl Encoder {
    /// The encoder of a kind; `None` if the kind is known at most in other formats.
    pub fn new(api_version: &str, kind: &str) -> Option<Self> {
        let message = table::message(api_version, kind)?;
        Some(Self { api_version: api_version.to_owned(), kind: kind.to_owned(), message })
    }

    /// The body that holds an object, given as JSON text.
    pub fn object(&self, json: &[u8]) -> Result<Vec<u8>, WriteError> {
        let mut out = Writer { out: Vec::with_capacity(json.len() + ENVELOPE_BYTES) };
        let raw = self.open(&mut out);
        self.write(json, &mut out)?;
        Ok(close(out, raw))
    }

    /// The object alone, as other protocols carry it: without the magic and the envelope.
    pub fn bare(&self, json: &[u8]) -> Result<Vec<u8>, WriteError> {
        let mut out = Writer::default();
        self.write(json, &mut out)?;
        Ok(out.out)
    }

    /// The body that holds a list of such objects. `write_item` appends each one's JSON text to an empty buffer,
    /// and says with `false` that there are no more.
    pub fn list(
        &self,
        list_meta: &Value,
        mut write_item: impl FnMut(&mut Vec<u8>) -> bool,
    ) -> Result<Vec<u8>, WriteError> {
        let list = Self {
            api_version: self.api_version.clone(),
            kind: format!("{}List", self.kind),
            message: self.message,
        };
        let mut out = Writer::default();
        let raw = list.open(&mut out);
        if let Some(meta) = table::message("meta.k8s.io/v1", "ListMeta") {
            let at = out.open(1);
            let seed = write::Message { id: meta, out: &mut out };
            seed.deserialize(list_meta).map_err(|problem| list.refuse(problem))?;
            out.close(at);
        }
        let mut json = Vec::new();
        while write_item(&mut json) {
            let at = out.open(2);
            self.write(&json, &mut out)?;
            out.close(at);
            json.clear();
        }
        Ok(close(out, raw))
    }

    fn write(&self, json: &[u8], out: &mut Writer) -> Result<(), WriteError> {
        let mut deserializer = serde_json::Deserializer::from_slice(json);
        let seed = write::Message { id: self.message, out };
        seed.deserialize(&mut deserializer).map_err(|problem| self.refuse(problem))
    }

    fn refuse(&self, problem: serde_json::Error) -> WriteError {
        WriteError { kind: self.kind.clone(), problem }
    }

    /// Begins an envelope, up to the object.
    fn open(&self, out: &mut Writer) -> usize {
        out.out.extend_from_slice(MAGIC);
        let type_meta = out.open(1);
        out.bytes(1, self.api_version.as_bytes());
        out.bytes(2, self.kind.as_bytes());
        out.close(type_meta);
        out.open(2)
    }
}

/// About what an envelope takes beside the object.
const ENVELOPE_BYTES: usize = 64;

/// Ends an envelope: the encoding and the media type of its content go without saying.
fn close(mut out: Writer, raw: usize) -> Vec<u8> {
    out.close(raw);
    out.bytes(3, b"");
    out.bytes(4, b"");
    out.out
}

/// One frame of a watch stream: four bytes of length, then a `WatchEvent` around an enveloped object.
pub fn watch_frame(change: &str, object: &[u8]) -> Vec<u8> {
    let mut event = Writer { out: Vec::with_capacity(object.len() + ENVELOPE_BYTES) };
    event.out.extend_from_slice(&[0; 4]);
    event.bytes(1, change.as_bytes());
    event.wrapped(2, 1, object);
    let mut frame = event.out;
    let length = u32::try_from(frame.len() - 4).unwrap_or(u32::MAX);
    frame[..4].copy_from_slice(&length.to_be_bytes());
    frame
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
