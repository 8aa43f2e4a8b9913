//! Writes checkpoints behind the applied state, on a thread of its own.
//!
//! Applying never waits for it: the thread copies what changed in small chunks, under the lock that readers share, and
//! writes without. Requests that arrive while one write is under way are served together by the next.
//! A simulation, which has one thread, writes in a task, all at once, with time going by before and after.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::thread;

use state_machine::Position;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::sync::oneshot;

use super::codec;
use super::state_machine::State;
use super::types::SnapshotMeta;
use crate::checkpoint::{self, Checkpoint};
use crate::mutants::{self, Mutant};

/// Requests that wait for the thread; they are served together.
const REQUESTS_MAX: usize = 64;

/// Bytes of records that are copied under one hold of the state's lock.
const CHUNK_BYTES: u64 = 256 * 1024;

type Reply = oneshot::Sender<Result<SnapshotMeta, String>>;

/// A handle to the thread. The thread ends with the last handle.
pub(crate) struct Checkpointer {
    requests: Sender<Option<Reply>>,
    durable_index: Arc<AtomicU64>,
}

impl Checkpointer {
    /// `installed` is the received snapshot that a checkpoint makes superfluous.
    pub(crate) fn start(checkpoint: Checkpoint, state: Arc<RwLock<State>>, installed: PathBuf) -> Self {
        let (requests, waiting) = mpsc::channel(REQUESTS_MAX);
        let durable_index = Arc::new(AtomicU64::new(0));
        let durable = Arc::clone(&durable_index);
        let worker = Worker { checkpoint, state, installed, durable_index: durable, written: None };
        let handle = Self { requests, durable_index };
        #[cfg(feature = "simulation")]
        if crate::simulation::is_on() {
            tokio::spawn(worker.run_in_task(waiting));
            return handle;
        }
        thread::Builder::new()
            .name("checkpoint".into())
            .spawn(move || worker.run(waiting))
            .expect("a thread can be started while the process starts");
        handle
    }

    /// Applied index of the newest checkpoint that this process has written.
    pub(crate) fn durable_index(&self) -> u64 {
        self.durable_index.load(Ordering::Relaxed)
    }

    /// Writes the state as it is and waits until it is on disk.
    pub(crate) async fn write(&self) -> io::Result<SnapshotMeta> {
        let (reply, done) = oneshot::channel();
        let ended = || io::Error::new(io::ErrorKind::BrokenPipe, "the checkpoint thread has ended");
        self.requests.try_send(Some(reply)).map_err(|error| match error {
            TrySendError::Full(_) => io::Error::other("too many requests for a checkpoint wait already"),
            TrySendError::Closed(_) => ended(),
        })?;
        let written = done.await.map_err(|_| ended())?;
        written.map_err(io::Error::other)
    }

    /// Asks for a checkpoint without waiting; with many requests waiting one more is not needed.
    pub(crate) fn write_in_background(&self) {
        let _ = self.requests.try_send(None);
    }
}

/// What a write led to, and who is to hear of it.
struct Answers {
    replies: Vec<Reply>,
    result: Result<SnapshotMeta, String>,
}

impl Answers {
    fn send(self) {
        for reply in self.replies {
            let _ = reply.send(self.result.clone());
        }
    }
}

struct Worker {
    checkpoint: Checkpoint,
    state: Arc<RwLock<State>>,
    installed: PathBuf,
    durable_index: Arc<AtomicU64>,
    /// The last log entry of the newest checkpoint that this process has written.
    written: Option<Position>,
}

impl Worker {
    fn run(mut self, mut waiting: Receiver<Option<Reply>>) {
        while let Some(first) = waiting.blocking_recv() {
            self.serve(first, &mut waiting).send();
        }
    }

    #[cfg(feature = "simulation")]
    async fn run_in_task(mut self, mut waiting: Receiver<Option<Reply>>) {
        while let Some(first) = waiting.recv().await {
            crate::simulation::moment().await;
            let answers = self.serve(first, &mut waiting);
            // The state is on disk, and nobody has been told yet.
            crate::simulation::moment().await;
            answers.send();
        }
    }

    /// One write, for all who wait.
    fn serve(&mut self, first: Option<Reply>, waiting: &mut Receiver<Option<Reply>>) -> Answers {
        let also = std::iter::from_fn(|| waiting.try_recv().ok());
        let replies = std::iter::once(first).chain(also).flatten().collect();
        let result = self.write();
        if let Err(error) = &result {
            tracing::error!(%error, "cannot write a checkpoint; the log is kept until one succeeds");
        }
        Answers { replies, result }
    }

    fn write(&mut self) -> Result<SnapshotMeta, String> {
        let (mut delta, meta) = {
            let mut state = self.state.write().expect("no code panics while it holds the state's lock");
            let meta = state.meta();
            (state.machine.take_dirty(), meta)
        };
        if !delta.full && self.written.is_some() && self.written == delta.header.applied {
            return Ok(meta);
        }
        if mutants::is(Mutant::PurgeBeforeCheckpoint) && self.written.is_some() {
            self.durable_index.store(meta.last_log_id.map_or(0, |id| id.index), Ordering::Relaxed);
            return Ok(meta);
        }
        let extra = codec::meta_to_record(&meta);
        let result = self.checkpoint.write(&mut delta, &extra, |delta| {
            let state = self.state.read().expect("no code panics while it holds the state's lock");
            state.machine.read_dirty(delta, CHUNK_BYTES)
        });
        let bloated = result.is_ok() && self.checkpoint.is_bloated().unwrap_or(false);
        let mut state = self.state.write().expect("no code panics while it holds the state's lock");
        match result {
            Ok(_) => {
                if bloated {
                    state.machine.forget_checkpoint();
                }
                drop(state);
                self.written = delta.header.applied;
                let index = meta.last_log_id.map_or(0, |id| id.index);
                self.durable_index.store(index, Ordering::Relaxed);
                self.forget_installed();
                Ok(meta)
            }
            Err(error) => {
                match error {
                    // What the checkpoint holds is not known any more: the next one is written whole.
                    checkpoint::Error::Panicked { .. } | checkpoint::Error::NeedsFull { .. } => {
                        state.machine.forget_checkpoint();
                    }
                    _ => state.machine.put_back_dirty(delta),
                }
                Err(error.to_string())
            }
        }
    }

    /// The received snapshot is superseded by what was just written.
    fn forget_installed(&self) {
        match std::fs::remove_file(&self.installed) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(path = %self.installed.display(), %error, "cannot remove an old snapshot");
            }
        }
    }
}
