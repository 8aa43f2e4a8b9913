//! What a disruption budget allows. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::object;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::super::owners::has_ended;
use super::super::replica_set::condition;
use super::EVICTED_MAX;
use crate::registry::Object;

/// How many pods there should be, and how many of them must be healthy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) pods: i64,
    pub(super) healthy: i64,
    /// Why it cannot be said.
    pub(super) failure: Option<String>,
}

/// A percentage of a number, rounded up.
fn share(value: &Value, of: i64) -> i64 {
    match value {
        Value::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            (percent.saturating_mul(of).saturating_add(99)) / 100
        }
        other => other.as_i64().unwrap_or(0),
    }
}

impl Expected {
    /// Where a share of the whole is asked for, the whole is what those who control the pods want.
    pub(super) fn of(
        spec: &Value,
        pods: &[Arc<Object>],
        scale_of: impl Fn(&Object) -> Option<(String, i64)>,
    ) -> Self {
        let least = &spec["minAvailable"];
        if let Some(least) = least.as_i64() {
            return Self { pods: pods.len() as i64, healthy: least, failure: None };
        }
        let mut scales = BTreeMap::new();
        for pod in pods {
            match scale_of(pod) {
                Some((uid, replicas)) => drop(scales.insert(uid, replicas)),
                None => {
                    let failure = format!("found no controllers for pod {:?}", pod.name());
                    return Self { pods: 0, healthy: 0, failure: Some(failure) };
                }
            }
        }
        let whole: i64 = scales.values().sum();
        let healthy = match (least.is_null(), &spec["maxUnavailable"]) {
            (true, Value::Null) => 0,
            (true, most) => (whole - share(most, whole)).max(0),
            (false, _) => share(least, whole),
        };
        Self { pods: whole, healthy, failure: None }
    }
}

/// The status of a budget.
pub(super) fn of(budget: &Value, pods: &[Arc<Object>], expected: &Expected, now: Timestamp) -> Value {
    let old = &budget["status"];
    let mut evicted = serde_json::Map::new();
    for (name, at) in old["disruptedPods"].as_object().into_iter().flatten() {
        let since = at.as_str().and_then(object::parse_timestamp).unwrap_or(now);
        let is_recent =
            now.duration_since(since) < SignedDuration::try_from(EVICTED_MAX).unwrap_or(SignedDuration::ZERO);
        let is_there =
            pods.iter().any(|pod| pod.name() == name && object::deletion_timestamp(pod.value()).is_none());
        if is_recent && is_there {
            evicted.insert(name.clone(), at.clone());
        }
    }
    let is_healthy = |pod: &&Arc<Object>| {
        object::deletion_timestamp(pod.value()).is_none()
            && !has_ended(pod)
            && !evicted.contains_key(pod.name())
            && condition(pod.value(), "Ready").is_some_and(|ready| ready["status"] == "True")
    };
    let current = pods.iter().filter(is_healthy).count() as i64;
    let allowed = match (expected.pods, &expected.failure) {
        (0, _) | (_, Some(_)) => 0,
        _ => (current - expected.healthy).max(0),
    };
    let (state, reason) = match (&expected.failure, allowed) {
        (Some(_), _) => ("False", "SyncFailed"),
        (None, 0) => ("False", "InsufficientPods"),
        (None, _) => ("True", "SufficientPods"),
    };
    let known =
        old["conditions"].as_array().into_iter().flatten().find(|own| own["type"] == "DisruptionAllowed");
    let since = known
        .filter(|own| own["status"] == state)
        .and_then(|own| own["lastTransitionTime"].as_str().map(str::to_owned));
    let generation = object::generation(budget);
    let condition = json!({"type": "DisruptionAllowed", "status": state, "reason": reason,
        "message": expected.failure.clone().unwrap_or_default(), "observedGeneration": generation,
        "lastTransitionTime": since.unwrap_or_else(|| object::timestamp(now))});
    let mut status = json!({
        "observedGeneration": generation,
        "currentHealthy": current,
        "desiredHealthy": expected.healthy,
        "disruptionsAllowed": allowed,
        "expectedPods": expected.pods,
        "conditions": [condition],
    });
    if !evicted.is_empty() {
        status["disruptedPods"] = Value::from(evicted);
    }
    status
}
