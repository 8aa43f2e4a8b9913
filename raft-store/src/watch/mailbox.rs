//! How a watcher hears that there is something for it: a [`Signal`] of its own, and a [`Mailbox`] that it may
//! share with others, so that one task can serve thousands.
//!
//! A signal is in its mailbox at most once, however often it is woken: the mailbox is bounded by the number of
//! watchers.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;

/// "Nothing new", where the first revision to look at would stand.
pub(super) const NOTHING: u64 = u64::MAX;

/// Tokens of watchers that have something to look at.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    ready: Mutex<VecDeque<u64>>,
    waker: AtomicWaker,
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, VecDeque<u64>> {
        self.ready.lock().expect("no code panics while it holds the mailbox's lock")
    }

    fn push(&self, token: u64) {
        self.lock().push_back(token);
        self.waker.wake();
    }

    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    /// The next token.
    pub(crate) fn poll(&self, context: &Context<'_>) -> Poll<u64> {
        if let Some(token) = self.lock().pop_front() {
            return Poll::Ready(token);
        }
        self.waker.register(context.waker());
        // Again, for what came before the waker was there.
        self.lock().pop_front().map_or(Poll::Pending, Poll::Ready)
    }

    pub(super) async fn next(&self) -> u64 {
        std::future::poll_fn(|context| self.poll(context)).await
    }
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Signal {
    /// First revision that touches the range and was not yet looked at; [`NOTHING`]: none.
    pending: AtomicU64,
    mailbox: Arc<Mailbox>,
    token: u64,
}

impl Signal {
    pub(super) fn new(mailbox: Arc<Mailbox>, token: u64) -> Self {
        Self { pending: AtomicU64::new(NOTHING), mailbox, token }
    }

    /// There is something from `revision` on.
    pub(super) fn wake(&self, revision: u64) {
        if self.pending.fetch_min(revision, Ordering::AcqRel) == NOTHING {
            self.mailbox.push(self.token);
        }
    }

    /// What is pending, which then is not any more.
    pub(super) fn take(&self) -> u64 {
        self.pending.swap(NOTHING, Ordering::AcqRel)
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.pending.load(Ordering::Acquire) == NOTHING
    }
}
