//! `events.k8s.io/v1` `Event`, stored as that of the core group.

use serde_json::Value;

use super::rename;
use crate::status::Cause;

/// Members as they are stored, and as they are shown.
const NAMES: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];
/// What of an event never changes, as Kubernetes names it; of what is left, only the series counts on.
const FIXED: [(&str, &str); 12] = [
    ("involvedObject", "involvedObject"),
    ("reason", "reason"),
    ("message", "message"),
    ("source", "source"),
    ("firstTimestamp", "firstTimestamp"),
    ("lastTimestamp", "lastTimestamp"),
    ("count", "count"),
    ("type", "type"),
    ("eventTime", "eventTime"),
    ("action", "action"),
    ("reportingComponent", "reportingController"),
    ("reportingInstance", "reportingInstance"),
];
/// A series that counts less is none.
const SERIES_COUNT_MIN: i64 = 2;

pub(super) fn show(event: &mut Value) {
    rename(event, NAMES.into_iter());
}

pub(super) fn store(event: &mut Value) {
    rename(event, NAMES.into_iter().map(|(stored, shown)| (shown, stored)));
}

pub(super) fn field(field: &str) -> Option<String> {
    match field {
        "reason" | "type" | "metadata.name" | "metadata.namespace" => Some(field.to_owned()),
        "reportingController" => Some("reportingComponent".to_owned()),
        _ => field.strip_prefix("regarding.").map(|part| format!("involvedObject.{part}")),
    }
}

/// New events are of the new form: they have a time, and nothing of the old form is set.
pub(super) fn check_create(event: &Value, causes: &mut Vec<Cause>) {
    let text = |field: &str| event[field].as_str().unwrap_or_default();
    check_series(event, causes);
    if text("eventTime").is_empty() {
        causes.push(Cause::required("eventTime", ""));
    }
    if !matches!(text("type"), "Normal" | "Warning") {
        causes.push(Cause::invalid("type", "", &format!("has invalid value: {}", text("type"))));
    }
    for field in ["firstTimestamp", "lastTimestamp"] {
        if !text(field).is_empty() {
            causes.push(Cause::invalid(field, "", "needs to be unset"));
        }
    }
    if event["count"].as_i64().is_some_and(|count| count != 0) {
        causes.push(Cause::invalid("count", "", "needs to be unset"));
    }
    let source = &event["source"];
    if ["component", "host"].iter().any(|field| source[field].as_str().is_some_and(|text| !text.is_empty())) {
        causes.push(Cause::invalid("source", "", "needs to be unset"));
    }
}

pub(super) fn check_update(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    check_series(new, causes);
    for (field, name) in FIXED {
        if old[field] != new[field] {
            causes.push(Cause::invalid(name, new[field].clone(), "field is immutable"));
        }
    }
}

fn check_series(event: &Value, causes: &mut Vec<Cause>) {
    let series = &event["series"];
    if !series.is_object() {
        return;
    }
    if series["count"].as_i64().unwrap_or(0) < SERIES_COUNT_MIN {
        let detail = format!("should be at least {SERIES_COUNT_MIN}");
        causes.push(Cause::invalid("series.count", "", &detail));
    }
    if series["lastObservedTime"].as_str().unwrap_or_default().is_empty() {
        causes.push(Cause::required("series.lastObservedTime", ""));
    }
}
