//! Takes the scheme out of `:authority`, where some clients of etcd leave it.
//!
//! The Go client up to etcd 3.4 asks single members (`Status`, `HashKV`, `Defragment`; kube-apiserver for the size of the
//! store, `etcdctl --cluster` for everything) with the whole URL as `:authority`: `http://127.0.0.1:2379`. That is
//! not HTTP/2 (RFC 9113, section 8.3.1). etcd does not look, our HTTP library refuses the stream. So this stands between
//! socket and library and leaves the scheme out.
//!
//! ```text
//! Preface ──► Head ◄──► Body                a connection whose first request says "http://…" or "https://…"
//!    │          └───► Headers ─┐
//!    └──────────────►──────────┴──► Passing   all others, from their first request on: nothing is looked at any more
//! ```
//!
//! The value becomes shorter in the decoder's table too (RFC 7541, section 2.3.3). So the decoder keeps entries a little
//! longer than the client thinks; a client never names those, and all others have the same index.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEAD_BYTES: usize = 9;
const TYPE_HEADERS: u8 = 1;
const FLAG_PADDED: u8 = 0x8;
const FLAG_PRIORITY: u8 = 0x20;
/// The largest frame there may be, since we never allow larger ones; the library refuses those.
const FRAME_BYTES_MAX: usize = 16 * 1024;
/// How much is read at once while a connection is looked at.
const READ_BYTES: usize = 4096;
/// `:authority` in HPACK's static table.
const NAME_AUTHORITY: usize = 1;
const SCHEMES: [&[u8]; 2] = [b"http://", b"https://"];
/// Of Huffman's code (RFC 7541, appendix B) what an address may be made of: a length in bits, the first code of that
/// length, and the symbols of that code and those that follow.
const HUFFMAN: [(u32, usize, &[u8]); 5] = [
    (5, 0x0, b"012aceiost"),
    (6, 0x14, b" %-./3456789=A_bdfghlmnpru"),
    (7, 0x5c, b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz"),
    (8, 0xf8, b"&*,;XZ"),
    (13, 0x1ff8, b"\0$@[]~"),
];
const HUFFMAN_BITS_MAX: u32 = 13;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Preface,
    /// A frame's head comes next.
    Head,
    /// So many bytes of a frame that is none of our business.
    Body(usize),
    Passing,
}

/// See the module's head.
pub(super) struct BareAuthority<S> {
    inner: S,
    state: State,
    /// A scheme was taken out; later requests mostly refer to the first.
    found: bool,
    /// Read, and not yet looked at: less than one frame and one read.
    raw: BytesMut,
    /// To be handed on.
    ready: BytesMut,
}

impl<S> BareAuthority<S> {
    pub(super) fn new(inner: S) -> Self {
        Self { inner, state: State::Preface, found: false, raw: BytesMut::new(), ready: BytesMut::new() }
    }

    /// Moves what can be handed on.
    fn sort(&mut self) {
        loop {
            match self.state {
                State::Preface => {
                    let seen = self.raw.len().min(PREFACE.len());
                    if self.raw[..seen] != PREFACE[..seen] {
                        self.state = State::Passing;
                    } else if seen < PREFACE.len() {
                        return;
                    } else {
                        self.state = State::Body(seen);
                    }
                }
                State::Head => {
                    let Some(head) = self.raw.first_chunk::<FRAME_HEAD_BYTES>() else { return };
                    let bytes = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
                    if head[3] != TYPE_HEADERS {
                        self.state = State::Body(FRAME_HEAD_BYTES + bytes);
                    } else if bytes > FRAME_BYTES_MAX {
                        self.state = State::Passing;
                    } else if self.raw.len() < FRAME_HEAD_BYTES + bytes {
                        return;
                    } else {
                        let frame = self.raw.split_to(FRAME_HEAD_BYTES + bytes);
                        let rewritten = without_scheme(&frame);
                        self.found |= rewritten.is_some();
                        self.state = if self.found { State::Head } else { State::Passing };
                        self.ready.extend_from_slice(rewritten.as_deref().unwrap_or(&frame));
                    }
                }
                State::Body(left) => {
                    let here = left.min(self.raw.len());
                    self.ready.extend_from_slice(&self.raw.split_to(here));
                    if here < left {
                        self.state = State::Body(left - here);
                        return;
                    }
                    self.state = State::Head;
                }
                State::Passing => {
                    let rest = std::mem::take(&mut self.raw);
                    self.ready.extend_from_slice(&rest);
                    return;
                }
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for BareAuthority<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if !this.ready.is_empty() {
                let count = this.ready.len().min(buffer.remaining());
                buffer.put_slice(&this.ready[..count]);
                this.ready.advance(count);
                return Poll::Ready(Ok(()));
            }
            if this.state == State::Passing {
                this.ready = BytesMut::new();
                return Pin::new(&mut this.inner).poll_read(context, buffer);
            }
            let mut bytes = [0; READ_BYTES];
            let mut read = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut this.inner).poll_read(context, &mut read))?;
            if read.filled().is_empty() {
                // The end, perhaps within a frame.
                this.state = State::Passing;
            }
            this.raw.extend_from_slice(read.filled());
            this.sort();
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for BareAuthority<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(context)
    }
}

/// The HEADERS frame with the scheme left out; none where there is none, or the frame is not understood.
fn without_scheme(frame: &[u8]) -> Option<Vec<u8>> {
    let flags = frame.get(4)?;
    let mut block = FRAME_HEAD_BYTES;
    block += if flags & FLAG_PADDED == 0 { 0 } else { 1 };
    block += if flags & FLAG_PRIORITY == 0 { 0 } else { 5 };
    let (start, end) = authority(frame, block)?;
    let shorter = bare_string(frame.get(start..end)?)?;
    let mut rewritten = Vec::with_capacity(frame.len());
    rewritten.extend_from_slice(&frame[..start]);
    rewritten.extend_from_slice(&shorter);
    rewritten.extend_from_slice(&frame[end..]);
    let bytes = u32::try_from(rewritten.len() - FRAME_HEAD_BYTES).ok()?.to_be_bytes();
    rewritten[..3].copy_from_slice(&bytes[1..]);
    Some(rewritten)
}

/// Where in a frame the string is that `:authority` is given as, with its length in front.
fn authority(frame: &[u8], mut at: usize) -> Option<(usize, usize)> {
    loop {
        let first = *frame.get(at)?;
        let (prefix_bits, literal) = match first.leading_zeros() {
            0 => (7, false),
            1 => (6, true),
            2 => (5, false),
            _ => (4, true),
        };
        let name;
        (name, at) = integer(frame, at, prefix_bits)?;
        if !literal {
            continue;
        }
        if name == 0 {
            at = string_end(frame, at)?;
        }
        let end = string_end(frame, at)?;
        if name == NAME_AUTHORITY {
            return Some((at, end));
        }
        at = end;
    }
}

fn string_end(frame: &[u8], at: usize) -> Option<usize> {
    let (bytes, at) = integer(frame, at, 7)?;
    at.checked_add(bytes).filter(|end| *end <= frame.len())
}

/// An integer of HPACK with so many bits in its first byte, and what follows it.
fn integer(bytes: &[u8], mut at: usize, prefix_bits: u32) -> Option<(usize, usize)> {
    let most = (1 << prefix_bits) - 1;
    let mut value = usize::from(*bytes.get(at)?) & most;
    at += 1;
    if value < most {
        return Some((value, at));
    }
    // Nothing in a frame needs more.
    for shift in [0, 7, 14] {
        let byte = usize::from(*bytes.get(at)?);
        at += 1;
        value += (byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value, at));
        }
    }
    None
}

/// A string of HPACK, length and all, without the scheme it begins with and without Huffman's code.
fn bare_string(string: &[u8]) -> Option<Vec<u8>> {
    let huffman = string.first()? & 0x80 != 0;
    let (_, at) = integer(string, 0, 7)?;
    let decoded;
    let value = if huffman {
        decoded = huffman_decoded(&string[at..])?;
        &decoded
    } else {
        &string[at..]
    };
    let bare = SCHEMES.iter().find_map(|scheme| value.strip_prefix(*scheme))?;
    let mut rewritten = Vec::with_capacity(bare.len() + 4);
    if bare.len() < 0x7f {
        rewritten.push(bare.len() as u8);
    } else {
        rewritten.push(0x7f);
        let mut rest = bare.len() - 0x7f;
        while rest >= 0x80 {
            rewritten.push(0x80 | (rest & 0x7f) as u8);
            rest >>= 7;
        }
        rewritten.push(rest as u8);
    }
    rewritten.extend_from_slice(bare);
    Some(rewritten)
}

fn huffman_decoded(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(bytes.len() * 8 / 5);
    let (mut code, mut bits) = (0usize, 0u32);
    for bit in bytes.iter().flat_map(|byte| (0..8).rev().map(move |shift| byte >> shift & 1)) {
        code = code << 1 | usize::from(bit);
        bits += 1;
        let symbols = HUFFMAN.iter().find(|(length, ..)| *length == bits);
        if let Some((_, first, symbols)) = symbols
            && let Some(symbol) = code.checked_sub(*first).and_then(|at| symbols.get(at))
        {
            decoded.push(*symbol);
            (code, bits) = (0, 0);
        } else if bits > HUFFMAN_BITS_MAX {
            return None;
        }
    }
    // It is filled up with ones to the end of its last byte.
    (bits < 8 && code + 1 == 1 << bits).then_some(decoded)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    /// A HEADERS frame around a header block, or what stands for one.
    fn frame(block: &[u8], flags: u8) -> Vec<u8> {
        let mut frame = vec![0, 0, u8::try_from(block.len()).unwrap(), TYPE_HEADERS, flags, 0, 0, 0, 1];
        frame.extend_from_slice(block);
        frame
    }

    /// `:method: POST`, `:scheme: http`, `:path: /x`, then `:authority` as given, then an indexed field.
    fn block(authority: &[u8]) -> Vec<u8> {
        [&[0x83, 0x86, 0x45, 0x02, b'/', b'x', 0x41], authority, &[0xbf]].concat()
    }

    fn plain(text: &str) -> Vec<u8> {
        [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat()
    }

    /// What comes out when the bytes come in pieces of this size.
    async fn through(bytes: &[u8], piece: usize) -> Vec<u8> {
        let (mut near, far) = tokio::io::duplex(piece);
        let bytes = bytes.to_vec();
        let writer = tokio::spawn(async move {
            tokio::io::AsyncWriteExt::write_all(&mut near, &bytes).await.unwrap();
        });
        let mut out = Vec::new();
        BareAuthority::new(far).read_to_end(&mut out).await.unwrap();
        writer.await.unwrap();
        out
    }

    #[tokio::test]
    async fn the_scheme_is_left_out_in_pieces_of_any_size() {
        let data = [0, 0, 3, 0, 1, 0, 0, 0, 1, 7, 8, 9];
        let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        let with = |given: &[u8]| {
            let indexed = frame(&[0x83, 0x86, 0xc0, 0xbf], 4);
            [PREFACE, &settings, &frame(&block(given), 4), &data, &indexed, &frame(&block(given), 4), &data]
                .concat()
        };
        for scheme in ["http", "https"] {
            let given = with(&plain(&format!("{scheme}://127.0.0.1:2379")));
            for piece in [1, 2, 7, 40, 4096] {
                assert_eq!(through(&given, piece).await, with(&plain("127.0.0.1:2379")));
            }
        }
    }

    #[tokio::test]
    async fn everything_else_passes_as_it_is() {
        let bare = frame(&block(&plain("127.0.0.1:2379")), 4);
        let url = frame(&block(&plain("http://127.0.0.1:2379")), 4);
        let torn = &url[..url.len() - 3];
        let long = [0, 0x40, 1, TYPE_HEADERS, 4, 0, 0, 0, 1, 0x41, 9];
        let lying = frame(&[0x41, 0x7f, 0xff, 0xff, 0xff, 0xff], 4);
        let cases: [&[u8]; 8] = [
            b"GET /health HTTP/1.1\r\n\r\n",
            b"PRI",
            b"",
            &[PREFACE, &bare, &url].concat(),
            &[PREFACE, torn].concat(),
            &[PREFACE, &long].concat(),
            &[PREFACE, &lying].concat(),
            &[PREFACE, &frame(&[], 0x2c)].concat(),
        ];
        for given in cases {
            for piece in [1, 5, 4096] {
                assert_eq!(through(given, piece).await, given);
            }
        }
    }

    #[test]
    fn padding_and_priority_stand_before_the_block() {
        let given = [&[2, 0, 0, 0, 0, 16][..], &block(&plain("http://a:1")), &[0, 0]].concat();
        let expected = [&[2, 0, 0, 0, 0, 16][..], &block(&plain("a:1")), &[0, 0]].concat();
        assert_eq!(without_scheme(&frame(&given, 0x2c)), Some(frame(&expected, 0x2c)));
    }

    #[test]
    fn huffman_strings_of_gos_encoder_are_read() {
        for (text, coded) in [
            ("http://127.0.0.1:2379", "8f9d29aee30c044eae05c0b86e09975f"),
            ("https://127.0.0.1:2379", "909d29ad1718602275702e05c3704cbaff"),
            ("http://[fe80::1]:9999", "929d29aee30c7fee52bc0b9703ffcb8fbefbff"),
            (
                "https://etcd-0.etcd.kube-system.svc.cluster.local:2379",
                "a69d29ad171860a9248b0172a4922fd6d8cab23d2125a5747722e4a2d424b62f41c83a2e09975f",
            ),
            ("http://AZ_x.q:90", "8d9d29aee30c43fb1795fb5c7c1f"),
            ("127.0.0.1:2379", "8a089d5c0b8170dc132ebf"),
            ("http://m9:1999", "8b9d29aee30c52fdc0befbff"),
            (
                "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ%-_.[]:",
                "b90044cb4db8ebcf8e324859669cdd3ad14d47afb5884dbdfc79f5ee1bb7afe0c38b1e4cb9b3e8d3ab5ecdbbb7f0e3cbf39feaab44bffefff973",
            ),
        ] {
            let bytes = hex(coded);
            let bare = text.split_once("://").map(|(_, bare)| plain(bare));
            assert_eq!(bare_string(&bytes), bare, "{text}");
            assert_eq!(huffman_decoded(&bytes[1..]).as_deref(), Some(text.as_bytes()));
        }
        // Filled up with zeros, with too many ones, a symbol that no address has.
        for wrong in [&[0x00, 0x00][..], &[0x07, 0xff, 0xff], &[0xff, 0xff, 0xff, 0xff]] {
            assert_eq!(huffman_decoded(wrong), None);
        }
    }

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    #[test]
    fn long_names_keep_their_length() {
        let name = "n".repeat(300);
        let given = [&[0x7f, 0xb4, 0x01][..], b"http://", name.as_bytes()].concat();
        let expected = [&[0x7f, 0xad, 0x01][..], name.as_bytes()].concat();
        assert_eq!(bare_string(&given), Some(expected));
    }
}
