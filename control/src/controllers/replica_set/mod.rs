//! ReplicaSets and ReplicationControllers: as many pods as asked for, no more.
//!
//! Owns the number of their pods and their status. A turn compares the pods that are there, including those
//! this loop made or deleted a moment ago, with the number that is asked for, and makes or deletes the
//! difference: at most [`BURST_MAX`] a turn. Which pods go first is [`rank`]'s.

mod rank;
mod status;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Instant;

use api::{LabelSelector, Status};
use k8s_openapi::api::apps::v1::ReplicaSet;
use serde_json::{Value, json};

pub(super) use self::rank::condition;
pub(super) use self::status::available_in;
use super::owners::{BURST_MAX, Controller, Failure, Owner, Work, is_active, pod_of};
use crate::registry::Object;

/// The loop over one of the two kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Replicas {
    /// Of today.
    Set,
    /// Of old, whose selector is a plain set of labels.
    Controller,
}

impl Controller for Replicas {
    fn owner(&self) -> (&'static str, &'static str) {
        match self {
            Self::Set => ("apps", "ReplicaSet"),
            Self::Controller => ("", "ReplicationController"),
        }
    }

    fn component(&self) -> &'static str {
        match self {
            Self::Set => "replicaset-controller",
            Self::Controller => "replication-controller",
        }
    }

    fn selector(&self, owner: &Object) -> Option<LabelSelector> {
        match self {
            Self::Set => super::children::selector_of(owner.value()),
            Self::Controller => labels_selector(&owner.value()["spec"]["selector"]),
        }
    }

    fn is_adoptable(&self, child: &Object) -> bool {
        is_active(child)
    }

    async fn turn(&self, work: &mut Work<'_>, owner: &Owner<'_>) -> Result<Option<Instant>, Status> {
        let active: Vec<Arc<Object>> = owner.children.iter().filter(|pod| is_active(pod)).cloned().collect();
        let (active, failure) = match owner.is_deleting {
            true => (active, None),
            false => manage(work, owner, active).await,
        };
        let cause = failure.as_ref().map(|failure| (failure.reason, failure.status.message()));
        let next = self.report(work, owner, &active, cause).await?;
        failure.map_or(Ok(next), |failure| Err(failure.status))
    }
}

/// A selector of objects that have all of these labels; `None` where there are none.
pub(super) fn labels_selector(labels: &Value) -> Option<LabelSelector> {
    labels.as_object().filter(|labels| !labels.is_empty())?;
    let typed = serde_json::from_value(json!({"matchLabels": labels})).ok()?;
    LabelSelector::from_typed(Some(&typed)).ok()
}

/// Makes or deletes the difference; gives the pods that are there then.
async fn manage(
    work: &mut Work<'_>,
    owner: &Owner<'_>,
    mut active: Vec<Arc<Object>>,
) -> (Vec<Arc<Object>>, Option<Failure>) {
    let wanted = owner.value()["spec"]["replicas"].as_u64().unwrap_or(1);
    let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
    if active.len() < wanted {
        let missing = (wanted - active.len()).min(BURST_MAX);
        let mut pod = pod_of(&owner.value()["spec"]["template"], &owner.reference);
        pod["metadata"]["generateName"] = json!(format!("{}-", owner.object.name()));
        let (made, failure) = work.create(owner, vec![pod; missing]).await;
        active.extend(made);
        return (active, failure);
    }
    let surplus = (active.len() - wanted).min(BURST_MAX);
    if surplus == 0 {
        return (active, None);
    }
    let mut ranked = rank::by_dispensability(active);
    let mut stay = ranked.split_off(surplus);
    let (stayed, failure) = work.delete(owner, ranked).await;
    stay.extend(stayed);
    (stay, failure)
}

impl Replicas {
    /// Writes the status if it changed; says when a pod will have been ready long enough.
    async fn report(
        self,
        work: &Work<'_>,
        owner: &Owner<'_>,
        active: &[Arc<Object>],
        failure: Option<(&str, &str)>,
    ) -> Result<Option<Instant>, Status> {
        let typed = match self {
            Self::Set => owner.object.decode::<ReplicaSet>().ok(),
            // The same in all but the selector, which the status does not look at.
            Self::Controller => {
                let mut value = owner.value().clone();
                value["spec"]["selector"] = json!({});
                serde_json::from_value(value).ok()
            }
        };
        let Some(typed) = typed else { return Ok(None) };
        let now = super::whole_seconds(jiff::Timestamp::now());
        let (status, next) = status::of(&typed, active, failure, now);
        work.report(owner.object, json!(status)).await?;
        Ok(next.map(|wait| Instant::now() + wait))
    }
}
