//! Probes: startup, then liveness and readiness. One task per container instance.
//!
//! A probe task only reports; what follows (a container that is not ready, a restart) is the worker's to do.
//! What an attempt does is `handlers`'.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Probe;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::handlers::{self, Target};
use crate::pods::containers::ContainerRuntime;
use crate::pods::record::{InstanceState, PodRecord};
use crate::pods::worker::Notice;

/// Which question a probe asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProbeKind {
    Startup,
    Liveness,
    Readiness,
}

impl ProbeKind {
    /// As events name it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
}

/// One attempt's outcome, with what the thresholds make of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Verdict {
    pub(crate) container: String,
    /// The instance that was asked.
    pub(crate) id: String,
    pub(crate) kind: ProbeKind,
    /// Why the attempt failed; `None`: it did not.
    pub(crate) failure: Option<String>,
    /// Set when the thresholds changed what holds.
    pub(crate) now: Option<bool>,
}

/// The probe tasks of one pod.
pub(crate) struct Probes {
    runtime: Arc<dyn ContainerRuntime>,
    sender: mpsc::Sender<Notice>,
    /// By container name, with the instance's id.
    tasks: HashMap<String, (String, AbortHandle)>,
}

impl Probes {
    pub(crate) fn new(runtime: Arc<dyn ContainerRuntime>, sender: mpsc::Sender<Notice>) -> Self {
        Self { runtime, sender, tasks: HashMap::new() }
    }

    /// Begins to probe a container's current instance, if it has probes and is not probed yet.
    pub(crate) fn start(&mut self, record: &PodRecord, name: &str) {
        let Some(container) = record.container_spec(name).filter(|_| !record.terminating()) else { return };
        let Some(instance) = record.container(name).and_then(|c| c.current.as_ref()) else { return };
        let probed = self.tasks.get(name).is_some_and(|(id, _)| *id == instance.id);
        let InstanceState::Running { started_at } = instance.state else { return };
        let (Some(target), false) = (Target::of(&self.runtime, record, name), probed) else { return };
        let probes = [
            (ProbeKind::Startup, &container.startup_probe),
            (ProbeKind::Liveness, &container.liveness_probe),
            (ProbeKind::Readiness, &container.readiness_probe),
        ];
        if probes.iter().all(|(_, probe)| probe.is_none()) {
            return;
        }
        let task = Task {
            sender: self.sender.clone(),
            target,
            started_at,
            started: instance.started,
            ready: instance.ready,
        };
        let handle = tokio::spawn(task.run()).abort_handle();
        self.tasks.insert(name.to_owned(), (instance.id.clone(), handle));
    }

    /// KIA-PRB-019: once a container is asked to end it is not probed any more.
    pub(crate) fn stop(&mut self, name: &str) {
        if let Some((_, task)) = self.tasks.remove(name) {
            task.abort();
        }
    }

    /// Ends all probing.
    pub(crate) fn stop_all(&mut self) {
        self.tasks.drain().for_each(|(_, (_, task))| task.abort());
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.stop_all();
    }
}

struct Task {
    sender: mpsc::Sender<Notice>,
    target: Target,
    started_at: Timestamp,
    started: bool,
    ready: bool,
}

impl Task {
    async fn run(self) {
        if let Some(probe) = self.target.container.startup_probe.clone().filter(|_| !self.started) {
            self.ask(ProbeKind::Startup, &probe, false).await;
        }
        let asked = |kind, probe: Option<Probe>, holds| {
            let task = &self;
            async move {
                if let Some(probe) = probe {
                    task.ask(kind, &probe, holds).await;
                }
            }
        };
        tokio::join!(
            asked(ProbeKind::Liveness, self.target.container.liveness_probe.clone(), true),
            asked(ProbeKind::Readiness, self.target.container.readiness_probe.clone(), self.ready),
        );
    }

    /// Asks until the pod ends; a startup probe, until it has succeeded.
    async fn ask(&self, kind: ProbeKind, probe: &Probe, holds: bool) {
        let seconds =
            |value: Option<i32>, default: i32| Duration::from_secs(value.unwrap_or(default).max(0) as u64);
        // Counted from the container's start, which an agent that adopted it did not see.
        let run = Duration::try_from(Timestamp::now().duration_since(self.started_at)).unwrap_or_default();
        tokio::time::sleep(seconds(probe.initial_delay_seconds, 0).saturating_sub(run)).await;
        let mut ticks = tokio::time::interval(seconds(probe.period_seconds, 10).max(Duration::from_secs(1)));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let timeout = seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1));
        let mut thresholds = Thresholds::new(probe, holds);
        loop {
            ticks.tick().await;
            let failure = handlers::probe(probe, &self.target, timeout).await.err();
            let now = thresholds.add(failure.is_none());
            if failure.is_some() || now.is_some() {
                let (container, id) = (self.target.container.name.clone(), self.target.id.clone());
                let verdict = Verdict { container, id, kind, failure, now };
                if self.sender.send(Notice::Probe(verdict)).await.is_err() {
                    return;
                }
            }
            if kind == ProbeKind::Startup && now == Some(true) {
                return;
            }
        }
    }
}

/// Counts successes and failures in a row.
#[derive(Debug)]
struct Thresholds {
    success: u32,
    failure: u32,
    holds: bool,
    row: u32,
    row_of: Option<bool>,
}

impl Thresholds {
    fn new(probe: &Probe, holds: bool) -> Self {
        let at_least_one = |value: Option<i32>, default: i32| value.unwrap_or(default).max(1) as u32;
        Self {
            success: at_least_one(probe.success_threshold, 1),
            failure: at_least_one(probe.failure_threshold, 3),
            holds,
            row: 0,
            row_of: None,
        }
    }

    /// Adds an outcome. A success is told when it changes what holds; failures are told every time that
    /// their threshold is reached, because what a failure asks for may have been done meanwhile.
    fn add(&mut self, ok: bool) -> Option<bool> {
        self.row = if self.row_of == Some(ok) { self.row + 1 } else { 1 };
        self.row_of = Some(ok);
        let threshold = if ok { self.success } else { self.failure };
        if self.row < threshold || (ok && self.holds) {
            return None;
        }
        self.holds = ok;
        Some(ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_count_in_a_row() {
        let probe = Probe { failure_threshold: Some(3), ..Probe::default() };
        let mut live = Thresholds::new(&probe, true);
        let told: Vec<Option<bool>> =
            [false, false, true, false, false, false].into_iter().map(|ok| live.add(ok)).collect();
        assert_eq!(told, [None, None, None, None, None, Some(false)]);
        let mut ready = Thresholds::new(&Probe { success_threshold: Some(2), ..Probe::default() }, false);
        assert_eq!([ready.add(true), ready.add(true), ready.add(true)], [None, Some(true), None]);
    }
}
