//! Receiving a raft snapshot: into one file, chunk by chunk, and on from where a transfer broke.
//!
//! The file bears its transfer's id in its name and is kept when the stream breaks, over a restart too. Whoever
//! sends asks what is there: offset, and checksum of all before it. After a restart that is read back from the file,
//! so that bytes which a crash has lost or exchanged are not built upon; each chunk brings the checksum of all up to
//! its end, so that what comes of two transfers never makes one file. A file is complete only when the
//! sender has said so.
//!
//! One transfer at a time: the next takes the place of the one before, and a stream that hangs that of its
//! transfer's newest stream. What nobody continues is removed after [`KEPT_FOR`].

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use futures_util::{Stream, StreamExt};
use proto::raft as wire;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::codec;
use super::snapshot_send::TransferCounters;
use super::snapshot_transfer::{self, CHUNK_BYTES, Snapshot, SnapshotData};
use super::types::{SnapshotMeta, Vote};
use crate::blocking;

/// How long a file is kept for a transfer that nobody continues.
const KEPT_FOR: Duration = Duration::from_secs(60);
const SWEEP_PERIOD: Duration = Duration::from_secs(10);
const PREFIX: &str = "partial-";
const SUFFIX: &str = ".snapshot";
/// No sender's ids are near this long.
const ID_BYTES_MAX: usize = 32;

/// See the module's head. Clones are handles to the same.
#[derive(Clone)]
pub(crate) struct Incoming(Arc<Mutex<Slot>>);

struct Slot {
    directory: PathBuf,
    partial: Option<Partial>,
    /// Counts streams; each may write only until the next begins.
    streams: u64,
    counters: Arc<TransferCounters>,
}

/// A file on its way to be a snapshot.
struct Partial {
    path: PathBuf,
    meta: SnapshotMeta,
    file: File,
    head_bytes: u64,
    /// Of the state, without the head.
    bytes: u64,
    /// CRC-32C of them.
    crc32c: u32,
    /// The stream that may write.
    stream: u64,
    touched: Instant,
}

impl Incoming {
    pub(crate) fn new(directory: PathBuf, counters: Arc<TransferCounters>) -> Self {
        Self(Arc::new(Mutex::new(Slot { directory, partial: None, streams: 0, counters })))
    }

    /// Takes a snapshot from the leader into a durable file.
    pub(crate) async fn receive(
        &self,
        mut messages: impl Stream<Item = Result<wire::InstallSnapshotRequest, Status>> + Unpin,
    ) -> Result<(Vote, Snapshot), Status> {
        use wire::install_snapshot_request::Message as M;
        let header = match messages.next().await.transpose()?.and_then(|request| request.message) {
            Some(M::Header(header)) => header,
            _ => return Err(Status::invalid_argument("a snapshot stream begins with its header")),
        };
        let invalid = |e: codec::DecodeError| Status::invalid_argument(e.to_string());
        let vote = codec::vote_from_wire(header.vote.as_ref()).map_err(invalid)?;
        let meta = codec::meta_from_wire(&header).map_err(invalid)?;
        let stream = self.on_disk(move |slot| slot.begin(&header, meta)).await?;
        loop {
            let Some(M::Chunk(chunk)) = messages.next().await.transpose()?.and_then(|next| next.message)
            else {
                return Err(Status::data_loss("the stream ended before its last chunk"));
            };
            let last = chunk.last;
            self.on_disk(move |slot| slot.append(stream, &chunk)).await?;
            if last {
                break;
            }
        }
        let (meta, path) = self.on_disk(move |slot| slot.finish(stream)).await?;
        Ok((vote, openraft::Snapshot { meta, snapshot: SnapshotData::File(path) }))
    }

    /// What there is of a transfer. Whoever asks means to continue it: a stream that still seems open may not
    /// write any more.
    pub(crate) async fn progress(
        &self,
        request: wire::SnapshotProgressRequest,
    ) -> Result<wire::SnapshotProgressResponse, Status> {
        self.on_disk(move |slot| Ok(slot.progress(&request.transfer_id))).await
    }

    /// Removes what nobody continues, until the store stops.
    pub(crate) async fn sweep(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(SWEEP_PERIOD) => {}
            }
            let swept = self.on_disk(|slot| {
                slot.sweep(KEPT_FOR);
                Ok(())
            });
            // It only fails when the event loop ends.
            let _ = swept.await;
        }
    }

    /// On a thread for blocking work: it goes on to its end even if the caller goes away.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Slot) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let slot = Arc::clone(&self.0);
        let done =
            blocking::run(move || work(&mut slot.lock().expect("no code panics while it holds this lock")));
        done.await.map_err(|error| Status::unavailable(format!("this member is stopping: {error}")))?
    }
}

impl Slot {
    fn begin(&mut self, header: &wire::SnapshotHeader, meta: SnapshotMeta) -> Result<u64, Status> {
        let path = self.path_of(&header.transfer_id)?;
        if header.resume_offset > 0 {
            self.adopt(&path);
            let fits = |partial: &Partial| partial.path == path && partial.bytes == header.resume_offset;
            if !self.partial.as_ref().is_some_and(fits) {
                return Err(Status::failed_precondition("there is not so much of this snapshot here"));
            }
            self.counters.received_resumed.fetch_add(1, Ordering::Relaxed);
        } else {
            self.discard();
            for stray in partial_files(&self.directory) {
                remove(&stray);
            }
            let head = snapshot_transfer::file_head(&meta);
            let file = File::options().read(true).write(true).create(true).truncate(true).open(&path);
            let file = file.and_then(|file| file.write_all_at(&head, 0).map(|()| file));
            let file = file.map_err(|error| self.failed(&path, &error))?;
            let (stream, touched) = (0, Instant::now());
            let head_bytes = head.len() as u64;
            let partial = Partial { path, meta, file, head_bytes, bytes: 0, crc32c: 0, stream, touched };
            self.partial = Some(partial);
        }
        Ok(self.next_stream())
    }

    fn append(&mut self, stream: u64, chunk: &wire::SnapshotChunk) -> Result<(), Status> {
        let partial = self.writable(stream)?;
        let due = partial.bytes;
        if chunk.offset != due {
            return Err(Status::data_loss(format!("chunk at {} where {due} was due", chunk.offset)));
        }
        let total = crc32c::crc32c_append(partial.crc32c, &chunk.data);
        if crc32c::crc32c(&chunk.data) != chunk.crc32c || total != chunk.total_crc32c {
            return Err(Status::data_loss(format!("chunk at {due} was damaged on its way")));
        }
        if let Err(error) = partial.file.write_all_at(&chunk.data, partial.head_bytes + due) {
            let path = partial.path.clone();
            self.discard();
            return Err(self.failed(&path, &error));
        }
        partial.bytes += chunk.data.len() as u64;
        partial.crc32c = total;
        partial.touched = Instant::now();
        self.counters.received_bytes.fetch_add(chunk.data.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn finish(&mut self, stream: u64) -> Result<(SnapshotMeta, PathBuf), Status> {
        self.writable(stream)?;
        let partial = self.partial.take().expect("it was writable just now");
        // Under another name: from now on it is the installation's, and no transfer's.
        let path = snapshot_transfer::next_file(&self.directory);
        let kept = partial.file.sync_all().and_then(|()| fs::rename(&partial.path, &path));
        kept.map_err(|error| {
            remove(&partial.path);
            self.failed(&path, &error)
        })?;
        Ok((partial.meta, path))
    }

    fn progress(&mut self, id: &[u8]) -> wire::SnapshotProgressResponse {
        if let Ok(path) = self.path_of(id) {
            self.adopt(&path);
        }
        let own = self.path_of(id).ok();
        if self.partial.as_ref().is_none_or(|partial| Some(&partial.path) != own.as_ref()) {
            return wire::SnapshotProgressResponse::default();
        }
        self.next_stream();
        let partial = self.partial.as_ref().expect("looked at just now");
        wire::SnapshotProgressResponse { known: true, offset: partial.bytes, crc32c: partial.crc32c }
    }

    /// Makes the file of an earlier process, if it is there, the one that is continued.
    fn adopt(&mut self, path: &Path) {
        if self.partial.as_ref().is_some_and(|partial| partial.path == path) {
            return;
        }
        match Partial::read_back(path) {
            Ok(partial) => {
                self.discard();
                self.partial = Some(partial);
            }
            Err(error) => tracing::debug!(%error, path = %path.display(), "nothing to continue"),
        }
    }

    fn sweep(&mut self, kept_for: Duration) {
        if self.partial.as_ref().is_some_and(|partial| partial.touched.elapsed() >= kept_for) {
            tracing::info!("removed the beginning of a snapshot that nobody continues");
            self.discard();
        }
        let current = self.partial.as_ref().map(|partial| partial.path.clone());
        for path in partial_files(&self.directory).filter(|path| Some(path) != current.as_ref()) {
            let modified = fs::metadata(&path).and_then(|metadata| metadata.modified());
            let age = modified.ok().and_then(|modified| SystemTime::now().duration_since(modified).ok());
            if age.is_some_and(|age| age >= kept_for) {
                remove(&path);
            }
        }
    }

    fn writable(&mut self, stream: u64) -> Result<&mut Partial, Status> {
        let partial = self.partial.as_mut().filter(|partial| partial.stream == stream);
        partial.ok_or_else(|| Status::aborted("another transfer of a snapshot took this one's place"))
    }

    fn next_stream(&mut self) -> u64 {
        self.streams += 1;
        if let Some(partial) = &mut self.partial {
            partial.stream = self.streams;
            partial.touched = Instant::now();
        }
        self.streams
    }

    fn discard(&mut self) {
        if let Some(partial) = self.partial.take() {
            remove(&partial.path);
        }
    }

    fn path_of(&self, id: &[u8]) -> Result<PathBuf, Status> {
        if id.is_empty() || id.len() > ID_BYTES_MAX {
            return Err(Status::invalid_argument("a snapshot's transfer needs an id"));
        }
        let mut name = PREFIX.to_owned();
        for byte in id {
            // Writing to a string cannot fail.
            let _ = write!(name, "{byte:02x}");
        }
        Ok(self.directory.join(name + SUFFIX))
    }

    fn failed(&self, path: &Path, error: &io::Error) -> Status {
        Status::internal(format!("cannot write {}: {error}", path.display()))
    }
}

impl Partial {
    /// What there is of whole chunks: a chunk may have been written in part when the process ended.
    fn read_back(path: &Path) -> io::Result<Self> {
        // So that a transfer without a file does not look like one that failed to be read.
        fs::metadata(path)?;
        let (meta, _) = snapshot_transfer::open_file(path).map_err(io::Error::other)?;
        let head_bytes = snapshot_transfer::file_head(&meta).len() as u64;
        let mut file = File::options().read(true).write(true).open(path)?;
        file.seek(SeekFrom::Start(head_bytes))?;
        let (mut bytes, mut crc32c) = (0, 0);
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            match file.read_exact(&mut chunk) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                Err(error) => return Err(error),
            }
            bytes += CHUNK_BYTES as u64;
            crc32c = crc32c::crc32c_append(crc32c, &chunk);
        }
        file.set_len(head_bytes + bytes)?;
        let (path, stream, touched) = (path.to_owned(), 0, Instant::now());
        Ok(Self { path, meta, file, head_bytes, bytes, crc32c, stream, touched })
    }
}

/// Whether a file in the directory of snapshots may be continued, and must not be removed at the start.
pub(crate) fn is_partial(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX))
}

fn partial_files(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.flatten().map(|entry| entry.path()).filter(|path| is_partial(path))
}

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "cannot remove an unfinished snapshot");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use wire::install_snapshot_request::Message;

    use super::*;

    struct Sender {
        sent: Vec<u8>,
    }

    impl Sender {
        fn header(id: &[u8], resume_offset: u64) -> Result<wire::InstallSnapshotRequest, Status> {
            let vote = Vote::new(1, 1);
            let mut header = codec::header_to_wire(Some(&vote), &SnapshotMeta::default());
            header.transfer_id = Bytes::copy_from_slice(id);
            header.resume_offset = resume_offset;
            Ok(wire::InstallSnapshotRequest { message: Some(Message::Header(header)) })
        }

        fn chunk(&mut self, data: &[u8], last: bool) -> Result<wire::InstallSnapshotRequest, Status> {
            let offset = self.sent.len() as u64;
            self.sent.extend_from_slice(data);
            let (crc32c, total_crc32c) = (crc32c::crc32c(data), crc32c::crc32c(&self.sent));
            let data = Bytes::copy_from_slice(data);
            let chunk = wire::SnapshotChunk { offset, data, crc32c, total_crc32c, last };
            Ok(wire::InstallSnapshotRequest { message: Some(Message::Chunk(chunk)) })
        }
    }

    fn incoming(directory: &Path) -> Incoming {
        Incoming::new(directory.to_owned(), Arc::default())
    }

    async fn take(
        incoming: &Incoming,
        messages: Vec<Result<wire::InstallSnapshotRequest, Status>>,
    ) -> Result<Vec<u8>, Status> {
        let (_, snapshot) = incoming.receive(futures_util::stream::iter(messages)).await?;
        let SnapshotData::File(path) = snapshot.snapshot else { panic!("it is received into a file") };
        let head = snapshot_transfer::file_head(&SnapshotMeta::default()).len();
        Ok(fs::read(path).expect("readable").split_off(head))
    }

    async fn progress(incoming: &Incoming, id: &[u8]) -> Option<(u64, u32)> {
        let request = wire::SnapshotProgressRequest { transfer_id: Bytes::copy_from_slice(id) };
        let progress = incoming.progress(request).await.expect("answered");
        progress.known.then_some((progress.offset, progress.crc32c))
    }

    #[tokio::test]
    async fn a_broken_transfer_goes_on_in_the_same_process_and_in_the_next() {
        let directory = tempfile::tempdir().expect("a directory");
        let parts = [vec![1; CHUNK_BYTES], vec![2; CHUNK_BYTES], vec![3; 77]];
        for restarted in [false, true] {
            let mut receiver = incoming(directory.path());
            let mut sender = Sender { sent: Vec::new() };
            let begun = vec![
                Sender::header(b"one", 0),
                sender.chunk(&parts[0], false),
                sender.chunk(&parts[1], false),
                Err(Status::unavailable("cut")),
            ];
            take(&receiver, begun).await.expect_err("it broke");
            if restarted {
                receiver = incoming(directory.path());
            }
            let sent = (2 * CHUNK_BYTES) as u64;
            assert_eq!(progress(&receiver, b"another").await, None);
            assert_eq!(progress(&receiver, b"one").await, Some((sent, crc32c::crc32c(&sender.sent))));
            let rest =
                vec![Sender::header(b"one", sent), sender.chunk(&parts[2], false), sender.chunk(&[], true)];
            assert_eq!(take(&receiver, rest).await.expect("whole"), parts.concat());
            assert_eq!(progress(&receiver, b"one").await, None, "it is the installation's now");
            assert_eq!(receiver.0.lock().expect("sound").counters.read().received_resumed, 1);
        }
    }

    #[tokio::test]
    async fn what_is_not_one_transfer_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let receiver = incoming(directory.path());
        let chunk = vec![7; CHUNK_BYTES];
        let begun = |id: &[u8]| {
            let mut sender = Sender { sent: Vec::new() };
            vec![Sender::header(id, 0), sender.chunk(&chunk, false)]
        };
        let cut = take(&receiver, begun(b"one")).await.expect_err("without its last chunk");
        assert_eq!(cut.code(), tonic::Code::DataLoss);

        // Other bytes before the same offset: the checksum of all of it does not fit.
        let mut other = Sender { sent: vec![8; CHUNK_BYTES] };
        let mixed = vec![Sender::header(b"one", CHUNK_BYTES as u64), other.chunk(b"x", false)];
        assert_eq!(take(&receiver, mixed).await.expect_err("refused").code(), tonic::Code::DataLoss);
        let mut other = Sender { sent: vec![7; 5] };
        let elsewhere = vec![Sender::header(b"one", 5), other.chunk(b"x", false)];
        let refused = take(&receiver, elsewhere).await.expect_err("refused");
        assert_eq!(refused.code(), tonic::Code::FailedPrecondition);

        // The next transfer takes the place, and the file, of the one before.
        take(&receiver, begun(b"two")).await.expect_err("without its last chunk");
        assert_eq!(progress(&receiver, b"one").await, None);
        assert_eq!(partial_files(directory.path()).count(), 1);
        // A stream that seemed open may not write once another one goes on.
        let stream = receiver.0.lock().expect("sound").streams;
        assert!(progress(&receiver, b"two").await.is_some());
        assert!(receiver.0.lock().expect("sound").writable(stream).is_err());
    }

    #[tokio::test]
    async fn what_a_crash_tore_or_changed_is_noticed() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut sender = Sender { sent: Vec::new() };
        let chunk = vec![7; CHUNK_BYTES];
        let begun = vec![
            Sender::header(b"one", 0),
            sender.chunk(&chunk, false),
            sender.chunk(&chunk, false),
            Err(Status::unavailable("cut")),
        ];
        take(&incoming(directory.path()), begun).await.expect_err("it broke");
        let path = partial_files(directory.path()).next().expect("it is kept");
        let file = File::options().write(true).open(&path).expect("opens");
        file.set_len(file.metadata().expect("read").len() - 3).expect("torn");
        let whole = Some((CHUNK_BYTES as u64, crc32c::crc32c(&chunk)));
        assert_eq!(progress(&incoming(directory.path()), b"one").await, whole, "one whole chunk is left");
        file.write_all_at(&[0], 1000).expect("damaged");
        let damaged = progress(&incoming(directory.path()), b"one").await.expect("there is a chunk");
        assert_ne!(Some(damaged), whole, "the sender sees that it is not what it sent");
        file.write_all_at(&[0], 0).expect("damaged");
        assert_eq!(progress(&incoming(directory.path()), b"one").await, None, "the head is damaged");
    }

    #[tokio::test]
    async fn what_nobody_continues_is_removed() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("installed.snapshot"), "kept").expect("written");
        fs::write(directory.path().join("partial-00.snapshot"), "of an earlier process").expect("written");
        let receiver = incoming(directory.path());
        receiver.0.lock().expect("sound").sweep(Duration::from_secs(3600));
        assert_eq!(partial_files(directory.path()).count(), 1, "not yet");
        let mut sender = Sender { sent: Vec::new() };
        let begun = vec![Sender::header(b"one", 0), sender.chunk(&[1; 9], false)];
        take(&receiver, begun).await.expect_err("it broke");
        assert_eq!(partial_files(directory.path()).count(), 1, "the newest alone");
        receiver.0.lock().expect("sound").sweep(Duration::ZERO);
        assert_eq!(partial_files(directory.path()).count(), 0);
        assert_eq!(fs::read_dir(directory.path()).expect("listed").count(), 1);
    }
}
