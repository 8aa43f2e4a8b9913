//! Where a simulation takes the place of disk, network and chance.
//!
//! Compiled in with the feature `simulation` only. A member with a [`Simulation`] in its configuration writes its log to a disk
//! in memory ([`SimDisk`]), in a task instead of a thread; reaches the others over a [`Network`]; and draws what it draws at
//! random (election timeouts above all) from numbers that [`seed`] begins. Everything else is the code that runs
//! everywhere. On one event loop with a paused clock, with hash maps seeded too, a run is then a function of its seed.
//!
//! Checkpoints and received snapshots are files of the machine that runs the simulation: what was written of them is not
//! lost with the power, as what the log had not flushed is.

use std::cell::Cell;
use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use openraft::{AsyncRuntime, OptionalSend, TokioRuntime};
use openraft_rt::deterministic_rng::DeterministicRng;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tonic::transport::Channel;

pub use crate::wal::SimDisk;

/// The longest that work takes which has a thread of its own otherwise.
const MOMENT_MS_MAX: u64 = 40;

/// The way to other members.
#[derive(Clone, Copy)]
pub struct Network {
    /// A connection to that address, opened on first use and again after a failure.
    pub channel: fn(&str) -> Channel,
    /// Whether somebody at that address says that nobody listens.
    pub refuses: fn(&str) -> BoxFuture<'static, bool>,
}

/// What surrounds one member.
#[derive(Clone)]
pub struct Simulation {
    /// Its log's disk.
    pub disk: SimDisk,
    /// How long the next flush lasts.
    pub flush_time: Arc<dyn Fn() -> Duration + Send + Sync>,
    /// The way to the others.
    pub network: Network,
}

thread_local! {
    /// Counts draws; `None` outside of simulations.
    static DRAWS: Cell<Option<u64>> = const { Cell::new(None) };
}

/// From now on, what members on this thread draw at random follows from `seed`.
pub fn seed(seed: u64) {
    DRAWS.set(Some(seed));
}

/// Whether this thread is a simulation's.
pub(crate) fn is_on() -> bool {
    DRAWS.get().is_some()
}

/// A number: the simulation's next, or the kernel's where there is none.
pub(crate) fn number() -> u64 {
    let Some(draws) = DRAWS.get() else { return rand::random() };
    DRAWS.set(Some(draws.wrapping_add(1)));
    StdRng::seed_from_u64(draws).random()
}

/// Lets some time go by: up to [`MOMENT_MS_MAX`].
pub(crate) async fn moment() {
    tokio::time::sleep(Duration::from_millis(number() % MOMENT_MS_MAX)).await;
}

/// The event loop as consensus sees it: tokio's, with chance from the simulation where there is one.
#[derive(Debug)]
pub(crate) struct SeededRuntime(TokioRuntime);

impl AsyncRuntime for SeededRuntime {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
    type Instant = <TokioRuntime as AsyncRuntime>::Instant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = <DeterministicRng<TokioRuntime> as AsyncRuntime>::ThreadLocalRng;
    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = <TokioRuntime as AsyncRuntime>::Watch;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        TokioRuntime::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        TokioRuntime::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(join_error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        let number = number();
        DeterministicRng::<TokioRuntime>::scope(number, async {
            DeterministicRng::<TokioRuntime>::thread_rng()
        })
        .now_or_never()
        .expect("it waits for nothing")
    }

    fn new(threads: usize) -> Self {
        Self(TokioRuntime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}
