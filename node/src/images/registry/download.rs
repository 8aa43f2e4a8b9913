//! One blob: streamed to a file, hashed on the way, taken up where it broke.
//!
//! The file is given by the caller and may hold the beginning from an earlier time. A thread of its own hashes and
//! writes what arrives, through a bounded queue; when the transfer is dropped it ends, and the file keeps what came.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use ::http::header::{CONTENT_RANGE, RANGE};
use ::http::{Method, StatusCode};
use bytes::Bytes;
use hyper::body::Incoming;
use nix::fcntl::Flock;
use ring::digest::{Context, SHA256};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use super::http::Ask;
use super::{RegistryError, Repository, pause};
use crate::images::ImageError;
use crate::images::config::Descriptor;

/// Pieces that may wait to be written; the connection is not read meanwhile.
const PIECES_MAX: usize = 32;
/// Breaks in a row without anything new.
const BREAKS_MAX: u32 = 5;
const HASH_BUFFER_BYTES: usize = 256 << 10;

/// Where a blob goes.
pub(crate) struct Sink {
    /// The file, opened for reading and writing; locked for as long as anybody writes to it.
    pub(crate) file: Flock<File>,
    /// Its path, for messages.
    pub(crate) path: PathBuf,
}

/// What has arrived so far.
struct Arrived {
    sink: Sink,
    hash: Context,
    length: u64,
}

impl Repository {
    /// Fetches a blob. On success the sink's file, which is given back, holds exactly that. `progress` hears of lengths.
    pub(crate) async fn fetch_blob(
        &self,
        blob: &Descriptor,
        sink: Sink,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Sink, RegistryError> {
        let mut arrived =
            spawn_blocking(move || Arrived::resume(sink)).await.expect("hashing does not panic")?;
        let mut taken_up = arrived.length > 0;
        loop {
            arrived = self.complete(blob, arrived, progress).await?;
            let found = format!("sha256:{}", hex::encode(arrived.hash.clone().finish()));
            if found == blob.digest {
                return Ok(arrived.sink);
            }
            arrived.restart()?;
            if !taken_up {
                let what = format!("failed to fetch {} from {}/{}", blob.digest, self.host, self.path);
                return Err(RegistryError::Corrupt { what, found });
            }
            // What lay there from another time may have been the wrong part.
            taken_up = false;
        }
    }

    /// Goes on until the blob's length is reached.
    async fn complete(
        &self,
        blob: &Descriptor,
        mut arrived: Arrived,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Arrived, RegistryError> {
        let mut breaks = 0;
        if arrived.length > blob.size {
            arrived.restart()?;
        }
        progress(arrived.length);
        while arrived.length < blob.size {
            let before = arrived.length;
            let (what, body) = self.open_blob(blob, &mut arrived).await?;
            let (broke, so_far) = self.stream(&what, blob.size, body, arrived, progress).await?;
            arrived = so_far;
            let Some(error) = broke else { continue };
            breaks = if arrived.length > before { 1 } else { breaks + 1 };
            if breaks > BREAKS_MAX || !error.is_transient() {
                return Err(error);
            }
            tracing::debug!(%error, at = arrived.length, "a transfer broke; going on from there");
            tokio::time::sleep(pause(breaks)).await;
        }
        Ok(arrived)
    }

    /// Asks for what is missing. A registry that cannot give a part gives all of it, from the beginning.
    async fn open_blob(
        &self,
        blob: &Descriptor,
        arrived: &mut Arrived,
    ) -> Result<(String, Incoming), RegistryError> {
        let what = format!("failed to fetch {} from {}/{}", blob.digest, self.host, self.path);
        let mut ask = Ask::new(&what, Method::GET, self.uri(&format!("/blobs/{}", blob.digest))?);
        if arrived.length > 0 {
            ask = ask.header(RANGE, &format!("bytes={}-", arrived.length))?;
        }
        let response = match self.exchange(&ask).await {
            Err(RegistryError::Refused { status: 416, .. }) if arrived.length > 0 => {
                arrived.restart()?;
                ask.headers.remove(RANGE);
                self.exchange(&ask).await?
            }
            other => other?,
        };
        if response.status() == StatusCode::PARTIAL_CONTENT {
            let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
            let from =
                range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse::<u64>().ok());
            if from != Some(arrived.length) {
                return Err(ask.broken("it sent another part than was asked for"));
            }
        } else {
            arrived.restart()?;
        }
        Ok((what, response.into_body()))
    }

    /// Writes a body behind what is there. The error, if any, is the connection's; the disk's ends it all.
    async fn stream(
        &self,
        what: &str,
        size: u64,
        mut body: Incoming,
        arrived: Arrived,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(Option<RegistryError>, Arrived), RegistryError> {
        let mut length = arrived.length;
        let (pieces, waiting) = mpsc::channel(PIECES_MAX);
        let writer = spawn_blocking(move || arrived.write_all(waiting));
        let mut broke = None;
        while length < size {
            let piece = match self.http().next_piece(what, &mut body).await {
                Ok(Some(piece)) => piece,
                Ok(None) => {
                    let problem = format!("it ended after {length} of {size} bytes");
                    broke = Some(RegistryError::Unavailable { what: what.to_owned(), problem });
                    break;
                }
                Err(error) => {
                    broke = Some(error);
                    break;
                }
            };
            length += piece.len() as u64;
            if length > size {
                let problem = format!("it is longer than the {size} bytes that its manifest says");
                return Err(RegistryError::Protocol { what: what.to_owned(), problem });
            }
            if pieces.send(piece).await.is_err() {
                break;
            }
            progress(length);
        }
        drop(pieces);
        let arrived = writer.await.expect("writing does not panic")?;
        Ok((broke, arrived))
    }
}

impl Arrived {
    fn resume(mut sink: Sink) -> Result<Self, ImageError> {
        let mut hash = Context::new(&SHA256);
        let mut length = 0;
        let mut buffer = vec![0; HASH_BUFFER_BYTES];
        sink.file.seek(SeekFrom::Start(0)).map_err(ImageError::io("read", &sink.path))?;
        loop {
            let count = sink.file.read(&mut buffer).map_err(ImageError::io("read", &sink.path))?;
            if count == 0 {
                return Ok(Self { sink, hash, length });
            }
            hash.update(&buffer[..count]);
            length += count as u64;
        }
    }

    fn restart(&mut self) -> Result<(), ImageError> {
        let path: &Path = &self.sink.path;
        self.sink.file.set_len(0).map_err(ImageError::io("empty", path))?;
        self.sink.file.seek(SeekFrom::Start(0)).map_err(ImageError::io("empty", path))?;
        self.hash = Context::new(&SHA256);
        self.length = 0;
        Ok(())
    }

    fn write_all(mut self, mut pieces: mpsc::Receiver<Bytes>) -> Result<Self, ImageError> {
        while let Some(piece) = pieces.blocking_recv() {
            self.sink.file.write_all(&piece).map_err(ImageError::io("write", &self.sink.path))?;
            self.hash.update(&piece);
            self.length += piece.len() as u64;
        }
        Ok(self)
    }
}
