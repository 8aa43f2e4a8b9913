//! What all subsystems of `NETLINK_NETFILTER` have in common: messages, attributes, and their reading. Nothing
//! that the kernel says is trusted to be whole.

use nix::errno::Errno;

pub(super) const HEADER_BYTES: usize = 16;
pub(super) const ALIGNMENT: usize = 4;
/// An attribute's length and kind.
const ATTRIBUTE_BYTES: usize = 4;
/// Nesting and byte order are marked in an attribute's kind.
const KIND_MASK: u16 = 0x3fff;

/// The error of an acknowledgement; `UnknownErrno` stands for none.
pub(super) fn errno_of(body: &[u8]) -> Errno {
    let code = body.first_chunk::<4>().map_or(Errno::EBADMSG as i32, |bytes| -i32::from_ne_bytes(*bytes));
    Errno::from_raw(code)
}

/// Kinds and bodies of the messages in a datagram, as far as it is whole.
pub(super) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*datagram.first_chunk::<4>()?) as usize;
        let kind = u16::from_ne_bytes(datagram.get(4..6)?.try_into().ok()?);
        let body = datagram.get(HEADER_BYTES..length)?;
        datagram = datagram.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// Kinds, values and whole bytes of attributes, as far as they are whole.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8], &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk::<2>()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & KIND_MASK;
        let (whole, value) = (bytes.get(..length)?, bytes.get(ATTRIBUTE_BYTES..length)?);
        bytes = bytes.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
        Some((kind, value, whole))
    })
}

pub(super) fn value(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, ..)| *kind == wanted).map(|(_, value, _)| value)
}
