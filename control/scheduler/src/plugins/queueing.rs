//! SchedulingGates, PrioritySort, Coscheduling: who may be tried, in which order, and together with whom.

use std::time::Duration;

use crate::framework::{Permission, Permit, Plugin, PreEnqueue, QueueSort};
use crate::pod_info::PodInfo;

/// Holds pods back while `spec.schedulingGates` names anything.
#[derive(Debug, Clone, Copy)]
pub struct SchedulingGates;

impl Plugin for SchedulingGates {
    fn name(&self) -> &'static str {
        "SchedulingGates"
    }

    fn pre_enqueue(&self) -> Option<&dyn PreEnqueue> {
        Some(self)
    }
}

impl PreEnqueue for SchedulingGates {
    fn pre_enqueue(&self, pod: &PodInfo) -> Result<(), String> {
        if pod.gates.is_empty() {
            return Ok(());
        }
        Err(format!("waiting for scheduling gates: [{}]", pod.gates.join(" ")))
    }
}

/// The highest priority first, then who waited longest.
#[derive(Debug, Clone, Copy)]
pub struct PrioritySort;

impl Plugin for PrioritySort {
    fn name(&self) -> &'static str {
        "PrioritySort"
    }

    fn queue_sort(&self) -> Option<&dyn QueueSort> {
        Some(self)
    }
}

impl QueueSort for PrioritySort {
    fn key(&self, pod: &PodInfo, since: Duration) -> (i64, Duration) {
        (-i64::from(pod.class.priority), since)
    }
}

/// Schedules the members of a pod group together or not at all. While it stands at `permit`, the core
/// decides on a group in one go, so that nobody ever holds room while waiting for the others.
#[derive(Debug, Clone, Copy)]
pub struct Coscheduling;

impl Coscheduling {
    pub(crate) const NAME: &'static str = "Coscheduling";
}

impl Plugin for Coscheduling {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn permit(&self) -> Option<&dyn Permit> {
        Some(self)
    }
}

impl Permit for Coscheduling {
    fn permit(&self, _pod: &PodInfo, _node: &str) -> Permission {
        Permission::Allow
    }
}
