//! What callers have asked and the writer has not taken yet. Bounded in bytes, where bytes count until they are
//! durable; a full queue refuses.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::error::Error;
use super::state::Purged;
use super::stats::Counters;
use super::{Done, Entry};

/// Counted for each entry and each request beside its payload.
const OVERHEAD_BYTES: u64 = 64;
/// Votes, truncations and purges may exceed the bound by this, so that a flood of entries cannot stop an election.
const CONTROL_RESERVE_BYTES: u64 = 64 << 10;
/// One batch takes requests until it has so many bytes.
const BATCH_BYTES_MAX: u64 = 4 << 20;
/// At most so many callers wait for room; one more is told at once to try.
const ROOM_WAITERS_MAX: usize = 1024;

/// What is asked of the writer.
#[derive(Debug)]
pub(super) enum Op {
    Append(Vec<Entry>),
    Vote(Bytes),
    Truncate { from: u64 },
    Purge(Purged),
}

/// An [`Op`] and whom to tell.
pub(super) struct Request {
    pub(super) op: Op,
    pub(super) done: Done,
    /// What the queue counts for it.
    pub(super) queue_bytes: u64,
}

/// What the writer has to do.
pub(super) enum Work {
    Batch { requests: Vec<Request>, committed: Option<Bytes> },
    Idle { committed: Option<Bytes> },
    Closed { committed: Option<Bytes> },
}

/// The queue.
pub(super) struct Queue {
    state: Mutex<State>,
    wake: Condvar,
    #[cfg(feature = "simulation")]
    wake_task: tokio::sync::Notify,
    bytes_max: u64,
    counters: Arc<Counters>,
}

type Waiter = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    requests: Vec<Request>,
    committed: Option<Bytes>,
    room_waiters: Vec<Waiter>,
    /// The writer sleeps until it is woken, however long that takes.
    sound_asleep: bool,
    closed: bool,
    failed: Option<Arc<Error>>,
}

impl Queue {
    pub(super) fn new(bytes_max: u64, counters: Arc<Counters>) -> Self {
        Self {
            state: Mutex::default(),
            wake: Condvar::new(),
            #[cfg(feature = "simulation")]
            wake_task: tokio::sync::Notify::new(),
            bytes_max,
            counters,
        }
    }

    /// Queues a request, or completes it at once with the reason why not.
    pub(super) fn push(&self, op: Op, done: Done) {
        if let Err((done, error)) = self.try_push(op, done) {
            done(Err(error));
        }
    }

    fn try_push(&self, op: Op, done: Done) -> Result<(), (Done, Arc<Error>)> {
        let queue_bytes = cost(&op);
        let bound = match &op {
            Op::Append(_) => self.bytes_max,
            Op::Vote(_) | Op::Truncate { .. } | Op::Purge(_) => self.bytes_max + CONTROL_RESERVE_BYTES,
        };
        let mut state = self.lock();
        if let Some(failed) = &state.failed {
            return Err((done, Arc::clone(failed)));
        }
        if state.closed {
            return Err((done, Arc::new(Error::Closed)));
        }
        let queued_bytes = self.counters.queued_bytes.load(Relaxed);
        // A request larger than the whole bound passes when it is alone.
        if queued_bytes > 0 && queued_bytes + queue_bytes > bound {
            return Err((done, Arc::new(Error::Busy { queued_bytes, queue_bytes_max: self.bytes_max })));
        }
        self.counters.queued_bytes.fetch_add(queue_bytes, Relaxed);
        state.requests.push(Request { op, done, queue_bytes });
        drop(state);
        self.wake();
        Ok(())
    }

    /// Replaces the hint; it does not hurry the writer.
    pub(super) fn hint_committed(&self, committed: Bytes) {
        let mut state = self.lock();
        state.committed = Some(committed);
        if state.sound_asleep {
            drop(state);
            self.wake();
        }
    }

    /// Calls back once less than half of the bound is in use.
    pub(super) fn when_room(&self, waiter: Waiter) {
        let mut state = self.lock();
        let now = self.has_room() || state.closed || state.failed.is_some();
        if now || state.room_waiters.len() >= ROOM_WAITERS_MAX {
            drop(state);
            waiter();
        } else {
            state.room_waiters.push(waiter);
        }
    }

    /// No more requests; the writer ends when it has done those that are there.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.wake();
    }

    /// The next work, waited for. After `idle_after` without requests: [`Work::Idle`].
    pub(super) fn take(&self, idle_after: Option<Duration>) -> Work {
        let mut deadline = idle_after.map(|time| Instant::now() + time);
        let mut state = self.lock();
        loop {
            if let Some(work) = state.work() {
                return work;
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            state = match left {
                Some(Duration::ZERO) => return Work::Idle { committed: state.committed.take() },
                Some(left) => self.wake.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
                None => {
                    state.sound_asleep = true;
                    let mut state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                    state.sound_asleep = false;
                    if state.committed.is_some() {
                        deadline = Some(Instant::now() + super::writer::MARK_DELAY);
                    }
                    state
                }
            };
        }
    }

    /// The same for a writer that is a task, in a simulation's time.
    #[cfg(feature = "simulation")]
    pub(super) async fn take_in_task(&self, idle_after: Option<Duration>) -> Work {
        use tokio::time::Instant;
        let mut deadline = idle_after.map(|time| Instant::now() + time);
        loop {
            {
                let mut state = self.lock();
                if let Some(work) = state.work() {
                    return work;
                }
                state.sound_asleep = deadline.is_none();
            }
            match deadline {
                Some(deadline) => {
                    if tokio::time::timeout_at(deadline, self.wake_task.notified()).await.is_err() {
                        return Work::Idle { committed: self.lock().committed.take() };
                    }
                }
                None => {
                    self.wake_task.notified().await;
                    let mut state = self.lock();
                    state.sound_asleep = false;
                    if state.committed.is_some() {
                        deadline = Some(Instant::now() + super::writer::MARK_DELAY);
                    }
                }
            }
        }
    }

    fn wake(&self) {
        self.wake.notify_one();
        #[cfg(feature = "simulation")]
        self.wake_task.notify_one();
    }

    /// Between two batches: makes a failure known to callers, and tells those who wait for room.
    pub(super) fn after_batch(&self, failure: Option<&Arc<Error>>) {
        let mut state = self.lock();
        if let Some(failure) = failure {
            state.failed = Some(Arc::clone(failure));
        }
        if state.room_waiters.is_empty() || !(self.has_room() || state.failed.is_some()) {
            return;
        }
        let waiters = std::mem::take(&mut state.room_waiters);
        drop(state);
        waiters.into_iter().for_each(|waiter| waiter());
    }

    /// The writer is gone. What is still queued is refused.
    pub(super) fn writer_ended(&self, error: Error) {
        let error = Arc::new(error);
        let (requests, waiters) = {
            let mut state = self.lock();
            state.failed.get_or_insert_with(|| Arc::clone(&error));
            (std::mem::take(&mut state.requests), std::mem::take(&mut state.room_waiters))
        };
        requests.into_iter().for_each(|request| (request.done)(Err(Arc::clone(&error))));
        waiters.into_iter().for_each(|waiter| waiter());
    }

    fn has_room(&self) -> bool {
        self.counters.queued_bytes.load(Relaxed) <= self.bytes_max / 2
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// What there is to do at once.
    fn work(&mut self) -> Option<Work> {
        if !self.requests.is_empty() {
            let requests = take_batch(&mut self.requests);
            return Some(Work::Batch { requests, committed: self.committed.take() });
        }
        self.closed.then(|| Work::Closed { committed: self.committed.take() })
    }
}

fn cost(op: &Op) -> u64 {
    let payload = match op {
        Op::Append(entries) => entries.iter().map(|entry| entry.payload.len() as u64 + OVERHEAD_BYTES).sum(),
        Op::Vote(vote) => vote.len() as u64,
        Op::Purge(purged) => purged.position.len() as u64,
        Op::Truncate { .. } => 0,
    };
    payload + OVERHEAD_BYTES
}

/// The requests at the front that make up a batch: at least one.
fn take_batch(requests: &mut Vec<Request>) -> Vec<Request> {
    let mut bytes = 0;
    let count = requests
        .iter()
        .take_while(|request| {
            let fits = bytes < BATCH_BYTES_MAX;
            bytes += request.queue_bytes;
            fits
        })
        .count();
    if count == requests.len() {
        return std::mem::take(requests);
    }
    let rest = requests.split_off(count);
    std::mem::replace(requests, rest)
}
