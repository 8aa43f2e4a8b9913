//! Eviction: the node gives up pods before it runs out of memory, disk or processes.
//!
//! ```text
//! every interval: usage ─► watch (pure) ─► conditions ─► node status, admission
//!                                     └─► due ─► unused images go ─► rank (pure) ─► one pod ends
//!                 limits (pure) ─► pods beyond their own storage limits end
//! ```
//! Owns the measuring and the choice; a pod's worker ends it. Promises: one pod at a time, waited for before the
//! next is looked for; critical pods never; disks are looked at for no more than a hundredth of the time.

mod disk;
mod limits;
mod rank;
mod threshold;
mod usage;
mod watch;

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::rank::Candidate;
use self::threshold::{Resource, Threshold};
use self::usage::{Places, PodUsage};
use self::watch::{Observations, Watch};
use crate::Config;
use crate::allocatable::Groups;
use crate::images::{self, GcError, ImageStore};
use crate::node_state::{NodeState, Pressure};
use crate::pods::admission;
use crate::pods::context::NodeResources;
use crate::pods::dispatcher::Command;
use crate::pods::record::{End, Failure};
use crate::pods::roster::{Looked, Roster};
use crate::session::outbox::{EventKind, Outbox, node_record};

pub(crate) use threshold::{Signal, kept_back, thresholds};

const REASON: &str = "Evicted";
/// What a pod that must go at once is given, in seconds: the kubelet's.
const GRACE_AT_ONCE_S: i64 = 1;
/// How long the end of an evicted pod is waited for before another is looked for.
const END_WAIT_MAX: Duration = Duration::from_secs(30);
const END_LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// Disks are looked at again after so many times as long as it took.
const DISK_LOOK_PART: u32 = 100;

/// What the evictor works with.
pub(crate) struct Parts {
    pub(crate) config: Config,
    pub(crate) resources: NodeResources,
    pub(crate) groups: Option<Groups>,
    pub(crate) state: Arc<NodeState>,
    pub(crate) images: Arc<ImageStore>,
    pub(crate) roster: Arc<Roster>,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) pods: mpsc::Sender<Command>,
}

/// See the module.
pub(crate) struct Evictor {
    parts: Parts,
    places: Arc<Places>,
    watch: Watch,
    /// When pods' own limits are looked at again.
    limits_due: Instant,
}

impl Evictor {
    /// An evictor that has taken its first look: the node's first status says the truth.
    pub(crate) async fn open(mut parts: Parts, thresholds: Vec<Threshold>) -> Self {
        let groups = parts.groups.take();
        let config = &parts.config;
        let places = Places {
            data_dir: config.data_dir.clone(),
            images_dir: config.data_dir.join("images"),
            log_dir: config.log_dir(),
            memory_capacity: parts.resources.memory_bytes,
            pods_memory_limit: parts.resources.pods_memory_limit_bytes,
            groups,
        };
        let watch = Watch::new(thresholds, config.eviction_pressure_transition_period);
        let mut evictor = Self { parts, places: Arc::new(places), watch, limits_due: Instant::now() };
        let observations = evictor.observe().await;
        evictor.note(&observations);
        evictor
    }

    /// Looks after the node until the agent stops.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let interval = self.parts.config.eviction_monitoring_interval;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(interval) => {}
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.round() => {}
            }
        }
    }

    async fn round(&mut self) {
        let observations = self.observe().await;
        let due = self.note(&observations);
        if self.end_beyond_limits().await {
            return;
        }
        let Some(threshold) = due.first() else { return };
        let resource = threshold.signal.resource();
        let message = format!("Attempting to reclaim {}", resource.name());
        tracing::warn!(resource = resource.name(), ?observations, "the node is short of something");
        self.tell(EventKind::Warning, "EvictionThresholdMet", message);
        let observations = match threshold.signal.pressure() == Pressure::Disk {
            true => {
                self.remove_images(threshold.signal).await;
                let observations = self.observe().await;
                if !watch::is_met(threshold, &observations, true) {
                    return;
                }
                observations
            }
            false => observations,
        };
        self.evict(threshold, &observations).await;
    }

    async fn observe(&self) -> Observations {
        let places = Arc::clone(&self.places);
        let observed = tokio::task::spawn_blocking(move || places.observe());
        observed.await.expect("measuring does not panic")
    }

    /// Takes a look's result over; returns on which thresholds to act.
    fn note(&mut self, observations: &Observations) -> Vec<Threshold> {
        let verdict = self.watch.observe(observations, Instant::now());
        self.parts.state.set_pressure(verdict.pressure);
        verdict.due
    }

    /// Ends every pod that uses more of the disk than it may by its own limits.
    async fn end_beyond_limits(&mut self) -> bool {
        if self.limits_due > Instant::now() {
            return false;
        }
        let limited = self.candidates(|looked| limits::are_set(&looked.pod));
        if limited.is_empty() {
            return false;
        }
        let began = Instant::now();
        let measured = self.measure(limited, Resource::EphemeralStorage).await;
        self.limits_due = Instant::now() + began.elapsed() * DISK_LOOK_PART;
        let mut ended = false;
        for (looked, usage) in measured {
            if let Some(message) = limits::exceeded(&looked.pod, &usage) {
                self.end(&looked, message, GRACE_AT_ONCE_S, false).await;
                ended = true;
            }
        }
        ended
    }

    /// Ends one pod for a threshold's sake.
    async fn evict(&self, threshold: &Threshold, observations: &Observations) {
        let resource = threshold.signal.resource();
        let measured = self.measure(self.candidates(|_| true), resource).await;
        let mut ranked: Vec<Candidate<'_>> = measured
            .iter()
            .map(|(looked, usage)| Candidate { uid: &looked.uid, pod: &looked.pod, usage: usage.clone() })
            .collect();
        rank::rank(&mut ranked, resource);
        let Some(first) = ranked.first() else {
            tracing::error!(resource = resource.name(), "the node is short of it and has no pod to give up");
            return;
        };
        let message = rank::message(first, threshold, observations);
        let grace = match threshold.soft_grace {
            None => GRACE_AT_ONCE_S,
            Some(_) => i64::from(self.parts.config.eviction_max_pod_grace_period).max(GRACE_AT_ONCE_S),
        };
        let chosen = measured.iter().find(|(looked, _)| looked.uid == first.uid);
        if let Some((looked, _)) = chosen {
            self.end(looked, message, grace, true).await;
        }
    }

    /// Pods that may be given up: they run, nobody ends them yet, and the node does not need them.
    fn candidates(&self, wanted: impl Fn(&Looked) -> bool) -> Vec<Looked> {
        let all = self.parts.roster.all();
        all.into_iter()
            .filter(|looked| !looked.over && looked.pod.metadata.deletion_timestamp.is_none())
            .filter(|looked| !admission::is_critical(&looked.pod) && wanted(looked))
            .collect()
    }

    async fn measure(&self, pods: Vec<Looked>, resource: Resource) -> Vec<(Looked, PodUsage)> {
        let places = Arc::clone(&self.places);
        let measured = tokio::task::spawn_blocking(move || {
            let usage = |looked: &Looked| match resource {
                Resource::Memory | Resource::Pids => places.of_groups(looked),
                Resource::EphemeralStorage | Resource::Inodes => places.on_disk(looked),
            };
            pods.into_iter().map(|looked| (usage(&looked), looked)).map(|(u, l)| (l, u)).collect()
        });
        measured.await.expect("measuring does not panic")
    }

    /// Ends a pod, and waits until nothing of it uses anything.
    async fn end(&self, looked: &Looked, message: String, grace_seconds: i64, disrupted: bool) {
        let own = looked.pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
        let failure = Failure {
            reason: REASON.to_owned(),
            message: message.clone(),
            at: Timestamp::now(),
            grace_seconds: Some(own.map_or(grace_seconds, |own| own.min(grace_seconds)).max(GRACE_AT_ONCE_S)),
            disrupted,
            ..Failure::default()
        };
        let metadata = &looked.pod.metadata;
        tracing::warn!(pod = ?metadata.name, namespace = ?metadata.namespace, %message, "evicting");
        let end = Box::new(End { failure, event: Some((EventKind::Warning, REASON.to_owned(), message)) });
        if self.parts.pods.send(Command::End { uid: looked.uid.clone(), end }).await.is_err() {
            return;
        }
        let patience = Instant::now() + END_WAIT_MAX;
        while !self.parts.roster.is_over(&looked.uid) && Instant::now() < patience {
            tokio::time::sleep(END_LOOK_INTERVAL).await;
        }
    }

    /// Removes images that nobody uses, if that helps against the shortage.
    async fn remove_images(&self, signal: Signal) {
        let of_images = matches!(signal, Signal::ImageFsAvailable | Signal::ImageFsInodesFree);
        if !of_images && self.places.images_apart() {
            return;
        }
        let (store, settings) = (Arc::clone(&self.parts.images), self.parts.config.images.clone());
        let pods_dir = self.parts.config.data_dir.join("pods");
        let removed = tokio::task::spawn_blocking(move || {
            let in_use = images::images_in_use(&pods_dir)?;
            store.remove_unused(&settings, &in_use)
        });
        match removed.await.expect("removing images does not panic") {
            Ok(bytes) => tracing::info!(bytes, "removed unused images: the disk is filling"),
            Err(error) => {
                tracing::warn!(%error, "unused images cannot be removed");
                self.tell(EventKind::Warning, "ImageGCFailed", GcError::from(error).to_string());
            }
        }
    }

    fn tell(&self, kind: EventKind, reason: &str, message: String) {
        let mut record = node_record(&self.parts.config.node_name, reason, message);
        record.event_kind = kind;
        self.parts.outbox.event(record);
    }
}
