//! Defaults of what makes pods of a template.

use serde_json::{Map, Value};

use super::{child, pod, set};
use crate::object::child_mut;

pub(super) fn replica_set(object: &mut Value) {
    if let Some(spec) = spec(object) {
        set(spec, "replicas", 1);
        pod::template(spec);
    }
}

pub(super) fn deployment(object: &mut Value) {
    let Some(spec) = spec(object) else { return };
    set(spec, "replicas", 1);
    set(spec, "revisionHistoryLimit", 10);
    set(spec, "progressDeadlineSeconds", 600);
    if let Some(strategy) = child_mut(spec, "strategy") {
        if strategy.get("type").and_then(Value::as_str) == Some("") {
            strategy.remove("type");
        }
        set(strategy, "type", "RollingUpdate");
        if strategy["type"] == "RollingUpdate"
            && let Some(rolling) = child_mut(strategy, "rollingUpdate")
        {
            set(rolling, "maxUnavailable", "25%");
            set(rolling, "maxSurge", "25%");
        }
    }
    pod::template(spec);
}

fn spec(object: &mut Value) -> Option<&mut Map<String, Value>> {
    child(object.as_object_mut()?, "spec")
}
