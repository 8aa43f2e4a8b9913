//! Disruption budgets: how many pods may be evicted now.
//!
//! Owns the status of PodDisruptionBudgets. [`status`] counts; it is pure. Evictions themselves are decided where
//! they are asked for ([`crate::registry`]), against the number that stands here, which each of them lowers.

mod status;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::{LabelSelector, Status};
use serde_json::Value;

use super::children::{controller_of, selector_of};
use super::owners::{Controller, Owner, Work};
use super::work_queue::{Key, key_of};
use crate::reflector::Delta;
use crate::registry::Object;

/// How long an evicted pod counts as going before its eviction is taken to have failed.
const EVICTED_MAX: Duration = Duration::from_secs(120);

/// The loop over PodDisruptionBudgets.
#[derive(Debug, Clone, Copy)]
pub(super) struct Budgets;

impl Controller for Budgets {
    fn owner(&self) -> (&'static str, &'static str) {
        ("policy", "PodDisruptionBudget")
    }

    fn component(&self) -> &'static str {
        "controllermanager"
    }

    fn other(&self) -> Option<(&'static str, &'static str)> {
        Some(("", "Pod"))
    }

    fn concerned(&self, work: &Work<'_>, delta: &Delta) -> Vec<Key> {
        let pod = delta.object();
        let budgets = work.owners.list();
        let own = budgets.iter().filter(|budget| budget.namespace() == pod.namespace());
        own.filter(|budget| selects(budget.value(), pod)).map(|budget| key_of(budget)).collect()
    }

    /// A budget owns nothing.
    fn selector(&self, _owner: &Object) -> Option<LabelSelector> {
        Some(LabelSelector::nothing())
    }

    async fn turn(&self, work: &mut Work<'_>, owner: &Owner<'_>) -> Result<Option<Instant>, Status> {
        if owner.is_deleting {
            return Ok(None);
        }
        let pods = work.context.pods.list();
        let own: Vec<Arc<Object>> = pods
            .iter()
            .filter(|pod| pod.namespace() == owner.object.namespace() && selects(owner.value(), pod))
            .cloned()
            .collect();
        let expected = status::Expected::of(&owner.value()["spec"], &own, |pod| scale_of(work, pod));
        let now = super::whole_seconds(jiff::Timestamp::now());
        let status = status::of(owner.value(), &own, &expected, now);
        let waits = status["disruptedPods"].as_object().is_some_and(|pods| !pods.is_empty());
        work.report(owner.object, status).await?;
        Ok(waits.then(|| Instant::now() + EVICTED_MAX))
    }
}

/// An empty selector means every pod of the namespace.
fn selects(budget: &Value, pod: &Object) -> bool {
    !budget["spec"]["selector"].is_null()
        && selector_of(budget).is_some_and(|selector| selector.matches_object(pod.value()))
}

/// The number of pods that whoever controls this one wants, and who that is.
fn scale_of(work: &Work<'_>, pod: &Object) -> Option<(String, i64)> {
    let mut controller = controller_of(pod)?;
    let namespace = pod.namespace();
    for _ in 0..2 {
        let (group, kind) = match controller.kind.as_str() {
            "ReplicaSet" => ("apps", "ReplicaSet"),
            "StatefulSet" => ("apps", "StatefulSet"),
            "Deployment" => ("apps", "Deployment"),
            "ReplicationController" => ("", "ReplicationController"),
            _ => return None,
        };
        let found = work.context.every(group, kind).get(namespace, &controller.name)?;
        match controller_of(&found) {
            Some(above) => controller = above,
            None => return Some((controller.uid, found.value()["spec"]["replicas"].as_i64().unwrap_or(1))),
        }
    }
    None
}
