//! Validation of the kinds that have few rules.

use serde_json::Value;

use super::{invalid_each, not_negative};
use crate::name;
use crate::object;
use crate::status::Cause;

const REPORTER_BYTES_MAX: usize = 128;
const REASON_BYTES_MAX: usize = 128;
const ACTION_BYTES_MAX: usize = 128;
const MESSAGE_BYTES_MAX: usize = 1024;

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

pub(super) fn namespace(object: &Value, causes: &mut Vec<Cause>) {
    let finalizers = object.pointer("/spec/finalizers").and_then(Value::as_array);
    for finalizer in finalizers.into_iter().flatten().filter_map(Value::as_str) {
        invalid_each("spec.finalizers", finalizer, name::qualified_name(finalizer), causes);
        if !finalizer.contains('/') && finalizer != "kubernetes" {
            causes.push(Cause::invalid(
                "spec.finalizers",
                finalizer,
                "name is neither a standard finalizer name nor is it fully qualified",
            ));
        }
    }
}

pub(super) fn binding(object: &Value, causes: &mut Vec<Cause>) {
    let kind = text(object, "/target/kind");
    if !matches!(kind, "" | "Node") {
        causes.push(Cause::not_supported("target.kind", kind, &["Node", "<empty>"]));
    }
    if text(object, "/target/name").is_empty() {
        causes.push(Cause::required("target.name", ""));
    }
}

pub(super) fn lease(object: &Value, causes: &mut Vec<Cause>) {
    if let Some(seconds) = object.pointer("/spec/leaseDurationSeconds").and_then(Value::as_i64)
        && seconds <= 0
    {
        causes.push(Cause::invalid("spec.leaseDurationSeconds", seconds, "must be greater than 0"));
    }
    if let Some(count) = object.pointer("/spec/leaseTransitions").and_then(Value::as_i64) {
        not_negative("spec.leaseTransitions", count, causes);
    }
}

/// Events without `eventTime` are of the old kind and are checked as little as they always were.
pub(super) fn event(object: &Value, causes: &mut Vec<Cause>) {
    let namespace = object::namespace(object);
    let involved = text(object, "/involvedObject/namespace");
    let fits = if involved.is_empty() { matches!(namespace, "" | "default") } else { involved == namespace };
    if !fits {
        causes.push(Cause::invalid("involvedObject.namespace", involved, "does not match event.namespace"));
    }
    if text(object, "/eventTime").is_empty() {
        return;
    }
    let reporter = text(object, "/reportingComponent");
    if reporter.is_empty() {
        causes.push(Cause::required("reportingController", ""));
    } else {
        invalid_each("reportingController", reporter, name::qualified_name(reporter), causes);
    }
    for (field, pointer, bytes_max) in [
        ("reportingInstance", "/reportingInstance", REPORTER_BYTES_MAX),
        ("action", "/action", ACTION_BYTES_MAX),
        ("reason", "/reason", REASON_BYTES_MAX),
    ] {
        let value = text(object, pointer);
        if value.is_empty() {
            causes.push(Cause::required(field, ""));
        } else if value.len() > bytes_max {
            causes.push(Cause::invalid(field, "", &format!("can have at most {bytes_max} characters")));
        }
    }
    if text(object, "/message").len() > MESSAGE_BYTES_MAX {
        let detail = format!("can have at most {MESSAGE_BYTES_MAX} characters");
        causes.push(Cause::invalid("message", "", &detail));
    }
}
