//! Deletion: at once, gracefully, or when the last finalizer goes.

use std::sync::Arc;

use api::object::{FOREGROUND_FINALIZER, ORPHAN_FINALIZER};
use api::{Kind, Status, object};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::list::parse_version;
use super::strategies::{self, Grace};
use super::update::{Run, Step};
use super::{DeleteOptions, ListOptions, Object, ObjectList, Propagation, Registry, Target};

/// How a deletion ended.
#[derive(Debug, Clone)]
pub struct Deleted {
    /// The object as it last was, or as it now is when it still has to wait.
    pub object: Arc<Object>,
    /// Whether it is gone. Otherwise it goes when its node has stopped it or its last finalizer is removed.
    pub removed: bool,
}

impl Registry {
    /// Deletes an object.
    pub async fn delete(&self, target: Target<'_>, options: &DeleteOptions) -> Result<Deleted, Status> {
        strategies::of(target.kind).check_delete(target.name)?;
        let version = options.resource_version.as_deref().map(parse_version).transpose()?;
        let now = self.now();
        let stepped = self
            .step(target, Run::Delete(options), |current| {
                check_preconditions(target, current, options.uid.as_deref(), version)?;
                Ok(plan(target.kind, current.value(), options, now))
            })
            .await?;
        Ok(Deleted { object: stepped.object, removed: stepped.removed })
    }

    /// Deletes every object that a list gives; gives what was deleted.
    pub async fn delete_collection(
        &self,
        kind: &'static Kind,
        namespace: Option<&str>,
        list: &ListOptions,
        options: &DeleteOptions,
    ) -> Result<ObjectList, Status> {
        let mut listed = self.list(kind, namespace, list).await?;
        let mut deleted = Vec::with_capacity(listed.items.len());
        for object in &listed.items {
            let target = Target::new(kind, object.namespace(), object.name());
            match self.delete(target, options).await {
                Ok(outcome) => deleted.push(outcome.object),
                Err(status) if status.reason() == "NotFound" => {}
                Err(status) => return Err(status),
            }
        }
        listed.items = deleted;
        Ok(listed)
    }
}

fn check_preconditions(
    target: Target<'_>,
    current: &Object,
    uid: Option<&str>,
    version: Option<u64>,
) -> Result<(), Status> {
    let has = object::uid(current.value());
    let refuse = |what: String| Err(Status::conflict(target.kind, target.name, &what));
    if let Some(uid) = uid.filter(|uid| *uid != has) {
        return refuse(format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {has}"));
    }
    let has = current.revision();
    if let Some(version) = version.filter(|version| *version != has) {
        return refuse(format!(
            "Precondition failed: ResourceVersion in precondition: {version}, ResourceVersion in object meta: {has}"
        ));
    }
    Ok(())
}

/// What a deletion does to the object: pure.
fn plan(kind: &'static Kind, current: &Value, options: &DeleteOptions, now: Timestamp) -> Step {
    let grace = strategies::of(kind).grace(current, options.grace_period_s);
    let mut finalizers = finalizers(current, options.propagation);
    if let Some(own) = strategies::of(kind).deletion_finalizer()
        && object::deletion_timestamp(current).is_none()
        && !finalizers.iter().any(|finalizer| finalizer == own)
    {
        finalizers.push(own.to_owned());
    }
    let waits = !finalizers.is_empty() || strategies::has_spec_finalizers(kind, current);
    let seconds = match grace {
        Grace::None if !waits => return Step::Delete,
        Grace::None => None,
        Grace::Seconds(0) if !waits => return Step::Delete,
        Grace::Seconds(seconds) => Some(seconds),
    };
    let pending = object::deletion_timestamp(current).is_some();
    let is_same = object::finalizers(current).eq(finalizers.iter().map(String::as_str));
    let before = object::deletion_grace_period_s(current);
    // A second deletion can only shorten the wait, or change what happens to dependents.
    if pending
        && is_same
        && (seconds.is_none() || before.is_some_and(|before| before <= seconds.unwrap_or(0)))
    {
        return Step::Keep;
    }
    let seconds = seconds.map(|asked| before.filter(|_| pending).map_or(asked, |before| before.min(asked)));
    let mut next = current.clone();
    object::set_metadata(&mut next, "resourceVersion", Value::Null);
    if !is_same {
        object::set_metadata(&mut next, "finalizers", finalizers);
    }
    let due = deletion_time(current, now, seconds.unwrap_or(0), before.filter(|_| pending));
    object::set_metadata(&mut next, "deletionTimestamp", object::timestamp(due));
    object::set_metadata(&mut next, "deletionGracePeriodSeconds", seconds.unwrap_or(0));
    if kind.has_generation && !pending {
        object::set_generation(&mut next, object::generation(current) + 1);
    }
    if let Some(disruption) = options.disruption.filter(|_| !pending) {
        disruption.tell(&mut next, now);
    }
    strategies::of(kind).begin_delete(&mut next);
    Step::Put(next)
}

/// What holds the object back once its deletion has begun: what it has, and what the deletion asks about its
/// dependents.
fn finalizers(current: &Value, propagation: Option<Propagation>) -> Vec<String> {
    let has = object::finalizers(current).map(str::to_owned);
    let Some(propagation) = propagation else { return has.collect() };
    let mut finalizers: Vec<String> =
        has.filter(|name| name != FOREGROUND_FINALIZER && name != ORPHAN_FINALIZER).collect();
    match propagation {
        Propagation::Background => {}
        Propagation::Foreground => finalizers.push(FOREGROUND_FINALIZER.to_owned()),
        Propagation::Orphan => finalizers.push(ORPHAN_FINALIZER.to_owned()),
    }
    finalizers
}

/// When the object must be gone; a shortened wait counts from the first deletion.
fn deletion_time(current: &Value, now: Timestamp, seconds: i64, before: Option<i64>) -> Timestamp {
    let requested = object::deletion_timestamp(current)
        .and_then(object::parse_timestamp)
        .zip(before)
        .and_then(|(due, before)| due.checked_sub(SignedDuration::from_secs(before)).ok());
    requested.unwrap_or(now).checked_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(status: &str, node: &str) -> Value {
        json!({"kind": "Pod", "metadata": {"name": "x", "generation": 1},
            "spec": {"nodeName": node, "terminationGracePeriodSeconds": 30}, "status": {"phase": status}})
    }

    fn plan_pod(pod: &Value, grace_period_s: Option<i64>) -> Step {
        let kind = api::kinds::by_kind("", "v1", "Pod").unwrap();
        let options = DeleteOptions { grace_period_s, ..DeleteOptions::default() };
        plan(kind, pod, &options, "2024-01-01T00:00:00Z".parse().unwrap())
    }

    #[test]
    fn a_bound_pod_gets_its_grace_and_a_second_deletion_only_shortens_it() {
        let Step::Put(pending) = plan_pod(&pod("Running", "n1"), None) else { panic!("must wait") };
        assert_eq!(pending["metadata"]["deletionTimestamp"], "2024-01-01T00:00:30Z");
        assert_eq!(pending["metadata"]["deletionGracePeriodSeconds"], 30);
        assert_eq!(pending["metadata"]["generation"], 2);
        assert!(matches!(plan_pod(&pending, Some(60)), Step::Keep));
        assert!(matches!(plan_pod(&pending, None), Step::Keep));
        let Step::Put(shorter) = plan_pod(&pending, Some(5)) else { panic!("must wait") };
        assert_eq!(shorter["metadata"]["deletionTimestamp"], "2024-01-01T00:00:05Z");
        assert!(matches!(plan_pod(&pending, Some(0)), Step::Delete));
    }

    #[test]
    fn pods_that_run_nowhere_go_at_once_unless_a_finalizer_holds_them() {
        assert!(matches!(plan_pod(&pod("Pending", ""), None), Step::Delete));
        assert!(matches!(plan_pod(&pod("Succeeded", "n1"), None), Step::Delete));
        let mut held = pod("Pending", "");
        held["metadata"]["finalizers"] = json!(["example.com/hold"]);
        let Step::Put(pending) = plan_pod(&held, None) else { panic!("must wait") };
        assert_eq!(pending["metadata"]["deletionGracePeriodSeconds"], 0);
    }

    #[test]
    fn what_becomes_of_dependents_holds_the_object_back() {
        let kind = api::kinds::by_kind("", "v1", "ConfigMap").unwrap();
        let map = json!({"kind": "ConfigMap", "metadata": {"name": "x"}});
        let plan = |object: &Value, propagation| {
            let options = DeleteOptions { propagation, ..DeleteOptions::default() };
            super::plan(kind, object, &options, "2024-01-01T00:00:00Z".parse().unwrap())
        };
        assert!(matches!(plan(&map, None), Step::Delete));
        assert!(matches!(plan(&map, Some(Propagation::Background)), Step::Delete));
        let Step::Put(waiting) = plan(&map, Some(Propagation::Foreground)) else { panic!("must wait") };
        assert_eq!(waiting["metadata"]["finalizers"], json!(["foregroundDeletion"]));
        assert!(matches!(plan(&waiting, None), Step::Keep));
        let Step::Put(other) = plan(&waiting, Some(Propagation::Orphan)) else { panic!("must wait") };
        assert_eq!(other["metadata"]["finalizers"], json!(["orphan"]));
        assert_eq!(other["metadata"]["deletionTimestamp"], waiting["metadata"]["deletionTimestamp"]);
        assert!(
            matches!(plan(&waiting, Some(Propagation::Background)), Step::Delete),
            "it waits for nobody now"
        );
    }
}
