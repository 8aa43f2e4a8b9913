//! Header blocks of SPDY/3: name-value pairs, compressed over the whole connection with a dictionary that
//! both sides know.
//!
//! Promises: what a client sends is bounded before and after decompression. A block that breaks a rule ends
//! the connection: the compression's state is common to all blocks.

use std::io;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// What both sides' compression knows beforehand (SPDY Protocol, draft 3, 2.6.10.1).
const DICTIONARY: &[u8] = include_bytes!("dictionary.bin");
/// Longest block, decompressed.
const BLOCK_BYTES_MAX: usize = 64 << 10;
/// Most pairs in a block.
const PAIRS_MAX: usize = 64;

/// Names (lower case) and values of one block.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Headers(Vec<(String, String)>);

impl Headers {
    /// The first value of a name.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }
}

/// The receiving side's state.
#[derive(Debug)]
pub(crate) struct Unpacker {
    inflate: Decompress,
}

impl Unpacker {
    pub(crate) fn new() -> Self {
        Self { inflate: Decompress::new(true) }
    }

    /// Reads one block.
    pub(crate) fn unpack(&mut self, block: &[u8]) -> io::Result<Headers> {
        let mut text = Vec::with_capacity(1024);
        let mut rest = block;
        loop {
            if text.len() == text.capacity() {
                if text.len() >= BLOCK_BYTES_MAX {
                    return Err(bad("a header block is too long"));
                }
                text.reserve(text.len());
            }
            let before = (self.inflate.total_in(), text.len());
            match self.inflate.decompress_vec(rest, &mut text, FlushDecompress::Sync) {
                Ok(Status::Ok | Status::BufError) => {}
                Ok(Status::StreamEnd) => return Err(bad("the header compression ended")),
                Err(error) if error.needs_dictionary().is_some() => {
                    self.inflate
                        .set_dictionary(DICTIONARY)
                        .map_err(|_| bad("headers are compressed with another dictionary"))?;
                }
                Err(_) => return Err(bad("a header block cannot be decompressed")),
            }
            let taken = (self.inflate.total_in() - before.0) as usize;
            rest = &rest[taken.min(rest.len())..];
            // With room left over, everything that was taken in has come out.
            if rest.is_empty() && text.len() < text.capacity() {
                break;
            }
            if taken == 0 && text.len() == before.1 {
                return Err(bad("a header block cannot be decompressed"));
            }
        }
        parse(&text)
    }
}

/// The sending side's state.
#[derive(Debug)]
pub(crate) struct Packer {
    deflate: Compress,
}

impl Packer {
    pub(crate) fn new() -> io::Result<Self> {
        let mut deflate = Compress::new(Compression::fast(), true);
        deflate.set_dictionary(DICTIONARY).map_err(|error| io::Error::other(error.to_string()))?;
        Ok(Self { deflate })
    }

    /// Writes one block.
    pub(crate) fn pack(&mut self, pairs: &[(&str, &str)]) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        let number = |text: &mut Vec<u8>, length: usize| {
            text.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
        };
        number(&mut text, pairs.len());
        for (name, value) in pairs {
            for word in [name, value] {
                number(&mut text, word.len());
                text.extend_from_slice(word.as_bytes());
            }
        }
        // Deflate adds little to what it cannot shrink.
        let mut block = Vec::with_capacity(text.len() + 128);
        self.deflate
            .compress_vec(&text, &mut block, FlushCompress::Sync)
            .map_err(|error| io::Error::other(error.to_string()))?;
        Ok(block)
    }
}

fn parse(text: &[u8]) -> io::Result<Headers> {
    let mut rest = text;
    let count = number(&mut rest)?;
    if count > PAIRS_MAX {
        return Err(bad("a header block has too many pairs"));
    }
    let mut pairs = Vec::with_capacity(count);
    for _ in 0..count {
        pairs.push((word(&mut rest)?.to_ascii_lowercase(), word(&mut rest)?));
    }
    Ok(Headers(pairs))
}

fn number(rest: &mut &[u8]) -> io::Result<usize> {
    let (bytes, after) = rest.split_first_chunk::<4>().ok_or_else(|| bad("a header block breaks off"))?;
    *rest = after;
    Ok(u32::from_be_bytes(*bytes) as usize)
}

fn word(rest: &mut &[u8]) -> io::Result<String> {
    let length = number(rest)?;
    if length > rest.len() {
        return Err(bad("a header block breaks off"));
    }
    let (bytes, after) = rest.split_at(length);
    *rest = after;
    Ok(String::from_utf8_lossy(bytes).into_owned())
}

fn bad(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_go_round_over_a_connection() {
        let (mut packer, mut unpacker) = (Packer::new().unwrap(), Unpacker::new());
        for port in ["80", "8080", "443"] {
            let block = packer.pack(&[("streamtype", "data"), ("port", port)]).unwrap();
            let headers = unpacker.unpack(&block).unwrap();
            assert_eq!((headers.get("streamtype"), headers.get("port")), (Some("data"), Some(port)));
        }
        let long = "x".repeat(20_000);
        let block = packer.pack(&[("long", &long)]).unwrap();
        assert_eq!(unpacker.unpack(&block).unwrap().get("long"), Some(long.as_str()));
        assert_eq!(unpacker.unpack(&packer.pack(&[]).unwrap()).unwrap(), Headers::default());
    }

    #[test]
    fn nonsense_and_bombs_are_refused() {
        assert!(Unpacker::new().unpack(b"no compression at all").is_err());
        let mut deflate = Compress::new(Compression::best(), true);
        let mut bomb = Vec::with_capacity(1 << 20);
        deflate.compress_vec(&vec![0; 8 << 20], &mut bomb, FlushCompress::Sync).unwrap();
        assert!(bomb.len() < 64 << 10, "{}", bomb.len());
        assert!(Unpacker::new().unpack(&bomb).is_err());
        assert!(parse(&[0, 0, 0, 1, 0, 0, 0, 200]).is_err());
        assert!(parse(&[0xff; 4]).is_err());
        assert!(parse(&[]).is_err());
    }
}
