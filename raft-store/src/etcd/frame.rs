//! A message as gRPC has it on the wire (gRPC over HTTP/2, "Length-Prefixed-Message"), for whoever speaks HTTP/2
//! without a framework in between.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use tonic::Status;

/// What precedes each message: a byte that says whether it is compressed, and its length, 4 bytes big endian.
pub const PREFIX_BYTES: usize = 5;

/// A message with its prefix.
///
/// # Errors
/// When it is longer than the prefix can say.
pub fn framed(message: &impl Message) -> Result<Bytes, Status> {
    let length = message.encoded_len();
    let prefix = u32::try_from(length).map_err(|_| {
        Status::resource_exhausted(format!("an answer of {length} bytes is too large for gRPC"))
    })?;
    let mut frame = BytesMut::with_capacity(PREFIX_BYTES + length);
    frame.put_u8(0);
    frame.put_u32(prefix);
    message.encode_raw(&mut frame);
    Ok(frame.freeze())
}

/// The one message of a body, without its prefix.
///
/// # Errors
/// When the body is anything but one message that is not compressed.
pub fn unframed(mut body: Bytes) -> Result<Bytes, Status> {
    if body.len() < PREFIX_BYTES {
        return Err(Status::internal("the request holds no message"));
    }
    if body.get_u8() != 0 {
        return Err(Status::unimplemented("compressed messages are not supported"));
    }
    let length = body.get_u32();
    if usize::try_from(length).is_ok_and(|length| length == body.len()) {
        return Ok(body);
    }
    Err(Status::internal(format!("the request says {length} bytes and has {}", body.len())))
}

/// A body that comes in pieces; usually in one, which is then not copied.
#[derive(Debug, Default)]
pub struct Pieces {
    first: Bytes,
    more: BytesMut,
}

impl Pieces {
    /// Adds the next piece.
    pub fn push(&mut self, piece: Bytes) {
        if self.bytes() == 0 {
            self.first = piece;
            return;
        }
        self.more.extend_from_slice(&std::mem::take(&mut self.first));
        self.more.extend_from_slice(&piece);
    }

    /// How many bytes have come.
    pub fn bytes(&self) -> usize {
        self.first.len() + self.more.len()
    }

    /// All of them.
    pub fn whole(self) -> Bytes {
        if self.more.is_empty() { self.first } else { self.more.freeze() }
    }
}
