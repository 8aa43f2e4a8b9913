//! What the scheduler tells of itself on `/metrics`, under kube-scheduler's names.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use exposition::Exposition;
use scheduler::QueueCounts;

/// Counters and queues. Queues are filled on every replica; only the leader decides.
#[derive(Debug, Default)]
pub struct Metrics {
    scheduled: AtomicU64,
    unschedulable: AtomicU64,
    failed: AtomicU64,
    preempting: AtomicU64,
    victims: AtomicU64,
    queues: Mutex<QueueCounts>,
}

impl Metrics {
    /// A pod was bound.
    pub(super) fn scheduled(&self) {
        self.scheduled.fetch_add(1, Relaxed);
    }

    /// A pod fits nowhere.
    pub(super) fn unschedulable(&self) {
        self.unschedulable.fetch_add(1, Relaxed);
    }

    /// A decision could not be carried out.
    pub(super) fn failed(&self) {
        self.failed.fetch_add(1, Relaxed);
    }

    /// So many pods have to leave for another.
    pub(super) fn preempting(&self, victims: usize) {
        self.preempting.fetch_add(1, Relaxed);
        self.victims.fetch_add(victims as u64, Relaxed);
    }

    /// How many pods wait where.
    pub(super) fn queues(&self, counts: QueueCounts) {
        *self.queues.lock().unwrap_or_else(PoisonError::into_inner) = counts;
    }

    /// Adds the numbers to the text.
    pub fn expose(&self, out: &mut Exposition) {
        let name = "scheduler_schedule_attempts_total";
        out.head(name, "Attempts to schedule pods, by how they ended.", "counter");
        for (result, count) in
            [("scheduled", &self.scheduled), ("unschedulable", &self.unschedulable), ("error", &self.failed)]
        {
            out.sample(name, &format!("result=\"{result}\""), count.load(Relaxed));
        }
        let name = "scheduler_pending_pods";
        out.head(name, "Pods that wait to be scheduled, by what they wait for.", "gauge");
        let counts = *self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        for (queue, count) in [
            ("active", counts.active),
            ("backoff", counts.backoff),
            ("unschedulable", counts.unschedulable),
            ("gated", counts.gated),
        ] {
            out.sample(name, &format!("queue=\"{queue}\""), count);
        }
        let help = "Pods for which others had to leave.";
        out.counter("scheduler_preemption_attempts_total", help, self.preempting.load(Relaxed));
        let help = "Pods that had to leave for others.";
        out.counter("barque_scheduler_victims_total", help, self.victims.load(Relaxed));
    }
}
