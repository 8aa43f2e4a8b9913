//! The byte stream of a layer: what compresses it, its digest, and how much of it is read.

use std::cell::Cell;
use std::io::{self, BufRead as _, BufReader, Cursor, Read};
use std::rc::Rc;

use flate2::read::MultiGzDecoder;
use ring::digest::{Context, SHA256};
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use super::{Error, LayerLimits};

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const BZIP2: &[u8] = b"BZh";
const XZ: &[u8] = &[0xfd, b'7', b'z', b'X'];
const MAGIC_BYTES: usize = 4;
/// Read at a time when the rest of a stream is only hashed.
const CHUNK_BYTES: usize = 64 << 10;
/// Names, links and attributes of one entry, which are held in memory.
const HEADERS_BYTES_MAX: u64 = 1 << 20;

/// The uncompressed stream, by what the first bytes say.
pub(super) fn decompress<'a>(mut reader: impl Read + 'a) -> Result<Box<dyn Read + 'a>, Error> {
    let mut start = Vec::with_capacity(MAGIC_BYTES);
    let magic = MAGIC_BYTES as u64;
    reader.by_ref().take(magic).read_to_end(&mut start).map_err(Error::Archive)?;
    for (magic, algorithm) in [(BZIP2, "bzip2"), (XZ, "xz")] {
        if start.starts_with(magic) {
            return Err(Error::Compression { algorithm });
        }
    }
    let (gzip, zstd) = (start.starts_with(GZIP), start.starts_with(ZSTD) || is_skippable(&start));
    let whole = Cursor::new(start).chain(reader);
    Ok(match (gzip, zstd) {
        (true, _) => Box::new(MultiGzDecoder::new(whole)),
        (_, true) => Box::new(ZstdFrames::new(whole)),
        _ => Box::new(whole),
    })
}

/// zstd's frames that hold no data; indexes of images are kept in them.
fn is_skippable(start: &[u8]) -> bool {
    matches!(start, [0x50..=0x5f, 0x2a, 0x4d, 0x18])
}

/// The content of all frames of a zstd stream, one behind the other.
struct ZstdFrames<R> {
    source: BufReader<R>,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl<R: Read> ZstdFrames<R> {
    fn new(source: R) -> Self {
        let source = BufReader::with_capacity(CHUNK_BYTES, source);
        Self { source, decoder: FrameDecoder::new(), in_frame: false }
    }

    /// Goes into the next frame. False: there is none.
    fn next_frame(&mut self) -> io::Result<bool> {
        while !self.source.fill_buf()?.is_empty() {
            match self.decoder.init(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let skipped = io::copy(&mut (&mut self.source).take(length.into()), &mut io::sink())?;
                    if skipped < u64::from(length) {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(io::Error::other(error)),
            }
        }
        Ok(false)
    }
}

impl<R: Read> Read for ZstdFrames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !buffer.is_empty() {
            if !self.in_frame && !self.next_frame()? {
                break;
            }
            self.in_frame = true;
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                let one = BlockDecodingStrategy::UptoBlocks(1);
                self.decoder.decode_blocks(&mut self.source, one).map_err(io::Error::other)?;
            }
            let length = self.decoder.read(buffer)?;
            if length > 0 {
                return Ok(length);
            }
            self.in_frame = false;
        }
        Ok(0)
    }
}

/// How much may still be read; shared by who reads and who knows what is being read.
#[derive(Clone)]
pub(super) struct Budget {
    limits: LayerLimits,
    total: Rc<Cell<u64>>,
    /// Of headers: they are held in memory. `None`: content is read.
    headers: Rc<Cell<Option<u64>>>,
}

impl Budget {
    pub(super) fn new(limits: LayerLimits) -> Self {
        Self { limits, total: Rc::new(Cell::new(limits.bytes)), headers: Rc::default() }
    }

    /// What is read from here on are headers.
    pub(super) fn headers_follow(&self) {
        self.headers.set(Some(HEADERS_BYTES_MAX));
    }

    /// What is read from here on goes to the disk.
    pub(super) fn content_follows(&self) {
        self.headers.set(None);
    }

    /// Which limit was reached, if one was.
    pub(super) fn exceeded(&self) -> Option<Error> {
        if self.total.get() == 0 {
            return Some(Error::TooLarge { what: "bytes", limit: self.limits.bytes });
        }
        let headers = self.headers.get() == Some(0);
        headers.then_some(Error::TooLarge { what: "bytes of headers of one entry", limit: HEADERS_BYTES_MAX })
    }

    fn room(&self) -> u64 {
        self.headers.get().map_or(u64::MAX, |headers| headers).min(self.total.get())
    }

    fn take(&self, count: usize) {
        let count = count as u64;
        self.total.set(self.total.get().saturating_sub(count));
        self.headers.set(self.headers.get().map(|headers| headers.saturating_sub(count)));
    }
}

/// Hashes what passes through, as far as the budget goes.
pub(super) struct HashingReader<R> {
    inner: R,
    digest: Context,
    budget: Budget,
}

impl<R: Read> HashingReader<R> {
    pub(super) fn new(inner: R, budget: Budget) -> Self {
        HashingReader { inner, digest: Context::new(&SHA256), budget }
    }

    /// Reads what is left (padding behind the archive counts) and tells the digest.
    pub(super) fn finish(mut self) -> io::Result<String> {
        self.budget.content_follows();
        let mut chunk = vec![0; CHUNK_BYTES];
        while self.read(&mut chunk)? > 0 {}
        Ok(format!("sha256:{}", hex::encode(self.digest.finish())))
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.budget.room()).unwrap_or(usize::MAX);
        if room == 0 && !buffer.is_empty() {
            return Err(io::Error::other("the layer is larger than it may be"));
        }
        let most = buffer.len().min(room);
        let length = self.inner.read(&mut buffer[..most])?;
        self.budget.take(length);
        self.digest.update(&buffer[..length]);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn reader(bytes: &[u8]) -> HashingReader<Box<dyn Read + '_>> {
        HashingReader::new(decompress(bytes).unwrap(), Budget::new(LayerLimits::default()))
    }

    fn digest(bytes: &[u8]) -> String {
        reader(bytes).finish().unwrap()
    }

    /// One frame with one block that is stored as it is.
    fn zstd(text: &[u8]) -> Vec<u8> {
        let block = (text.len() as u32) << 3 | 1;
        [ZSTD, &[0x20, text.len() as u8], &block.to_le_bytes()[..3], text].concat()
    }

    #[test]
    fn the_digest_is_that_of_the_uncompressed_stream() {
        let known = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest(b"abc"), known);
        assert_eq!(digest(&gzip(b"abc")), known);
        assert_eq!(digest(&[gzip(b"a"), gzip(b"bc")].concat()), known, "several members are one stream");
        assert!(digest(b"").ends_with("852b855"));
        assert_eq!(digest(&zstd(b"abc")), known);
        let skipped = [&[0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0][..], b"--"].concat();
        let frames = [skipped.clone(), zstd(b"a"), skipped, zstd(b"bc")].concat();
        assert_eq!(digest(&frames), known, "several frames are one stream");
    }

    #[test]
    fn other_compressions_are_named() {
        let named = |bytes: &[u8]| match decompress(bytes) {
            Err(Error::Compression { algorithm }) => algorithm,
            _ => "none",
        };
        assert_eq!(named(b"BZh9"), "bzip2");
        assert_eq!(named(b"abc"), "none");
    }

    #[test]
    fn a_stream_cut_short_is_an_error() {
        let whole = gzip(&[7; 10_000]);
        let cut = &whole[..whole.len() - 6];
        assert!(reader(cut).finish().is_err());
        let whole = zstd(b"0123456789");
        assert!(reader(&whole[..whole.len() - 3]).finish().is_err());
        assert!(reader(&[0x50, 0x2a, 0x4d, 0x18, 9, 0, 0, 0, 1]).finish().is_err());
    }
}
