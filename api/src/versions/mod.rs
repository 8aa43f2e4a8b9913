//! Built-in kinds that are served in a second version.
//!
//! Such a kind is a row of its own that names the one it is stored as ([`Kind::stored_as`]); here is what turns the
//! stored form into the shown one and back. Promises that what is shown and stored again is what it was, and that
//! both functions stand any JSON. Defaults, validation, tables and field selectors have one set of rules, that of
//! the stored form; [`as_stored`] brings an object there.

mod event;
mod horizontal_pod_autoscaler;
mod self_subject_review;

use serde_json::Value;

pub(crate) use self::self_subject_review::SelfSubjectReview;
use crate::kinds::{Kind, kinds};
use crate::object;
use crate::status::Cause;

/// Turns a stored object into its form in this version.
pub fn show(kind: &Kind, object: &mut Value) {
    if kind.stored_as.is_none() || !object.is_object() {
        return;
    }
    match kind.kind {
        "Event" => event::show(object),
        "HorizontalPodAutoscaler" => horizontal_pod_autoscaler::show(object),
        _ => {}
    }
    object["apiVersion"] = Value::from(kind.api_version());
}

/// Turns an object in this version into the stored form.
pub fn store(kind: &Kind, object: &mut Value) {
    if kind.stored_as.is_none() || !object.is_object() {
        return;
    }
    match kind.kind {
        "Event" => event::store(object),
        "HorizontalPodAutoscaler" => horizontal_pod_autoscaler::store(object),
        _ => {}
    }
    object["apiVersion"] = Value::from(kind.stored_kind().api_version());
}

/// The object in the stored form, with the kind that has it.
pub fn as_stored<'a>(kind: &'a Kind, object: &Value) -> (&'a Kind, Value) {
    let mut stored = object.clone();
    store(kind, &mut stored);
    (kind.stored_kind(), stored)
}

/// Brings an object of one version of a kind into another one.
pub fn convert(from: &Kind, to: &Kind, object: &Value) -> Value {
    let (_, mut converted) = as_stored(from, object);
    show(to, &mut converted);
    converted
}

/// Every version of a built-in kind but the one given, preferred ones first.
pub fn others(kind: &Kind) -> impl Iterator<Item = &'static Kind> {
    let identity = |kind: &Kind| (kind.stored_as.unwrap_or((kind.group, kind.version)), kind.kind);
    let (own, name) = (identity(kind), (kind.group, kind.version));
    kinds().iter().filter(move |other| identity(other) == own && (other.group, other.version) != name)
}

/// The field of the stored form that a field selector of this version means, if it means one.
pub fn field(kind: &Kind, field: &str) -> Option<String> {
    match (kind.stored_as, kind.kind) {
        (Some(_), "Event") => event::field(field),
        _ => Some(field.to_owned()),
    }
}

/// What this version asks of a new object beside the rules of the stored form, in which it is given.
pub(crate) fn check_create(kind: &Kind, stored: &Value, causes: &mut Vec<Cause>) {
    if kind.stored_as.is_some() && kind.kind == "Event" {
        event::check_create(stored, causes);
    }
}

/// What this version asks of a change beside the rules of the stored form, in which both are given.
pub(crate) fn check_update(kind: &Kind, old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    if kind.stored_as.is_some() && kind.kind == "Event" && !object::same_but_metadata_and_status(old, new) {
        event::check_update(old, new, causes);
    }
}

/// Gives members other names; what is null or missing stays away.
fn rename(object: &mut Value, names: impl Iterator<Item = (&'static str, &'static str)>) {
    let Some(members) = object.as_object_mut() else { return };
    for (from, to) in names {
        if let Some(value) = members.remove(from).filter(|value| !value.is_null()) {
            members.insert(to.to_owned(), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::{by_kind, kinds};

    #[test]
    fn every_second_version_has_a_first_and_stands_odd_shapes() {
        let mut count = 0;
        for kind in kinds().iter().filter(|kind| kind.stored_as.is_some()) {
            count += 1;
            let stored = kind.stored_kind();
            assert!(stored.stored_as.is_none() && stored.kind == kind.kind && stored.plural == kind.plural);
            assert_eq!((stored.namespaced, stored.has_status), (kind.namespaced, kind.has_status));
            for odd in [
                json!(null),
                json!([]),
                json!({"spec": 1, "status": [], "metadata": "x"}),
                json!({"spec": {"metrics": [1, {"type": 2}]}, "metadata": {"annotations": 3}}),
            ] {
                let mut value = odd.clone();
                show(kind, &mut value);
                store(kind, &mut value);
            }
        }
        assert!(count >= 2);
    }

    #[test]
    fn an_event_is_the_same_in_both_versions() {
        let kind = by_kind("events.k8s.io", "v1", "Event").unwrap();
        let stored = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"},
            "involvedObject": {"kind": "Pod", "name": "p"}, "message": "m", "reason": "r", "count": 3,
            "source": {"component": "c"}, "firstTimestamp": "2024-01-01T00:00:00Z", "reportingComponent": "c"});
        let mut shown = stored.clone();
        show(kind, &mut shown);
        assert_eq!(
            shown,
            json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"},
            "regarding": {"kind": "Pod", "name": "p"}, "note": "m", "reason": "r", "deprecatedCount": 3,
            "deprecatedSource": {"component": "c"}, "deprecatedFirstTimestamp": "2024-01-01T00:00:00Z",
            "reportingController": "c"})
        );
        let (_, back) = as_stored(kind, &shown);
        assert_eq!(back, stored);
        assert_eq!(field(kind, "regarding.name").as_deref(), Some("involvedObject.name"));
        assert_eq!(field(kind, "involvedObject.name"), None);
    }
}
