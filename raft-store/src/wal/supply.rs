//! The helper thread: has the next segment ready before the writer needs it, and retires obsolete ones off the
//! write path.
//!
//! ```text
//!            order                     prepared
//!   Idle ───────────▶ Preparing ───────────────────▶ Ready ── take ──▶ Idle
//!                      │     ▲
//!             disk full│     │ every 250 ms, and after each retired segment
//!                      ▼     │
//!                      NoSpace          (`take` fails at once; any other error is kept and ends the log)
//! ```

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::disk::Disk;
use super::error::Error;
use super::preparer::{Order, Preparer};
use super::segment::Segment;

/// Pause between the steps of a zero-fill while the writer is not waiting for it.
const FILL_PAUSE: Duration = Duration::from_millis(4);
/// How often preparing is tried again while the disk is full.
const NO_SPACE_RETRY: Duration = Duration::from_millis(250);

/// Where the writer gets its segments from. Tests have one without a thread.
pub(super) trait Supply<F> {
    /// The segment will be needed before long.
    fn order(&mut self, order: Order);
    /// The segment is needed now: waits for it. With a full disk it does not wait, but fails; the order stands.
    fn take(&mut self, order: Order) -> Result<Segment<F>, Error>;
    /// The segment of that number and size is obsolete. Called oldest first.
    fn retire(&mut self, sequence: u64, file_bytes: u64);
}

/// [`Supply`] by a helper thread, which ends when this is dropped.
#[derive(Debug)]
pub(super) struct HelperThread<F> {
    desk: Arc<Desk<F>>,
    dir: PathBuf,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Desk<F> {
    state: Mutex<DeskState<F>>,
    changed: Condvar,
}

#[derive(Debug)]
struct DeskState<F> {
    order: Option<Order>,
    outcome: Option<Result<Segment<F>, Error>>,
    /// Numbers and sizes of obsolete segments; never more than there are segments.
    retired: VecDeque<(u64, u64)>,
    urgent: bool,
    no_space: bool,
    closed: bool,
}

impl<F> Desk<F> {
    fn lock(&self) -> MutexGuard<'_, DeskState<F>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, guard: MutexGuard<'a, DeskState<F>>) -> MutexGuard<'a, DeskState<F>> {
        self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for<'a>(
        &self,
        guard: MutexGuard<'a, DeskState<F>>,
        time: Duration,
    ) -> MutexGuard<'a, DeskState<F>> {
        self.changed.wait_timeout(guard, time).unwrap_or_else(PoisonError::into_inner).0
    }
}

impl<F: Send + 'static> HelperThread<F> {
    /// Starts the thread.
    pub(super) fn spawn<D: Disk<File = F>>(preparer: Preparer<D>) -> Result<Self, Error> {
        let desk = Arc::new(Desk {
            state: Mutex::new(DeskState {
                order: None,
                outcome: None,
                retired: VecDeque::new(),
                urgent: false,
                no_space: false,
                closed: false,
            }),
            changed: Condvar::new(),
        });
        let dir = preparer.disk.dir().to_owned();
        let shared = Arc::clone(&desk);
        let thread = thread::Builder::new()
            .name("wal-segments".to_owned())
            .spawn(move || run(preparer, &shared))
            .map_err(|e| Error::io("start the segment thread of", &dir, e))?;
        Ok(Self { desk, dir, thread: Some(thread) })
    }
}

impl<F> Supply<F> for HelperThread<F> {
    fn order(&mut self, order: Order) {
        let mut state = self.desk.lock();
        if state.order.is_none() && state.outcome.is_none() {
            state.order = Some(order);
            self.desk.changed.notify_all();
        }
    }

    fn take(&mut self, order: Order) -> Result<Segment<F>, Error> {
        self.order(order);
        let mut state = self.desk.lock();
        state.urgent = true;
        self.desk.changed.notify_all();
        let result = loop {
            if let Some(outcome) = state.outcome.take() {
                break outcome;
            }
            if state.no_space {
                break Err(Error::NoSpace { dir: self.dir.clone() });
            }
            state = self.desk.wait(state);
        };
        state.urgent = false;
        result
    }

    fn retire(&mut self, sequence: u64, file_bytes: u64) {
        self.desk.lock().retired.push_back((sequence, file_bytes));
        self.desk.changed.notify_all();
    }
}

impl<F> Drop for HelperThread<F> {
    fn drop(&mut self) {
        self.desk.lock().closed = true;
        self.desk.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // It fails only if the thread panicked, and then there is nothing left to end.
            let _ = thread.join();
        }
    }
}

fn run<D: Disk>(mut preparer: Preparer<D>, desk: &Desk<D::File>) {
    let mut state = desk.lock();
    while !state.closed {
        if let Some((sequence, file_bytes)) = state.retired.pop_front() {
            drop(state);
            let result = preparer.retire(sequence, file_bytes);
            state = desk.lock();
            match result {
                Ok(()) => {}
                Err(Error::NoSpace { .. }) => {
                    // The oldest has to go first, or a hole would be left.
                    state.retired.push_front((sequence, file_bytes));
                    state = wait_for_space(&preparer, desk, state);
                }
                Err(error) => {
                    state.order = None;
                    state.outcome = Some(Err(error));
                    desk.changed.notify_all();
                    return;
                }
            }
        } else if let Some(order) = state.order {
            drop(state);
            let result = preparer.prepare(order, || pause(desk));
            state = desk.lock();
            if matches!(result, Err(Error::NoSpace { .. })) {
                state = wait_for_space(&preparer, desk, state);
            } else {
                preparer.counters.no_space.store(false, Relaxed);
                preparer.counters.next_ready.store(result.is_ok(), Relaxed);
                state.no_space = false;
                state.order = None;
                state.outcome = Some(result);
                desk.changed.notify_all();
            }
        } else {
            state = desk.wait(state);
        }
    }
}

/// Tells that the disk is full, then waits for a while, or until a retired segment may have changed that.
fn wait_for_space<'a, D: Disk>(
    preparer: &Preparer<D>,
    desk: &'a Desk<D::File>,
    mut state: MutexGuard<'a, DeskState<D::File>>,
) -> MutexGuard<'a, DeskState<D::File>> {
    if !state.no_space {
        tracing::warn!(dir = %preparer.disk.dir().display(), "no space for the next log segment");
    }
    state.no_space = true;
    preparer.counters.no_space.store(true, Relaxed);
    desk.changed.notify_all();
    let retired = state.retired.len();
    let deadline = Instant::now() + NO_SPACE_RETRY;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || state.closed || state.retired.len() > retired {
            return state;
        }
        state = desk.wait_for(state, left);
    }
}

/// Between two steps of a zero-fill: leaves the disk to the writer, unless that is waiting for us.
fn pause<F>(desk: &Desk<F>) -> bool {
    let state = desk.lock();
    if state.urgent || state.closed {
        return !state.closed;
    }
    !desk.wait_for(state, FILL_PAUSE).closed
}
