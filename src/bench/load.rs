//! The closed loop: every client sends its next request when the last one is answered.
//!
//! Load is generated on threads with an event loop each, so that a client costs one task and no locks. Whatever
//! is answered within the measured window counts; what was under way at its end is waited for and not counted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::future::join_all;
use tokio::sync::{oneshot, watch};
use tonic::Status;

use super::client::{Client, Plan, Server};
use super::histogram::Histogram;
use super::usage::{self, Disk, Usage};

/// Load before the window begins.
const WARM_UP: Duration = Duration::from_millis(300);
/// The logs' fsyncs are asked for so long before the window begins.
const FSYNC_LEAD: Duration = Duration::from_millis(100);
/// How long an operation under way at the end may take before it counts as an error.
const GRACE: Duration = Duration::from_secs(15);
/// A client waits so long after an error, lest a refusing server be all that is measured.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(10);

/// Where load goes and who is watched meanwhile.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// Client addresses, the leader's first.
    pub(crate) endpoints: Vec<String>,
    pub(crate) pids: Vec<i32>,
    /// Where their files lie, if that is known.
    pub(crate) disk: Option<Disk>,
}

/// How much load.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) clients: usize,
    pub(crate) connections: usize,
    pub(crate) threads: usize,
    pub(crate) duration: Duration,
}

/// The measured window.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    pub(crate) begins: Instant,
    pub(crate) ends: Instant,
}

impl Window {
    /// The window that begins after warming up.
    pub(crate) fn from_now(duration: Duration) -> Self {
        let begins = Instant::now() + WARM_UP;
        Self { begins, ends: begins + duration }
    }

    /// Whether something that ended at `instant` counts.
    pub(crate) fn holds(&self, instant: Instant) -> bool {
        self.begins <= instant && instant < self.ends
    }

    fn duration(&self) -> Duration {
        self.ends - self.begins
    }
}

/// What clients saw.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    pub(crate) latencies: Histogram,
    pub(crate) errors: u64,
    pub(crate) first_error: Option<String>,
}

impl Tally {
    /// Counts an error and keeps the first one's text.
    pub(crate) fn error(&mut self, text: impl FnOnce() -> String) {
        self.errors += 1;
        self.first_error.get_or_insert_with(text);
    }

    /// Adds what another one counted.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.latencies.merge(&other.latencies);
        self.errors += other.errors;
        if self.first_error.is_none() {
            self.first_error.clone_from(&other.first_error);
        }
    }
}

/// One measurement.
#[derive(Debug, Clone)]
pub(crate) struct Measured {
    pub(crate) tally: Tally,
    pub(crate) window: Duration,
    pub(crate) observed: Observed,
}

/// Lets clients work for `shape.duration` and measures them and the servers.
pub(crate) async fn measure(target: &Target, shape: Shape, plan: &Arc<Plan>) -> anyhow::Result<Measured> {
    let (start, started) = watch::channel(None);
    let mut threads = Vec::new();
    for thread in 0..shape.threads.min(shape.clients) {
        let (connected, is_connected) = oneshot::channel();
        let (done, is_done) = oneshot::channel();
        let share = Share { target: target.clone(), shape, plan: Arc::clone(plan), thread };
        let started = started.clone();
        std::thread::Builder::new()
            .name("load".to_owned())
            .spawn(move || {
                // The receiver is gone when the whole measurement was given up; then nobody wants to know.
                let _given_up = done.send(share.run(connected, started));
            })
            .context("cannot start a thread")?;
        threads.push((is_connected, is_done));
    }
    let mut results = Vec::new();
    for (is_connected, is_done) in threads {
        // When connecting failed, the reason comes with the result.
        let _failed = is_connected.await;
        results.push(is_done);
    }
    let window = Window::from_now(shape.duration);
    start.send_replace(Some(window));
    let observed = observe(target, window).await;
    let mut tally = Tally::default();
    for result in results {
        tally.merge(&result.await.context("a load thread ended early")??);
    }
    Ok(Measured { tally, window: window.duration(), observed })
}

/// What servers and this process used in a window.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Observed {
    pub(crate) servers: Usage,
    /// Of the logs of all members, where they count them.
    pub(crate) fsyncs_per_second: Option<f64>,
    pub(crate) own_cpu_seconds: f64,
}

/// Watches from outside while the window passes.
pub(crate) async fn observe(target: &Target, window: Window) -> Observed {
    let own = [i32::try_from(std::process::id()).unwrap_or_default()];
    let used = || (Usage::of(&own, None), Usage::of(&target.pids, target.disk));
    tokio::time::sleep_until((window.begins - FSYNC_LEAD).into()).await;
    // Asking takes a while, so the two counts have an interval of their own.
    let (fsyncs_before, asked) = (usage::fsyncs(&target.endpoints).await, Instant::now());
    tokio::time::sleep_until(window.begins.into()).await;
    let (own_before, before) = used();
    tokio::time::sleep_until(window.ends.into()).await;
    let (own_after, after) = used();
    let elapsed = asked.elapsed().as_secs_f64();
    let fsyncs_after = usage::fsyncs(&target.endpoints).await;
    let fsyncs = fsyncs_after.zip(fsyncs_before).map(|(after, before)| after.saturating_sub(before));
    Observed {
        servers: after - before,
        fsyncs_per_second: fsyncs.map(|count| count as f64 / elapsed),
        own_cpu_seconds: (own_after - own_before).cpu_seconds,
    }
}

/// What one thread does.
struct Share {
    target: Target,
    shape: Shape,
    plan: Arc<Plan>,
    thread: usize,
}

impl Share {
    fn run(
        self,
        connected: oneshot::Sender<()>,
        started: watch::Receiver<Option<Window>>,
    ) -> anyhow::Result<Tally> {
        let event_loop = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start an event loop")?;
        event_loop.block_on(self.drive(connected, started))
    }

    async fn drive(
        self,
        connected: oneshot::Sender<()>,
        mut started: watch::Receiver<Option<Window>>,
    ) -> anyhow::Result<Tally> {
        let clients = self.clients().await?;
        // Gone only when the measurement was given up; waiting for the start then ends at once.
        let _given_up = connected.send(());
        let window = started.wait_for(Option::is_some).await.map(|window| *window);
        let Ok(Some(window)) = window else { return Ok(Tally::default()) };
        let tasks = clients.into_iter().map(|client| tokio::spawn(closed_loop(client, window)));
        let mut tally = Tally::default();
        for ended in join_all(tasks).await {
            tally.merge(&ended.context("a client ended early")?);
        }
        Ok(tally)
    }

    /// This thread's clients on its connections; both go round the endpoints, beginning at the leader.
    async fn clients(&self) -> anyhow::Result<Vec<Client>> {
        let Shape { clients, threads, .. } = self.shape;
        let indices: Vec<usize> = (self.thread..clients).step_by(threads).collect();
        let endpoints = &self.target.endpoints;
        let connections_max = self.shape.connections.max(1).div_ceil(threads).max(endpoints.len());
        let mut connections = Vec::new();
        for number in 0..indices.len().min(connections_max) {
            let endpoint = &endpoints[(number + self.thread) % endpoints.len()];
            connections.push(Server::open(endpoint).await?);
        }
        let clients = indices.iter().enumerate().map(|(position, index)| {
            let server = connections[position % connections.len()].clone();
            Client::new(server, Arc::clone(&self.plan), *index)
        });
        Ok(clients.collect())
    }
}

/// One client until the window ends.
async fn closed_loop(mut client: Client, window: Window) -> Tally {
    let mut tally = Tally::default();
    loop {
        let sent = Instant::now();
        if sent >= window.ends {
            return tally;
        }
        let timeout = window.ends + GRACE;
        let answer = tokio::time::timeout_at(timeout.into(), client.once()).await;
        let answered = Instant::now();
        match answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer, long after the end"))) {
            Ok(()) if window.holds(answered) => tally.latencies.record(answered - sent),
            Ok(()) => {}
            Err(status) => {
                tally.error(|| format!("{:?}: {}", status.code(), status.message()));
                tokio::time::sleep(PAUSE_AFTER_ERROR).await;
            }
        }
    }
}
