//! The scheduler's shell: feeds the core from the reflectors and performs its decisions.
//!
//! Owns the one task that holds the scheduler's state on this replica. The state is fed on every replica,
//! always, so that a new leader has it in memory; decisions are made only under an [`Epoch`]. Promises: no
//! pod is bound on state older than the epoch; every bind carries the pod's version and the epoch as fence;
//! a bind whose outcome is unknown is repeated, never guessed; a pod group is bound in one transaction, all
//! of it or nothing. It writes bindings, the condition `PodScheduled` and the nominated node of pods that
//! fit nowhere, the end of pods that have to leave for others, and Events; nothing else.
//!
//! ```text
//!  reflectors ──► core ──► decisions ──► one log entry per batch ──► bound / failed ──► core
//!                   │ fits nowhere
//!                   ├──► Event FailedScheduling, condition PodScheduled=False (when the message is new)
//!                   └──► victims: condition DisruptionTarget, graceful deletion, Event Preempted
//! ```

mod displacing;
mod explain;
mod feeds;
mod groups;
mod metrics;
mod reports;
mod volumes;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use raft_store::chance;
use rand::Rng as _;
use scheduler::{Configuration, Outcome, PodInfo, Scheduler, SchedulerConfig};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::displacing::Displaced;
use self::explain::Question;
pub use self::explain::{ExplainError, Explainer, Explanation};
use self::feeds::Feeds;
pub use self::metrics::Metrics;
pub use self::volumes::Storage;
use crate::custom_copies::Copies;
use crate::leader::{Epoch, EpochReceiver};
use crate::object_store::{Error, SharedStore};
use crate::reflector::Reflector;
use crate::registry::{BindError, Binding, EventRecorder, Registry};

/// Who reports scheduling Events.
const COMPONENT: &str = "default-scheduler";
/// Most pods bound by one log entry.
const BATCH_PODS_MAX: usize = 256;
/// Most log entries with bindings under way at once.
const BATCHES_MAX: usize = 8;
/// Most pods looked at before other work gets its turn.
const CYCLES_PER_TURN_MAX: usize = 512;
/// Most conditions being written at once; beyond, the next attempt of the pod reports.
const REPORTS_MAX: usize = 64;
/// Most pods for which victims are being sent away at once; beyond, nothing is decided until one is done.
const DISPLACING_MAX: usize = 64;
/// The wait before a batch of unknown outcome is repeated.
const UNKNOWN_RETRY: Duration = Duration::from_millis(50);
/// After this time the same message is said once more, so that its Event does not expire.
const REPEAT_AFTER: Duration = Duration::from_secs(300);

/// What scheduling needs.
#[derive(Debug)]
pub struct Dependencies {
    /// Performs the writes.
    pub registry: Registry,
    /// Every pod.
    pub pods: Reflector<SharedStore>,
    /// Every node.
    pub nodes: Reflector<SharedStore>,
    /// Every namespace.
    pub namespaces: Reflector<SharedStore>,
    /// Every PodDisruptionBudget, if that kind is served.
    pub budgets: Option<Reflector<SharedStore>>,
    /// Every custom kind's objects; PodGroups may be among them.
    pub custom: Copies,
    /// Claims and volumes.
    pub storage: Storage,
    /// Takes Events in.
    pub events: EventRecorder,
    /// Says when to act.
    pub epochs: EpochReceiver,
    /// Profiles and waits.
    pub configuration: Arc<Configuration>,
    /// Who asks for explanations.
    pub questions: mpsc::Receiver<Question>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// Schedules whenever this replica leads, until cancelled.
pub async fn run(dependencies: Dependencies, cancel: CancellationToken) {
    dependencies.pods.wait_synced().await;
    dependencies.nodes.wait_synced().await;
    let mut shell = match Shell::new(dependencies) {
        Ok(shell) => shell,
        Err(error) => return tracing::error!(%error, "the scheduler's configuration is refused"),
    };
    cancel.run_until_cancelled(shell.run()).await;
}

struct Batch {
    epoch: Epoch,
    bindings: Vec<Binding>,
    /// All of them or none.
    is_group: bool,
    results: Result<Vec<Result<u64, BindError>>, Error>,
}

type Future<T> = Pin<Box<dyn std::future::Future<Output = T> + Send>>;

struct Shell {
    registry: Registry,
    events: EventRecorder,
    epochs: EpochReceiver,
    feeds: Feeds,
    core: Scheduler,
    started: Instant,
    epoch: Option<Epoch>,
    binds: FuturesUnordered<Future<Batch>>,
    reports: FuturesUnordered<Future<()>>,
    displacing: FuturesUnordered<Future<Displaced>>,
    questions: mpsc::Receiver<Question>,
    metrics: Arc<Metrics>,
    /// What was last said about a waiting pod, by uid.
    said: HashMap<String, (String, Instant)>,
}

impl Shell {
    fn new(dependencies: Dependencies) -> Result<Self, scheduler::ConfigError> {
        let config = SchedulerConfig::new(&dependencies.configuration, chance::rng().random())?;
        Ok(Self {
            feeds: Feeds::new(&dependencies),
            registry: dependencies.registry,
            events: dependencies.events,
            epochs: dependencies.epochs,
            core: Scheduler::new(config),
            started: Instant::now(),
            epoch: None,
            binds: FuturesUnordered::new(),
            reports: FuturesUnordered::new(),
            displacing: FuturesUnordered::new(),
            questions: dependencies.questions,
            metrics: dependencies.metrics,
            said: HashMap::new(),
        })
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    async fn run(&mut self) {
        loop {
            // The epoch is read before the feeds are drained: whatever was synced for it is seen.
            let epoch = *self.epochs.borrow_and_update();
            self.absorb();
            self.enter(epoch);
            let more = self.decide();
            self.metrics.queues(self.core.counts());
            self.wait(more).await;
        }
    }

    /// At the begin of an epoch, what an earlier one decided and the store does not show is void.
    fn enter(&mut self, epoch: Option<Epoch>) {
        if epoch != self.epoch {
            self.epoch = epoch;
            if epoch.is_some() {
                self.core.drop_assumed(self.now());
                self.said.clear();
            }
        }
    }

    /// Whether there is room for what deciding brings.
    fn may_decide(&self) -> bool {
        self.epoch.is_some() && self.binds.len() < BATCHES_MAX && self.displacing.len() < DISPLACING_MAX
    }

    async fn wait(&mut self, more: bool) {
        // While every place for a batch is taken, only the end of one can help.
        let due = match self.core.next_due().filter(|_| self.may_decide()) {
            Some(due) => due.saturating_sub(self.now()),
            None => REPEAT_AFTER,
        };
        tokio::select! {
            change = self.feeds.next() => self.take(change),
            Some(batch) = self.binds.next() => self.settle(batch),
            Some(()) = self.reports.next() => {}
            Some(displaced) = self.displacing.next() => self.displaced(displaced),
            Some(question) = self.questions.recv() => self.answer(question),
            changed = self.epochs.changed() => if changed.is_err() { std::future::pending().await },
            () = tokio::time::sleep(due) => {}
            () = tokio::task::yield_now(), if more => {}
        }
    }

    /// Decides on ready pods, one turn's worth. Says whether there is more to do right away.
    fn decide(&mut self) -> bool {
        let Some(epoch) = self.epoch else { return false };
        if !self.may_decide() {
            return false;
        }
        let mut bindings = Vec::new();
        for _ in 0..CYCLES_PER_TURN_MAX {
            if bindings.len() >= BATCH_PODS_MAX || !self.may_decide() {
                break;
            }
            match self.core.schedule_next(self.now()) {
                None => break,
                Some(Outcome::Bind { pod, node }) => bindings.push(binding(&pod, &node)),
                Some(Outcome::BindGroup { pods }) => {
                    let group = pods.iter().map(|(pod, node)| binding(pod, node)).collect();
                    self.bind(epoch, group, true, Duration::ZERO);
                }
                Some(Outcome::Unschedulable { pod, error }) => {
                    self.metrics.unschedulable();
                    self.report(epoch, &pod, error.to_string(), None)
                }
                Some(Outcome::Displace { pod, error, displacement }) => {
                    self.metrics.unschedulable();
                    self.metrics.preempting(displacement.victims.len());
                    self.displace(epoch, &pod, &displacement);
                    self.report(epoch, &pod, error.to_string(), Some(&displacement.node));
                }
            }
        }
        if !bindings.is_empty() {
            self.bind(epoch, bindings, false, Duration::ZERO);
        }
        self.may_decide() && self.core.has_ready(self.now())
    }

    fn bind(&mut self, epoch: Epoch, bindings: Vec<Binding>, is_group: bool, after: Duration) {
        let registry = self.registry.clone();
        self.binds.push(Box::pin(async move {
            if !after.is_zero() {
                tokio::time::sleep(after).await;
            }
            let results = match is_group {
                true => registry.bind_group(&bindings, epoch.fence()).await,
                false => registry.bind_all(&bindings, epoch.fence()).await,
            };
            Batch { epoch, bindings, is_group, results }
        }));
    }

    fn settle(&mut self, batch: Batch) {
        // Decisions of an epoch that is over are settled by the watch, and by `enter`.
        if self.epoch != Some(batch.epoch) {
            return;
        }
        let results = match batch.results {
            Ok(results) => results,
            Err(error @ Error::Unknown { .. }) => {
                tracing::debug!(pods = batch.bindings.len(), %error, "repeating bindings");
                return self.bind(batch.epoch, batch.bindings, batch.is_group, UNKNOWN_RETRY);
            }
            Err(error) => {
                tracing::warn!(pods = batch.bindings.len(), %error, "bindings were not made");
                batch.bindings.iter().for_each(|binding| self.failed(binding));
                return;
            }
        };
        for (binding, result) in batch.bindings.iter().zip(results) {
            match result {
                Ok(_) => self.bound(batch.epoch, binding),
                Err(error) => {
                    tracing::debug!(%error, "a binding was not made");
                    self.failed(binding);
                }
            }
        }
    }

    fn failed(&mut self, binding: &Binding) {
        self.metrics.failed();
        self.core.bind_failed(&binding.uid, self.now());
    }
}

fn binding(pod: &PodInfo, node: &str) -> Binding {
    Binding {
        namespace: pod.namespace.to_string(),
        name: pod.name.to_string(),
        uid: pod.uid.to_string(),
        // A pod that came from the store always carries its version; none would never match.
        resource_version: Some(pod.resource_version.parse().unwrap_or(0)),
        node: node.to_owned(),
    }
}

#[cfg(test)]
mod tests;
