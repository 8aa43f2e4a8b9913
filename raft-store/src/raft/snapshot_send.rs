//! Sending a raft snapshot to one member: at a bounded rate, and on from where it broke.
//!
//! One [`Transfer`] is one encoding of the state, under an id of its own. Its last chunks are kept, so that after
//! a broken connection, or a restart of the receiver, sending goes on behind what the receiver says that it
//! has: identity, offset and the checksum of everything before must agree, or the transfer is given up and the
//! consensus library begins another. Whoever leads next knows nothing of it and begins anew, too.
//!
//! A transfer lives no longer than the call that sends it: memory is bounded by the chunks that are kept, and what
//! it pins of the state's history by [`RESUME_WITHIN`] without progress.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, stream};
use proto::raft as wire;
use tokio::sync::{Mutex, mpsc};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::codec;
use super::peer_client::PeerClient;
use super::snapshot_transfer::{self, CHUNK_BYTES, CHUNKS_IN_FLIGHT_MAX, SnapshotData};
use super::types::{SnapshotMeta, Vote};
use crate::blocking::{self, Pieces};

/// Chunks that are kept behind the newest. More than a connection's flow control lets be on its way.
const CHUNKS_KEPT_MAX: usize = 32;
/// A receiver that cannot be asked, or gets no further, is given up after this time.
const RESUME_WITHIN: Duration = Duration::from_secs(30);
const RESUME_PAUSE: Duration = Duration::from_millis(50);
/// One question for the progress.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(2);

/// How much snapshots have moved between this member and others since it was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SnapshotTransfers {
    /// Bytes sent, those that were sent again included.
    pub sent_bytes: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// Transfers to others that broke and went on.
    pub sent_resumed: u64,
    /// Transfers from others that broke and went on.
    pub received_resumed: u64,
}

#[derive(Debug, Default)]
pub(crate) struct TransferCounters {
    pub(crate) sent_bytes: AtomicU64,
    pub(crate) received_bytes: AtomicU64,
    pub(crate) sent_resumed: AtomicU64,
    pub(crate) received_resumed: AtomicU64,
}

impl TransferCounters {
    pub(crate) fn read(&self) -> SnapshotTransfers {
        let number = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        SnapshotTransfers {
            sent_bytes: number(&self.sent_bytes),
            received_bytes: number(&self.received_bytes),
            sent_resumed: number(&self.sent_resumed),
            received_resumed: number(&self.received_resumed),
        }
    }
}

/// What all transfers of one member share: its rate and its counters.
#[derive(Debug, Clone)]
pub(crate) struct Courier {
    pace: Arc<Pace>,
    counters: Arc<TransferCounters>,
}

impl Courier {
    pub(crate) fn new(bytes_per_second: u64, counters: Arc<TransferCounters>) -> Self {
        Self { pace: Arc::new(Pace::new(bytes_per_second)), counters }
    }

    /// Sends a snapshot until the member has installed it; returns the vote it answers with.
    pub(crate) async fn deliver(&self, client: PeerClient, transfer: Transfer) -> Result<Vote, Status> {
        let transfer = Arc::new(transfer);
        let mut from = 0;
        let mut advanced = Instant::now();
        loop {
            let mut client = client.clone();
            let sent = client.install_snapshot(self.messages(Arc::clone(&transfer), from)).await;
            let broken = match sent {
                Ok(response) => {
                    let vote = codec::vote_from_wire(response.into_inner().vote.as_ref());
                    return vote.map_err(|error| Status::internal(error.to_string()));
                }
                Err(status) => status,
            };
            let Some(offset) = transfer.ask_progress(&client, advanced + RESUME_WITHIN).await else {
                return Err(broken);
            };
            if offset > from {
                advanced = Instant::now();
            } else if advanced.elapsed() >= RESUME_WITHIN {
                return Err(broken);
            }
            from = offset;
            tracing::info!(offset, error = broken.message(), "the transfer of a snapshot broke; it goes on");
            self.counters.sent_resumed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The messages of one attempt, from an offset on. It ends without the last chunk if the state could not be
    /// encoded, and the receiver takes nothing then.
    fn messages(
        &self,
        transfer: Arc<Transfer>,
        from: u64,
    ) -> impl Stream<Item = wire::InstallSnapshotRequest> + Send + 'static + use<> {
        use wire::install_snapshot_request::Message as M;
        let courier = self.clone();
        stream::unfold(Next::Header, move |next| {
            let (transfer, courier) = (Arc::clone(&transfer), courier.clone());
            async move {
                let (message, next) = match next {
                    Next::Header => (M::Header(transfer.header(from).await?), Next::Chunk(from)),
                    Next::Chunk(offset) => {
                        let chunk = transfer.chunk_at(offset).await?;
                        let bytes = chunk.data.len() as u64;
                        courier.pace.take(bytes).await;
                        courier.counters.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
                        let next = if chunk.last { Next::Nothing } else { Next::Chunk(offset + bytes) };
                        (M::Chunk(chunk), next)
                    }
                    Next::Nothing => return None,
                };
                Some((wire::InstallSnapshotRequest { message: Some(message) }, next))
            }
        })
    }
}

enum Next {
    Header,
    Chunk(u64),
    Nothing,
}

/// Bounds the bytes per second of all transfers together.
#[derive(Debug)]
struct Pace {
    /// 0: no bound.
    bytes_per_second: u64,
    /// When the next bytes may go.
    free_at: std::sync::Mutex<Instant>,
}

impl Pace {
    fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, free_at: std::sync::Mutex::new(Instant::now()) }
    }

    async fn take(&self, bytes: u64) {
        if self.bytes_per_second == 0 {
            return;
        }
        let at = {
            let mut free_at = self.free_at.lock().expect("no code panics while it holds this lock");
            let at = (*free_at).max(Instant::now());
            *free_at = at + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
            at
        };
        tokio::time::sleep_until(at).await;
    }
}

/// What the encoder gives, in this order.
enum Piece {
    Meta(SnapshotMeta),
    Data(Bytes),
    /// All of it was given: an encoder that fails ends without.
    End,
}

/// See the module's head.
pub(crate) struct Transfer {
    id: Bytes,
    vote: Vote,
    source: Mutex<Source>,
}

struct Source {
    pieces: mpsc::Receiver<Piece>,
    meta: Option<SnapshotMeta>,
    /// The newest chunks, in order.
    kept: VecDeque<Kept>,
    /// Where the next chunk begins.
    end: u64,
    /// CRC-32C of everything before.
    crc32c: u32,
    complete: bool,
}

struct Kept {
    offset: u64,
    data: Bytes,
    /// Of everything before this chunk.
    crc32c_before: u32,
    /// With it.
    crc32c_after: u32,
}

impl Transfer {
    /// Begins to encode. What is sent is the state as it is now, which may be newer than what the caller knows of;
    /// `meta` describes a file's content.
    pub(crate) fn begin(vote: Vote, meta: SnapshotMeta, data: SnapshotData) -> Self {
        let pieces = blocking::make_pieces(CHUNKS_IN_FLIGHT_MAX, move |pieces| {
            let mut pieces = PieceWriter { pieces, buffer: BytesMut::with_capacity(CHUNK_BYTES) };
            let sent = match data {
                SnapshotData::Live(state) => {
                    snapshot_transfer::encode_live(&state, &mut pieces, |meta, out| {
                        out.pass(Piece::Meta(meta.clone()))
                    })
                }
                SnapshotData::File(path) => pieces.pass(Piece::Meta(meta)).and_then(|()| {
                    let (_, mut state) = snapshot_transfer::open_file(&path).map_err(io::Error::other)?;
                    io::copy(&mut state, &mut pieces).map(drop)
                }),
            };
            let sent = sent.and_then(|()| pieces.flush()).and_then(|()| pieces.pass(Piece::End));
            if let Err(error) = sent {
                tracing::warn!(%error, "sending a snapshot stopped");
            }
        });
        let (kept, meta) = (VecDeque::with_capacity(CHUNKS_KEPT_MAX), None);
        let source = Source { pieces, meta, kept, end: 0, crc32c: 0, complete: false };
        let id: [u8; 16] = rand::random();
        Self { id: Bytes::copy_from_slice(&id), vote, source: Mutex::new(source) }
    }

    async fn header(&self, from: u64) -> Option<wire::SnapshotHeader> {
        let mut source = self.source.lock().await;
        if source.meta.is_none()
            && let Some(Piece::Meta(meta)) = source.pieces.recv().await
        {
            source.meta = Some(meta);
        }
        let mut header = codec::header_to_wire(Some(&self.vote), source.meta.as_ref()?);
        header.transfer_id = self.id.clone();
        header.resume_offset = from;
        Some(header)
    }

    async fn chunk_at(&self, offset: u64) -> Option<wire::SnapshotChunk> {
        self.source.lock().await.chunk_at(offset).await
    }

    /// What the member has of this transfer, if it can go on behind that. Waits until `deadline` for a member
    /// that does not answer.
    async fn ask_progress(&self, client: &PeerClient, deadline: Instant) -> Option<u64> {
        let request = wire::SnapshotProgressRequest { transfer_id: self.id.clone() };
        loop {
            tokio::time::sleep(RESUME_PAUSE).await;
            let mut client = client.clone();
            let asked = client.snapshot_progress(request.clone());
            let progress = match tokio::time::timeout(PROGRESS_TIMEOUT, asked).await {
                Ok(Ok(response)) => response.into_inner(),
                Ok(Err(status)) if !may_come_back(&status) => return None,
                Ok(Err(_)) | Err(_) if Instant::now() < deadline => continue,
                Ok(Err(_)) | Err(_) => return None,
            };
            let agreed = progress.known && self.source.lock().await.agrees(progress.offset, progress.crc32c);
            return agreed.then_some(progress.offset);
        }
    }
}

/// Whether a member that answers so may be asked again: it is being started, or its connection broke.
fn may_come_back(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled | Code::DeadlineExceeded)
}

impl Source {
    /// The chunk that begins at `offset`: one that is kept, or the next. Cancelling it loses nothing.
    async fn chunk_at(&mut self, offset: u64) -> Option<wire::SnapshotChunk> {
        if offset == self.end && !self.complete {
            match self.pieces.recv().await? {
                Piece::Data(data) => self.keep(data),
                Piece::End => self.complete = true,
                Piece::Meta(_) => return None,
            }
        }
        if offset == self.end {
            let (data, crc32c) = (Bytes::new(), crc32c::crc32c(&[]));
            return Some(wire::SnapshotChunk { offset, data, crc32c, total_crc32c: self.crc32c, last: true });
        }
        let kept = self.kept.iter().find(|kept| kept.offset == offset)?;
        Some(wire::SnapshotChunk {
            offset,
            data: kept.data.clone(),
            crc32c: crc32c::crc32c(&kept.data),
            total_crc32c: kept.crc32c_after,
            last: false,
        })
    }

    fn keep(&mut self, data: Bytes) {
        if self.kept.len() == CHUNKS_KEPT_MAX {
            self.kept.pop_front();
        }
        let (offset, crc32c_before) = (self.end, self.crc32c);
        self.end += data.len() as u64;
        self.crc32c = crc32c::crc32c_append(self.crc32c, &data);
        self.kept.push_back(Kept { offset, data, crc32c_before, crc32c_after: self.crc32c });
    }

    /// Whether a receiver with so many bytes of this checksum has what was sent, and can be given what follows.
    fn agrees(&self, offset: u64, crc32c: u32) -> bool {
        let kept = self.kept.iter().find(|kept| kept.offset == offset).map(|kept| kept.crc32c_before);
        let before = kept.or_else(|| (offset == self.end).then_some(self.crc32c));
        before == Some(crc32c)
    }
}

/// Cuts what is written into pieces of a chunk each.
struct PieceWriter {
    pieces: Pieces<Piece>,
    buffer: BytesMut,
}

impl PieceWriter {
    fn pass(&mut self, piece: Piece) -> io::Result<()> {
        self.pieces.put(piece)
    }
}

impl Write for PieceWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK_BYTES - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() == CHUNK_BYTES {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = Piece::Data(self.buffer.split().freeze());
        self.pass(piece)
    }
}

#[cfg(test)]
impl Courier {
    /// All messages of a transfer that does not break.
    pub(crate) fn all_messages(
        &self,
        transfer: Transfer,
    ) -> impl Stream<Item = wire::InstallSnapshotRequest> + Send + 'static + use<> {
        self.messages(Arc::new(transfer), 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(chunks: &[&'static [u8]]) -> Source {
        let (tx, pieces) = mpsc::channel(64);
        for chunk in chunks {
            assert!(tx.try_send(Piece::Data(Bytes::from_static(chunk))).is_ok(), "there is room");
        }
        assert!(tx.try_send(Piece::End).is_ok(), "there is room");
        Source { pieces, meta: None, kept: VecDeque::new(), end: 0, crc32c: 0, complete: false }
    }

    #[tokio::test]
    async fn it_goes_on_only_behind_what_was_sent_and_is_kept() {
        let mut source = source(&[b"abc", b"def", b"gh"]);
        for offset in [0, 3] {
            assert!(!source.chunk_at(offset).await.expect("a chunk").last);
        }
        let crc = crc32c::crc32c;
        for (offset, content, agrees) in [
            (0, b"".as_slice(), true),
            (3, b"abc", true),
            (6, b"abcdef", true),
            (3, b"abd", false),
            (2, b"ab", false),
            (8, b"abcdefgh", false),
        ] {
            assert_eq!(source.agrees(offset, crc(content)), agrees, "{offset}");
        }
        // Again, and to the end.
        assert_eq!(source.chunk_at(3).await.expect("a chunk").data, b"def".as_slice());
        assert_eq!(source.chunk_at(6).await.expect("a chunk").data, b"gh".as_slice());
        let last = source.chunk_at(8).await.expect("the end");
        assert!(last.last && last.data.is_empty() && last.total_crc32c == crc(b"abcdefgh"));
        assert!(source.chunk_at(8).await.expect("the end, again").last);
        assert!(source.chunk_at(5).await.is_none(), "no chunk begins there");
    }

    #[tokio::test]
    async fn only_the_newest_chunks_are_kept() {
        let mut source = source(&[b"x".as_slice(); CHUNKS_KEPT_MAX + 2]);
        for offset in 0..CHUNKS_KEPT_MAX as u64 + 2 {
            source.chunk_at(offset).await.expect("a chunk");
        }
        assert_eq!(source.kept.len(), CHUNKS_KEPT_MAX);
        assert!(source.chunk_at(1).await.is_none() && source.chunk_at(2).await.is_some());
    }

    #[tokio::test]
    async fn the_pace_is_kept_over_all_that_is_sent() {
        let pace = Pace::new(1_000_000);
        let started = Instant::now();
        for _ in 0..5 {
            pace.take(20_000).await;
        }
        // The first goes at once.
        assert!(started.elapsed() >= Duration::from_millis(80), "{:?}", started.elapsed());
        // Would take longer than anybody waits, were it not without a bound.
        Pace::new(0).take(u64::MAX).await;
    }
}
