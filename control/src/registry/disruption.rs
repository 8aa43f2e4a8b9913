//! Why pods are taken from those who run them: what their condition `DisruptionTarget` says
//! (<https://kubernetes.io/docs/concepts/workloads/pods/disruptions/#pod-disruption-conditions>).
//!
//! It is written with the deletion, so that whoever sees one sees the other: a Job does not count such a pod's end
//! against its back-off limit if its policy says so.

use api::object;
use jiff::Timestamp;
use serde_json::{Value, json};

/// Why a pod has to go, in the words of Kubernetes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disruption {
    /// For a pod that matters more.
    Preemption,
    /// Somebody asked for its eviction.
    Eviction,
    /// Its node has a taint that it does not tolerate.
    Taint,
    /// Its node is no more.
    NodeGone,
}

impl Disruption {
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Preemption => (
                "PreemptionByScheduler",
                "default-scheduler: preempting to accommodate a higher priority pod",
            ),
            Self::Eviction => ("EvictionByEvictionAPI", "Eviction API: evicting"),
            Self::Taint => ("DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint"),
            Self::NodeGone => ("DeletionByPodGC", "PodGC: node no longer exists"),
        }
    }

    /// Writes it into a pod.
    pub(crate) fn tell(self, pod: &mut Value, now: Timestamp) {
        let (reason, message) = self.words();
        let condition = json!({
            "type": "DisruptionTarget", "status": "True", "reason": reason, "message": message, "lastProbeTime": null,
        });
        set_condition(pod, condition, &object::timestamp(now));
    }
}

/// Puts a condition in the place of the one of its type. The time of its last transition stands while its
/// status does.
pub(crate) fn set_condition(pod: &mut Value, mut condition: Value, now: &str) {
    if !pod["status"].is_object() {
        pod["status"] = json!({"phase": "Pending"});
    }
    if !pod["status"]["conditions"].is_array() {
        pod["status"]["conditions"] = json!([]);
    }
    let Some(conditions) = pod["status"]["conditions"].as_array_mut() else { return };
    let known = conditions.iter_mut().find(|known| known["type"] == condition["type"]);
    condition["lastTransitionTime"] = match &known {
        Some(known) if known["status"] == condition["status"] => known["lastTransitionTime"].clone(),
        _ => Value::from(now),
    };
    match known {
        Some(known) => *known = condition,
        None => conditions.push(condition),
    }
}
