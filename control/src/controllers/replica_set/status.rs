//! What a ReplicaSet says of its pods. Pure.

use std::sync::Arc;
use std::time::Duration;

use api::{LabelSelector, object};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;

use super::rank::condition;
use crate::registry::Object;

const FAILURE: &str = "ReplicaFailure";

/// The status, and after how long a pod will have been ready long enough.
pub(super) fn of(
    set: &ReplicaSet,
    active: &[Arc<Object>],
    failure: Option<(&str, &str)>,
    now: Timestamp,
) -> (ReplicaSetStatus, Option<Duration>) {
    let spec = set.spec.clone().unwrap_or_default();
    let labels = spec.template.and_then(|template| template.metadata).and_then(|metadata| metadata.labels);
    let every_label = meta::LabelSelector { match_labels: labels, ..meta::LabelSelector::default() };
    let fully_labelled =
        LabelSelector::from_typed(Some(&every_label)).unwrap_or_else(|_| LabelSelector::nothing());
    let min_ready = SignedDuration::from_secs(spec.min_ready_seconds.unwrap_or(0).into());
    let (mut ready, mut available, mut next) = (0, 0, None);
    for pod in active {
        match available_in(pod, min_ready, now) {
            None => {}
            Some(wait) if wait.is_zero() => (ready, available) = (ready + 1, available + 1),
            Some(wait) => {
                ready += 1;
                next = Some(next.map_or(wait, |next: Duration| next.min(wait)));
            }
        }
    }
    let count = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
    let status = ReplicaSetStatus {
        replicas: count(active.len()),
        fully_labeled_replicas: some(count(
            active.iter().filter(|pod| fully_labelled.matches_object(pod.value())).count(),
        )),
        ready_replicas: some(ready),
        available_replicas: some(available),
        observed_generation: set.metadata.generation,
        conditions: conditions(set, failure, now),
        ..ReplicaSetStatus::default()
    };
    (status, next)
}

/// Numbers that are zero are left out.
fn some(number: i32) -> Option<i32> {
    Some(number).filter(|number| *number != 0)
}

/// After how long a ready pod counts as available; `None`: it is not ready.
pub(in crate::controllers) fn available_in(
    pod: &Object,
    min_ready: SignedDuration,
    now: Timestamp,
) -> Option<Duration> {
    let ready = condition(pod.value(), "Ready").filter(|ready| ready["status"] == "True")?;
    if min_ready.is_zero() {
        return Some(Duration::ZERO);
    }
    let since = ready["lastTransitionTime"].as_str().and_then(object::parse_timestamp).unwrap_or(now);
    let wait = min_ready.checked_sub(now.duration_since(since)).unwrap_or_default();
    Some(Duration::try_from(wait).unwrap_or(Duration::ZERO))
}

fn conditions(
    set: &ReplicaSet,
    failure: Option<(&str, &str)>,
    now: Timestamp,
) -> Option<Vec<ReplicaSetCondition>> {
    let known = set.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let (before, mut conditions): (Vec<_>, Vec<_>) =
        known.into_iter().partition(|condition| condition.type_ == FAILURE);
    if let Some((reason, message)) = failure {
        let same = before.into_iter().find(|condition| condition.reason.as_deref() == Some(reason));
        conditions.push(same.unwrap_or_else(|| ReplicaSetCondition {
            type_: FAILURE.to_owned(),
            status: "True".to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_transition_time: Some(meta::Time(now)),
        }));
    }
    Some(conditions).filter(|conditions| !conditions.is_empty())
}
