//! The byte stream of a layer: what compresses it, and its digest.

use std::io::{self, Cursor, Read};

use flate2::read::MultiGzDecoder;
use ring::digest::{Context, SHA256};

use super::Error;

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const BZIP2: &[u8] = b"BZh";
const XZ: &[u8] = &[0xfd, b'7', b'z', b'X'];
const MAGIC_BYTES: usize = 4;
/// Read at a time when the rest of a stream is only hashed.
const CHUNK_BYTES: usize = 64 << 10;

/// The uncompressed stream, by what the first bytes say.
pub(super) fn decompress<'a>(mut reader: impl Read + 'a) -> Result<Box<dyn Read + 'a>, Error> {
    let mut start = Vec::with_capacity(MAGIC_BYTES);
    let magic = MAGIC_BYTES as u64;
    reader.by_ref().take(magic).read_to_end(&mut start).map_err(Error::Archive)?;
    for (magic, algorithm) in [(ZSTD, "zstd"), (BZIP2, "bzip2"), (XZ, "xz")] {
        if start.starts_with(magic) {
            return Err(Error::Compression { algorithm });
        }
    }
    let gzip = start.starts_with(GZIP);
    let whole = Cursor::new(start).chain(reader);
    Ok(if gzip { Box::new(MultiGzDecoder::new(whole)) } else { Box::new(whole) })
}

/// Hashes what passes through.
pub(super) struct HashingReader<R> {
    inner: R,
    digest: Context,
}

impl<R: Read> HashingReader<R> {
    pub(super) fn new(inner: R) -> Self {
        HashingReader { inner, digest: Context::new(&SHA256) }
    }

    /// Reads what is left (padding behind the archive counts) and tells the digest.
    pub(super) fn finish(mut self) -> io::Result<String> {
        let mut chunk = vec![0; CHUNK_BYTES];
        while self.read(&mut chunk)? > 0 {}
        Ok(format!("sha256:{}", hex::encode(self.digest.finish())))
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
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

    fn digest(bytes: &[u8]) -> String {
        HashingReader::new(decompress(bytes).unwrap()).finish().unwrap()
    }

    #[test]
    fn the_digest_is_that_of_the_uncompressed_stream() {
        let known = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest(b"abc"), known);
        assert_eq!(digest(&gzip(b"abc")), known);
        assert_eq!(digest(&[gzip(b"a"), gzip(b"bc")].concat()), known, "several members are one stream");
        assert!(digest(b"").ends_with("852b855"));
    }

    #[test]
    fn other_compressions_are_named() {
        let named = |bytes: &[u8]| match decompress(bytes) {
            Err(Error::Compression { algorithm }) => algorithm,
            _ => "none",
        };
        assert_eq!(named(&[0x28, 0xb5, 0x2f, 0xfd, 0]), "zstd");
        assert_eq!(named(b"BZh9"), "bzip2");
        assert_eq!(named(b"abc"), "none");
    }

    #[test]
    fn a_stream_cut_short_is_an_error() {
        let whole = gzip(&[7; 10_000]);
        let cut = &whole[..whole.len() - 6];
        assert!(HashingReader::new(decompress(cut).unwrap()).finish().is_err());
    }
}
